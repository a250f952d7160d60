from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dicom_node.config import Peer
from dicom_node.errors import ConfigurationError, PeerError, PeerRefused, Unreadable
from dicom_node.fhir_server import FhirServer
from dicom_node.results import fhir
from dicom_node.scu import Reference, Timeouts
from tests.dicom_node.certificates import Authority
from tests.dicom_node.results.samples import record
from tests.dicom_node.web import WebServer, closed_port, saying, secured, serving

IMPATIENT = Timeouts(connect=2, answer=0.5, network=0.4)
DRAFT = fhir.encode(record(kind="fhir"))
WHERE = f"/fhir/DiagnosticReport/{json.loads(DRAFT.file)['id']}"
REFERENCE = Reference(
    study_instance_uid="1", series_instance_uid="", sop_instance_uid=DRAFT.sop_instance_uid
)


@dataclass
class Server(WebServer):
    """A FHIR server, as a test wants it."""

    status: int = 201

    def peer(self, **changes: object) -> Peer:
        fields: dict[str, object] = {
            "name": "ehr",
            "protocol": "fhir",
            "url": f"{self.origin}/fhir",
            "roles": ("destination",),
        }
        return Peer.model_validate(fields | changes)

    def client(self, **changes: object) -> FhirServer:
        return FhirServer(self.peer(**changes), "DICOMNODE", IMPATIENT)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    with serving(running):
        yield running


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
    with serving(other := Server()):
        server.status = status
        server.headers = {"Location": f"http://127.0.0.1:{other.port}{WHERE}"}
        with pytest.raises(PeerError, match=f"with {status}") as caught:
            server.client().send(draft)
        assert caught.value.retry
        assert other.requests == []


def test_a_draft_goes_through_no_proxy_of_the_environment(
    server: Server, draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(proxy := Server()):
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
    url = f"http://127.0.0.1:{closed_port()}/fhir"
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


@pytest.mark.parametrize(
    ("login", "header"),
    [
        ({"username": "node", "password": "geheim"}, "Basic bm9kZTpnZWhlaW0="),
        ({"token": "a.b.c"}, "Bearer a.b.c"),
        ({}, None),
    ],
    ids=["password", "token", "none"],
)
def test_a_login_is_shown_where_one_is_set(
    server: Server, draft: Path, login: dict[str, str], header: str | None
) -> None:
    server.client(**login).send(draft)
    assert server.heard[0]["Authorization"] == header


def test_a_server_of_the_hospital_s_own_authority_is_trusted_where_that_is_named(
    draft: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    server = Server()
    with serving(server, secured(authority.issue())):
        with pytest.raises(PeerError, match="by TLS: the peer's certificate is of an authority"):
            server.client().send(draft)
        assert server.client(authorities=str(authority.certificate)).send(draft) == 0


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
