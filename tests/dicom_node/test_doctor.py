"""What `doctor` says of peers: who is reached, who sent, who was turned away and how to mend it."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from dicom_node import associations, doctor, remedies
from dicom_node.associations import Reason, Refused
from dicom_node.config import Node, Peer, Reports, Results, Settings
from dicom_node.db import Database
from dicom_node.doctor import Check
from tests.conftest import StudyFactory
from tests.pacs import Pacs

RIS = Peer(name="ris", protocol="hl7", host=("127.0.0.1",), roles=("source",))


def asked(database: Database, peer: Peer, **reports: int) -> Check:
    results = Results(hl7=True, fhir=True)
    settings = Settings(reports=Reports.model_validate(reports), results=results, peers=(peer,))
    (check,) = doctor.peers(settings, database, [peer])
    return check


def test_a_ris_that_sends_reports_where_nobody_listens_is_a_fault(database: Database) -> None:
    check = asked(database, RIS)
    assert (check.passed, check.text) == (False, "nobody listens for HL7")
    assert check.fix.startswith("set reports.hl7_port")


def test_a_ris_that_never_sent_anything_is_said_to(database: Database) -> None:
    check = asked(database, RIS, hl7_port=2575)
    assert (check.name, check.passed, check.text) == ("from ris", True, "nothing sent yet")


@pytest.mark.parametrize("protocol", ["hl7", "fhir"])
def test_a_destination_that_is_not_there_is_named_with_what_to_check(
    database: Database, protocol: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]  # free again after this block
    place = {"host": "127.0.0.1", "port": port, "url": ""}
    if protocol == "fhir":
        place = {"host": [], "port": 104, "url": f"http://127.0.0.1:{port}/fhir"}
    values = {"name": "there", "protocol": protocol, "roles": ["destination"], **place}
    check = asked(database, Peer.model_validate(values))
    assert (check.name, check.passed) == ("to there", False)
    assert "check host and port, or url, of peer there" in check.fix


def test_a_destination_that_answers_is_named_by_its_place(database: Database) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        peer = RIS.model_copy(update={"roles": ("destination",), "port": port})
        check = asked(database, peer)
    assert (check.passed, check.text) == (True, f"127.0.0.1:{port} answers")


# -- who may send and who was turned away ----------------------------------------------------------

CT = Peer(name="ct", ae_title="CT", host=("10.0.0.5",), roles=("source",), query_ae_title="CTQR")
STRANGER = Refused(
    calling_ae_title="STRANGER",
    called_ae_title="DICOMNODE",
    address="10.0.0.9",
    contexts=("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.1"),
    reason=Reason.UNKNOWN_TITLE,
)
MOVED = replace(STRANGER, calling_ae_title="CT", reason=Reason.WRONG_ADDRESS)
RENAMED = replace(STRANGER, address="10.0.0.5")
NO_TLS = replace(RENAMED, calling_ae_title="", reason=Reason.TLS_HANDSHAKE, tls=True)


def refuse(database: Database, one: Refused) -> None:
    with database.transaction() as connection:
        associations.refused(connection, one)


def source(database: Database, peer: Peer = CT) -> Check:
    (check,) = doctor.peers(Settings(peers=(peer,)), database, [peer])
    return check


def callers(database: Database, data: Path, *peers: Peer) -> list[Check]:
    settings = Settings(node=Node(data=data), peers=peers)
    checks = doctor.everything(settings, database)
    found = [one for one in checks if one.name.startswith("caller")]
    assert checks[len(checks) - len(found) :] == found  # at the end
    return found


def test_a_source_that_sent_under_either_title_has_sent(
    database: Database, study_factory: StudyFactory
) -> None:
    assert source(database).text == "nothing sent yet"
    study_factory(calling_ae_title="CTQR")
    assert source(database).text.startswith("last instance ")


@pytest.mark.parametrize(
    ("call", "why", "fix"),
    [
        pytest.param(MOVED, "CT at 10.0.0.9", "peer ct: host = ", id="other-address"),
        pytest.param(RENAMED, "STRANGER at 10.0.0.5", "peer ct: ae_title = ", id="other-title"),
        pytest.param(NO_TLS, "(no title) at 10.0.0.5 by TLS", "at the sender: TLS", id="tls"),
    ],
)
def test_a_source_that_was_turned_away_is_a_fault_with_its_fix(
    database: Database, call: Refused, why: str, fix: str
) -> None:
    refuse(database, call)
    check = source(database)
    assert not check.passed
    assert check.text.startswith(f"turned away {why}")
    assert check.text.endswith(f"{call.text}; nothing sent yet")
    assert check.fix.startswith(fix)


def test_a_source_that_sent_since_is_none(database: Database, study_factory: StudyFactory) -> None:
    refuse(database, MOVED)
    study_factory(calling_ae_title="CT")
    assert source(database).passed
    refuse(database, MOVED)
    assert not source(database).passed


def test_a_refusal_that_was_mended_is_none(database: Database) -> None:
    refuse(database, MOVED)
    moved = CT.model_copy(update={"host": ("10.0.0.5", "10.0.0.9")})
    assert source(database, moved).passed


def test_a_scan_of_a_sources_address_is_no_fault_of_the_source(database: Database) -> None:
    refuse(database, replace(NO_TLS, reason=Reason.NOT_DICOM))
    assert source(database).passed


def test_another_title_at_the_address_of_a_source_that_sends_is_another_system(
    database: Database, study_factory: StudyFactory, tmp_path: Path
) -> None:
    study_factory(calling_ae_title="CT")
    refuse(database, RENAMED)
    assert source(database).passed
    (caller,) = callers(database, tmp_path, CT)
    assert caller.name == "caller STRANGER at 10.0.0.5"


def test_unknown_callers_come_last_with_the_lines_to_paste(
    database: Database, tmp_path: Path
) -> None:
    for one in (STRANGER, MOVED, STRANGER):
        refuse(database, one)
    (caller,) = callers(database, tmp_path, CT)
    assert (caller.name, caller.passed) == ("caller STRANGER at 10.0.0.9", True)
    assert caller.text.startswith("turned away 2 times, last ")
    assert caller.text.endswith("may send; it asked for CT Image Storage and 1 more")
    assert caller.fix == remedies.fix(Settings(peers=(CT,)), STRANGER)
    (told,) = doctor.to_json([caller])
    assert told["fix"].startswith('[[peers]]\nname = "stranger"\n')


def test_a_caller_that_is_a_peer_by_now_is_not_listed(database: Database, tmp_path: Path) -> None:
    refuse(database, STRANGER)
    values = {"name": "new", "ae_title": "STRANGER", "host": "10.0.0.9", "roles": ["source"]}
    assert callers(database, tmp_path, Peer.model_validate(values)) == []


def test_where_queries_go_elsewhere_both_places_are_tried(
    database: Database, peer_scp: Pacs
) -> None:
    peer = peer_scp.peer(query_ae_title="PACSQR")
    checks = doctor.peers(Settings(peers=(peer,)), database, [peer])
    place = f"at 127.0.0.1:{peer_scp.port} answers C-ECHO"
    assert [(one.name, one.text) for one in checks] == [
        ("to pacs", f"PACS {place}"),
        ("queries to pacs", f"PACSQR {place}"),
    ]
