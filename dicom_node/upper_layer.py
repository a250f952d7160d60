"""One connection as the DICOM upper layer sees it: PDUs in, PDUs out, and nothing waits for ever.

Bytes are read in large pieces into one buffer and handed on as views of it; a PDU is never held
whole. A length that a peer claims costs no memory and, above what it may send, ends the
association (PS3.8 9.3.1). See docs/decisions/receive-path.md.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum

from dicom_node.errors import NodeError

#: Bytes read at once; a large object is written to disk in pieces of about this size.
BUFFER = 256 * 1024
_LINGERING_READS = 64

_HEADER = struct.Struct(">BxL")  # PS3.8 9.3.1: type, reserved, length of what follows
_ABORT = struct.Struct(">BxLxxBB")  # PS3.8 9.3.8


class PduType(IntEnum):
    """PS3.8 9.3.1."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    P_DATA_TF = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


RELEASE_RP = bytes((PduType.RELEASE_RP, 0, 0, 0, 0, 4, 0, 0, 0, 0))  # PS3.8 9.3.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds that a peer may take."""

    handshake: float = 10.0  #: TLS
    associate: float = 15.0  #: from the connection to a whole A-ASSOCIATE-RQ (ARTIM, PS3.8 9.1.5)
    idle: float = 60.0  #: silence between two PDUs of an association
    pdu: float = 30.0  #: from a PDU's first byte to its last
    close: float = 2.0  #: to close the connection after our last PDU (ARTIM)


class Closed(NodeError):
    """The connection is gone: the peer closed or reset it."""

    code = "connection.closed"


class Abort(NodeError):
    """We end the association with A-ABORT.

    Parameters
    ----------
    message
        What the peer did.
    source
        PS3.8 9.3.8: 0 the service-user, 2 the service-provider.
    reason
        PS3.8 9.3.8, of source 2.
    """

    code = "association.aborted"

    def __init__(self, message: str, *, source: int = 2, reason: int = 0) -> None:
        super().__init__(message)
        self.pdu = _ABORT.pack(PduType.ABORT, 4, source, reason)


class TimedOut(Abort):
    """The peer was silent, or slower than a deadline allows."""

    code = "association.timeout"


def out_of_place(pdu_type: int) -> Abort:
    """PS3.8 9.3.8: not a PDU, or not one for this state of the association."""
    if pdu_type in PduType.__members__.values():
        return Abort(f"{PduType(pdu_type).name} PDU out of place", reason=2)
    return Abort(f"PDU of unknown type 0x{pdu_type:02X}", reason=1)


def invalid_pdu(what: str) -> Abort:
    """PS3.8 9.3.8: invalid PDU parameter value."""
    return Abort(what, reason=6)


class Connection:
    """A connected socket. For one thread at a time, but :meth:`cut` may come from another.

    Parameters
    ----------
    address
        The peer's IP address.
    local
        It came over the port that only this machine can reach.
    """

    def __init__(
        self, connected: socket.socket, address: str, deadlines: Deadlines, *, local: bool = False
    ) -> None:
        self.address = address
        self.deadlines = deadlines
        self.local = local
        self.tls = False
        self.established = False  #: an association was accepted
        self.was_cut = False
        self._socket = connected
        self._buffer = memoryview(bytearray(1))  # who never sends a byte gets no larger one
        self._begin = self._end = 0  # what was read and not yet taken
        self._deadline = 0.0

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Shake hands as the server.

        Raises
        ------
        OSError
            No TLS connection comes about (``ssl.SSLError``, ``TimeoutError``, ...).
        """
        self.tls = True
        self._socket.settimeout(self.deadlines.handshake)
        self._socket = context.wrap_socket(
            self._socket, server_side=True, do_handshake_on_connect=False
        )
        if self.was_cut:  # the socket that was cut is not this one
            raise ConnectionAbortedError
        self._socket.do_handshake()

    def pdu(self, wait: float, *, whole: bool = False) -> tuple[int, int]:
        """Type and length of the next PDU; its bytes must be taken before the next call.

        Parameters
        ----------
        wait
            Seconds until its first byte must be here; after that ``deadlines.pdu`` holds.
        whole
            ``wait`` is for all of it, down to its last byte.

        Raises
        ------
        Closed, TimedOut
            No whole header came.
        """
        self._deadline = time.monotonic() + wait
        self._need(1)
        if not whole:
            self._deadline = time.monotonic() + self.deadlines.pdu
        header = self.take(_HEADER.size)
        pdu_type, length = _HEADER.unpack(header)
        return pdu_type, length

    def take(self, length: int) -> memoryview:
        """The next bytes, at most :data:`BUFFER` of them; valid until the next call."""
        self._need(length)
        begin, self._begin = self._begin, self._begin + length
        return self._buffer[begin : self._begin]

    def pieces(self, length: int) -> Iterator[memoryview]:
        """The next bytes as they come; each view is valid until the next one is asked for."""
        while length:
            self._need(1)
            piece = self.take(min(length, self._end - self._begin))
            length -= len(piece)
            yield piece

    def _need(self, length: int) -> None:
        while self._end - self._begin < length:
            self._make_room(length)
            self._end += self._receive(self._buffer[self._end :])

    def _make_room(self, length: int) -> None:
        if self._begin == self._end:
            self._begin = self._end = 0
        if self._begin + length > len(self._buffer):
            left = bytes(self._buffer[self._begin : self._end])
            if len(self._buffer) < BUFFER:
                self._buffer = memoryview(bytearray(BUFFER))
            self._buffer[: len(left)] = left
            self._begin, self._end = 0, len(left)

    def _receive(self, into: memoryview) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimedOut("too slow")
        try:
            self._socket.settimeout(left)
            received = self._socket.recv_into(into)
        except TimeoutError as error:
            raise TimedOut("silent for too long") from error
        except (OSError, ValueError) as error:  # ValueError: closed by cut()
            raise Closed(f"connection lost: {type(error).__name__}") from error
        if not received:
            raise Closed("closed by the peer")
        return received

    def send(self, pdu: bytes) -> None:
        """Send a whole PDU.

        Raises
        ------
        Closed
            The peer is gone, or takes nothing any more.
        """
        try:
            self._socket.settimeout(self.deadlines.pdu)
            self._socket.sendall(pdu)
        except (OSError, ValueError) as error:
            raise Closed(f"connection lost: {type(error).__name__}") from error

    def linger(self) -> None:
        """Wait a moment for the peer to close, so that our last PDU is not lost by a reset.

        PS3.8 9.2, state Sta13: what comes is thrown away, and ARTIM bounds the wait. Who sends on
        and on does not listen, so there is an end to that too.
        """
        self._deadline = time.monotonic() + self.deadlines.close
        with suppress(NodeError, OSError):
            self._socket.shutdown(socket.SHUT_WR)
            waste = memoryview(bytearray(BUFFER))
            for _ in range(_LINGERING_READS):
                self._receive(waste)

    def cut(self) -> None:
        """End whatever the connection's thread waits for; from any thread."""
        self.was_cut = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
