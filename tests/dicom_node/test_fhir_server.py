from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dicom_node.config import Peer
from dicom_node.errors import ConfigurationError, PeerError, PeerRefused, Unreadable
from dicom_node.fhir_server import FhirServer
from dicom_node.results import fhir
from dicom_node.scu import Reference, Timeouts
from tests.dicom_node.results.samples import record

IMPATIENT = Timeouts(connect=2, answer=0.5, network=0.4)
PATIENCE = 10.0  #: seconds; far above the time-outs here
DRAFT = fhir.encode(record(kind="fhir"))
WHERE = f"/fhir/DiagnosticReport/{json.loads(DRAFT.file)['id']}"
REFERENCE = Reference(
    study_instance_uid="1", series_instance_uid="", sop_instance_uid=DRAFT.sop_instance_uid
)


@dataclass
class Server:
    """An HTTP server that notes what it got, and answers as a test wants."""

    status: int = 201
    headers: dict[str, str] = field(default_factory=dict)
    port: int = 0
    requests: list[tuple[str, str, str, bytes]] = field(default_factory=list)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        content_type = handler.headers.get("Content-Type", "")
        self.requests.append((handler.command, handler.path, content_type, body))
        handler.send_response(self.status)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(b"SECRET" * 1000)

    def peer(self, **changes: object) -> Peer:
        fields: dict[str, object] = {
            "name": "ehr",
            "protocol": "fhir",
            "url": f"http://127.0.0.1:{self.port}/fhir",
            "roles": ("destination",),
        }
        return Peer.model_validate(fields | changes)

    def client(self, **changes: object) -> FhirServer:
        return FhirServer(self.peer(**changes), "DICOMNODE", IMPATIENT)


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            with suppress(OSError):  # the client does not read what it does not need
                server.answer(self)

        do_GET = do_PUT = answer

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.port = running.server_address[1]
    thread = threading.Thread(target=running.serve_forever, args=[0.01], daemon=True)
    thread.start()
    try:
        yield server
    finally:
        running.shutdown()
        running.server_close()
        thread.join(PATIENCE)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


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


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    file = tmp_path / "draft.json"
    file.write_bytes(DRAFT.file)
    return file


# --- sending -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201])
def test_a_draft_is_put_under_its_own_id(server: Server, draft: Path, status: int) -> None:
    server.status = status
    assert server.client().send(draft) == 0
    assert server.requests == [("PUT", WHERE, "application/fhir+json", DRAFT.file)]


def test_sending_again_sends_the_same_bytes_to_the_same_place(server: Server, draft: Path) -> None:
    for _ in range(10):
        server.client().send(draft)
    assert len(server.requests) == 10
    assert len(set(server.requests)) == 1


def test_a_slash_behind_the_base_makes_no_difference(server: Server, draft: Path) -> None:
    server.client(url=f"http://127.0.0.1:{server.port}/fhir/").send(draft)
    assert server.requests[0][1] == WHERE


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 412, 422])
def test_what_the_server_will_never_take_is_refused(
    server: Server, draft: Path, status: int
) -> None:
    server.status = status
    with pytest.raises(PeerRefused, match=f"answered PUT DiagnosticReport with {status}") as caught:
        server.client().send(draft)
    assert not caught.value.retry


@pytest.mark.parametrize("status", [202, 204, 206, 300, 304, 408, 429, 500, 503, 599])
def test_any_other_status_is_worth_another_try(server: Server, draft: Path, status: int) -> None:
    server.status = status
    with pytest.raises(PeerError, match=f"with {status}") as caught:
        server.client().send(draft)
    assert caught.value.retry


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_draft_follows_no_redirect(server: Server, draft: Path, status: int) -> None:
    with serving() as other:
        server.status = status
        server.headers = {"Location": f"http://127.0.0.1:{other.port}{WHERE}"}
        with pytest.raises(PeerError, match=f"with {status}") as caught:
            server.client().send(draft)
        assert caught.value.retry
        assert other.requests == []


def test_a_draft_goes_through_no_proxy_of_the_environment(
    server: Server, draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        server.client().send(draft)
        assert proxy.requests == []
    assert len(server.requests) == 1


# --- proving -------------------------------------------------------------------------------------


def test_a_success_status_is_proof_where_no_other_is_wanted(server: Server) -> None:
    assert server.client(proof="none").prove(REFERENCE) is True
    assert server.requests == []


@pytest.mark.parametrize(("status", "there"), [(200, True), (404, False), (410, False)])
def test_a_draft_is_there_if_the_server_gives_it_back(
    server: Server, status: int, there: bool
) -> None:
    server.status = status
    assert server.client(proof="find").prove(REFERENCE) is there
    assert server.requests == [("GET", WHERE, "", b"")]


@pytest.mark.parametrize("status", [302, 401, 500])
def test_a_server_that_does_not_say_proves_nothing(server: Server, status: int) -> None:
    server.status = status
    with pytest.raises(PeerError, match=f"answered GET DiagnosticReport with {status}"):
        server.client(proof="find").prove(REFERENCE)


# --- reaching it ---------------------------------------------------------------------------------


def test_a_fhir_server_says_what_it_can(server: Server) -> None:
    server.status = 200
    server.client().verify()
    assert server.requests == [("GET", "/fhir/metadata", "", b"")]


def test_a_server_without_capabilities_is_none(server: Server) -> None:
    server.status = 404
    with pytest.raises(PeerError, match="answered GET metadata with 404"):
        server.client().verify()


@pytest.mark.parametrize(
    ("parts", "pause", "why"),
    [
        ((b"SECRET\r\n\r\n",), 0, "gave no HTTP"),
        ((b"HTTP/1.1 SECRET\r\n\r\n",), 0, "gave no HTTP"),
        ((b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1000,), 0, "gave no HTTP"),
        ((b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000,), 0, "gave no HTTP"),
        ((), 0, "gave no HTTP"),
        ((b"", b"HTTP/1.1 200 OK\r\n\r\n"), 0.7, "did not answer in time"),
        (tuple(bytes([b]) for b in b"HTTP/1.1 201 X\r\n\r\n"), 0.1, "did not answer in time"),
    ],
    ids=["garbage", "no status", "many headers", "long header", "nothing", "silence", "drops"],
)
def test_an_answer_that_is_none_is_worth_another_try(
    server: Server, draft: Path, parts: tuple[bytes, ...], pause: float, why: str
) -> None:
    with saying(*parts, pause=pause) as port:
        client = server.client(url=f"http://127.0.0.1:{port}/fhir")
        with pytest.raises(PeerError, match=why) as caught:
            client.send(draft)
    assert caught.value.retry
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert "SECRET" not in str(caught.value)


def test_nobody_there_is_said_with_name_and_url(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = f"http://127.0.0.1:{port}/fhir"
    with pytest.raises(PeerError, match=rf"ehr \({url}\) refused the connection"):
        server.client(url=url).verify()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 300])
def test_a_host_that_is_none_is_a_peer_s_failure(server: Server, host: str) -> None:
    with pytest.raises(PeerError, match="can't be reached"):
        server.client(url=f"https://{host}/fhir").verify()


def test_a_server_that_speaks_no_tls_gets_nothing(server: Server, draft: Path) -> None:
    with pytest.raises(PeerError, match="can't be reached"):
        server.client(url=f"https://127.0.0.1:{server.port}/fhir").send(draft)
    assert server.requests == []


@pytest.mark.parametrize(
    "url",
    [
        *("http://", "http:///fhir", "http://:80", "http://host:99999", "http://host:0"),
        *("http://[::1/fhir", "https://user:password@host/fhir", "https://host/fhir?a=b"),
    ],
)
def test_a_url_without_a_host_or_with_a_password_is_a_wrong_setting(
    server: Server, url: str
) -> None:
    with pytest.raises(ConfigurationError, match="peer ehr: url is not of the form") as caught:
        server.client(url=url)
    assert "password" not in str(caught.value)


# --- what can't be sent --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff", b"[]", b"null", b'{"id": "1"}', b'{"resourceType": "DiagnosticReport"}'),
        b'{"resourceType": "Patient", "id": "1"}',
        b'{"resourceType": "DiagnosticReport", "id": "../Patient/1"}',
        b'{"resourceType": "DiagnosticReport", "id": ""}',
    ],
)
def test_a_file_that_is_no_report_is_not_sent(
    server: Server, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(Unreadable, match=r"^x\.json: not a FHIR DiagnosticReport with an id$"):
        server.client().send(file)
    assert server.requests == []


def test_a_file_that_is_gone_is_said(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"gone\.json: No such file"):
        server.client().send(tmp_path / "gone.json")


def test_nothing_of_report_or_answer_reaches_a_log(
    server: Server, draft: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.status = 422
    with pytest.raises(PeerRefused) as caught:
        server.client().send(draft)
    told = caplog.text + str(caught.value)
    assert not any(word in told for word in ("SECRET", "MRN0012345", "ACC1", "consolidation"))
