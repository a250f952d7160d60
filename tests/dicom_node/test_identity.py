"""What two objects say of patient and order: when it is the same, and when another's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.identity import MIXED, differ, is_another_patient, is_same_order, is_same_patient
from dicom_node.storage import Identity
from tests.dicom_node.reports.made import identity

KEY = st.sampled_from(["", "a", "b"])
IDENTITY = st.builds(Identity, patient_id_key=KEY, patient_issuer_key=KEY)


def test_who_says_nothing_contradicts_nothing() -> None:
    assert not differ("", "a")
    assert not differ("a", "")
    assert differ("a", "b")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (identity("P1"), identity("P1"), True),
        (identity("P1", issuer="X"), identity("P1"), True),
        (identity("P1", issuer="X"), identity("P1", issuer="Y"), False),
        (identity("P1"), identity("P2"), False),
        (identity(), identity(), False),
        (identity(), identity("P1"), False),
    ],
)
def test_the_same_patient_is_named_by_both(one: Identity, other: Identity, same: bool) -> None:
    assert is_same_patient(one, other) is same


@given(said=IDENTITY)
def test_a_study_of_several_patients_is_nobodys(said: Identity) -> None:
    for mixed in (Identity(patient_id_key=MIXED), Identity(patient_issuer_key=MIXED)):
        assert is_another_patient(said, mixed)
        assert not is_same_patient(said, mixed)


@given(said=IDENTITY, study=IDENTITY)
def test_nobody_is_the_same_and_another_patient(said: Identity, study: Identity) -> None:
    assert not (is_same_patient(said, study) and is_another_patient(said, study))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (identity(accession="A1"), identity(accession="A1", ris="X"), True),
        (identity(accession="A1", ris="X"), identity(accession="A1", ris="Y"), False),
        (identity(accession="A1"), identity(accession="A2"), False),
        (identity(), identity(), False),
    ],
)
def test_the_same_order_has_a_number_of_no_other_issuer(
    one: Identity, other: Identity, same: bool
) -> None:
    assert is_same_order(one, other) is same
