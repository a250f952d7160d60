"""HTTP for a library that speaks through requests: a session that goes where the peer's url says.

By itself requests takes proxies, logins and authorities from the environment, waits for the next
byte rather than for the answer, and reads whatever comes.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from io import BytesIO
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from dicom_node import http_peer
from dicom_node.config import Peer, Tls
from dicom_node.scu import Timeouts

LONGEST_ANSWER = 1 << 20  #: bytes; what is said of one object has about 1000


@contextmanager
def opened(
    peer: Peer, calling_ae_title: str, timeouts: Timeouts, tls: Tls | None
) -> Iterator[requests.Session]:
    """A session with one peer; all its exchanges together have ``timeouts.answer`` seconds.

    Raises
    ------
    PeerError
        Our certificates can't be used.
    """
    secure = peer.url.startswith("https:")
    adapter = _Adapter(http_peer.context(peer, tls) if secure else None)
    timer = threading.Timer(timeouts.answer, adapter.hang_up)
    timer.daemon = True
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        session.auth = _signing(http_peer.headers(peer, calling_ae_title))
        timer.start()
        try:
            yield session
        finally:
            timer.cancel()
            adapter.forget()


def bounded(response: requests.Response) -> requests.Response:
    """A response with all its content, read here and now.

    Raises
    ------
    requests.exceptions.ContentDecodingError
        There is more than :data:`LONGEST_ANSWER`.
    """
    with closing(response.raw) as raw:
        content = raw.read(LONGEST_ANSWER + 1, decode_content=True)
    if len(content) > LONGEST_ANSWER:
        raise requests.exceptions.ContentDecodingError("more than an answer may have")
    response.raw = BytesIO(content)
    return response


def _signing(
    headers: dict[str, str],
) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        # dicomweb-client names the host without its port; without it the right one is written.
        request.headers.pop("Host", None)
        request.headers.update(headers)
        return request

    return sign


class _Adapter(HTTPAdapter):
    """Connections that our own TLS context judges, and that can be hung up on."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._sockets: list[socket.socket] = []
        super().__init__()

    def init_poolmanager(
        self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any
    ) -> None:
        super().init_poolmanager(connections, maxsize, block, **pool_kwargs)
        self.poolmanager.pool_classes_by_scheme = _pools(self._sockets.append)

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        host, pool = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {**pool, "ssl_context": self._context} if self._context else pool

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Leave that to the context, to which requests would add the authorities of certifi."""

    def hang_up(self) -> None:
        """End what is under way, from another thread."""
        for connection in self._sockets:
            with suppress(OSError):  # it is over already
                connection.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        """Close what an interrupted exchange has left open."""
        for connection in self._sockets:
            connection.close()


def _pools(note: Callable[[socket.socket], None]) -> dict[str, type[HTTPConnectionPool]]:
    """What makes connections, by scheme; each connection's socket is noted."""

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            note(self.sock)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            note(self.sock)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}
