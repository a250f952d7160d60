"""Syslog collectors for tests: they keep what they got, in order, and can go away."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

#: RFC 5424 6, as far as we use it; the message begins after the structured data.
_SYSLOG = re.compile(
    rb"<85>1 (?P<at>\d{4}-\d\d-\d\dT[0-9:.]{12}(?:Z|[+-]\d\d:\d\d)) (?P<host>[!-~]{1,255})"
    rb" dicom-node (?P<process>\d+) DICOM\+RFC3881 - (?P<message>.*)",
    re.DOTALL,
)


def message(frame: bytes) -> str:
    """The message in a syslog frame."""
    found = _SYSLOG.fullmatch(frame)
    assert found is not None, frame[:200]
    return found["message"].decode("ascii")


@dataclass
class Collected:
    """What came, whoever took it."""

    messages: list[str] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, frame: bytes) -> None:
        with self._changed:
            self.messages.append(message(frame))
            self._changed.notify_all()

    def wait(self, count: int, seconds: float) -> list[str]:
        """Until so many are there; those that are."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.messages) >= count, seconds)
            return list(self.messages)


class _Server:
    """A thread that serves until it is stopped; the port stays the same when it starts again."""

    scheme = ""

    def __init__(self) -> None:
        self.collected = Collected()
        self.port = 0
        self._listening: socket.socket | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._listening = self._listen()
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._run, args=(self._listening,))
        self._thread.start()

    def stop(self) -> None:
        if self._listening is None or self._thread is None:
            return
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()
        self._listening = None

    def _listen(self) -> socket.socket:
        raise NotImplementedError

    def _run(self, listening: socket.socket) -> None:
        raise NotImplementedError


class UdpServer(_Server):
    """RFC 5426."""

    scheme = "udp"

    def _listen(self) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 2**20)
        made.bind(("127.0.0.1", self.port))
        return made

    def _run(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while frame := listening.recv(65536):
                self.collected.add(frame)


Talk = Callable[[ssl.SSLSocket, Collected], None]


class TlsServer(_Server):
    """RFC 5425; ``talk`` is what it does with a connection."""

    scheme = "tls"

    def __init__(self, context: ssl.SSLContext, talk: Talk | None = None) -> None:
        super().__init__()
        self._context = context
        self.talk = talk or read_to_the_end

    def _listen(self) -> socket.socket:
        return socket.create_server(("127.0.0.1", self.port))

    def _run(self, listening: socket.socket) -> None:
        with suppress(OSError):  # it is stopped
            while True:
                plain, _ = listening.accept()
                plain.settimeout(20)
                with suppress(OSError), plain, self._secured(plain) as connection:
                    self.talk(connection, self.collected)

    def _secured(self, plain: socket.socket) -> ssl.SSLSocket:
        return self._context.wrap_socket(plain, server_side=True)


def read_to_the_end(connection: ssl.SSLSocket, collected: Collected) -> None:
    """Take every message, then answer the close_notify."""
    stream = connection.makefile("rb")
    with stream:
        while (length := message_length(stream.read)) is not None:
            collected.add(stream.read(length))
    connection.unwrap()


def message_length(read: Callable[[int], bytes]) -> int | None:
    """MSG-LEN SP (RFC 5425 4.3)."""
    digits = b""
    while (one := read(1)) not in (b" ", b""):
        digits += one
    return int(digits) if digits else None
