"""What the node tells the auditor, and what the messages say of it."""

from __future__ import annotations

import base64
import getpass
import socket
from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
import sqlalchemy as sa
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import Connection

from dicom_node import db, studies
from dicom_node.audit import auditor as auditing
from dicom_node.audit import patient, spool
from dicom_node.audit.auditor import Auditor
from dicom_node.audit.messages import Content
from dicom_node.config import Audit, Node, Peer, Settings
from dicom_node.db import Database
from dicom_node.storage import Storage
from tests.conftest import BASIC_TEXT_SR, DIGITAL_X_RAY, StudyFactory
from tests.dicom_node.audit import judge
from tests.dicom_node.network import encoded, header, keep_instance

COLLECTOR = Audit(url="udp://127.0.0.1:514")
NODE = Node(institution="St. Elsewhere")
CONTENT = Content(study_instance_uid="1.2.3", patient_id="P1", sop_classes={BASIC_TEXT_SR: 1})
PACS = Peer(name="pacs", ae_title="PACS", host=("10.0.0.5",))

Fact = Callable[[Connection], None]


@pytest.fixture
def auditor() -> Auditor:
    return Auditor(Settings(audit=COLLECTOR, node=NODE), "node@host:7")


def kept(database: Database) -> list[Element]:
    """What was kept since the last time, judged."""
    with database.transaction() as connection:
        found = spool.oldest(connection, limit=1000, longest=None)
        spool.remove(connection, [one.id for one in found])
    return [judge.judged(one.message) for one in found]


def told(database: Database, fact: Fact) -> Element:
    with database.transaction() as connection:
        fact(connection)
    (found,) = kept(database)
    return found


def test_without_a_collector_nothing_is_kept(database: Database, tmp_path: Path) -> None:
    auditor = Auditor(Settings(), "node@host:7")
    assert not auditor.wanted
    with database.transaction() as connection:
        auditor.started(connection)
        auditor.sent(connection, PACS, CONTENT)
        auditor.received(connection, Storage(tmp_path), "1.2.3")
        auditor.queried(connection, PACS, "1.2.840", Dataset())
        auditor.refused(connection, "X", "10.0.0.1", "why")
    assert kept(database) == []


def test_a_process_says_that_it_runs_and_that_it_ends(database: Database, auditor: Auditor) -> None:
    with auditing.lifetime(database, auditor):
        (start,) = kept(database)
    (stop,) = kept(database)
    types = [one.find("EventIdentification/EventTypeCode") for one in (start, stop)]
    assert [one.attrib["csd-code"] for one in types if one is not None] == ["110120", "110121"]
    (us,) = judge.participants(start)
    assert us.attrib["UserID"] == "node@host:7"
    assert us.attrib["AlternativeUserID"] == "AETITLES=DICOMNODE"
    assert us.attrib["NetworkAccessPointID"] == socket.gethostname()


def test_the_source_is_the_node_and_its_institution(database: Database, auditor: Auditor) -> None:
    source = told(database, auditor.started).find("AuditSourceIdentification")
    assert source is not None
    assert source.attrib == {
        "AuditSourceID": "DICOMNODE",
        "AuditEnterpriseSiteID": "St. Elsewhere",
    }


def test_a_database_that_is_away_ends_nothing(auditor: Auditor) -> None:
    with auditing.lifetime(Database("postgresql+psycopg://127.0.0.1:1/x"), auditor):
        pass


# -- what goes out ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "place"),
    [
        (PACS, "10.0.0.5"),
        (
            Peer(
                name="archive", protocol="dicomweb", url="https://a/dicom", roles=("destination",)
            ),
            "https://a/dicom",
        ),
    ],
)
def test_instances_that_a_peer_took_were_transferred(
    database: Database, auditor: Auditor, peer: Peer, place: str
) -> None:
    root = told(database, lambda connection: auditor.sent(connection, peer, CONTENT))
    assert judge.event(root) == "110104"
    assert judge.player(root, "110152").attrib["NetworkAccessPointID"] == place
    assert judge.player(root, "110153").attrib["UserIsRequestor"] == "true"
    assert judge.instances(root) == {BASIC_TEXT_SR: 1}
    assert judge.patient_ids(root) == ["P1"]


@pytest.mark.parametrize(
    ("peer", "place"),
    [
        (Peer(name="ris", protocol="hl7", host=("10.0.0.6",), port=2575), "mllp://10.0.0.6:2575"),
        (
            Peer(name="ehr", protocol="fhir", url="https://ehr/fhir", roles=("destination",)),
            "https://ehr/fhir",
        ),
    ],
)
def test_a_message_to_another_system_is_an_export(
    database: Database, auditor: Auditor, peer: Peer, place: str
) -> None:
    content = Content(study_instance_uid="1.2.3", patient_id="P1")
    root = told(database, lambda connection: auditor.sent(connection, peer, content))
    assert judge.event(root) == "110106"
    assert judge.player(root, "110154").attrib["UserID"] == place
    assert judge.patient_ids(root) == ["P1"]


def test_a_file_is_an_export_by_a_person(
    database: Database, auditor: Auditor, tmp_path: Path
) -> None:
    file = tmp_path / "a b.dcm"
    root = told(database, lambda connection: auditor.written(connection, file, CONTENT))
    first = judge.participants(root)[0]
    assert first.attrib["UserID"] == f"{getpass.getuser()}@{socket.gethostname()}"
    assert first.attrib["UserIsRequestor"] == "true"
    assert judge.player(root, "110154").attrib["UserID"] == file.as_uri()


def test_a_user_without_a_name_is_told_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", unknown)
    assert auditing._login().isdigit()


def test_a_query_holds_the_data_set_that_was_asked(database: Database, auditor: Auditor) -> None:
    asked = Dataset()
    asked.QueryRetrieveLevel = "STUDY"
    asked.PatientID = "P1"
    root = told(database, lambda connection: auditor.queried(connection, PACS, "1.2.840", asked))
    (query,) = root.iter("ParticipantObjectQuery")
    (syntax,) = root.iter("ParticipantObjectDetail")
    assert base64.b64decode(syntax.attrib["value"]).decode() == ExplicitVRLittleEndian
    found = dcmread(BytesIO(base64.b64decode(query.text or "")), force=True)
    assert found == asked


@pytest.mark.parametrize(("title", "user"), [("EVIL", "EVIL"), ("", "10.0.0.9")])
def test_an_alert_names_who_was_turned_away(
    database: Database, auditor: Auditor, title: str, user: str
) -> None:
    root = told(
        database, lambda connection: auditor.refused(connection, title, "10.0.0.9", "unknown")
    )
    assert judge.event(root) == "110113"
    assert judge.participants(root)[1].attrib["UserID"] == user
    (subject,) = root.iter("ParticipantObjectIdentification")
    assert subject.attrib["ParticipantObjectID"] == "10.0.0.9"


# -- what comes in ---------------------------------------------------------------------------------


class Ward:
    """Studies that come and become complete, with files behind them."""

    def __init__(self, database: Database, data: Path, auditor: Auditor) -> None:
        self._database = database
        self._storage = Storage(data)
        self._auditor = auditor
        self._numbers = iter(range(1, 1000))

    def receive(
        self,
        *,
        sop_instance_uid: str = "",
        patient_id: str = "P1",
        sop_class_uid: str = DIGITAL_X_RAY,
        quiet: float = 0,
        **overrides: object,
    ) -> None:
        uid = sop_instance_uid or f"1.2.3.{next(self._numbers)}"
        data_set = header(SOPInstanceUID=uid, SOPClassUID=sop_class_uid, PatientID=patient_id)
        file = keep_instance(
            self._storage,
            study_instance_uid="1.2.3",
            sop_instance_uid=uid,
            sop_class_uid=sop_class_uid,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            data_set=encoded(data_set),
        )
        self._register(
            study_instance_uid="1.2.3",
            sop_instance_uid=uid,
            sop_class_uid=sop_class_uid,
            path=file.path,
            sha256=file.sha256,
            quiet=quiet,
            **overrides,
        )

    _register: StudyFactory

    def settle(self) -> list[Element]:
        """The tick: what it told."""
        with self._database.transaction() as connection:
            studies.settle(
                connection,
                ["demo"],
                lambda within, uid: self._auditor.received(within, self._storage, uid),
            )
        return kept(self._database)

    def wait(self) -> None:
        """Let the quiet time of all that came pass."""
        earlier = db.instance.c.received_at - timedelta(hours=1)
        with self._database.transaction() as connection:
            connection.execute(sa.update(db.instance).values(received_at=earlier))


@pytest.fixture
def ward(database: Database, tmp_path: Path, auditor: Auditor, study_factory: StudyFactory) -> Ward:
    made = Ward(database, tmp_path, auditor)
    made._register = study_factory
    return made


def test_a_complete_study_was_transferred_to_us(ward: Ward) -> None:
    ward.receive(calling_ae_title="CR1", address="10.0.0.3")
    ward.receive(calling_ae_title="CR1", address="10.0.0.3")
    (root,) = ward.settle()
    identification = root.find("EventIdentification")
    assert identification is not None
    assert identification.attrib["EventActionCode"] == "C"
    sender = judge.player(root, "110153")
    assert sender.attrib["AlternativeUserID"] == "AETITLES=CR1"
    assert sender.attrib["NetworkAccessPointID"] == "10.0.0.3"
    assert judge.instances(root) == {DIGITAL_X_RAY: 2}
    assert judge.patient_ids(root) == ["P1"]
    study = next(root.iter("ParticipantObjectIdentification"))
    assert study.attrib["ParticipantObjectID"] == "1.2.3"


def test_nothing_is_told_before_the_study_is_complete(ward: Ward) -> None:
    ward.receive(quiet=3600)
    assert ward.settle() == []


def test_each_sender_has_a_message_and_a_patient_of_its_own(ward: Ward) -> None:
    ward.receive(calling_ae_title="CR1")
    ward.receive(calling_ae_title="RIS", patient_id="P2", sop_class_uid=BASIC_TEXT_SR)
    roots = ward.settle()
    senders = [judge.player(one, "110153").attrib["UserID"] for one in roots]
    assert senders == ["CR1", "RIS"]
    assert [judge.patient_ids(one) for one in roots] == [["P1"], ["P2"]]


def test_late_instances_are_told_of_alone(ward: Ward) -> None:
    ward.receive()
    ward.wait()
    assert len(ward.settle()) == 1
    ward.receive(sop_class_uid=BASIC_TEXT_SR)
    (root,) = ward.settle()
    assert judge.instances(root) == {BASIC_TEXT_SR: 1}


def test_an_instance_that_came_while_the_study_was_completed_is_not_lost(
    ward: Ward, database: Database
) -> None:
    ward.receive()
    ward.wait()
    ward.settle()
    ward.receive(sop_class_uid=BASIC_TEXT_SR)
    with database.transaction() as connection:
        # Its transaction began before that completion, and then waited for it.
        late = sa.update(db.instance).where(db.instance.c.sop_class_uid == BASIC_TEXT_SR)
        connection.execute(
            late.values(received_at=db.instance.c.received_at - timedelta(seconds=20))
        )
    (root,) = ward.settle()
    assert judge.instances(root) == {BASIC_TEXT_SR: 1}


def test_other_bytes_under_a_known_uid_are_an_update(ward: Ward) -> None:
    ward.receive(sop_instance_uid="1.2.3.9")
    ward.wait()
    ward.settle()
    ward.receive(sop_instance_uid="1.2.3.9", patient_id="P1 ")
    (root,) = ward.settle()
    identification = root.find("EventIdentification")
    assert identification is not None
    assert identification.attrib["EventActionCode"] == "U"


def test_a_file_that_is_gone_keeps_no_study_waiting(ward: Ward, tmp_path: Path) -> None:
    ward.receive()
    for file in tmp_path.rglob("*.dcm"):
        file.unlink()
    (root,) = ward.settle()
    assert judge.patient_ids(root) == [""]


def test_no_name_and_no_birth_date_is_in_a_message(ward: Ward, database: Database) -> None:
    ward.receive(patient_id="SECRET-ID")
    (root,) = ward.settle()
    told_of = " ".join(
        value for one in root.iter() for value in (*one.attrib.values(), one.text or "")
    )
    assert told_of.count("SECRET-ID") == 1
    assert "Verysecret" not in told_of
    assert "19010203" not in told_of


@pytest.mark.parametrize(
    ("raw", "read"),
    [(b"P1 ", "P1"), ("Ä1".encode(), "Ä1"), ("Ä1".encode("latin-1"), "Ä1"), (b"", "")],
)
def test_a_patient_id_is_read_as_filing_compares_it(raw: bytes, read: str) -> None:
    plain = encoded(Dataset())
    element = b"\x10\x00\x20\x00LO" + len(raw).to_bytes(2, "little") + raw
    ds = dcmread(BytesIO(plain + element), force=True)
    assert patient.of_header(ds) == read


def test_a_data_set_without_a_patient_id_has_none() -> None:
    assert patient.of_header(Dataset()) == ""
