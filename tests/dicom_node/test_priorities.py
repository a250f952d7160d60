"""What an order's words for its urgency mean."""

from __future__ import annotations

import pytest

from dicom_node import priorities
from dicom_node.priorities import ROUTINE, STAT, URGENT


@pytest.mark.parametrize(
    ("value", "priority"),
    [("STAT", STAT), ("stat ", STAT), ("HIGH", URGENT), ("ROUTINE", ROUTINE), ("", ROUTINE)],
)
def test_dicom_terms_of_a_requested_procedure(value: str, priority: int) -> None:
    assert priorities.of_dicom(value) == priority


@pytest.mark.parametrize(
    ("code", "priority"), [("S", STAT), ("A", URGENT), ("R", ROUTINE), ("", ROUTINE)]
)
def test_hl7_codes_of_an_order(code: str, priority: int) -> None:
    assert priorities.of_hl7(code) == priority


def test_what_is_urgent_sorts_before_routine() -> None:
    assert STAT > URGENT > ROUTINE
