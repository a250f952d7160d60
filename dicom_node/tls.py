"""DICOM over TLS: the BCP 195 RFC 8996, 9325 profile (PS3.15 B.12), as server and as client.

Both sides show a certificate and check the other's. What the profile leaves to us, and why, is in
docs/tls.md.
"""

from __future__ import annotations

import logging
import ssl
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dicom_node.config import Tls
from dicom_node.errors import ConfigurationError

logger = logging.getLogger(__name__)

# RFC 9325 4.2, for TLS 1.2; those of TLS 1.3 are all good and OpenSSL's own. Level 2 asks for 112
# bits: RSA from 2048, curves from 224 bits, no SHA-1 in a signature (RFC 9325 4.5).
_CIPHER_SUITES = (
    "@SECLEVEL=2"
    ":ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"
    ":ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
)

# What PEM calls the content of each file (RFC 7468)
_CONTENTS = {
    "certificate": "CERTIFICATE",
    "private_key": "PRIVATE KEY",
    "authorities": "CERTIFICATE",
}

# X509_V_ERR_* of OpenSSL: what is wrong with a certificate
_FAULTS = {
    7: "is not signed by the authority that it names",
    9: "is not valid yet",
    10: "has expired",
    18: "is signed by nobody but itself",
    19: "leads to an authority that is not trusted",
    20: "is of an authority that is not trusted",
    21: "is of an authority that is not trusted",
    26: "is not made for this use (extended key usage)",
    62: "is not for the name that was called",
    64: "is not for the address that was called",
    66: "has too short a key",
    67: "is of an authority with too short a key",
    68: "is signed with too weak a hash",
}

# What OpenSSL calls a fault in what the other side sent
_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer showed no certificate",
    "HTTP_REQUEST": "the peer speaks HTTP without TLS",
    "HTTPS_PROXY_REQUEST": "the peer speaks HTTP without TLS",
    "WRONG_VERSION_NUMBER": "the peer speaks no TLS; DICOM without TLS has another port",
    "UNSUPPORTED_PROTOCOL": "the peer offers no TLS version from 1.2 on",
    "VERSION_TOO_LOW": "the peer offers no TLS version from 1.2 on",
    "NO_SHARED_CIPHER": "the peer offers none of the cipher suites of BCP 195",
}

# RFC 8446 6.2: what the other side complains of
_ALERTS = {
    "BAD_CERTIFICATE": "the peer does not accept our certificate",
    "CERTIFICATE_EXPIRED": "the peer says that our certificate has expired",
    "CERTIFICATE_REQUIRED": "the peer demands a certificate and saw none",
    "CERTIFICATE_REVOKED": "the peer says that our certificate was revoked",
    "CERTIFICATE_UNKNOWN": "the peer does not accept our certificate",
    "HANDSHAKE_FAILURE": "the peer finds nothing in common: cipher suites, or a certificate",
    "INSUFFICIENT_SECURITY": "the peer demands other cipher suites",
    "PROTOCOL_VERSION": "the peer demands another TLS version",
    "UNKNOWN_CA": "the peer does not trust the authority of our certificate",
    "UNSUPPORTED_CERTIFICATE": "the peer does not accept our certificate for this use",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    server: ssl.SSLContext
    client: ssl.SSLContext
    expires: datetime


class Material:
    """Our certificate and key, and the authorities we trust, ready for use.

    Parameters
    ----------
    settings
        The PEM files.

    Raises
    ------
    ConfigurationError
        A file can't be read or used; names key and file.
    """

    def __init__(self, settings: Tls) -> None:
        self._settings = settings
        self._loaded = _load(settings)

    def server_context(self) -> ssl.SSLContext:
        """For connections that we accept."""
        return self._loaded.server

    def client_context(self) -> ssl.SSLContext:
        """For connections that we open; the peer's certificate must name the host we call."""
        return self._loaded.client

    @property
    def expires(self) -> datetime:
        """When our certificate ends."""
        return self._loaded.expires

    def reload(self) -> bool:
        """Read the files again, for connections from now on; open ones keep what they have.

        Returns
        -------
        bool
            ``False``: they are faulty, which is logged, and the ones before stay in use.
        """
        try:
            self._loaded = _load(self._settings)
        except ConfigurationError as error:
            logger.error("certificates not loaded, those before stay in use: %s", error)
            return False
        logger.info("certificates loaded; ours ends on %s", self.expires.date())
        return True


def expiry(settings: Tls) -> datetime:
    """When the certificate that lies there now ends.

    Raises
    ------
    ConfigurationError
        A file can't be read or used; names key and file.
    """
    for key, content in _CONTENTS.items():
        _check_form(key, getattr(settings, key), content)
    return _rehearse(settings)


def https_context(settings: Tls, authorities: str = "") -> ssl.SSLContext:
    """For HTTPS servers that we call.

    Parameters
    ----------
    settings
        Ours: the certificate is shown to a server that asks for one; the authorities are trusted
        beside the system's.
    authorities
        PEM file of those who alone are trusted at this server; empty: the system's and ours.

    Raises
    ------
    ConfigurationError
        A file can't be used; names it.
    """
    try:
        context = ssl.create_default_context(cafile=authorities or None)
    except OSError as error:
        raise ConfigurationError(f"authorities: {authorities}: {_said(error)}") from error
    if settings.configured:
        _load_own(context, settings)
        if not authorities:
            _load_authorities(context, settings)
    return context


def facts(settings: Tls) -> dict[str, str]:
    """What a node's heartbeat tells of its certificates, for ``status``."""
    if not settings.configured:
        return {}
    try:
        return {"certificate_expires": expiry(settings).isoformat()}
    except ConfigurationError as error:
        return {"fault": str(error)}


def explain(error: OSError) -> str:
    """Why no TLS connection came about, for people: one of few sentences, for either side."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate {_fault(error)}"
    if isinstance(error, TimeoutError):
        return "the peer did not finish the TLS handshake in time"
    reason = getattr(error, "reason", None) or ""
    alert = reason.partition("ALERT_")[2]
    if alert:
        return _ALERTS.get(alert, f"the peer broke the TLS handshake off ({_words(alert)})")
    if reason in _REASONS:
        return _REASONS[reason]
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ConnectionError):
        return "the peer closed the connection during the TLS handshake"
    return f"the TLS handshake failed ({_words(reason)})" if reason else "the TLS handshake failed"


def _words(reason: str) -> str:
    return reason.lower().replace("_", " ")


def _fault(error: ssl.SSLCertVerificationError) -> str:
    code = error.verify_code
    return _FAULTS.get(code, f"can't be verified (OpenSSL: X.509 error {code})")


def _load(settings: Tls) -> _Loaded:
    return _Loaded(
        expires=expiry(settings),  # first: it names what is wrong with a file
        server=_context(settings, ssl.PROTOCOL_TLS_SERVER),
        client=_context(settings, ssl.PROTOCOL_TLS_CLIENT),
    )


def _check_form(key: str, file: str, content: str) -> None:
    """Raise for what ssl would not name: it tells neither the file nor the fault."""
    try:
        text = Path(file).read_text("ascii", errors="replace")
    except OSError as error:
        raise ConfigurationError(f"tls.{key}: {file}: {error.strerror}") from error
    if f"{content}-----" not in text:
        raise ConfigurationError(f"tls.{key}: {file}: holds no {content.lower()} in PEM form")
    if "ENCRYPTED" in text:  # OpenSSL would ask for the passphrase at the terminal
        raise ConfigurationError(
            f"tls.{key}: {file}: is encrypted, and nobody is there to type a passphrase;"
            " decrypt it (openssl pkey) and let only the node read it"
        )


def _context(settings: Tls, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996
    context.set_ciphers(_CIPHER_SUITES)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION  # RFC 9325 3.3, 3.5
    # The key of tickets would be as old as the process, for months (RFC 9325 3.4).
    context.options |= ssl.OP_NO_TICKET
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        context.num_tickets = 0
    else:
        context.hostname_checks_common_name = False  # RFC 9525 2: a common name is no identity
    _load_own(context, settings)
    _load_authorities(context, settings)
    return context


def _load_own(context: ssl.SSLContext, settings: Tls) -> None:
    try:
        context.load_cert_chain(settings.certificate, settings.private_key)
    except OSError as error:  # ssl.SSLError, or a file that went away just now
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            why = f"is not the key of tls.certificate {settings.certificate}"
            raise ConfigurationError(f"tls.private_key: {settings.private_key}: {why}") from error
        why = f"can't be used with tls.private_key {settings.private_key} ({_said(error)})"
        raise ConfigurationError(f"tls.certificate: {settings.certificate}: {why}") from error


def _load_authorities(context: ssl.SSLContext, settings: Tls) -> None:
    try:
        context.load_verify_locations(settings.authorities)
    except OSError as error:
        why = f"can't be used ({_said(error)})"
        raise ConfigurationError(f"tls.authorities: {settings.authorities}: {why}") from error


def _said(error: OSError) -> str:
    return _words(getattr(error, "reason", None) or error.strerror or "malformed")


def _rehearse(settings: Tls) -> datetime:
    """Shake hands in memory with a judge who trusts our own certificate alone; when it ends.

    ssl reads no certificate but that of a peer that was verified. So it is found now, and not by
    the first sender, that ours has expired or is not made for servers.
    """
    trusted = settings.model_copy(update={"authorities": settings.certificate})
    sides = [ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT]
    ours, judge = (_context(trusted, side) for side in (sides if settings.port else sides[::-1]))
    for context in (ours, judge):
        context.check_hostname = False
    ours.verify_mode = ssl.CERT_NONE
    judge.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        certificate = _shake_hands(ours, judge, serving=bool(settings.port))
    except ssl.SSLCertVerificationError as error:
        file = settings.certificate
        raise ConfigurationError(f"tls.certificate: {file}: {_fault(error)}") from error
    ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    return datetime.fromtimestamp(ends, UTC)


def _shake_hands(
    ours: ssl.SSLContext, judge: ssl.SSLContext, *, serving: bool
) -> dict[str, object]:
    """The certificate that the judge saw."""
    to_us, to_judge = ssl.MemoryBIO(), ssl.MemoryBIO()
    we = ours.wrap_bio(to_us, to_judge, server_side=serving)
    they = judge.wrap_bio(to_judge, to_us, server_side=not serving)
    for side in (we, they, we, they):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return dict(they.getpeercert() or {})
