"""Modality Worklist as SCU: what is asked, what is kept of the answers, what a fault costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom import Dataset

from dicom_node import db, orders, worklist
from dicom_node.config import Audit, Peer, Settings
from dicom_node.config import Worklist as WorklistSettings
from dicom_node.db import Database
from dicom_node.errors import NotSupported, PeerError
from dicom_node.orders import Order
from dicom_node.priorities import STAT
from dicom_node.storage import identity_key
from dicom_node.worklist import Worklists
from tests.conftest import StudyFactory
from tests.dicom_node import worklists
from tests.dicom_node.reports.made import identity
from tests.dicom_node.worklists import FIND, Ris, entry

TODAY = date(2026, 11, 23)


@pytest.fixture
def ris() -> Iterator[Ris]:
    made = Ris()
    yield made
    made.server.shutdown()


def ask(database: Database, peer: Peer, today: date = TODAY) -> int:
    return Worklists(Settings(peers=(peer,)), database, lambda: today).ask(peer)


def found(database: Database, uid: str) -> Order | None:
    with database.transaction() as connection:
        return orders.find(connection, uid)


def rows(database: Database) -> list[dict[str, Any]]:
    with database.transaction() as connection:
        query = sa.select(db.imaging_order).order_by(db.imaging_order.c.id)
        return [dict(row) for row in connection.execute(query).mappings()]


def answer(database: Database) -> dict[str, Any]:
    with database.transaction() as connection:
        return dict(connection.execute(sa.select(db.worklist_answer)).mappings().one())


# -- what is asked and kept ------------------------------------------------------------------------


def test_the_steps_of_yesterday_to_tomorrow_are_asked_for_by_modality(
    database: Database, ris: Ris
) -> None:
    ask(database, ris.peer)
    steps = [one.ScheduledProcedureStepSequence[0] for one in ris.asked]
    assert [one.Modality for one in steps] == ["CR", "DX"]
    assert {one.ScheduledProcedureStepStartDate for one in steps} == {"20261122-20261124"}


def test_neither_name_nor_birth_date_is_asked_for(database: Database, ris: Ris) -> None:
    ask(database, ris.peer)
    assert not {"PatientName", "PatientBirthDate"} & set(ris.asked[0].dir())


def test_an_entry_becomes_an_order_without_an_identifier(database: Database, ris: Ris) -> None:
    one = entry(IssuerOfPatientID="HOSP", AccessionNumber="A77", RequestedProcedurePriority="STAT")
    ris.entries = [one]
    assert ask(database, ris.peer) == 1
    (row,) = rows(database)
    assert (row["source"], row["peer"], row["state"]) == ("worklist", "ris", "open")
    assert row["study_instance_uid"] == one.StudyInstanceUID
    assert row["patient_id_key"] == identity_key("SECRET-ID")
    assert row["patient_issuer_key"] == identity_key("HOSP")
    assert row["accession_key"] == identity_key("A77")
    assert row["indication"] == "Cough and fever"
    assert row["indication_source"] == "Modality Worklist ris > ReasonForTheRequestedProcedure"
    assert row["priority"] == STAT
    assert not [value for value in map(str, row.values()) if "SECRET" in value or "1901" in value]


def test_the_issuer_of_an_accession_number_is_read_as_from_an_image() -> None:
    issuer = Dataset()
    issuer.LocalNamespaceEntityID, issuer.UniversalEntityID = "RIS", "1.2.3"
    told = worklist.read(entry(IssuerOfAccessionNumberSequence=[issuer]), "ris")
    assert told is not None
    assert told.identity.accession_issuer_key == identity_key("RIS")


@pytest.mark.parametrize(
    ("changes", "where", "text"),
    [
        pytest.param({}, "ReasonForTheRequestedProcedure", "Cough", id="reason"),
        pytest.param(
            {"ReasonForTheRequestedProcedure": "."},
            "ReasonForTheImagingServiceRequest",
            "Fever",
            id="request",
        ),
        pytest.param(
            {"ReasonForTheRequestedProcedure": None, "ReasonForTheImagingServiceRequest": None},
            "AdditionalPatientHistory",
            "Smoker",
            id="history",
        ),
    ],
)
def test_the_reason_nearest_to_the_examination_is_taken(
    changes: dict[str, object], where: str, text: str
) -> None:
    said = {
        "ReasonForTheRequestedProcedure": "Cough",
        "ReasonForTheImagingServiceRequest": "Fever",
        "AdditionalPatientHistory": "Smoker",
        **changes,
    }
    told = worklist.read(entry(**said), "ris")
    assert told is not None
    assert (told.indication, told.indication_source) == (text, f"Modality Worklist ris > {where}")


def test_comments_and_codes_are_no_reason() -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "R05", "I10", "Cough"
    told = worklist.read(
        entry(
            ReasonForTheRequestedProcedure=None,
            ReasonForRequestedProcedureCodeSequence=[code],
            RequestedProcedureComments="call ward 3",
        ),
        "ris",
    )
    assert told is not None
    assert told.indication == ""


def test_an_entry_that_no_study_could_be_found_by_is_passed_over(
    database: Database, ris: Ris
) -> None:
    ris.entries = [entry(StudyInstanceUID=None, AccessionNumber=None)]
    assert ask(database, ris.peer) == 0


def test_a_character_set_is_read(database: Database, ris: Ris) -> None:
    ris.entries = [
        entry(SpecificCharacterSet="ISO_IR 192", ReasonForTheRequestedProcedure="咳と熱")
    ]
    ask(database, ris.peer)
    assert rows(database)[0]["indication"] == "咳と熱"


def test_an_entry_that_changes_is_one_order(database: Database, ris: Ris) -> None:
    one = entry()
    ris.entries = [one]
    ask(database, ris.peer)
    one.ReasonForTheRequestedProcedure = "Fall from a ladder"
    ask(database, ris.peer)
    assert [row["indication"] for row in rows(database)] == ["Fall from a ladder"]


def test_the_same_entries_again_change_nothing(database: Database, ris: Ris) -> None:
    ris.entries = [entry(), entry()]
    ask(database, ris.peer)
    before = rows(database)
    ask(database, ris.peer)
    assert rows(database) == before


# -- faults ----------------------------------------------------------------------------------------


def test_a_peer_that_answers_with_a_failure_is_named(database: Database, ris: Ris) -> None:
    ris.entries, ris.status = [entry()], 0xA700
    with pytest.raises(
        PeerError, match=r"ris \(RIS@127.0.0.1:\d+\) answered a worklist query with 0xA700"
    ):
        ask(database, ris.peer)
    assert rows(database) == []


def test_a_peer_without_worklists_says_so(database: Database) -> None:
    other = Ris(sop_class="1.2.840.10008.5.1.4.1.2.2.1")
    try:
        with pytest.raises(NotSupported):
            ask(database, other.peer)
    finally:
        other.server.shutdown()


def test_more_entries_than_a_department_has_are_not_read(
    database: Database, ris: Ris, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worklist, "MAXIMUM", 2)
    ris.entries = [entry() for _ in range(4)]
    with pytest.raises(PeerError, match="more than 2 worklist entries of a modality"):
        ask(database, ris.peer)


def test_when_a_peer_last_answered_and_since_when_it_fails_is_kept(
    database: Database, ris: Ris
) -> None:
    ris.entries = [entry()]
    ask(database, ris.peer)
    well = answer(database)
    assert (well["entries"], well["failed_at"], well["fault"]) == (1, None, None)
    ris.status = 0xC001
    for _ in range(2):
        with pytest.raises(PeerError):
            ask(database, ris.peer)
    ill = answer(database)
    assert ill["answered_at"] == well["answered_at"]
    assert "0xC001" in ill["fault"]
    ris.status = 0xFF00
    ask(database, ris.peer)
    assert answer(database)["fault"] is None


def test_every_worklist_peer_is_asked_in_a_thread_of_its_own(database: Database) -> None:
    peers = (worklists.peer(104), worklists.peer(105).model_copy(update={"name": "other"}))
    settings = Settings(peers=peers, worklist=WorklistSettings(every_seconds=5))
    assert len(Worklists(settings, database).periodics) == 2
    assert Worklists(Settings(), database).periodics == []


# -- other people's servers ------------------------------------------------------------------------


@pytest.mark.parametrize("serve", [worklists.wlmscpfs, worklists.orthanc])
def test_a_real_worklist_server_tells_of_todays_orders(
    database: Database,
    study_factory: StudyFactory,
    tmp_path: Path,
    serve: Callable[..., AbstractContextManager[Peer]],
) -> None:
    today = entry(
        ReasonForTheRequestedProcedure="Fièvre, toux",
        AdmittingDiagnosesDescription="Pneumonia?",
        RequestedProcedurePriority="STAT",
        IssuerOfPatientID="HOSP",
    )
    elsewhere = [entry(day="20200101"), entry(Modality="MR")]
    with serve(tmp_path, today, *elsewhere) as server:
        assert ask(database, server, date.today()) == 1
    uid = today.StudyInstanceUID
    study_factory(study_instance_uid=uid, identity=identity("SECRET-ID", issuer="HOSP"))
    order = found(database, uid)
    assert order is not None
    assert order.priority == STAT
    assert order.indication == "Fièvre, toux"


def test_where_the_site_has_a_collector_every_question_is_told_to_it(
    database: Database, ris: Ris
) -> None:
    settings = Settings(peers=(ris.peer,), audit=Audit(url="udp://127.0.0.1:514"))
    Worklists(settings, database).ask(ris.peer)
    with database.transaction() as connection:
        said = connection.scalars(sa.select(db.audit_message.c.message)).all()
    assert len(said) == len(settings.worklist.modalities)
    assert all(FIND in one for one in said)
