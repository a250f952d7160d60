"""Settings: defaults < ``dicom-node.toml`` < ``DICOM_NODE_<SECTION>__<KEY>`` < flags.

One frozen :class:`Settings` is built once, in the CLI, and passed down; no other module reads the
environment. Unknown keys are errors that name the nearest known one.
"""

from __future__ import annotations

import difflib
import ipaddress
import itertools
import json
import random
import re
import tomllib
from collections.abc import Collection, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from dicom_node.errors import ConfigurationError

PREFIX = "DICOM_NODE_"
FILE_SUFFIX = "_file"  # a secret may be given as the path of a file that holds it

# PS3.5 6.2, VR AE: at most 16 characters of the default repertoire, no backslash, not only spaces.
# Leading and trailing spaces are not significant.
AeTitle = Annotated[
    str,
    Field(max_length=16, pattern=r"^ *[\x21-\x5b\x5d-\x7e][\x20-\x5b\x5d-\x7e]*$"),
    AfterValidator(lambda title: title.strip(" ")),
]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(ge=0)]


def _list_in_a_variable(value: object) -> object:
    return _json("a list", value) if isinstance(value, str) else value


#: PS3.3 C.7.3.1.1.1
Modalities = Annotated[
    tuple[Annotated[str, Field(pattern=r"^[A-Z0-9_ ]{1,16}$")], ...],
    BeforeValidator(_list_in_a_variable),
]

Raw = dict[str, object]

#: Kinds of result; of one reading the first that is made stands for the others.
KINDS = ("text_sr", "coded_sr", "pdf", "capture", "gsps", "hl7", "fhir")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Node(_Section):
    """Who we are on the network and where we write."""

    ae_title: AeTitle = "DICOMNODE"
    host: str = "0.0.0.0"
    port: Port = 11112
    data: Path = Path("./data")
    institution: str = ""
    #: &ZZXX (PS3.3 C.12.1.1.8), for sources that do not say; empty: not stated
    timezone_offset: Annotated[str, Field(pattern=r"^([+-]\d{4})?$")] = ""


class Listener(_Section):
    """The bounds of the DICOM port; each receiver process keeps them for itself."""

    #: processes that share the port (SO_REUSEPORT); 0: one for every two cores, at most 4
    processes: Annotated[int, Field(ge=0, le=64)] = 0
    associations: Annotated[int, Field(ge=1, le=1024)] = 64
    associations_per_address: Annotated[int, Field(ge=1, le=1024)] = 32


class Tls(_Section):
    """DICOM over TLS, both sides with a certificate (PS3.15 B.12)."""

    port: Annotated[int, Field(ge=0, le=65535)] = 0  #: 2762 by custom (PS3.8 9.1.1); 0: no TLS port
    certificate: str = ""  #: PEM file, ours and what leads from it to the authority
    private_key: str = ""  #: PEM file
    authorities: str = ""  #: PEM file of those who may have signed a peer's certificate

    @model_validator(mode="after")
    def _all_or_nothing(self) -> Self:
        files = {"certificate": self.certificate, "private_key": self.private_key}
        files["authorities"] = self.authorities
        missing = [name for name, value in files.items() if not value]
        if missing and (self.port or len(missing) < len(files)):
            raise ValueError(f"tls: set {', '.join(missing)} too")
        return self

    @property
    def configured(self) -> bool:
        """Are there certificates?"""
        return bool(self.certificate)


class Disk(_Section):
    """How full the disk under ``node.data`` may become before senders must wait."""

    high_percent: Annotated[float, Field(gt=0, le=100)] = 95  #: nothing is taken above
    low_percent: Annotated[float, Field(gt=0, le=100)] = 90  #: and taken again below

    @model_validator(mode="after")
    def _low_is_lower(self) -> Self:
        if self.low_percent >= self.high_percent:
            raise ValueError("disk: low_percent must be below high_percent")
        return self


class Retention(_Section):
    """How long finished studies are kept; unfinished ones are always kept. 0: for ever."""

    pixels_days: Annotated[float, Field(ge=0)] = 30  #: the received files
    metadata_days: Annotated[float, Field(ge=0)] = 0  #: rows, drafts, reports, vectors


class Service(_Section):
    """A server that may be ours (empty: embedded) or the site's."""

    url: str = ""


class Study(_Section):
    """When a study is looked at, and when it is complete."""

    quiet_seconds: Seconds = 60
    ready_seconds: Seconds = 3  #: a frontal image is read after this much silence


class Model(_Section):
    """The report model: an entry point of the group ``dicom_node.models``."""

    name: str = "llava-rad"
    path: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    slots: Annotated[int, Field(ge=0, le=64)] = 0  #: reports at once; 0: what the memory holds
    #: tokens guessed ahead and checked in one pass (they change the speed only); 0: none
    draft_tokens: Annotated[int, Field(ge=0, le=15)] = 3
    max_new_tokens: Annotated[int, Field(ge=0, le=4096)] = 0  #: 0: the model's own limit
    report_seconds: Seconds = 0  #: a report that takes longer fails; 0: no limit


class Results(_Section):
    """Which objects go back, and how they are written."""

    text_sr: bool = True
    text_sr_class: Literal["basic", "enhanced", "comprehensive"] = "basic"
    coded_sr: bool = False
    coded_sr_class: Literal["comprehensive3d", "comprehensive", "enhanced"] = "comprehensive3d"
    pdf: bool = False
    capture: bool = False
    gsps: bool = False  #: text over the image that the radiologist reads
    hl7: bool = False  #: ORU^R01 to peers with protocol "hl7"
    fhir: bool = False  #: DiagnosticReport to peers with protocol "fhir"
    #: what a peer that takes no SR gets instead, in this order; empty: nothing, the draft waits
    fallback: tuple[Literal["pdf", "capture"], ...] = ("pdf", "capture")
    on_no_input: Literal["none", "status-sr"] = "none"
    legacy_heading_codes: bool = False  #: the retired DCM section headings
    series_number_base: Annotated[int, Field(ge=0, le=2**31 - 10)] = 9900
    content_qualification: Literal["RESEARCH", "PRODUCT"] = "RESEARCH"
    hl7_status: Literal["R", "P"] = "R"  #: OBR-25; P says that somebody verified the draft

    @field_validator("fallback", mode="before")
    @classmethod
    def _list_in_a_variable(cls, value: object) -> object:
        return _json("results.fallback", value) if isinstance(value, str) else value

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of result that are made, the one that stands for the draft first."""
        return tuple(kind for kind in KINDS if getattr(self, kind))


class Delivery(_Section):
    """How drafts go out, beside the leases and repeats of ``[jobs]``."""

    at_once: Annotated[int, Field(ge=1, le=16)] = 2  #: sent to one peer at a time
    open_after: Annotated[int, Field(ge=1)] = 3  #: failures in a row until a peer is left alone
    #: a peer that has not reported on a storage commitment request by then is asked again
    commitment_seconds: Annotated[float, Field(gt=0)] = 600


class Reconciliation(_Section):
    """What the PACS has and we have not; asked of peers with the role ``query``."""

    days: Annotated[int, Field(ge=0, le=3650)] = 0  #: how many days back; 0: never asked
    modalities: Modalities = ("CR", "DX")
    every_minutes: Annotated[float, Field(gt=0)] = 60
    #: a study that is missing is left alone so long: its sender may not have come to it yet
    patience_minutes: Annotated[float, Field(ge=0)] = 30
    studies_per_hour: Annotated[int, Field(ge=1)] = 60  #: missed ones fetched at most
    priors: Annotated[int, Field(ge=0, le=20)] = 0  #: earlier studies fetched for each new one


class Worklist(_Section):
    """Modality Worklist: asked of peers with the role ``worklist``."""

    every_seconds: Annotated[float, Field(gt=0)] = 60
    modalities: Modalities = ("CR", "DX")


class Audit(_Section):
    """Audit messages (PS3.15 A.5) to the site's collector."""

    url: str = ""  #: udp://HOST:PORT or tls://HOST:PORT (RFC 5426, 5425); empty: none are made

    @field_validator("url")
    @classmethod
    def _names_transport_host_and_port(cls, url: str) -> str:
        found = re.fullmatch(r"(?:udp|tls)://(?:\[[^\]]+\]|[^:/\[]+):([0-9]{1,5})", url)
        if url and not (found and 0 < int(found[1]) < 2**16):
            raise ValueError("audit.url: udp://HOST:PORT or tls://HOST:PORT")
        return url


class Reports(_Section):
    """Where HL7 messages come in: final reports and orders; SRs come as all objects do."""

    hl7_host: str = "0.0.0.0"
    hl7_port: Annotated[int, Field(ge=0, le=65535)] = 0  #: MLLP listener; 0: none


class Jobs(_Section):
    """Leases and repeats of analyse jobs and deliveries."""

    lease_seconds: Seconds = 60
    sweep_seconds: Seconds = 15  #: an unanswered nudge is repeated after this long
    max_attempts: Annotated[int, Field(ge=1)] = 5
    first_retry_seconds: Seconds = 5
    longest_retry_seconds: Seconds = 600
    give_up_hours: Annotated[float, Field(gt=0)] = 24

    def back_off(self, attempts: int) -> timedelta:
        """How long to wait after the ``attempts``-th failure: doubling, bounded, half by chance.

        What failed together would otherwise come back together.
        """
        doubled = self.first_retry_seconds * 2.0 ** min(attempts - 1, 30)
        longest = min(doubled, self.longest_retry_seconds)
        return timedelta(seconds=longest * random.uniform(0.5, 1))


class Peer(_Section):
    """Another application entity: where studies come from and drafts go."""

    name: str
    protocol: Literal["dicom", "dicomweb", "hl7", "fhir"] = "dicom"
    #: hl7: receiving application (MSH-5), or APPLICATION|FACILITY
    ae_title: AeTitle | Literal[""] = ""
    host: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    port: Port = 104
    url: str = ""  #: fhir and dicomweb only: the server's base URL
    #: fhir and dicomweb only: who we are there, by password or by bearer token; as
    #: ``password_file`` and ``token_file`` they lie in files of their own
    username: Annotated[str, Field(pattern=r"^[^:\x00-\x1f\x7f]*$")] = ""
    password: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$", repr=False)] = ""
    token: Annotated[str, Field(pattern=r"^[!-~]*$", repr=False)] = ""
    #: fhir and dicomweb only: PEM file of who may have signed the server's certificate; empty:
    #: whom the system trusts, and tls.authorities
    authorities: str = ""
    #: source: sends to us; destination: gets drafts; query: is asked what it has, and for priors;
    #: worklist: is asked what is planned
    roles: tuple[Literal["source", "destination", "query", "worklist"], ...] = (
        "source",
        "destination",
    )
    proof: Literal["commitment", "find", "none"] = "none"
    mode: Literal["live", "shadow"] = "live"
    #: where the peer answers queries under another title or port than it stores
    query_ae_title: AeTitle | Literal[""] = ""
    query_port: Annotated[int, Field(ge=0, le=65535)] = 0
    retrieve: Literal["move", "get"] = "move"  #: how we get studies from a peer that we query
    tls: bool = False  #: it calls our TLS port, and we call it by TLS
    quiet_seconds: Seconds | None = None

    @field_validator("host", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _says_what_its_protocol_needs(self) -> Self:
        if self.protocol in ("fhir", "dicomweb"):
            if not re.match(r"https?://", self.url) or set(self.roles) != {"destination"}:
                raise ValueError(
                    f'peer {self.name}: {self.protocol} needs url = "https://..."'
                    ' and roles = ["destination"]'
                )
        elif not self.host:
            raise ValueError(f"peer {self.name}: needs a host")
        if self.protocol == "dicom" and not self.ae_title:
            raise ValueError(f"peer {self.name}: needs an ae_title")
        if self.protocol == "hl7" and self.proof != "none":
            raise ValueError(f'peer {self.name}: HL7 has no query; proof = "none"')
        if self.protocol in ("fhir", "dicomweb") and self.proof == "commitment":
            raise ValueError(
                f'peer {self.name}: {self.protocol} has no commitment; proof = "find" or "none"'
            )
        return self

    @model_validator(mode="after")
    def _only_dicom_has_queries_and_certificates(self) -> Self:
        dicom_only = {
            "query_ae_title": self.query_ae_title,
            "query_port": self.query_port,
            "tls": self.tls,
            'roles "query" or "worklist"': {"query", "worklist"} & set(self.roles),
        }
        set_here = [key for key, value in dicom_only.items() if value]
        if set_here and self.protocol != "dicom":
            raise ValueError(f"peer {self.name}: {', '.join(set_here)}: only for DICOM peers")
        return self

    @model_validator(mode="after")
    def _logs_in_one_way_over_http(self) -> Self:
        keys = ("username", "password", "token", "authorities")
        set_here = [key for key in keys if getattr(self, key)]
        if set_here and self.protocol not in ("fhir", "dicomweb"):
            raise ValueError(f"peer {self.name}: {', '.join(set_here)}: only for peers with a url")
        if bool(self.username) != bool(self.password) or (self.username and self.token):
            raise ValueError(
                f"peer {self.name}: a login is username and password, or a token alone"
            )
        return self

    @model_validator(mode="after")
    def _destination_has_an_address(self) -> Self:
        if self.is_destination and self.host and "/" in self.host[0]:
            raise ValueError(f"peer {self.name}: a destination needs a host, not a network, first")
        return self

    @property
    def is_source(self) -> bool:
        """May this peer send to us?"""
        return "source" in self.roles

    @property
    def calls_us(self) -> bool:
        """May it open associations: to send, or to report on what we asked it to commit to?"""
        return self.is_source or (self.is_destination and self.proof == "commitment")

    @property
    def is_destination(self) -> bool:
        """Do drafts go to this peer?"""
        return "destination" in self.roles

    @property
    def calling_ae_titles(self) -> frozenset[str]:
        """The titles that it may call us under: a PACS may store under one and query under two."""
        return frozenset({self.ae_title, self.query_ae_title}) - {""}

    @property
    def for_queries(self) -> Peer:
        """The same peer under the title and port that answer its queries (C-FIND, C-MOVE)."""
        title = self.query_ae_title or self.ae_title
        return self.model_copy(update={"ae_title": title, "port": self.query_port or self.port})

    @property
    def address(self) -> str:
        """The host we call."""
        return self.host[0]

    @property
    def place(self) -> str:
        """Where we call it, for people."""
        title = f"{self.ae_title} at " if self.protocol == "dicom" else ""
        return self.url or f"{title}{self.address}:{self.port}"

    def shares_address(self, other: Peer) -> bool:
        """May a call from one address be of either? Names are not resolved here."""
        return any(_overlap(mine, its) for mine in self.host for its in other.host)

    def may_call_from(self, addresses: Collection[str]) -> bool:
        """Is one of ``addresses`` (the caller's, and names that resolve to it) this peer's?"""
        return any(_matches(host, address) for host in self.host for address in addresses)


class Settings(_Section):
    """Everything an administrator can set."""

    node: Node = Node()
    listener: Listener = Listener()
    tls: Tls = Tls()
    disk: Disk = Disk()
    retention: Retention = Retention()
    database: Service = Service()
    broker: Service = Service()
    study: Study = Study()
    model: Model = Model()
    results: Results = Results()
    reports: Reports = Reports()
    jobs: Jobs = Jobs()
    delivery: Delivery = Delivery()
    reconciliation: Reconciliation = Reconciliation()
    worklist: Worklist = Worklist()
    audit: Audit = Audit()
    peers: tuple[Peer, ...] = ()

    @model_validator(mode="after")
    def _peers_are_distinct(self) -> Self:
        names = [peer.name for peer in self.peers]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"two peers are named {', '.join(sorted(twice))}")
        return self

    @model_validator(mode="after")
    def _peers_of_one_title_agree(self) -> Self:
        """A call that fits two peers must mean the same under both."""
        for one, other in itertools.combinations(self.sources(), 2):
            titles = one.calling_ae_titles & other.calling_ae_titles
            agree = (one.tls, one.quiet_seconds) == (other.tls, other.quiet_seconds)
            if titles and not agree and one.shares_address(other):
                raise ValueError(
                    f"peers {one.name} and {other.name} both call as {min(titles)} from one"
                    " address: give them the same tls and quiet_seconds, or other titles or hosts"
                )
        return self

    @model_validator(mode="after")
    def _what_was_forgotten_is_not_missed(self) -> Self:
        asked, kept = self.reconciliation.days, self.retention.metadata_days
        if asked > kept > 0:
            raise ValueError(
                f"reconciliation.days = {asked} must not be above retention.metadata_days ="
                f" {kept:g}: studies that were deleted here would be fetched again"
            )
        return self

    @model_validator(mode="after")
    def _tls_peers_need_certificates(self) -> Self:
        for peer in self.peers:
            if peer.tls and not self.tls.configured:
                raise ValueError(
                    f"peer {peer.name}: tls = true needs tls.certificate, tls.private_key"
                    " and tls.authorities"
                )
            if peer.tls and peer.calls_us and not self.tls.port:
                raise ValueError(f"peer {peer.name}: tls = true needs tls.port, which it calls")
        return self

    @model_validator(mode="after")
    def _audit_by_tls_needs_certificates(self) -> Self:
        if self.audit.url.startswith("tls:") and not self.tls.configured:
            raise ValueError(
                "audit.url: tls:// needs tls.certificate, tls.private_key and tls.authorities"
            )
        return self

    @model_validator(mode="after")
    def _messages_are_made_for_their_peers(self) -> Self:
        for peer in self.peers:
            dicom = peer.protocol in ("dicom", "dicomweb")
            made = dicom or getattr(self.results, peer.protocol)
            if peer.is_destination and not made:
                raise ValueError(
                    f"peer {peer.name} speaks {peer.protocol}, but nothing is made for it:"
                    f" set results.{peer.protocol} = true"
                )
        return self

    def destinations(self, kind: str = "text_sr") -> tuple[Peer, ...]:
        """The peers that get results of that kind."""
        protocols = (kind,) if kind in ("hl7", "fhir") else ("dicom", "dicomweb")
        return tuple(
            peer for peer in self.peers if peer.is_destination and peer.protocol in protocols
        )

    def asked(self, role: Literal["query", "worklist"]) -> tuple[Peer, ...]:
        """The peers that we ask: for studies (``query``) or for what is planned (``worklist``)."""
        return tuple(peer for peer in self.peers if role in peer.roles)

    def peer(self, name: str) -> Peer | None:
        """The peer of that name."""
        return next((peer for peer in self.peers if peer.name == name), None)

    def sources(self, calling_ae_title: str | None = None) -> tuple[Peer, ...]:
        """The DICOM peers that may send to us; those of one title, or all."""
        return tuple(
            peer
            for peer in self.peers
            if peer.is_source and peer.protocol == "dicom"
            if calling_ae_title is None or calling_ae_title in peer.calling_ae_titles
        )

    def quiet_seconds(self, calling_ae_title: str) -> float:
        """How long a study from this sender must be silent before it is complete.

        Of several peers with this title (at other addresses) the longest wait: that loses nothing.
        """
        general = self.study.quiet_seconds
        own = [peer.quiet_seconds for peer in self.sources(calling_ae_title)]
        return max((general if one is None else one for one in own), default=general)


def load(file: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> Settings:
    """Build the settings.

    Parameters
    ----------
    file
        ``dicom-node.toml``; ``None`` means defaults.
    environ
        Process environment; only names that begin with ``DICOM_NODE_`` are looked at.
    flags
        Dotted keys such as ``{"node.data": "x"}``; ``None`` values are ignored.

    Raises
    ------
    ConfigurationError
        The file can't be read, or a key is unknown or its value wrong; names key and fix.
    """
    raw: Raw = {}
    for layer in (_read(file) if file else {}, _from_environment(environ), _from_flags(flags)):
        _read_secrets(layer)  # before merging: a later layer's url beats an earlier one's url_file
        _merge(raw, layer)
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from error


def environment(settings: Settings) -> dict[str, str]:
    """The settings as ``DICOM_NODE_*`` variables, so that a child process gets exactly ours."""
    raw = settings.model_dump(mode="json")
    peers = raw.pop("peers")
    values = {
        f"{PREFIX}{section}__{key}".upper(): _as_text(value)
        for section, keys in raw.items()
        for key, value in keys.items()
    }
    return {**values, f"{PREFIX}PEERS": json.dumps(peers)}


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _matches(host: str, address: str) -> bool:
    if host.lower() == address.lower():
        return True
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(host, strict=False)
    except ValueError:  # one of the two is a name
        return False


def _overlap(host: str, other: str) -> bool:
    try:
        networks = [ipaddress.ip_network(one, strict=False) for one in (host, other)]
    except ValueError:  # one of the two is a name
        return host.lower() == other.lower()
    return networks[0].version == networks[1].version and networks[0].overlaps(networks[1])


def _read(file: Path) -> Raw:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: not valid TOML: {error}") from error


def _from_environment(environ: Mapping[str, str]) -> Raw:
    raw: Raw = {}
    for name, value in environ.items():
        key = name.removeprefix(PREFIX).lower()
        if not name.startswith(PREFIX) or key == "config":
            continue
        section, separator, entry = key.partition("__")
        if key == "peers":
            raw["peers"] = _json(name, value)
        elif separator:
            _merge(raw, {section: {entry: value}})
        else:
            raise ConfigurationError(f"{name}: no such setting; {PREFIX}<SECTION>__<KEY>")
    return raw


def _from_flags(flags: Mapping[str, object]) -> Raw:
    raw: Raw = {}
    for dotted, value in flags.items():
        if value is not None:
            section, _, key = dotted.partition(".")
            _merge(raw, {section: {key: value}})
    return raw


def _json(name: str, value: str) -> object:
    try:
        return json.loads(value)
    except ValueError as error:
        raise ConfigurationError(f"{name}: not valid JSON: {error}") from error


def _merge(into: Raw, other: Raw) -> None:
    for key, value in other.items():
        present = into.get(key)
        if isinstance(present, dict) and isinstance(value, dict):
            _merge(present, value)
        else:
            into[key] = value


def _read_secrets(raw: Raw) -> None:
    for section in _tables(raw):
        for key in [key for key in section if key.endswith(FILE_SUFFIX)]:
            path = Path(str(section.pop(key)))
            section[key.removesuffix(FILE_SUFFIX)] = _secret(key, path)


def _tables(raw: Raw) -> list[Raw]:
    """The sections, and each of the peers."""
    peers = raw.get("peers")
    found = [*raw.values(), *(peers if isinstance(peers, list) else ())]
    return [one for one in found if isinstance(one, dict)]


def _secret(key: str, path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"{key} = {path}: {error.strerror}") from error
    except UnicodeDecodeError:  # not as the cause: it would quote the file
        why = "not UTF-8 text"
    raise ConfigurationError(f"{key} = {path}: {why}")


def _explain(error: ValidationError) -> str:
    return "; ".join(
        _unknown(item["loc"])
        if item["type"] == "extra_forbidden"
        else f"{_dotted(item['loc']) or 'settings'}: {item['msg']}"
        for item in error.errors(include_url=False, include_input=False)
    )


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)


def _unknown(location: tuple[int | str, ...]) -> str:
    known = _known_keys(location[:-1])
    nearest = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0)
    path = [str(part) for part in location[:-1] if not isinstance(part, int)]
    return f"unknown key {_dotted(location)}; did you mean {'.'.join([*path, *nearest])}?"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    if not location:
        return list(Settings.model_fields)
    section = str(location[0])
    if section == "peers":
        return list(Peer.model_fields)
    default = Settings.model_fields[section].default
    return list(type(default).model_fields)
