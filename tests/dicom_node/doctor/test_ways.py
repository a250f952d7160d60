"""Which steps lead to which peer, and that a fault of one is named once."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dicom_node import doctor
from dicom_node.config import Peer, Results, Settings, Tls
from dicom_node.db import Database
from dicom_node.doctor import Call, Check
from tests.conftest import StudyFactory
from tests.dicom_node.certificates import Authority
from tests.dicom_node.doctor.answering import answering, saying
from tests.dicom_node.test_scu_tls import strict
from tests.dicom_node.web import WebServer, serving
from tests.pacs import Pacs
from worker import records

MESSAGES = Results(hl7=True, fhir=True)


def examined(
    peer: Peer, database: Database | None = None, *, store: bool = False, tls: Tls | None = None
) -> Mapping[str, Check]:
    settings = Settings(peers=(peer,), results=MESSAGES, tls=tls or Tls())
    checks = doctor.examine(
        Call(
            settings=settings,
            database=database,
            peer=peer,
            classes=records.classes,
            store=store,
        )
    )
    return {one.name: one for one in checks}


def peer(**values: Any) -> Peer:
    return Peer.model_validate({"name": "there", "roles": ["destination"], **values})


@pytest.fixture
def nobody() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def test_an_hl7_peer_is_connected_to_and_no_more() -> None:
    with answering(saying(b"")) as port:
        checks = examined(peer(protocol="hl7", host="127.0.0.1", port=port))
    assert [(name, one.passed) for name, one in checks.items() if one.tried] == [
        ("to there: name", True),
        ("to there", True),
    ]
    assert checks["to there"].text == f"127.0.0.1:{port} answers"


def test_a_web_server_is_asked_its_own_question() -> None:
    server = WebServer()
    with serving(server):
        checks = examined(peer(protocol="fhir", url=f"{server.origin}/fhir"))
    assert [name for name, one in checks.items() if one.tried] == [
        "to there: name",
        "to there: connection",
        "to there",
        "clock of there",
    ]
    assert all(one.passed for one in checks.values())


def test_a_web_server_that_says_no_is_named_at_its_question() -> None:
    server = WebServer(status=401)
    with serving(server):
        checks = examined(peer(protocol="fhir", url=f"{server.origin}/fhir"))
    assert [name for name, one in checks.items() if one.is_fault] == ["to there"]
    assert "401" in checks["to there"].text


def test_a_web_server_whose_authority_is_unknown_is_named_at_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    server = WebServer(scheme="https")
    with serving(server, strict(authority.issue(), authority)):
        checks = examined(peer(protocol="fhir", url=f"{server.origin}/fhir"))
    (fault,) = [one for one in checks.values() if one.is_fault]
    assert fault.name == "to there: tls"
    assert "an authority that is not trusted" in fault.text
    assert fault.fix.endswith("into authorities of peer there")


def test_a_web_server_by_tls_in_order_is_asked_and_tells_the_time(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    server = WebServer(scheme="https")
    with serving(server, strict(authority.issue(), authority)):
        tls = authority.issue().settings(authority)
        checks = examined(peer(protocol="fhir", url=f"{server.origin}/fhir"), tls=tls)
    assert [name for name, one in checks.items() if one.is_fault] == []
    assert checks["to there: tls"].text.startswith("TLSv1.3, its certificate ends on ")
    assert checks["clock of there"].tried


def test_an_url_that_is_none_is_named() -> None:
    checks = examined(peer(protocol="fhir", url="http://127.0.0.1:99999/fhir"))
    (fault,) = [one for one in checks.values() if one.is_fault]
    assert (fault.name, fault.fix) == ("to there: name", "peer there: mend url")


def test_where_queries_go_elsewhere_both_ways_are_gone_and_proof_is_asked_at_the_end(
    peer_scp: Pacs, nobody: int
) -> None:
    asked = peer_scp.peer(proof="find", query_port=nobody)
    checks = examined(asked, store=True)
    (fault,) = [one for one in checks.values() if one.is_fault]
    assert fault.name == "queries to pacs: connection"
    assert checks["to pacs: store"].passed
    assert not checks["queries to pacs: proof"].tried
    assert "to pacs: proof" not in checks


def test_a_peer_that_is_only_asked_is_asked_where_it_answers(peer_scp: Pacs) -> None:
    asked = peer_scp.peer(roles=("query",), retrieve="get")
    checks = examined(asked)
    assert "to pacs" not in checks
    assert "Information Model - GET" in checks["queries to pacs: contexts"].text


def test_a_source_is_not_called(database: Database, study_factory: StudyFactory) -> None:
    study_factory()
    asked = Peer(name="ct", ae_title="MODALITY", host=("127.0.0.1",), roles=("source",))
    checks = examined(asked, database)
    assert [name for name, one in checks.items() if one.tried] == ["from ct", "objects from ct"]
    assert checks["objects from ct"].text == (
        "Digital X-Ray Image Storage - For Presentation in Explicit VR Little Endian (1)"
    )


def test_a_database_that_is_away_is_one_fault_and_the_way_is_gone_all_the_same(
    peer_scp: Pacs, nobody: int
) -> None:
    away = Database(f"postgresql+psycopg://nobody@127.0.0.1:{nobody}/none")
    asked = peer_scp.peer(roles=("source", "destination"))
    checks = examined(asked, away)
    assert [name for name, one in checks.items() if one.is_fault] == ["database"]
    assert checks["to pacs"].passed


@pytest.fixture(autouse=True)
def _no_time_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever serves the time on this machine is no part of these tests."""
    monkeypatch.setattr(doctor.clock, "by_sntp", lambda addresses: iter(()))
