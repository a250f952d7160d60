"""What the tests of connections share: both ends of one, and one where bytes come as told."""

from __future__ import annotations

import itertools
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dicom_node.upper_layer import Connection, Deadlines

PATIENCE = 20.0  #: seconds; far above what a loaded machine needs, so that only a fault reaches it
HOUR = Deadlines(handshake=3600, associate=3600, idle=3600, pdu=3600, close=3600)
SOON = Deadlines(handshake=0.1, associate=0.1, idle=0.1, pdu=0.1, close=0.1)


@contextmanager
def connected(deadlines: Deadlines = HOUR) -> Iterator[tuple[Connection, socket.socket]]:
    """Ours and theirs, over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname(), timeout=PATIENCE)
        ours, (address, _) = listening.accept()
    connection = Connection(ours, address, deadlines)
    with theirs:
        yield connection, theirs
        connection.close()


class Pieces:
    """A socket out of which bytes come in these pieces, and then nothing; never more than asked.

    Parameters
    ----------
    pause
        Seconds before each.
    """

    def __init__(self, pieces: list[bytes], pause: float = 0) -> None:
        self._left = [piece for piece in pieces if piece]
        self._pause = pause

    def shutdown(self, how: int) -> None:
        assert how == socket.SHUT_WR

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def recv_into(self, into: memoryview) -> int:
        assert len(into)
        time.sleep(self._pause)
        if not self._left:
            return 0
        piece = self._left.pop(0)
        taken, rest = piece[: len(into)], piece[len(into) :]
        if rest:
            self._left.insert(0, rest)
        into[: len(taken)] = taken
        return len(taken)


def over(pieces: list[bytes], deadlines: Deadlines = HOUR, pause: float = 0) -> Connection:
    return Connection(Pieces(pieces, pause), "127.0.0.1", deadlines)  # type: ignore[arg-type]


def pdu(pdu_type: int, body: bytes) -> bytes:
    return struct.pack(">BBL", pdu_type, 0, len(body)) + body


def split(content: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted(cut % (len(content) + 1) for cut in cuts), len(content)]
    return [content[begin:end] for begin, end in itertools.pairwise(at)]
