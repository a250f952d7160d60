"""Matching: a report finds its study, and never another patient's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.db import Database
from dicom_node.identity import MIXED
from dicom_node.reports import matching
from dicom_node.reports.final import Claim
from dicom_node.reports.matching import ANOTHERS, Candidate, Outcome, match
from dicom_node.storage import Identity
from tests.conftest import BASIC_TEXT_SR, StudyFactory
from tests.dicom_node.reports.made import identity, matched

DAY = "20240311"
HERE = Candidate(
    study_instance_uid="1.2.3",
    identity=identity("P1", issuer="HOSP", accession="A1", ris="RIS", day=DAY),
)
#: Says all that can be said of HERE.
CLAIM = Claim(
    study_instance_uid="1.2.3",
    accession_number="A1",
    accession_issuer="RIS",
    patient_id="P1",
    patient_issuer="HOSP",
    study_date=DAY,
)


def candidate(uid: str, of: Identity | None) -> Candidate:
    return Candidate(study_instance_uid=uid, identity=of)


def outcome(claim: Claim, *studies: Candidate) -> Outcome:
    return match(matching.claimed(claim), studies)


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(CLAIM, id="everything"),
        pytest.param(Claim(study_instance_uid="1.2.3"), id="study UID alone"),
        pytest.param(Claim(study_instance_uid="1.2.3 ", patient_id=" P1"), id="padded"),
        pytest.param(Claim(accession_number="A1", accession_issuer="RIS"), id="order"),
        pytest.param(Claim(accession_number="A1", patient_id="P1"), id="order without issuer"),
        pytest.param(
            Claim(patient_id="P1", patient_issuer="HOSP", study_date=DAY), id="patient and day"
        ),
        pytest.param(Claim(patient_id="P1", study_date=DAY), id="patient without issuer"),
        pytest.param(
            replace(CLAIM, study_instance_uid="9.9"), id="other UID, order and patient agree"
        ),
        pytest.param(
            replace(CLAIM, study_instance_uid="", accession_issuer="OTHER", accession_number=""),
            id="no order",
        ),
    ],
)
def test_a_report_finds_its_study(claim: Claim) -> None:
    assert outcome(claim, HERE) == matched("1.2.3")


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(Claim(), id="nothing"),
        pytest.param(Claim(patient_id="P1"), id="patient without day"),
        pytest.param(Claim(study_date=DAY), id="day without patient"),
        pytest.param(Claim(study_instance_uid="9.9"), id="another study"),
        pytest.param(Claim(accession_number="A2"), id="another order"),
        pytest.param(Claim(accession_number="A1", accession_issuer="LAB"), id="another's order"),
        pytest.param(Claim(patient_id="P1", study_date="20240312"), id="another day"),
        pytest.param(
            Claim(patient_id="P1", patient_issuer="OTHER", study_date=DAY),
            id="another issuer's patient of that day",
        ),
        pytest.param(
            Claim(patient_id="P1", study_date=DAY, accession_number="A2"),
            id="another order of that day",
        ),
        pytest.param(
            Claim(patient_id="P1", study_date=DAY, study_instance_uid="9.9"),
            id="another study of that day",
        ),
        pytest.param(
            Claim(study_instance_uid="9.9", accession_number="A1"),
            id="another UID and nothing but the order",
        ),
    ],
)
def test_a_report_that_names_something_else_is_parked(claim: Claim) -> None:
    found = outcome(claim, HERE)
    assert (found.state, found.study_instance_uid) == ("parked", None)
    assert found.reason


@pytest.mark.parametrize(
    "wrong", [{"patient_id": "P2"}, {"patient_issuer": "OTHER"}], ids=["id", "issuer"]
)
def test_a_study_uid_does_not_make_up_for_another_patient(wrong: dict[str, str]) -> None:
    assert outcome(replace(CLAIM, **wrong), HERE) == Outcome(state="parked", reason=ANOTHERS)


def test_an_accession_number_does_not_make_up_for_another_patient() -> None:
    claim = Claim(accession_number="A1", patient_id="P2")
    assert outcome(claim, HERE) == Outcome(state="parked", reason=ANOTHERS)


def test_of_two_studies_of_one_order_none_is_taken() -> None:
    other = candidate("1.2.4", HERE.identity)
    found = outcome(Claim(accession_number="A1", patient_id="P1"), HERE, other)
    assert (found.state, found.reason) == ("parked", "2 studies have this accession number")


def test_an_order_number_that_two_patients_have_finds_the_one_that_is_named() -> None:
    other = candidate("1.2.4", identity("P2", accession="A1"))
    claim = Claim(accession_number="A1", patient_id="P2")
    assert outcome(claim, HERE, other) == matched("1.2.4")
    assert outcome(Claim(accession_number="A1"), HERE, other).state == "parked"


def test_of_two_studies_of_one_day_none_is_taken() -> None:
    other = candidate("1.2.4", identity("P1", day=DAY))
    found = outcome(Claim(patient_id="P1", study_date=DAY), HERE, other)
    assert (found.state, found.reason) == ("parked", "the patient has 2 studies of that day")


def test_a_study_without_patient_is_found_by_its_uid() -> None:
    nobodys = candidate("1.2.3", identity(day=DAY))
    assert outcome(CLAIM, nobodys) == matched("1.2.3")


def test_a_study_of_which_no_image_came_is_waited_for() -> None:
    found = outcome(CLAIM, candidate("1.2.3", None))
    assert (found.state, found.reason) == ("parked", "no image of the study is here yet")


def test_a_study_whose_images_name_two_patients_gets_no_report() -> None:
    mixed = candidate("1.2.3", replace(identity(accession="A1"), patient_id_key=MIXED))
    for claim in (CLAIM, Claim(study_instance_uid="1.2.3"), Claim(accession_number="A1")):
        assert outcome(claim, mixed) == Outcome(state="parked", reason=ANOTHERS)


# -- the wrong patient -----------------------------------------------------------------------------

_NAMES = st.sampled_from(["", "X", "Y"])
_UIDS = st.sampled_from(["", "1.2.3", "1.2.4"])


def _claims(patients: st.SearchStrategy[str]) -> st.SearchStrategy[Claim]:
    return st.builds(
        Claim,
        study_instance_uid=_UIDS,
        accession_number=_NAMES,
        accession_issuer=_NAMES,
        patient_id=patients,
        patient_issuer=_NAMES,
        study_date=st.sampled_from(["", DAY]),
    )


_STUDIES = st.lists(
    st.builds(
        candidate,
        st.sampled_from(["1.2.3", "1.2.4", "1.2.5"]),
        st.none()
        | st.builds(
            identity,
            st.sampled_from(["P1", "P2"]),
            issuer=_NAMES,
            accession=_NAMES,
            ris=_NAMES,
            day=st.sampled_from(["", DAY]),
        ),
    ),
    max_size=4,
    unique_by=lambda one: one.study_instance_uid,
)


@given(_claims(st.sampled_from(["P1", "P2", "P3"])), _STUDIES)
def test_a_wrong_patient_never_matches(claim: Claim, studies: list[Candidate]) -> None:
    found = outcome(claim, *studies)
    if found.state == "matched":
        (one,) = [one for one in studies if one.study_instance_uid == found.study_instance_uid]
        assert one.identity is not None
        said = identity(claim.patient_id, issuer=claim.patient_issuer)
        assert one.identity.patient_id_key == said.patient_id_key
        issuers = {one.identity.patient_issuer_key, said.patient_issuer_key} - {""}
        assert len(issuers) < 2


@given(_claims(_NAMES), _STUDIES)
def test_a_report_matches_at_most_one_study_and_says_why_if_none(
    claim: Claim, studies: list[Candidate]
) -> None:
    found = outcome(claim, *studies)
    assert found == outcome(claim, *studies[::-1])
    assert (found.state == "matched") == (found.study_instance_uid is not None)
    assert (found.state == "parked") == bool(found.reason)


# -- among the studies that are here ---------------------------------------------------------------


def find(database: Database, claim: Claim) -> Outcome:
    with database.transaction() as connection:
        return matching.find(connection, matching.claimed(claim))


def test_the_study_is_found_among_others(database: Database, study_factory: StudyFactory) -> None:
    for number in range(3):
        study_factory(identity=identity(f"Q{number}", accession=f"B{number}", day=DAY))
    uid = study_factory(identity=identity("P1", accession="A1", day=DAY))
    assert find(database, Claim(study_instance_uid=uid, patient_id="P1")) == matched(uid)
    assert find(database, Claim(accession_number="A1")) == matched(uid)
    assert find(database, Claim(patient_id="P1", study_date=DAY)) == matched(uid)
    assert find(database, Claim(study_instance_uid=uid, patient_id="Q1")).reason == ANOTHERS


def test_the_named_study_is_seen_though_very_many_share_its_order(
    database: Database, study_factory: StudyFactory
) -> None:
    uids = [study_factory(identity=identity("P1", accession="A1")) for _ in range(30)]
    claim = Claim(accession_number="A1", patient_id="P1")
    assert find(database, claim).state == "parked"
    assert find(database, replace(claim, study_instance_uid=uids[-1])) == matched(uids[-1])


def test_a_report_is_no_witness_for_its_own_study(
    database: Database, study_factory: StudyFactory
) -> None:
    told = identity("P1", accession="A1", day=DAY)
    uid = study_factory(sop_class_uid=BASIC_TEXT_SR, identity=told)
    assert find(database, Claim(study_instance_uid=uid, patient_id="P1")).state == "parked"
    study_factory(study_instance_uid=uid, identity=identity("P2"))
    assert find(database, Claim(study_instance_uid=uid, patient_id="P1")).reason == ANOTHERS
    assert find(database, Claim(study_instance_uid=uid, patient_id="P2")) == matched(uid)
