"""Draft against final report: distance, outcome and labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.labeler import Label
from dicom_node.reports import compare
from dicom_node.reports.compare import Comparison
from dicom_node.reports.final import FinalReport, Section

DRAFT = "The heart is enlarged. No pneumothorax. Small left pleural effusion."  # ten words


def against(sections: dict[Section, str], draft: str = DRAFT) -> Comparison:
    final = FinalReport(
        source="csv", source_uid="row 1", order_key="k", verdict="final", sections=sections
    )
    return compare.compare(draft, final)


@pytest.mark.parametrize(
    "findings",
    [
        DRAFT,
        "THE HEART is  enlarged;\nno pneumothorax,\n\nsmall left pleural effusion",
        "The heart is enlarged . No pneumothorax. Small left pleural effusion !",
    ],
)
def test_the_same_words_are_accepted(findings: str) -> None:
    compared = against({"findings": findings})
    assert (compared.outcome, compared.distance) == ("accepted", 0)


@pytest.mark.parametrize(
    ("findings", "distance", "outcome"),
    [
        ("The heart is enlarged. No pneumothorax. Large left pleural effusion.", 0.1, "edited"),
        ("The heart is enlarged. Small left pleural effusion.", 0.2, "edited"),
        (f"{DRAFT} Old rib fractures are seen again here. Clear apices otherwise.", 0.5, "edited"),
        ("The heart is enlarged.", 0.6, "rejected"),
        ("Lungs are clear.", 1.0, "rejected"),
    ],
)
def test_the_share_of_changed_words_is_the_distance(
    findings: str, distance: float, outcome: str
) -> None:
    compared = against({"findings": findings})
    assert (compared.distance, compared.outcome) == (distance, outcome)


def test_the_draft_is_measured_against_the_findings_alone() -> None:
    compared = against({"findings": DRAFT, "impression": "Heart failure.", "history": "Cough."})
    assert compared.outcome == "accepted"
    assert (compared.final, compared.impression) == (DRAFT, "Heart failure.")


def test_without_findings_it_is_measured_against_the_whole_text() -> None:
    assert against({"impression": DRAFT}).outcome == "accepted"
    assert against({"other": DRAFT, "addendum": "Rib fracture."}).distance == pytest.approx(2 / 12)


def test_an_empty_draft_is_rejected() -> None:
    assert against({"findings": DRAFT}, draft="").outcome == "rejected"


def test_labels_are_kept_missed_added_and_contradicted() -> None:
    compared = against(
        {
            "findings": "The heart is enlarged. There is a left pneumothorax.",
            "impression": "No pleural effusion. Rib fracture.",
        }
    )
    assert compared.agreed == (Label.CARDIOMEGALY,)
    assert compared.missed == (Label.PNEUMOTHORAX, Label.FRACTURE)
    assert compared.added == (Label.PLEURAL_EFFUSION,)
    assert compared.contradicted == (Label.PLEURAL_EFFUSION, Label.PNEUMOTHORAX)


def test_doubt_is_not_presence_and_contradicts_nothing() -> None:
    compared = against({"findings": "Possible pleural effusion. The heart is enlarged."})
    assert compared.added == (Label.PLEURAL_EFFUSION,)
    assert compared.contradicted == ()


def test_a_comparison_is_json_and_shows_no_text() -> None:
    compared = against({"findings": "Effusion."})
    assert json.loads(json.dumps(asdict(compared)))["added"] == ["Cardiomegaly"]
    assert "enlarged" not in repr(compared)


def test_texts_without_end_are_compared_as_far_as_they_matter() -> None:
    words = " ".join(f"w{n}" for n in range(compare.MAX_WORDS))
    assert compare.word_distance(words, f"{words} and more") == 0
    assert compare.word_distance("", "") == 0


def plain_levenshtein(first: Sequence[str], second: Sequence[str]) -> int:
    """The textbook's form, to check the fast one by."""
    row = list(range(len(second) + 1))
    for number, one in enumerate(first, start=1):
        above, row = row, [number]
        for place, other in enumerate(second):
            row.append(min(above[place + 1] + 1, row[-1] + 1, above[place] + (one != other)))
    return row[-1]


WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


@given(WORDS, WORDS)
def test_the_distance_is_levenshteins(first: list[str], second: list[str]) -> None:
    assert compare.levenshtein(first, second) == plain_levenshtein(first, second)
