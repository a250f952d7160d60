"""How reports come in: kept as they came, one row each, matched or parked; then looked at again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node import db, orders, studies
from dicom_node.db import Database
from dicom_node.errors import NotFound, OutOfResources, Unreadable
from dicom_node.reports import intake, store
from dicom_node.reports.matching import ANOTHERS
from dicom_node.reports.store import Report
from dicom_node.results import objects
from dicom_node.storage import Identity, Storage
from tests.conftest import DraftFactory, StudyFactory, make_stored_instance
from tests.dicom_node.network import encoded, keep_instance
from tests.dicom_node.reports.documents import FINDING, FINDINGS, STUDY, container, document, text
from tests.dicom_node.reports.made import identity
from tests.dicom_node.results.samples import record

NODE_UID = "2.25.7"
DOCUMENT = "1.2.826.0.1.3680043.10.1561.7.1"
PATIENT = identity("MRN0012345", issuer="GENHOSP", accession="ACC1", ris="RIS", day="20240311")

Receive = Callable[..., str]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "data")


@pytest.fixture
def receive(database: Database, storage: Storage) -> Receive:
    """``receive(document)``: store and register an SR as the listener does; its path."""

    def store_and_register(ds: Dataset, **changes: object) -> str:
        uid, sop_class_uid = str(ds.SOPInstanceUID), str(ds.SOPClassUID)
        kept = keep_instance(
            storage,
            study_instance_uid=str(ds.StudyInstanceUID),
            sop_instance_uid=uid,
            sop_class_uid=sop_class_uid,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            data_set=encoded(ds),
        )
        values: dict[str, object] = {
            "study_instance_uid": str(ds.StudyInstanceUID),
            "sop_instance_uid": uid,
            "sop_class_uid": sop_class_uid,
            **kept._asdict(),
            **changes,
        }
        with database.transaction() as connection:
            nothing = timedelta(0)
            stored = make_stored_instance(**values)
            arrival = studies.Arrival(stored=stored, quiet=nothing, ready=nothing)
            studies.register(connection, [arrival])
        return kept.path

    return store_and_register


def verified(**changes: object) -> Dataset:
    """A verified document with one finding."""
    return document(container(FINDINGS, text(FINDING, "Small effusion.")), **changes)


def message(*, patient: str = "MRN0012345", status: str = "F", control_id: str = "M1") -> bytes:
    """An ORU^R01 of the same study."""
    order = ["OBR", "1", "", "F1^RIS", "36643-5", "", "", "20240311101500"]
    order += [""] * 10 + ["ACC1^RIS", "", "", "", "20240311120000", "", "RAD", status]
    segments = (
        f"MSH|^~\\&|RIS|HOSP|||20240311130000||ORU^R01^ORU_R01|{control_id}|P|2.5",
        f"PID|1||{patient}^^^GENHOSP^MR||Verysecret^Name",
        "|".join(order),
        "OBX|1|TX|59776-5^Findings^LN||Small effusion.||||||F",
        f"OBX|2|ST|113014^DICOM Study^DCM||{STUDY}||||||F",
    )
    return "\r".join([*segments, ""]).encode()


def rows(database: Database) -> list[Report]:
    """All reports, as they came."""
    with database.transaction() as connection:
        return store.newest(connection, state=None, limit=1000)[::-1]


def only(database: Database) -> Report:
    (one,) = rows(database)
    return one


def files(storage: Storage) -> list[Path]:
    return sorted(one for one in storage.path("reports").rglob("*") if one.is_file())


# -- received SR documents -------------------------------------------------------------------------


def test_a_received_document_is_matched_to_its_study(
    database: Database, storage: Storage, receive: Receive, study_factory: StudyFactory
) -> None:
    study_factory(study_instance_uid=STUDY, identity=PATIENT)
    path = receive(verified())
    assert intake.take_received(database, storage, NODE_UID) == 1
    found = only(database)
    assert (found.state, found.study_instance_uid) == ("matched", STUDY)
    assert (found.source, found.source_uid, found.verdict) == ("sr", DOCUMENT, "final")
    assert found.text == "Small effusion."
    with database.transaction() as connection:
        assert connection.scalar(sa.select(db.report.c.path)) == path
        (arrived,) = connection.scalars(
            sa.select(db.instance.c.received_at).where(db.instance.c.path == path)
        )
    assert found.received_at == arrived
    assert intake.take_received(database, storage, NODE_UID) == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"ManufacturerModelName": "dicom-node"}, "our own object", id="our model"),
        pytest.param(
            {"VerificationFlag": "UNVERIFIED", "CompletionFlag": "PARTIAL"},
            "not final: UNVERIFIED and not COMPLETE",
            id="not verified",
        ),
    ],
)
def test_what_is_no_final_report_is_ignored_with_its_reason(
    database: Database,
    storage: Storage,
    receive: Receive,
    study_factory: StudyFactory,
    changes: dict[str, object],
    reason: str,
) -> None:
    study_factory(study_instance_uid=STUDY, identity=PATIENT)
    receive(verified(**changes))
    intake.take_received(database, storage, NODE_UID)
    found = only(database)
    assert (found.state, found.reason, found.study_instance_uid) == ("ignored", reason, None)


def test_a_draft_of_ours_that_comes_back_is_no_report(
    database: Database, storage: Storage, receive: Receive, draft_factory: DraftFactory
) -> None:
    draft_factory(sop_instance_uid=DOCUMENT)
    receive(verified())
    intake.take_received(database, storage, NODE_UID)
    assert only(database).reason == "our own object"


def test_a_document_of_another_patient_never_matches(
    database: Database, storage: Storage, receive: Receive, study_factory: StudyFactory
) -> None:
    study_factory(study_instance_uid=STUDY, identity=PATIENT)
    receive(verified(PatientID="ANOTHER"))
    intake.take_received(database, storage, NODE_UID)
    found = only(database)
    assert (found.state, found.reason) == ("parked", ANOTHERS)


def test_what_is_no_document_is_ignored_and_does_not_keep_the_others_waiting(
    database: Database, storage: Storage, receive: Receive, study_factory: StudyFactory
) -> None:
    study_factory(study_instance_uid=STUDY, identity=PATIENT)
    gone, broken = verified(SOPInstanceUID="1.2.1"), verified(SOPInstanceUID="1.2.2")
    storage.path(receive(gone)).unlink()
    storage.path(receive(broken)).write_bytes(b"\x08\x00" * 1000)
    receive(verified(), size=intake.MAXIMUM_SIZE + 1)
    receive(verified(SOPInstanceUID="1.2.4"))
    assert intake.take_received(database, storage, NODE_UID) == 4
    found = {one.source_uid: (one.state, one.reason) for one in rows(database)}
    assert found["1.2.1"] == ("ignored", "its file is gone")
    assert found["1.2.2"][0] == "ignored"
    assert found[DOCUMENT] == ("ignored", "larger than 16 MiB")
    assert found["1.2.4"] == ("matched", None)
    assert intake.take_received(database, storage, NODE_UID) == 0


def test_our_own_bug_in_one_document_is_logged_without_its_content(
    database: Database,
    storage: Storage,
    receive: Receive,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("^".join(("Very", "secret")))  # the source line itself is in the log

    receive(verified())
    monkeypatch.setattr(intake.read_sr, "read", fail)
    intake.take_received(database, storage, NODE_UID)
    assert only(database).reason == "bug: KeyError"
    assert "our bug" in caplog.text
    assert "Very^secret" not in caplog.text


def test_no_more_than_a_batch_is_looked_at_in_one_go(
    database: Database,
    storage: Storage,
    receive: Receive,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intake, "SR_BATCH", 2)
    for number in range(3):
        receive(verified(SOPInstanceUID=f"1.2.{number}"))
    taken = [intake.take_received(database, storage, NODE_UID) for _ in range(3)]
    assert taken == [2, 1, 0]


# -- messages --------------------------------------------------------------------------------------


def test_a_message_is_kept_as_it_came_and_matched(
    database: Database, storage: Storage, study_factory: StudyFactory
) -> None:
    study_factory(study_instance_uid=STUDY, identity=PATIENT)
    (filed,) = intake.take_message(database, storage, message())
    assert filed is not None
    assert (filed.state, filed.study_instance_uid) == ("matched", STUDY)
    (file,) = files(storage)
    assert file.read_bytes() == message()
    with database.transaction() as connection:
        path = connection.scalar(sa.select(db.report.c.path))
    assert storage.path(str(path)) == file


def test_the_same_message_again_is_no_second_row(database: Database, storage: Storage) -> None:
    intake.take_message(database, storage, message())
    assert intake.take_message(database, storage, message()) == [None]
    assert only(database).state == "parked"
    assert len(files(storage)) == 1


def test_a_message_of_another_patient_never_matches(
    database: Database, storage: Storage, study_factory: StudyFactory
) -> None:
    study_factory(study_instance_uid=STUDY, identity=PATIENT)
    intake.take_message(database, storage, message(patient="ANOTHER"))
    found = only(database)
    assert (found.state, found.study_instance_uid, found.reason) == ("parked", None, ANOTHERS)


@pytest.mark.parametrize("status", ["P", "R", "A"])
def test_a_preliminary_message_is_ignored(
    database: Database, storage: Storage, study_factory: StudyFactory, status: str
) -> None:
    study_factory(study_instance_uid=STUDY, identity=PATIENT)
    intake.take_message(database, storage, message(status=status))
    found = only(database)
    assert (found.state, found.reason) == ("ignored", f"OBR-25 {status}")


def test_a_message_that_cannot_be_read_is_kept_and_parked(
    database: Database, storage: Storage
) -> None:
    broken = b"MSH|^~\\&|RIS|||||ORU^R01|M1|P|2.5\rPID|Verysecret^Name\r"
    for _ in range(2):
        with pytest.raises(Unreadable) as raised:
            intake.take_message(database, storage, broken)
    assert "Verysecret" not in str(raised.value)
    found = only(database)
    assert (found.state, found.reason) == ("parked", str(raised.value))
    (file,) = files(storage)
    assert file.read_bytes() == broken


def order(reason: str = "Cough") -> bytes:
    """An ORM^O01 for the same study."""
    segments = (
        "MSH|^~\\&|RIS|HOSP|||20240311130000||ORM^O01|M2|P|2.3.1",
        "PID|1||MRN0012345^^^GENHOSP^MR||Verysecret^Name",
        "ORC|NW|P1",
        f"OBR|1|P1|||||||||||{reason}|||||ACC1",
        f"ZDS|{STUDY}^RIS",
    )
    return "\r".join([*segments, ""]).encode()


def test_an_order_is_found_by_its_study_and_nothing_else_of_it_is_kept(
    database: Database, storage: Storage, study_factory: StudyFactory
) -> None:
    assert intake.take_message(database, storage, order()) == []
    study_factory(study_instance_uid=STUDY, identity=PATIENT)
    with database.transaction() as connection:
        found = orders.find(connection, STUDY)
    assert found is not None
    assert found.indication == "Cough"
    assert (rows(database), files(storage)) == ([], [])


def test_an_order_that_can_not_be_read_leaves_nothing(database: Database, storage: Storage) -> None:
    broken = b"MSH|^~\\&|RIS||||||ORM^O01|M2|P|2.3.1\rPID|Verysecret^Name\r"
    with pytest.raises(Unreadable):
        intake.take_message(database, storage, broken)
    assert (rows(database), files(storage)) == ([], [])


@pytest.mark.parametrize("raw", [message(), order()], ids=["report", "order"])
def test_when_the_database_is_away_the_message_was_not_taken(
    storage: Storage, tmp_path: Path, raw: bytes
) -> None:
    away = Database(f"postgresql+psycopg://user@/name?host={tmp_path}")
    with pytest.raises(OutOfResources):
        intake.take_message(away, storage, raw)


# -- looking again ---------------------------------------------------------------------------------


def test_a_parked_report_is_matched_when_its_study_comes(
    database: Database, storage: Storage, study_factory: StudyFactory
) -> None:
    intake.take_message(database, storage, message())
    assert (only(database).state, intake.look_again(database)) == ("parked", 0)
    study_factory(study_instance_uid=STUDY, identity=PATIENT)
    assert intake.look_again(database) == 1
    found = only(database)
    assert (found.state, found.study_instance_uid, found.reason) == ("matched", STUDY, None)


def test_a_document_that_comes_before_its_images_waits_for_them(
    database: Database, storage: Storage, receive: Receive, study_factory: StudyFactory
) -> None:
    receive(verified())
    intake.take_received(database, storage, NODE_UID)
    intake.look_again(database)
    assert only(database).reason == "no image of the study is here yet"
    study_factory(study_instance_uid=STUDY, identity=PATIENT)
    intake.look_again(database)
    assert only(database).state == "matched"


@pytest.mark.parametrize(
    "first", [PATIENT, Identity()], ids=["images of two patients", "first without a patient"]
)
def test_a_report_is_taken_off_a_study_that_turns_out_to_be_anothers(
    database: Database, storage: Storage, study_factory: StudyFactory, first: Identity
) -> None:
    study_factory(study_instance_uid=STUDY, identity=first)
    intake.take_message(database, storage, message())
    assert only(database).state == "matched"
    study_factory(study_instance_uid=STUDY, identity=identity("ANOTHER"))
    intake.look_again(database)
    found = only(database)
    assert (found.state, found.study_instance_uid, found.reason) == ("parked", None, ANOTHERS)
    intake.look_again(database)
    assert only(database).state == "parked"


def test_a_matched_report_stays_though_a_second_study_has_its_order_number(
    database: Database, storage: Storage, study_factory: StudyFactory
) -> None:
    study_factory(study_instance_uid=STUDY, identity=PATIENT)
    intake.take_message(database, storage, message())
    study_factory(identity=PATIENT)
    study_factory(study_instance_uid=STUDY, identity=PATIENT)
    intake.look_again(database)
    assert only(database).study_instance_uid == STUDY


# -- files -----------------------------------------------------------------------------------------


def take(database: Database, storage: Storage, file: Path) -> dict[str, int]:
    return dict(intake.take_file(database, storage, NODE_UID, file))


def test_files_of_every_kind_are_taken(
    database: Database, storage: Storage, study_factory: StudyFactory, tmp_path: Path
) -> None:
    study_factory(study_instance_uid=STUDY, identity=PATIENT)
    sr, oru, table = tmp_path / "report", tmp_path / "report.txt", tmp_path / "reports.CSV"
    verified().save_as(sr)
    oru.write_bytes(message())
    table.write_text(
        "study_instance_uid,patient_id,findings\n"
        f"{STUDY},MRN0012345,Clear.\n{STUDY},ANOTHER,Clear.\n,,Clear.\n",
        "utf-8-sig",
    )
    assert take(database, storage, sr) == {"matched": 1}
    assert take(database, storage, oru) == {"matched": 1}
    assert take(database, storage, table) == {"matched": 1, "parked": 1, "ignored": 1}
    assert Counter(one.source for one in rows(database)) == {"sr": 1, "hl7": 1, "csv": 3}
    assert sorted(one.suffix for one in files(storage)) == [".csv", ".dcm", ".hl7"]


def test_a_file_taken_twice_changes_nothing(
    database: Database, storage: Storage, tmp_path: Path
) -> None:
    file = tmp_path / "report.hl7"
    file.write_bytes(message())
    assert take(database, storage, file) == {"parked": 1}
    assert take(database, storage, file) == {"already here": 1}


def test_a_table_with_a_wrong_row_is_not_taken_at_all(
    database: Database, storage: Storage, tmp_path: Path
) -> None:
    table = tmp_path / "reports.csv"
    table.write_text("accession_number,findings\nA1,Clear.\nA2,Clear.,Secret\n")
    with pytest.raises(Unreadable, match=r"reports\.csv: CSV row 2") as raised:
        take(database, storage, table)
    assert "Secret" not in str(raised.value)
    assert rows(database) == []


def test_a_table_from_a_spreadsheet_is_read_in_its_code_page(
    database: Database, storage: Storage, tmp_path: Path
) -> None:
    table = tmp_path / "reports.csv"
    table.write_bytes("accession_number,findings\nA1,Pleuraerguß.\n".encode("cp1252"))
    take(database, storage, table)
    assert only(database).text == "Pleuraerguß."


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.dcm", b"no DICOM"), ("a.hl7", b"no HL7"), ("a.csv", b"no,table\n"), ("a", b"")],
)
def test_a_file_without_reports_is_named(
    database: Database, storage: Storage, tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unreadable, match=name):
        take(database, storage, tmp_path / name)
    assert rows(database) == []


def test_a_missing_file_is_named(database: Database, storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nothing\.hl7: No such file"):
        take(database, storage, tmp_path / "nothing.hl7")


def test_our_own_draft_as_a_file_is_no_report(
    database: Database, storage: Storage, tmp_path: Path
) -> None:
    file = tmp_path / "draft.dcm"
    file.write_bytes(objects.encode(record()).file)
    assert take(database, storage, file) == {"ignored": 1}
    assert only(database).reason == "our own object"
