"""What `doctor` says of peers that speak HL7 or FHIR."""

from __future__ import annotations

import socket

import pytest

from dicom_node import doctor
from dicom_node.config import Peer, Reports, Results, Settings
from dicom_node.db import Database
from dicom_node.doctor import Check

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
