"""How messages reach the collector: syslog (RFC 5424) over UDP (RFC 5426) or TLS (RFC 5425).

Syslog knows no acknowledgement. What can be known is asked for: by TLS every delivery ends its
connection, and counts only when the collector has read to the end; by UDP it counts unless the
collector's machine says that nobody listens.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import ssl
import struct
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol
from urllib.parse import urlsplit

from dicom_node import tls as node_tls
from dicom_node.audit.spool import Waiting
from dicom_node.config import Settings, Tls
from dicom_node.errors import PeerError

_PRI = "<85>"  # PS3.15 A.6: facility 10 (security), severity 5 (notice)
_MSGID = "DICOM+RFC3881"  # PS3.15 A.6
#: Bytes of a datagram's payload (RFC 768, RFC 791), less what our header takes at most.
_LONGEST_DATAGRAM = 65507
_LONGEST_HEADER = 512
_ICMP_SECONDS = 0.2
_TIMEOUT = 10.0  # seconds, of each step


class Collector(Protocol):
    """Where audit messages go."""

    longest: int | None  #: bytes of a message that can be sent; ``None``: any

    def deliver(self, batch: Sequence[Waiting]) -> None:
        """Get messages there, in order.

        Raises
        ------
        PeerError
            It may not have them: they are to be sent again.
        """


def open_collector(url: str, tls: Tls) -> Collector:
    """The collector of ``[audit] url``; nothing is connected yet."""
    parts = urlsplit(url)
    place = (parts.hostname or "", parts.port or 0)
    return UdpCollector(place) if parts.scheme == "udp" else TlsCollector(place, tls)


def longest_message(settings: Settings) -> int | None:
    """Bytes of a message that the configured transport takes; ``None``: any."""
    by_udp = settings.audit.url.startswith("udp:")
    return UdpCollector.longest if by_udp else TlsCollector.longest


def framed(one: Waiting) -> bytes:
    """SYSLOG-MSG of RFC 5424 6; its message is ASCII, and so without a byte order mark."""
    at = one.at.isoformat(timespec="milliseconds")
    host = socket.gethostname()[:255] or "-"
    header = f"{_PRI}1 {at} {host} dicom-node {os.getpid()} {_MSGID} -"
    return f"{header} {one.message}".encode("ascii")


class UdpCollector:
    """A collector that takes datagrams: one message each."""

    longest: int | None = _LONGEST_DATAGRAM - _LONGEST_HEADER

    def __init__(self, place: tuple[str, int]) -> None:
        self._place = place

    def deliver(self, batch: Sequence[Waiting]) -> None:
        """See :class:`Collector`. A datagram that the network loses is lost."""
        with _mapped(self._place), self._connected() as connection:
            for one in batch:
                connection.send(framed(one))
            # A machine on which nobody listens answers by ICMP, which the kernel keeps for us.
            waiting = select.poll()
            waiting.register(connection, 0)  # errors only
            if waiting.poll(_ICMP_SECONDS * 1000):
                _raise_pending(connection)

    def _connected(self) -> socket.socket:
        family, kind, protocol, _, address = socket.getaddrinfo(
            *self._place, type=socket.SOCK_DGRAM
        )[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.connect(address)
        except OSError:
            made.close()
            raise
        return made


class TlsCollector:
    """A collector that takes a stream of counted messages (RFC 5425 4.3), both sides certified."""

    longest: int | None = None

    def __init__(self, place: tuple[str, int], tls: Tls) -> None:
        self._place = place
        self._tls = tls

    def deliver(self, batch: Sequence[Waiting]) -> None:
        """See :class:`Collector`.

        Raises
        ------
        ConfigurationError
            Our certificate can't be used.
        """
        context = node_tls.Material(self._tls).client_context()
        with _mapped(self._place), self._connected(context) as connection:
            for one in batch:
                message = framed(one)
                connection.sendall(b"%d %b" % (len(message), message))
            _end(connection)

    def _connected(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        plain = socket.create_connection(self._place, _TIMEOUT)
        try:
            return context.wrap_socket(plain, server_hostname=self._place[0])
        except OSError as error:
            plain.close()
            why = "can't be reached" if isinstance(error, TimeoutError) else node_tls.explain(error)
            raise PeerError(f"{_who(self._place)}: {why}") from error


def _end(connection: ssl.SSLSocket) -> None:
    """Close the connection; raise unless the other side has read everything before.

    It answers our close_notify when it has read up to it (RFC 5425 4.4), or just closes. Had it
    closed earlier, or with something unread, its machine answers what we sent with a reset.
    """
    try:
        plain: socket.socket = connection.unwrap()
    except ssl.SSLEOFError:  # it closed the connection without a close_notify
        _wait_for_acknowledgement(connection)
        return
    with plain:
        plain.settimeout(_TIMEOUT)
        while plain.recv(4096):
            pass
        _wait_for_acknowledgement(plain)


def _wait_for_acknowledgement(connection: socket.socket) -> None:
    """Wait until the other machine has acknowledged every byte, or reset the connection."""
    deadline = time.monotonic() + _TIMEOUT
    while _unacknowledged(connection) and time.monotonic() < deadline:
        time.sleep(0.01)
    _raise_pending(connection)
    if _unacknowledged(connection):
        raise TimeoutError


def _unacknowledged(connection: socket.socket) -> int:
    """Bytes that we sent and the other machine has not acknowledged (SIOCOUTQ, tcp(7))."""
    answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
    count: int = struct.unpack("i", answer)[0]
    return count


def _raise_pending(connection: socket.socket) -> None:
    error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


@contextmanager
def _mapped(place: tuple[str, int]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise PeerError(f"{_who(place)} did not answer in time") from error
    except ssl.SSLError as error:  # TLS 1.3: what it says of our certificate comes late
        raise PeerError(f"{_who(place)}: {node_tls.explain(error)}") from error
    except (OSError, UnicodeError) as error:  # the name may be none
        why = getattr(error, "strerror", None) or "no connection"
        raise PeerError(f"{_who(place)} can't be reached: {why}") from error


def _who(place: tuple[str, int]) -> str:
    return f"the audit collector at {place[0]}:{place[1]}"
