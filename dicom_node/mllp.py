"""Who sends HL7 messages: an MLLP client as a destination (HL7 v2.5, transport release 1).

python-hl7's own client sends once, reads once and waits for ever, so that a slow or split answer
is no answer; it serves to read the answer only.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hl7

from dicom_node.config import Peer
from dicom_node.errors import PeerError, PeerRefused, Unreadable
from dicom_node.scu import Reference, Timeouts

_START = b"\x0b"
_END = b"\x1c"  # and a CR, which some leave out
_LONGEST_ANSWER = 65536  # bytes; an acknowledgement has about 200

# HL7 table 0008: application and commit level.
_STORED = ("AA", "CA")
_REJECTED = ("AR", "CR")
_ERROR = ("AE", "CE")

_CONTROL_ID = 9  # MSH-10; fields count from the segment's name, and MSH-1 is the separator


class MllpPeer:
    """A peer that takes HL7 messages.

    Parameters
    ----------
    peer
        Whom to call. Its ``ae_title`` becomes the receiving application (MSH-5); one with a ``|``,
        such as ``HL7RCV|DCM4CHEE``, names the facility too (MSH-6). Empty: nobody is named.
    calling_ae_title
        Who we are; not used, for the message itself says so (MSH-3).
    timeouts
        How long to wait; ``answer`` bounds the whole wait for an acknowledgement.
    """

    def __init__(self, peer: Peer, calling_ae_title: str, timeouts: Timeouts | None = None) -> None:
        self._peer = peer
        self._timeouts = timeouts or Timeouts()

    def verify(self) -> None:
        """Connect, for MLLP has no question that changes nothing.

        Raises
        ------
        PeerError
            Nobody listens.
        """
        with self._connection():
            pass

    def send(self, file: Path) -> int:
        """Send one message and wait for its acknowledgement.

        Returns
        -------
        int
            0: accepted (AA), or taken into safe storage (CA).

        Raises
        ------
        Unreadable
            The file is no HL7 message.
        PeerRefused
            The peer rejects the message for good (AR, CR).
        PeerError
            Any other failure: unreachable, silent, an error (AE, CE), no answer to this message.
        """
        message = _addressed(_message(file), self._peer.ae_title)
        with self._connection() as connection:
            connection.sendall(_START + message + _END + b"\r")
            answer = self._answer(connection)
        self._judge(answer, _header(message)[_CONTROL_ID].decode("latin-1"))
        return 0

    def prove(self, reference: Reference) -> bool:
        """Is it there? HL7 has no question for that: the acknowledgement was proof enough."""
        return True

    @contextmanager
    def _connection(self) -> Iterator[socket.socket]:
        address = (self._peer.address, self._peer.port)
        try:
            with socket.create_connection(address, self._timeouts.connect) as connection:
                connection.settimeout(self._timeouts.network)
                yield connection
        except TimeoutError as error:
            raise PeerError(f"{self._who()} did not answer in time") from error
        except (OSError, UnicodeError) as error:  # the name may be none
            why = getattr(error, "strerror", None) or "no connection"
            raise PeerError(f"{self._who()} can't be reached: {why}") from error

    def _answer(self, connection: socket.socket) -> bytes:
        """Read up to the end of the first frame; what comes after it is not for us."""
        deadline = time.monotonic() + self._timeouts.answer
        answer = b""
        while _END not in answer:
            # Never 0, which would mean not to wait at all.
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            received = connection.recv(4096)
            if not received:
                raise PeerError(f"{self._who()} closed the connection without an acknowledgement")
            answer += received
            if len(answer) > _LONGEST_ANSWER:
                raise PeerError(f"{self._who()} answered with more than {_LONGEST_ANSWER} bytes")
        return answer.partition(_START)[2].partition(_END)[0]

    def _judge(self, answer: bytes, control_id: str) -> None:
        code, acknowledged = _acknowledgement(answer)
        if code not in (*_STORED, *_REJECTED, *_ERROR):
            raise PeerError(f"{self._who()} answered with something that is no acknowledgement")
        if acknowledged != control_id:
            raise PeerError(f"{self._who()} acknowledged another message")
        if code in _REJECTED:
            raise PeerRefused(f"{self._who()} rejected the message: {code}")
        if code in _ERROR:
            raise PeerError(f"{self._who()} answered the message with {code}")

    def _who(self) -> str:
        return f"{self._peer.name} ({self._peer.address}:{self._peer.port})"


def _message(file: Path) -> bytes:
    try:
        message = file.read_bytes()
    except OSError as error:
        raise Unreadable(f"{file.name}: {error.strerror}") from error
    if not message.startswith(b"MSH|") or len(_header(message)) <= _CONTROL_ID:
        raise Unreadable(f"{file.name}: not an HL7 message")
    return message


def _header(message: bytes) -> list[bytes]:
    return message.partition(b"\r")[0].split(b"|")


def _addressed(message: bytes, receiver: str) -> bytes:
    """Name the receiver in MSH-5 and MSH-6; everything else stays byte for byte."""
    if not receiver:
        return message
    application, _, facility = receiver.encode("ascii").partition(b"|")
    fields = _header(message)
    fields[4:6] = [application, facility]
    return b"|".join(fields) + message[message.index(b"\r") :]


def _acknowledgement(answer: bytes) -> tuple[str, str]:
    """Return acknowledgement code and control id (MSA-1, MSA-2); two empty ones if there is none.

    What was wrong with an answer is not told: the parser would quote it.
    """
    try:
        segment = hl7.parse(answer.replace(b"\n", b"\r").decode("latin-1")).segment("MSA")
        return str(segment(1)), str(segment(2))
    except (hl7.HL7Exception, LookupError, ValueError):
        return "", ""
