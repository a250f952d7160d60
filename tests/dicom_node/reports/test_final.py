"""What every reader gives: the text that is indexed, and nothing to see of whose it is."""

from __future__ import annotations

import pytest

from dicom_node.reports.final import Claim, FinalReport, Section, order_key


def final(**sections: str) -> FinalReport:
    return FinalReport(
        source="csv",
        source_uid="row 1",
        order_key="k",
        verdict="final",
        claim=Claim(patient_id="M1"),
        sections={_section(name): text for name, text in sections.items()},
    )


def _section(name: str) -> Section:
    assert name in ("findings", "impression", "conclusion", "history", "addendum", "other")
    return name


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        ({"impression": "I", "findings": "F", "history": "H", "other": "O"}, "F\n\nI"),
        ({"conclusion": "C", "addendum": "A", "other": "O"}, "C\n\nA"),
        ({"other": "O", "history": "H"}, "O"),
        ({"other": "O", "addendum": "A"}, "O\n\nA"),
        ({"addendum": "A"}, "A"),
        ({}, ""),
    ],
)
def test_the_text_is_what_the_radiologist_reports(sections: dict[str, str], text: str) -> None:
    assert final(**sections).text == text


def test_a_report_shows_neither_whose_it_is_nor_what_it_says() -> None:
    shown = repr(final(findings="Effusion."))
    assert "M1" not in shown
    assert "Effusion" not in shown


def test_order_keys_keep_their_parts_apart() -> None:
    assert order_key("a", "bc") != order_key("ab", "c")
