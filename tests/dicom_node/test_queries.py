"""What a peer is asked, how its answers are held against the question, and how it can fail."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node import queries
from dicom_node.config import Peer
from dicom_node.errors import NodeError, NotSupported, OutOfResources, PeerError
from dicom_node.filing import Origin
from dicom_node.queries import FIND, Inquiry, Instance, Patient, Series
from dicom_node.scu import Timeouts
from inference import headers, selection
from tests.dicom_node.network import running
from tests.query_pacs import DIGITAL_X_RAY, TITLE, QueryPacs, chest

US = "DICOMNODE"
DAY = "20260304"
IMPATIENT = Timeouts(connect=2, associate=2, answer=1, network=2)
SECRETS = ("SECRET-ID", "VERYSECRET", "SECRET-ACCESSION", "19500203")
PATIENT = Patient(patient_id="SECRET-ID", issuer="HOSPITAL", birth_date="19500203")


@pytest.fixture(scope="module")
def shared() -> Iterator[QueryPacs]:
    """One for all, for its end takes half a second."""
    with QueryPacs() as started:
        yield started


@pytest.fixture
def pacs(shared: QueryPacs) -> QueryPacs:
    """A PACS that holds nothing yet."""
    shared.hold()
    return shared


@contextmanager
def asking(pacs: QueryPacs, timeouts: Timeouts | None = None) -> Iterator[Inquiry]:
    with queries.inquiry(pacs.peer(), US, timeouts=timeouts) as opened:
        yield opened


# -- by day ----------------------------------------------------------------------------------------


def test_the_studies_of_a_day_come_newest_first_each_once(pacs: QueryPacs) -> None:
    early, late, other = chest(StudyTime="080000"), chest(), chest(StudyDate="20260305")
    pacs.hold(early, late, other)
    with asking(pacs) as asked:
        found = asked.studies_on(DAY, ("CR", "DX"))
    assert [one.study_instance_uid for one in found] == [
        late.StudyInstanceUID,
        early.StudyInstanceUID,
    ]
    assert found[0].modalities == ("DX",)


def test_by_day_nothing_is_asked_of_a_patient(pacs: QueryPacs) -> None:
    pacs.hold(chest())
    with asking(pacs) as asked:
        asked.studies_on(DAY, ("DX",))
    keywords = {element.keyword for one in pacs.asked for element in one}
    assert not any(keyword.startswith(("Patient", "Accession")) for keyword in keywords)


def test_a_peer_that_ignores_modality_and_day_is_not_believed(pacs: QueryPacs) -> None:
    ct, elsewhere = chest(Modality="CT"), chest(StudyDate="20260305")
    pacs.hold(chest(), ct, elsewhere, matches=())
    with asking(pacs) as asked:
        pacs.filters = False
        (found,) = asked.studies_on(DAY, ("DX",))
    assert found.study_date == DAY
    assert found.modalities == ("DX",)


def test_a_peer_that_tells_no_modality_leaves_it_open(pacs: QueryPacs) -> None:
    pacs.hold(chest(Modality="CT"), told=(), matches=())
    with asking(pacs) as asked:
        (found,) = asked.studies_on(DAY, ("DX",))
    assert found.modalities == ()


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_an_answer_without_a_usable_uid_is_none(pacs: QueryPacs) -> None:
    pacs.hold(chest(StudyInstanceUID="..", StudyDate=DAY))
    with asking(pacs) as asked:
        assert asked.studies_on(DAY, ("DX",)) == []


# -- by patient ------------------------------------------------------------------------------------


def test_the_studies_of_a_patient_are_of_that_one_only(pacs: QueryPacs) -> None:
    his = chest()
    others = (
        chest(PatientID="OTHER"),
        chest(IssuerOfPatientID="ELSEWHERE"),
        chest(PatientBirthDate="19600101"),
    )
    pacs.hold(his, *others)
    with asking(pacs) as asked:
        found = asked.studies_of(PATIENT, ("DX",))
    assert [one.study_instance_uid for one in found] == [his.StudyInstanceUID]


@pytest.mark.parametrize("patient_id", ["", "12*", "1?", "1\\2"])
def test_an_id_that_is_none_or_a_pattern_is_not_asked_for(pacs: QueryPacs, patient_id: str) -> None:
    pacs.hold(chest())
    with asking(pacs) as asked:
        assert asked.studies_of(Patient(patient_id=patient_id), ("DX",)) == []
    assert pacs.asked == []


def test_an_id_in_another_character_set_is_asked_for_and_compared(pacs: QueryPacs) -> None:
    held = chest(PatientID="MÜLLER-7", SpecificCharacterSet="ISO_IR 100")
    patient = Patient(patient_id="MÜLLER-7", issuer="HOSPITAL")
    pacs.hold(held)
    with asking(pacs) as asked:
        assert len(asked.studies_of(patient, ("DX",))) == 1
    assert pacs.asked[0].SpecificCharacterSet == "ISO_IR 192"


@pytest.mark.parametrize(
    ("issuer", "birth_date", "same"),
    [
        pytest.param("HOSPITAL", "19500203", True, id="all the same"),
        pytest.param("HOSPITAL", "", True, id="no birth date"),
        pytest.param("", "19500203", True, id="no issuer, born alike"),
        pytest.param("", "", False, id="no issuer, no birth date"),
        pytest.param("ELSEWHERE", "19500203", False, id="another issuer"),
        pytest.param("HOSPITAL", "19500204", False, id="another birth date"),
    ],
)
def test_a_doubt_about_the_patient_says_no(issuer: str, birth_date: str, same: bool) -> None:
    other = Patient(patient_id="SECRET-ID", issuer=issuer, birth_date=birth_date)
    assert PATIENT.is_surely(other) is same
    assert other.is_surely(PATIENT) is same


def test_without_issuers_the_id_is_enough_unless_born_on_another_day() -> None:
    plain = Patient(patient_id="7")
    assert plain.is_surely(Patient(patient_id="7", birth_date="19500203"))
    assert not plain.is_surely(Patient(patient_id="8"))
    assert not Patient(patient_id="").is_surely(Patient(patient_id=""))


def test_a_patient_is_never_shown() -> None:
    assert not any(secret in repr(PATIENT) for secret in SECRETS)


# -- series and instances --------------------------------------------------------------------------


def test_series_and_instances_of_a_study_are_told(pacs: QueryPacs) -> None:
    held = chest()
    pacs.hold(held)
    with asking(pacs) as asked:
        (series,) = asked.series_of(held.StudyInstanceUID)
        (instance,) = asked.instances_of(held.StudyInstanceUID, series.series_instance_uid)
    assert (series.modality, series.body_part) == ("DX", "CHEST")
    assert instance.sop_instance_uid == held.SOPInstanceUID
    assert instance.sop_class_uid == DIGITAL_X_RAY


def series(modality: str = "DX", body_part: str = "") -> Series:
    return Series(series_instance_uid="1.2", modality=modality, body_part=body_part)


@pytest.mark.parametrize("body_part", ["", "CHEST", "CHEST_TO_HIP", "Thorax", "TÓRAX", "LUNG"])
def test_a_series_may_be_of_the_chest(body_part: str) -> None:
    assert series(body_part=body_part).may_be_chest(("DX",))


def test_every_word_by_which_an_image_is_taken_as_a_chest_is_one() -> None:
    for word in selection.CHEST_WORDS:
        assert headers.mentions(headers.words(word.strip("*")), selection.CHEST_WORDS)
        assert series(body_part=word.strip("*").upper()).may_be_chest(("DX",)), word


@pytest.mark.parametrize(("modality", "body_part"), [("DX", "KNEE"), ("CT", "CHEST")])
def test_another_body_part_or_modality_is_not_wanted(modality: str, body_part: str) -> None:
    assert not series(modality, body_part).may_be_chest(("CR", "DX"))


# -- how a question fails --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        (0xA700, "out of resources"),
        (0xA900, "does not match the SOP class"),
        (0xC001, "can't process"),
        (0x0122, "SOP class not supported"),
    ],
)
def test_a_question_that_is_refused_says_why(pacs: QueryPacs, status: int, meaning: str) -> None:
    pacs.hold(chest())
    with asking(pacs) as asked:
        pacs.find_status = status
        with pytest.raises(PeerError, match=f"pacs .*C-FIND with 0x{status:04X}: .*{meaning}"):
            asked.studies_on(DAY, ("DX",))


def test_a_peer_that_is_no_query_scp_says_so() -> None:
    with (
        QueryPacs(services=()) as pacs,
        pytest.raises(NotSupported, match="accepts none of 1 presentation contexts"),
        asking(pacs),
    ):
        pass


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # pynetdicom's
def test_nobody_there_is_told_with_name_and_place() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port: int = closed.getsockname()[1]
    nobody = Peer(name="pacs", ae_title="PACS", host=("127.0.0.1",), port=port, roles=("query",))
    with (
        pytest.raises(PeerError, match=rf"pacs \(PACS@127.0.0.1:{port}\) can't be reached"),
        queries.inquiry(nobody, US, timeouts=IMPATIENT),
    ):
        pass


def test_a_peer_that_does_not_answer_is_given_up(pacs: QueryPacs) -> None:
    pacs.hold(chest())
    with asking(pacs, IMPATIENT) as asked:
        pacs.seconds = 2
        with pytest.raises(PeerError, match="did not answer within 1 s"):
            asked.studies_on(DAY, ("DX",))


def test_more_answers_than_anybody_needs_are_cancelled(
    pacs: QueryPacs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(queries, "LIMIT", 5)
    held = [chest() for _ in range(40)]
    pacs.hold(*held)
    with asking(pacs) as asked, caplog.at_level(logging.WARNING):
        pacs.endless = True
        assert len(asked.studies_on(DAY, ("DX",))) == 5
        pacs.endless = False
        assert asked.series_of(held[0].StudyInstanceUID), "the association goes on"
    assert "too many answers" in caplog.text


def test_a_peer_that_ignores_the_cancel_is_left(
    pacs: QueryPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "LIMIT", 5)
    monkeypatch.setattr(queries, "_OVERRUN", 5)
    pacs.hold(chest())
    with asking(pacs) as asked:
        pacs.endless, pacs.heeds_cancel = True, False
        assert len(asked.studies_on(DAY, ("DX",))) == 1
        pacs.endless = False
        with pytest.raises(PeerError, match="the association has ended"):
            asked.studies_on(DAY, ("DX",))


def test_nothing_of_a_patient_reaches_a_log_or_an_error(
    pacs: QueryPacs, caplog: pytest.LogCaptureFixture
) -> None:
    pacs.hold(chest())
    with caplog.at_level(logging.DEBUG), asking(pacs) as asked:
        found = asked.studies_of(PATIENT, ("DX",))
        pacs.find_status = 0xC001
        with pytest.raises(PeerError) as error:
            asked.studies_of(PATIENT, ("DX",))
    ours = [one for one in caplog.records if one.name.startswith("dicom_node")]
    for text in (str(error.value), repr(found), *(one.getMessage() for one in ours)):
        assert not any(secret in text for secret in SECRETS)


# -- C-MOVE ----------------------------------------------------------------------------------------


def test_c_move_sends_the_series_to_us(pacs: QueryPacs, tmp_path: Path) -> None:
    held = chest()
    pacs.hold(held, chest())
    with running(tmp_path, pacs.peer()) as node:
        pacs.destinations[US] = ("127.0.0.1", node.port)
        said = queries.move(pacs.peer(), US, held.StudyInstanceUID, [str(held.SeriesInstanceUID)])
    assert (said.completed, said.failed) == (1, 0)
    (stored,) = node.registered
    assert stored.sop_instance_uid == held.SOPInstanceUID
    assert stored.calling_ae_title == TITLE


def test_a_pacs_that_does_not_know_us_says_what_to_set_there(pacs: QueryPacs) -> None:
    held = chest()
    pacs.hold(held)
    with pytest.raises(PeerError) as error:
        queries.move(pacs.peer(), US, held.StudyInstanceUID, [str(held.SeriesInstanceUID)])
    assert "0xA801" in str(error.value)
    assert "the PACS must know our AE title, host and port (DICOMNODE)" in str(error.value)
    assert error.value.retry


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # pynetdicom's
def test_a_pacs_that_can_not_reach_us_says_where_to_look(pacs: QueryPacs) -> None:
    held = chest()
    pacs.hold(held)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port: int = closed.getsockname()[1]
    pacs.destinations[US] = ("127.0.0.1", port)
    with pytest.raises(PeerError, match=r"0xA801|can it reach us as DICOMNODE"):
        queries.move(pacs.peer(), US, held.StudyInstanceUID, [str(held.SeriesInstanceUID)])


def test_of_a_series_that_comes_in_part_the_rest_is_counted(
    pacs: QueryPacs, tmp_path: Path
) -> None:
    first = chest()
    second = chest(
        StudyInstanceUID=first.StudyInstanceUID, SeriesInstanceUID=first.SeriesInstanceUID
    )
    pacs.hold(first, second)
    with running(tmp_path, pacs.peer()) as node:
        pacs.destinations[US] = ("127.0.0.1", node.port)
        pacs.failing.add(second.SOPInstanceUID)
        said = queries.move(pacs.peer(), US, first.StudyInstanceUID, [str(first.SeriesInstanceUID)])
    assert (said.completed, said.failed) == (1, 1)


# -- C-GET -----------------------------------------------------------------------------------------


def wanted(*held: Dataset, sop_class_uid: str = DIGITAL_X_RAY) -> list[Instance]:
    return [
        Instance(
            series_instance_uid=str(one.SeriesInstanceUID),
            sop_instance_uid=str(one.SOPInstanceUID),
            sop_class_uid=sop_class_uid,
        )
        for one in held
    ]


@pytest.mark.parametrize("told", [DIGITAL_X_RAY, ""], ids=["class told", "class not told"])
def test_c_get_keeps_what_comes_over_the_same_association(pacs: QueryPacs, told: str) -> None:
    held = chest()
    kept: list[tuple[Origin, bytes]] = []
    pacs.hold(held)
    said = queries.get(
        pacs.peer(),
        US,
        held.StudyInstanceUID,
        wanted(held, sop_class_uid=told),
        lambda origin, data_set: kept.append((origin, data_set)),
    )
    assert (said.completed, said.failed) == (1, 0)
    ((origin, data_set),) = kept
    assert origin.sop_instance_uid == held.SOPInstanceUID
    assert origin.transfer_syntax == ExplicitVRLittleEndian
    assert dcmread(BytesIO(data_set), force=True).PatientID == "SECRET-ID"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        pytest.param(OutOfResources("the disk is full"), "0xA700 the disk is full", id="disk"),
        pytest.param(ValueError("VERYSECRET^NAME"), "our bug", id="bug"),
    ],
)
def test_what_can_not_be_kept_is_not_acknowledged(
    pacs: QueryPacs, fault: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    def keep(origin: Origin, data_set: bytes) -> None:
        raise fault

    held = chest()
    pacs.hold(held)
    with caplog.at_level(logging.WARNING), pytest.raises(PeerError, match="0xA702"):
        queries.get(pacs.peer(), US, held.StudyInstanceUID, wanted(held), keep)
    assert said in caplog.text
    assert "VERYSECRET" not in caplog.text


def test_c_get_that_is_refused_says_why(pacs: QueryPacs) -> None:
    held = chest()
    pacs.hold(held)
    pacs.retrieve_status = 0xA702
    with pytest.raises(PeerError, match=r"C-GET with 0xA702"):
        queries.get(pacs.peer(), US, held.StudyInstanceUID, wanted(held), nothing)


def test_a_pacs_without_c_get_says_so() -> None:
    held = chest()
    with QueryPacs(held, services=(FIND,)) as pacs, pytest.raises(NodeError, match="accepts no"):
        queries.get(pacs.peer(), US, held.StudyInstanceUID, wanted(held), nothing)


def nothing(origin: Origin, data_set: bytes) -> None:
    """Keep nothing."""


def answer(**values: Any) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def test_what_an_answer_says_is_taken_only_where_it_is_of_its_form() -> None:
    said = queries.study_of(
        answer(StudyInstanceUID="1.2.3", NumberOfStudyRelatedInstances="3", StudyTime="1015")
    )
    assert said is not None
    assert (said.study_date, said.study_time, said.instances) == ("", "1015", 3)
    assert not re.search("None", repr(said))
