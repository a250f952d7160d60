"""The way to a peer below DICOM: its name, a TCP connection, TLS."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from dicom_node import tls as node_tls
from dicom_node.doctor.checks import Fault, Finding

#: A certificate that ends sooner than this is worth a word.
SOON = timedelta(days=30)

# Seconds. In TLS 1.3 a server judges our certificate when the handshake has ended for us (RFC 8446
# 4.4.2.4): its complaint comes within about a round trip, and a DICOM server says nothing else.
_VERDICT = 0.5

_UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)


def resolve(host: str, whose: str) -> list[str]:
    """The addresses of a name, IPv4 first, for those are the ones that we call.

    Raises
    ------
    Fault
        The name has none; ``whose`` says where it is set.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: an empty label, a too long one
        why = getattr(error, "strerror", None) or "not a name"
        raise Fault(
            f"{host} has no address: {why}",
            f"{whose}: host = an address, or a name that this machine's DNS or /etc/hosts knows",
        ) from error
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def connect(addresses: Sequence[str], port: int, seconds: float, whose: str) -> socket.socket:
    """A TCP connection to the first address that takes one.

    Raises
    ------
    Fault
        None does; the last one's reason.
    """
    refused: OSError = OSError("no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), seconds)
        except OSError as error:
            refused = error
    text, fix = _no_connection(refused, f"port {port} of {addresses[-1]}", seconds, whose)
    raise Fault(text, fix) from refused


def _no_connection(error: OSError, where: str, seconds: float, whose: str) -> tuple[str, str]:
    if isinstance(error, TimeoutError):
        text = f"{where} did not answer within {seconds:g} s"
        fix = "a machine that is off, or a firewall between that lets nothing through to this port"
        return text, f"check host and port of {whose}; else {fix}"
    if error.errno in _UNREACHABLE:
        fix = f"check host of {whose}, and this machine's routes to that network"
        return f"{where}: {error.strerror}", fix
    if isinstance(error, ConnectionRefusedError):
        text = f"{where} refuses the connection: nobody listens there"
        fix = f"check port (and host) of {whose}, and that its DICOM service runs"
        return text, fix
    return f"{where}: {error.strerror or 'no connection'}", f"check host and port of {whose}"


@contextmanager
def shaken_hands(
    connection: socket.socket, context: ssl.SSLContext, host: str
) -> Iterator[ssl.SSLSocket]:
    """The connection by TLS, once the server has had time to complain of our certificate.

    Raises
    ------
    OSError
        What ``tls.explain`` explains.
    """
    with context.wrap_socket(connection, server_hostname=host) as wrapped:
        before = wrapped.gettimeout()
        wrapped.settimeout(_VERDICT)
        try:
            if not wrapped.recv(1):
                raise ssl.SSLEOFError("closed")
        except TimeoutError:
            wrapped.settimeout(before)
        yield wrapped


def certificate(wrapped: ssl.SSLSocket) -> Finding:
    """Which TLS, and when the peer's certificate ends."""
    shown = wrapped.getpeercert() or {}
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC)
    text = f"{wrapped.version()}, its certificate ends on {ends.date()}"
    soon = ends - datetime.now(UTC) < SOON
    return Finding(text=text, fix="at the peer: renew its certificate" if soon else "")


def speaks_tls(address: str, port: int, seconds: float) -> bool:
    """Does a TLS server listen there? Nothing is believed and nothing said to it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((address, port), seconds) as connection,
            context.wrap_socket(connection),
        ):
            return True
    except OSError as error:
        # It speaks TLS who complains in TLS: that we show no certificate, for one.
        return "ALERT" in (getattr(error, "reason", None) or "")


def tls_fault(error: OSError, host: str, whose: str, authorities: str) -> Fault:
    """What is wrong with a handshake, and which side mends it how.

    Parameters
    ----------
    error
        Of the handshake.
    host
        The name that we called.
    whose
        Where the peer is configured.
    authorities
        Where those are kept whom we trust.
    """
    return Fault(
        f"{node_tls.explain(error)}{_dates(error)}", _tls_fix(error, host, whose, authorities)
    )


def _tls_fix(error: OSError, host: str, whose: str, authorities: str) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate_fix(error.verify_code, host, whose, authorities)
    reason = getattr(error, "reason", None) or ""
    alert = reason.partition("ALERT_")[2]
    if alert in _COMPLAINTS:
        return _COMPLAINTS[alert]
    if "HTTP" in reason or reason == "WRONG_VERSION_NUMBER":
        return f"{whose}: port = its TLS port (2762 by custom), or tls = false for this one"
    return (
        f"{whose}: is this its TLS port (2762 by custom)? If so, its log says why; it must trust"
        " the authority of tls.certificate and offer TLS 1.2 or 1.3 (docs/tls.md)"
    )


# RFC 8446 6.2, as in ``tls``
_TRUST_US = "at the peer: trust the authority that signed our tls.certificate"
_COMPLAINTS = {
    "UNKNOWN_CA": _TRUST_US,
    "BAD_CERTIFICATE": _TRUST_US,
    "CERTIFICATE_UNKNOWN": _TRUST_US,
    "CERTIFICATE_EXPIRED": "renew tls.certificate, or set the clock of the peer or of this machine",
    "CERTIFICATE_REVOKED": "have tls.certificate issued anew",
    "UNSUPPORTED_CERTIFICATE": "have tls.certificate issued for clientAuth too",
    "PROTOCOL_VERSION": "at the peer: offer TLS 1.2 or 1.3 (RFC 8996)",
    "HANDSHAKE_FAILURE": "at the peer: offer TLS 1.2 or 1.3 and a cipher suite of docs/tls.md",
    "INSUFFICIENT_SECURITY": "at the peer: offer a cipher suite of docs/tls.md",
}

_EXPIRED, _NOT_YET_VALID = 10, 9  # X509_V_ERR_* of OpenSSL, as in ``tls``
_OTHER_NAME = (62, 64)
_TOO_WEAK = (66, 67, 68)


def _certificate_fix(code: int, host: str, whose: str, authorities: str) -> str:
    if code == _EXPIRED:
        return "at the peer: renew its certificate"
    if code == _NOT_YET_VALID:
        return "set this machine's clock, or wait until the peer's certificate is valid"
    if code in _OTHER_NAME:
        return (
            f"{whose}: host = the name in its certificate,"
            f" or have that issued for {host} (subjectAltName)"
        )
    if code in _TOO_WEAK:
        return "at the peer: a certificate with a longer key and SHA-256 (docs/tls.md)"
    return f"put the authority of the peer's certificate into {authorities}"


def _dates(error: OSError) -> str:
    """An expired certificate may be a clock that is wrong: say what ours says."""
    code = getattr(error, "verify_code", None)
    if code not in (_EXPIRED, _NOT_YET_VALID):
        return ""
    return f" (by this machine's clock: {datetime.now(UTC).isoformat(timespec='minutes')})"


def is_unexplained(error: OSError) -> bool:
    """Could it be that the peer speaks no TLS at all?"""
    complaint = "ALERT" in (getattr(error, "reason", None) or "")
    return not complaint and not isinstance(error, ssl.SSLCertVerificationError)
