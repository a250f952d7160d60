from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import pytest

from dicom_node.config import Peer, Tls
from dicom_node.dicomweb import DicomWebServer
from dicom_node.errors import ConfigurationError, NotSupported, PeerError, PeerRefused, Unreadable
from dicom_node.http_session import LONGEST_ANSWER
from dicom_node.results import text_sr
from dicom_node.scu import Reference, Timeouts
from tests.dicom_node.certificates import Authority
from tests.dicom_node.results.samples import STUDY, record
from tests.dicom_node.web import WebServer, closed_port, saying, secured, serving

IMPATIENT = Timeouts(connect=2, answer=0.5, network=0.4)
DRAFT = text_sr.encode(record())
OTHER = "2.25.1"
REFERENCE = Reference(
    study_instance_uid=STUDY,
    series_instance_uid=DRAFT.series_instance_uid,
    sop_instance_uid=DRAFT.sop_instance_uid,
)
INSTANCES = (
    f"/dicom-web/studies/{STUDY}/series/{DRAFT.series_instance_uid}/instances"
    f"?SOPInstanceUID={DRAFT.sop_instance_uid}"
)

REFERENCED = "00081199"
FAILED = "00081198"
OTHER_FAILURES = "0008119A"


def sop(uid: str = DRAFT.sop_instance_uid, **numbers: int) -> dict[str, Any]:
    """An item of a Store Instances Response (PS3.18 I.1)."""
    tags = {"failure": "00081197", "warning": "00081196"}
    named = {"00081155": {"vr": "UI", "Value": [uid]}} if uid else {}
    return named | {tags[key]: {"vr": "US", "Value": [number]} for key, number in numbers.items()}


def response(**sequences: list[dict[str, Any]]) -> bytes:
    """A Store Instances Response; a sequence without items has no value, as Orthanc writes it."""
    tags = {"stored": REFERENCED, "failed": FAILED, "others": OTHER_FAILURES}
    return json.dumps(
        {
            tags[key]: {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
            for key, items in sequences.items()
        }
    ).encode()


STORED = response(failed=[], stored=[sop()])


@dataclass
class Server(WebServer):
    """A DICOMweb server, as a test wants it."""

    content: bytes = STORED

    def peer(self, **changes: object) -> Peer:
        fields: dict[str, object] = {
            "name": "archive",
            "protocol": "dicomweb",
            "url": f"{self.origin}/dicom-web",
            "roles": ("destination",),
            "proof": "find",
        }
        return Peer.model_validate(fields | changes)

    def client(self, tls: Tls | None = None, **changes: object) -> DicomWebServer:
        return DicomWebServer(self.peer(**changes), "DICOMNODE", IMPATIENT, tls)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    with serving(running):
        yield running


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    file = tmp_path / "draft.dcm"
    file.write_bytes(DRAFT.file)
    return file


def parts_of(request: tuple[str, str, str, bytes]) -> list[tuple[str, bytes]]:
    """Media type and content of each part of a multipart request."""
    _, _, media_type, body = request
    message = BytesParser().parsebytes(f"Content-Type: {media_type}\r\n\r\n".encode() + body)
    return [
        (part.get_content_type(), body.partition(b"\r\n\r\n")[2][: len(DRAFT.file)])
        for part in message.walk()
        if not part.is_multipart()
    ]


# --- storing -------------------------------------------------------------------------------------


def test_a_draft_is_stored_byte_for_byte(server: Server, draft: Path) -> None:
    assert server.client().send(draft) == 0x0000
    (request,) = server.requests
    assert request[:2] == ("POST", "/dicom-web/studies")
    assert request[2].startswith('multipart/related; type="application/dicom"; boundary=')
    assert parts_of(request) == [("application/dicom", DRAFT.file)]


def test_the_request_says_who_asks_and_for_what(server: Server, draft: Path) -> None:
    server.client().send(draft)
    (heard,) = server.heard
    assert heard["User-Agent"] == "DICOMNODE"
    assert heard["Accept"] == "application/dicom+json"
    assert heard["Host"] == f"127.0.0.1:{server.port}"


def test_sending_again_sends_the_same_to_the_same_place(server: Server, draft: Path) -> None:
    for _ in range(3):
        assert server.client().send(draft) == 0x0000
    assert [parts_of(one) for one in server.requests] == [
        [("application/dicom", DRAFT.file)] for _ in range(3)
    ]


def test_a_slash_behind_the_base_makes_no_difference(server: Server, draft: Path) -> None:
    server.client(url=f"{server.origin}/dicom-web/").send(draft)
    assert server.requests[0][1] == "/dicom-web/studies"


@pytest.mark.parametrize(
    ("status", "content", "means"),
    [
        (200, response(stored=[sop(OTHER), sop()]), 0x0000),
        (202, response(stored=[sop(warning=0xB000)]), 0xB000),
        (200, response(stored=[sop(warning=1)]), 0x0001),
        (409, response(failed=[sop(failure=0x0111)]), 0x0111),
        (409, response(failed=[sop(failure=45070)]), 0x0111),
        (202, response(failed=[sop("", failure=0x0111)], stored=[]), 0x0111),
    ],
    ids=["with others", "coerced", "Azure's warning", "duplicate", "Azure's duplicate", "unnamed"],
)
def test_what_means_that_it_is_stored(
    server: Server, draft: Path, status: int, content: bytes, means: int
) -> None:
    server.status, server.content = status, content
    assert server.client().send(draft) == means


@pytest.mark.parametrize("status", [200, 202])
@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"null", b"SECRET", b"<NativeDicomModel/>", b'{"00081199": 1}'),
        *(b'{"00081199": {"Value": {"SECRET": 1}}}', b'{"00081199": {"Value": ["SECRET"]}}'),
        b"[" * 100_000,
        response(stored=[]),
        response(stored=[sop(OTHER)]),
        response(stored=[sop("")]),
    ],
    ids=lambda content: content[:30].decode(),
)
def test_an_answer_that_does_not_name_the_object_is_no_success(
    server: Server, draft: Path, status: int, content: bytes
) -> None:
    server.status, server.content = status, content
    with pytest.raises(PeerError, match="names the object neither as stored nor as fail") as caught:
        server.client().send(draft)
    assert caught.value.retry
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        *((reason, PeerError) for reason in (0xA700, 0xA7FF, 0x0110, 0x0124, 0xB00F, 0x1234)),
        *((reason, PeerRefused) for reason in (0xA900, 0xA901, 0xC000, 0xC121)),
        *((reason, NotSupported) for reason in (0x0122, 0xC122)),
    ],
)
@pytest.mark.parametrize("status", [200, 409])
def test_a_failure_reason_decides_whether_to_try_again(
    server: Server, draft: Path, status: int, reason: int, kind: type[PeerError]
) -> None:
    server.status = status
    server.content = response(failed=[sop(failure=reason)], stored=[sop()])
    with pytest.raises(PeerError, match=f"failed to store the object: reason 0x{reason:04X}") as e:
        server.client().send(draft)
    assert type(e.value) is kind
    assert e.value.status == reason


def test_a_failure_that_names_no_object_is_ours_too(server: Server, draft: Path) -> None:
    server.status, server.content = 409, response(others=[sop("", failure=0xC000)])
    with pytest.raises(PeerRefused, match="reason 0xC000"):
        server.client().send(draft)


def test_a_failure_without_a_reason_is_worth_another_try(server: Server, draft: Path) -> None:
    server.status, server.content = 202, response(failed=[sop()])
    with pytest.raises(PeerError, match="gives no reason") as caught:
        server.client().send(draft)
    assert type(caught.value) is PeerError


#: What is done about each HTTP status that comes without a Store Instances Response. (100 and 1xx
#: are no answers; 200 and 202 are judged by what they hold.)
STATUSES: dict[type[PeerError], tuple[int, ...]] = {
    PeerError: (
        *(201, 203, 204, 205, 206),
        *(300, 301, 302, 303, 304, 305, 307, 308),
        *(401, 403, 404, 405, 406, 407, 408, 421, 425, 429),
        *(500, 501, 502, 503, 504, 505, 506, 507, 508, 510, 511, 599),
    ),
    PeerRefused: (
        *(400, 402, 409, 410, 411, 412, 413, 414, 416, 417, 418, 422, 423, 424, 426, 428, 431),
        *(451, 499),
    ),
    NotSupported: (415,),
}


@pytest.mark.parametrize(
    ("status", "kind"),
    [(status, kind) for kind, statuses in STATUSES.items() for status in statuses],
)
def test_every_http_status_decides_whether_to_try_again(
    server: Server, draft: Path, status: int, kind: type[PeerError]
) -> None:
    server.status = status
    server.content = b"" if status in (204, 304) else b"SECRET"
    with pytest.raises(PeerError, match=rf"answered STOW-RS with {status}\b") as caught:
        server.client().send(draft)
    assert type(caught.value) is kind
    assert caught.value.retry is (kind is not PeerRefused)
    assert len(server.requests) == 1, "the delivery repeats, not the client"
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "fix"),
    [
        (401, "set username and password, or token"),
        (403, "the right to do this"),
        (404, "check the peer's url"),
        (413, "raise its limit"),
        (302, "set the peer's url to where it answers itself"),
    ],
)
def test_what_an_administrator_can_mend_is_said(
    server: Server, draft: Path, status: int, fix: str
) -> None:
    server.status = status
    with pytest.raises(PeerError, match=rf"archive \(.*\) answered STOW-RS with {status}: .*{fix}"):
        server.client().send(draft)


# --- proving -------------------------------------------------------------------------------------


def found(*uids: str) -> bytes:
    """What a search for instances gives."""
    return json.dumps([{"00080018": {"vr": "UI", "Value": [uid]}} for uid in uids]).encode()


def test_a_success_status_is_proof_where_no_other_is_wanted(server: Server) -> None:
    assert server.client(proof="none").prove(REFERENCE) is True
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "content", "there"),
    [
        (200, found(DRAFT.sop_instance_uid), True),
        (200, found(OTHER, DRAFT.sop_instance_uid), True),
        (206, found(DRAFT.sop_instance_uid), True),
        (200, found(OTHER), False),
        (200, b"[]", False),
        (200, b"[1, null, {}]", False),
        (204, b"", False),
        (404, b"SECRET", False),
        (410, b"SECRET", False),
    ],
)
def test_a_draft_is_there_if_the_server_lists_it(
    server: Server, status: int, content: bytes, there: bool
) -> None:
    server.status, server.content = status, content
    assert server.client().prove(REFERENCE) is there
    assert [one[:2] for one in server.requests] == [("GET", INSTANCES)]


def test_a_study_whose_uid_is_none_is_asked_for_all_the_same(server: Server) -> None:
    server.content = found("1.02..3")
    odd = Reference(
        study_instance_uid="1.02..3", series_instance_uid="1.02", sop_instance_uid="1.02..3"
    )
    assert server.client().prove(odd) is True


@pytest.mark.parametrize("status", [201, 300, 302, 303, 400, 401, 403, 408, 429, 500, 503, 504])
def test_a_server_that_does_not_say_proves_nothing(server: Server, status: int) -> None:
    server.status = status
    with pytest.raises(PeerError, match=rf"answered QIDO-RS with {status}\b"):
        server.client().prove(REFERENCE)
    assert len(server.requests) == 1


@pytest.mark.parametrize("content", [b"SECRET", b'"SECRET"', b"7", b"[" * 100_000])
def test_an_answer_that_is_no_dicom_json_proves_nothing(server: Server, content: bytes) -> None:
    server.content = content
    with pytest.raises(PeerError, match="gave an answer that is no DICOM JSON") as caught:
        server.client().prove(REFERENCE)
    assert "SECRET" not in str(caught.value)


# --- reaching it ---------------------------------------------------------------------------------


def test_a_server_is_asked_for_a_study_that_nobody_has(server: Server) -> None:
    server.content = b"[]"
    server.client().verify()
    (request,) = server.requests
    assert request[0] == "GET"
    assert request[1].startswith("/dicom-web/studies?")
    assert "StudyInstanceUID=2.25.0" in request[1]


@pytest.mark.parametrize(("status", "why"), [(401, "username"), (404, "url"), (500, "with 500")])
def test_a_server_that_does_not_search_is_said(server: Server, status: int, why: str) -> None:
    server.status = status
    with pytest.raises(PeerError, match=f"answered QIDO-RS with {status}.*{why}|{why}"):
        server.client().verify()


@pytest.mark.parametrize("ask", ["send", "prove"])
@pytest.mark.parametrize(
    ("parts", "pause", "why"),
    [
        ((b"SECRET\r\n\r\n",), 0, "gave no HTTP"),
        ((b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1000,), 0, "gave no HTTP"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nSECRET",), 0, "gave no HTTP"),
        ((), 0, "gave no HTTP"),
        ((b"", b"HTTP/1.1 200 OK\r\n\r\n"), 0.7, "did not answer in time"),
        (tuple(bytes([b]) for b in b"HTTP/1.1 200 X\r\n\r\n"), 0.1, "did not answer in time"),
        (
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", *[b"x"] * 8),
            0.1,
            "did not answer in time",
        ),
    ],
    ids=["garbage", "many headers", "torn", "nothing", "silence", "drops", "dripping content"],
)
def test_an_answer_that_is_none_is_worth_another_try(
    server: Server, draft: Path, ask: str, parts: tuple[bytes, ...], pause: float, why: str
) -> None:
    with saying(*parts, pause=pause) as port:
        client = server.client(url=f"http://127.0.0.1:{port}/dicom-web")
        with pytest.raises(PeerError, match=why) as caught:
            client.send(draft) if ask == "send" else client.prove(REFERENCE)
    assert caught.value.retry
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert "SECRET" not in str(caught.value)


def test_an_answer_without_end_is_not_read_to_its_end(server: Server, draft: Path) -> None:
    server.content = b" " * (LONGEST_ANSWER + 1)
    with pytest.raises(PeerError, match="no DICOM JSON"):
        server.client().send(draft)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_neither_draft_nor_question_follows_a_redirect(
    server: Server, draft: Path, status: int
) -> None:
    with serving(other := Server()):
        server.status = status
        server.headers = {"Location": f"{other.origin}/dicom-web/studies"}
        with pytest.raises(PeerError, match=f"STOW-RS with {status}"):
            server.client().send(draft)
        with pytest.raises(PeerError, match=f"QIDO-RS with {status}"):
            server.client().verify()
        assert other.requests == []


def test_a_draft_goes_through_no_proxy_of_the_environment_and_takes_no_login_from_it(
    server: Server, draft: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password geheim\n", "utf-8")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serving(proxy := Server()):
        for name in ("http_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.origin)
        server.client().send(draft)
        assert proxy.requests == []
    assert server.heard[0]["Authorization"] is None


def test_nobody_there_is_said_with_name_and_url(server: Server, draft: Path) -> None:
    url = f"http://127.0.0.1:{closed_port()}/dicom-web"
    with pytest.raises(PeerError, match=rf"archive \({url}\) refused the connection"):
        server.client(url=url).send(draft)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 300])
def test_a_host_that_is_none_is_a_peer_s_failure(server: Server, host: str) -> None:
    with pytest.raises(PeerError, match="can't be reached"):
        server.client(url=f"http://{host}/dicom-web").verify()


@pytest.mark.parametrize(
    "url", ["http://", "http://host:99999", "https://user:password@host/x", "https://host/x?a=b"]
)
def test_a_url_without_a_host_or_with_a_password_is_a_wrong_setting(
    server: Server, url: str
) -> None:
    with pytest.raises(ConfigurationError, match="peer archive: url is not of the form") as caught:
        server.client(url=url)
    assert "password" not in str(caught.value)


# --- logging in ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("login", "header"),
    [
        ({"username": "node", "password": "geheim"}, "Basic bm9kZTpnZWhlaW0="),
        ({"username": "node", "password": "größe"}, "Basic bm9kZTpncsO2w59l"),
        ({"token": "a.b.c"}, "Bearer a.b.c"),
    ],
    ids=["password", "UTF-8", "token"],
)
def test_a_login_is_shown_at_each_request(
    server: Server, draft: Path, login: dict[str, str], header: str
) -> None:
    server.client(**login).send(draft)
    server.content = b"[]"
    server.client(**login).prove(REFERENCE)
    assert [one["Authorization"] for one in server.heard] == [header, header]


def test_a_server_of_the_hospital_s_own_authority_is_trusted_where_that_is_named(
    draft: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    ours = authority.issue().settings(authority)
    server = Server()
    with serving(server, secured(authority.issue())):
        with pytest.raises(PeerError, match="by TLS: the peer's certificate is of an authority"):
            server.client().send(draft)
        assert server.client(authorities=str(authority.certificate)).send(draft) == 0
        assert server.client(tls=ours).send(draft) == 0


def test_a_server_under_another_name_gets_nothing(draft: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    server = Server()
    with serving(server, secured(authority.issue(host="DNS:archive.example"))):
        with pytest.raises(PeerError, match="is not for the address that was called"):
            server.client(authorities=str(authority.certificate)).send(draft)
        assert server.requests == []


def test_our_certificate_is_shown_to_a_server_that_asks_for_one(
    draft: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    server = Server()
    with serving(server, secured(authority.issue(), clients_of=authority)):
        assert server.client(tls=authority.issue().settings(authority)).send(draft) == 0
        # In TLS 1.3 its verdict comes as we write, and may be lost (RFC 8446 4.4.2.4).
        with pytest.raises(PeerError, match=r"demands a certificate and saw none|closed"):
            server.client(authorities=str(authority.certificate)).send(draft)


def test_authorities_that_can_t_be_read_are_named(draft: Path, tmp_path: Path) -> None:
    missing = tmp_path / "ca.pem"
    with pytest.raises(PeerError, match=rf"authorities: {missing}: .*[Nn]o such file") as caught:
        Server(scheme="https", port=closed_port()).client(authorities=str(missing)).send(draft)
    assert caught.value.retry


def test_a_server_that_speaks_no_tls_gets_nothing(server: Server, draft: Path) -> None:
    with pytest.raises(PeerError, match="can't be reached by TLS: the peer speaks no TLS"):
        server.client(url=f"https://127.0.0.1:{server.port}/dicom-web").send(draft)
    assert server.requests == []


# --- what can't be sent, and what is not told ----------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{}", DRAFT.file[:200], DRAFT.file[132:]])
def test_a_file_that_is_no_part_10_file_is_not_sent(
    server: Server, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "x.dcm"
    file.write_bytes(content)
    with pytest.raises(Unreadable, match=r"^x\.dcm: "):
        server.client().send(file)
    assert server.requests == []


def test_a_file_that_is_gone_is_said(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"gone\.dcm: No such file"):
        server.client().send(tmp_path / "gone.dcm")


def test_nothing_of_report_answer_or_login_reaches_a_log(
    server: Server, draft: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.headers = {"Warning": "299 archive: SECRET"}
    client = server.client(username="node", password="geheim")
    client.send(draft)
    server.content = found(DRAFT.sop_instance_uid)
    client.prove(REFERENCE)
    server.status, server.content = 409, b"SECRET"
    with pytest.raises(PeerError):
        client.prove(REFERENCE)
    with pytest.raises(PeerRefused) as caught:
        client.send(draft)
    told = caplog.text + str(caught.value) + repr(server.peer(username="a", password="geheim"))
    words = ("SECRET", "MRN0012345", "ACC1", "consolidation", "geheim", "bm9kZTpnZWhlaW0")
    assert not any(word in told for word in words)
