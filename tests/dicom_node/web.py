"""Web servers for the tests: one that notes what it gets, and ports where no HTTP is spoken."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.dicom_node.certificates import Authority, Certificate

PATIENCE = 10.0  #: seconds; far above the time-outs of the tests


@dataclass
class WebServer:
    """Notes each request, and answers as a test wants."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b"SECRET" * 1000
    port: int = 0
    scheme: str = "http"
    requests: list[tuple[str, str, str, bytes]] = field(default_factory=list)
    heard: list[Message] = field(default_factory=list)  #: the headers of each request

    @property
    def origin(self) -> str:
        """Where it listens."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Note the request and answer it."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        content_type = handler.headers.get("Content-Type", "")
        self.requests.append((handler.command, handler.path, content_type, body))
        self.heard.append(handler.headers)
        handler.send_response(self.status)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(self.content)


@contextmanager
def serving(server: WebServer, context: ssl.SSLContext | None = None) -> Iterator[None]:
    """The server listens; by TLS with a context."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            with suppress(OSError):  # the client does not read what it does not need
                server.answer(self)

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        running.socket = context.wrap_socket(running.socket, server_side=True)
        server.scheme = "https"
    server.port = running.server_address[1]
    thread = threading.Thread(target=running.serve_forever, args=[0.01], daemon=True)
    thread.start()
    try:
        yield
    finally:
        running.shutdown()
        running.server_close()
        thread.join(PATIENCE)


def secured(certificate: Certificate, clients_of: Authority | None = None) -> ssl.SSLContext:
    """What a server by TLS needs; with an authority, its clients show a certificate of that."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.private_key)
    if clients_of is not None:
        context.load_verify_locations(clients_of.certificate)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextmanager
def saying(*parts: bytes, pause: float = 0) -> Iterator[int]:
    """A port where somebody takes one connection and says that, whatever is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def behave() -> None:
            with suppress(OSError), listener.accept()[0] as connection:
                connection.recv(65536)
                for part in parts:
                    time.sleep(pause)
                    connection.sendall(part)

        thread = threading.Thread(target=behave, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(PATIENCE)


def closed_port() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port: int = closed.getsockname()[1]
    return port
