"""The part of the statement that a site can change: addresses, parameters, security."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dicom_node import tls
from dicom_node.audit.syslog import UdpCollector
from dicom_node.config import Settings
from dicom_node.conformance.markdown import bullets, section, table

#: Sections that bear on what peers see; the others hold addresses of databases, or the model's.
SECTIONS = ("node", "listener", "tls", "disk", "retention", "study", "results", "jobs")


def communication() -> str:
    """Return the communication profiles and network interfaces."""
    return section(
        2,
        "5 Communication profiles and network interfaces",
        bullets(
            [
                "DICOM Upper Layer over TCP/IP (PS3.8 9.1) on whatever interface the operating "
                "system gives; the physical medium does not matter.",
                "DICOM over TLS (PS3.15 B.12), as server and as client: see 9.1.",
                "IPv4 and IPv6. `node.host` is the address that is listened on: an IPv4 one, or "
                "`::` for both. Peers may be named by address, network or host name.",
            ]
        ),
    )


def configuration(settings: Settings) -> str:
    """Return the configuration: titles and addresses, then every parameter."""
    return "\n\n".join(
        [
            section(2, "6 Configuration"),
            section(3, "6.1 AE title and presentation address", _local(settings)),
            section(3, "6.2 Peers", _peers(settings)),
            section(
                3,
                "6.3 Parameters",
                "Set in `dicom-node.toml` or by `DICOM_NODE_<SECTION>__<KEY>`; read at each start "
                "(certificates: on SIGHUP too).",
                *(_parameters(settings, name) for name in SECTIONS),
            ),
        ]
    )


def security(settings: Settings) -> str:
    """Return what protects associations and objects."""
    return "\n\n".join(
        [
            section(2, "9 Security"),
            section(3, "9.1 Secure transport connection", _secure_transport(settings)),
            section(
                3,
                "9.2 Association level",
                "Access by AE title and address (4.4.1). A title alone lets nobody in; without a "
                "configured source nobody is.",
            ),
            section(
                3,
                "9.3 Application level",
                bullets(
                    [
                        "User identity negotiation: none.",
                        "Digital signatures: preserved in stored objects, not checked, not made.",
                        "De-identification: none. What is sent bears the patient's identity; logs "
                        "and figures bear none.",
                    ]
                ),
            ),
            section(3, "9.4 Audit trail", _audit_trail(settings)),
        ]
    )


def _audit_trail(settings: Settings) -> str:
    longest = UdpCollector.longest
    points = [
        "Audit Trail Message Format Profile (PS3.15 A.5), without extensions of the schema. "
        "Messages: Application Activity, DICOM Instances Transferred (received studies, sent "
        "results), Export (results by HL7 and FHIR, and to files), Query (C-FIND as SCU, except "
        "what proves a delivery), Security Alert (refused callers). Of a patient they have the "
        "Patient ID only. docs/audit.md says when each is made.",
        "UserID: `role@host:process` of ours, AE title, host, URI or login@host of others. "
        "AuditSourceID: our AE title; AuditEnterpriseSiteID: `node.institution`.",
        "Audit Trail Message Transmission Profile SYSLOG-TLS (PS3.15 A.6), both sides with a "
        "certificate, messages of any length; or SYSLOG-UDP (PS3.15 A.7), messages of up to "
        f"{longest} bytes. PRI 85, APP-NAME dicom-node, MSGID DICOM+RFC3881, no STRUCTURED-DATA; "
        "MSG in ASCII without a byte order mark.",
        "Messages that the collector has not got are kept without limit; by TLS none is lost.",
    ]
    url = settings.audit.url
    here = f"The collector here is {url}." if url else "There is no collector here (`audit.url`)."
    return f"{bullets(points)}\n\n{here}"


def _local(settings: Settings) -> str:
    node, port = settings.node, settings.tls.port
    return table(
        ["Application entity", "AE title", "Address", "Port", "TLS port"],
        [("dicom-node", node.ae_title, node.host, node.port, port or "none")],
    )


def _peers(settings: Settings) -> str:
    peers = [peer for peer in settings.peers if peer.protocol == "dicom"]
    if not peers:
        return "None is configured: every association is rejected, and nothing is sent."
    return table(
        ["Name", "AE title", "Addresses", "Port", "Roles", "Proof", "Queries to", "TLS"],
        [
            (
                peer.name,
                peer.ae_title,
                ", ".join(peer.host),
                peer.port if peer.is_destination else "",
                ", ".join(peer.roles),
                peer.proof if peer.is_destination else "",
                f"{peer.for_queries.ae_title}:{peer.for_queries.port}"
                if peer.proof == "find"
                else "",
                "yes" if peer.tls else "no",
            )
            for peer in peers
        ],
    )


def _parameters(settings: Settings, name: str) -> str:
    kind = type(getattr(settings, name))
    schema = kind.model_json_schema()["properties"]
    rows = [
        (f"{name}.{key}", _permitted(schema[key]), *_values(settings, name, key))
        for key in kind.model_fields
    ]
    return section(
        4,
        f"[{name}]",
        str(kind.__doc__).partition("\n")[0].replace("``", "`"),
        table(["Parameter", "Permitted", "Default", "This node"], rows),
    )


def _values(settings: Settings, section: str, key: str) -> tuple[str, str]:
    default, value = (
        getattr(getattr(one, section), key) for one in (Settings.model_construct(), settings)
    )
    if value == default:
        return _shown(default), "the default"
    # A file that holds a secret may have been given in the place of its name.
    return _shown(default), "set" if section == "tls" and isinstance(value, str) else _shown(value)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return json.dumps(value)
    return f"{value:.15g}" if isinstance(value, float) else str(value) or "empty"


def _permitted(schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in few words."""
    if "enum" in schema:
        return ", ".join(str(value) for value in schema["enum"])
    if "items" in schema:
        return f"a list of {_permitted(schema['items'])}"
    words = [f"{word} {_shown(schema[key])}" for key, word in _BOUNDS.items() if key in schema]
    return ", ".join([_WORDS[schema["type"]], *words])


_WORDS = {"string": "text", "boolean": "true, false", "integer": "a number", "number": "a number"}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "maxLength": "length at most",
}


def _secure_transport(settings: Settings) -> str:
    suites = [name for name in tls._CIPHER_SUITES.split(":") if not name.startswith("@")]
    points = [
        "The BCP 195 RFC 8996, 9325 TLS Secure Transport Connection Profile (PS3.15 B.12): TLS 1.2 "
        "and 1.3, no compression, no renegotiation, no resumed sessions.",
        f"Cipher suites of TLS 1.2, in OpenSSL's names: {', '.join(suites)}; of TLS 1.3 all.",
        "Both sides show a certificate, and each is checked against `tls.authorities`. As a "
        "client the node also checks that the certificate names the host it calls. RSA keys have "
        "at least 2048 bits.",
        "Certificates are read again on SIGHUP; associations that are open go on.",
        "A peer with `tls = true` is called by TLS, and is let in by TLS only.",
    ]
    port = settings.tls.port
    here = f"The TLS port here is {port}." if port else "There is no TLS port here (`tls.port`)."
    return f"{bullets(points)}\n\n{here}"
