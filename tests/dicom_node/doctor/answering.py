"""Ports on which a caller gets a few bytes, or none: peers that misbehave as a test wants."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

PATIENCE = 20.0  #: seconds; far above what an answer takes


@contextmanager
def answering(answer: Callable[[socket.socket], None], calls: int = 1) -> Iterator[int]:
    """A port on which so many callers are answered like this, one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE)

        def serve() -> None:
            for _ in range(calls):
                with suppress(OSError):
                    connection, _ = listening.accept()
                    with connection:
                        connection.settimeout(PATIENCE)
                        answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.close()
            thread.join(PATIENCE)


def saying(answer: bytes) -> Callable[[socket.socket], None]:
    """Read what the caller asks, say this, and wait until the caller goes."""

    def say(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)
        while answer and connection.recv(65536):
            pass

    return say


def silent(connection: socket.socket) -> None:
    """Read until the caller goes."""
    while connection.recv(65536):
        pass
