"""Feedback by model version and week: made pairs with known edits give the known figures."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from datetime import UTC, datetime, timedelta, timezone

import pytest

from dicom_node.reports.compare import compare
from dicom_node.reports.feedback import LabelCounts, Pair, Row, summarise
from dicom_node.reports.final import FinalReport

DRAFT = "The heart is enlarged. No pneumothorax. Small left pleural effusion."  # ten words
MONDAY = datetime(2024, 3, 11, tzinfo=UTC)  # of week 11


def pair(findings: str, *, at: datetime = MONDAY, version: str = "1.0") -> Pair:
    final = FinalReport(
        source="sr",
        source_uid="1.2.3",
        order_key="k",
        verdict="final",
        sections={"findings": findings},
    )
    return Pair(
        algorithm_name="LLaVA-Rad",
        algorithm_version=version,
        digest="ab" * 32,
        at=at,
        comparison=compare(DRAFT, final),
    )


# Per 100 drafts: what the radiologist wrote, how often, and the distance that makes.
EDITS = [
    (DRAFT.upper().replace(". ", ".\n"), 40, 0.0),  # accepted
    (DRAFT.replace("Small", "Large"), 20, 0.1),
    (DRAFT.replace("Small", "No"), 10, 0.1),  # the effusion was added, and is contradicted
    (f"{DRAFT} A rib fracture on the right is now also there.", 15, 0.5),  # 10 words: missed
    ("Lungs are clear.", 10, 1.0),  # both labels added
    # One word of ten is kept; two labels added, one missed, all three contradicted.
    ("Left pneumothorax. Normal sized heart. No effusion.", 5, 0.9),
]


def hundred(version: str, week: int) -> list[Pair]:
    start = MONDAY + timedelta(weeks=week)
    findings = [text for text, count, _ in EDITS for _ in range(count)]
    return [
        pair(text, at=start + timedelta(hours=number), version=version)
        for number, text in enumerate(findings)
    ]


def three_hundred() -> list[Pair]:
    """One version over two weeks and another one in the second of them."""
    return [*hundred("1.0", 0), *hundred("1.0", 1), *hundred("1.1", 1)]


def test_300_pairs_with_known_edits_give_the_known_figures() -> None:
    rows = summarise(three_hundred())
    assert [(row.week, row.algorithm_version, row.n) for row in rows] == [
        ("2024-W11", "1.0", 100),
        ("2024-W12", "1.0", 100),
        ("2024-W12", "1.1", 100),
    ]
    for row in rows:
        figures(row)


def figures(row: Row) -> None:
    """What 100 of ``EDITS`` come to, worked out by hand."""
    assert (row.accepted, row.edited, row.rejected) == (40, 45, 15)
    assert row.mean_distance == pytest.approx((30 * 0.1 + 15 * 0.5 + 10 * 1.0 + 5 * 0.9) / 100)
    assert row.median_distance == pytest.approx(0.1)
    assert row.labels == {
        "Cardiomegaly": LabelCounts(agreed=85, missed=0, added=15, contradicted=5),
        "Pleural Effusion": LabelCounts(agreed=75, missed=0, added=25, contradicted=15),
        "Pneumothorax": LabelCounts(agreed=0, missed=5, added=0, contradicted=5),
        "Fracture": LabelCounts(agreed=0, missed=15, added=0, contradicted=0),
    }
    assert row.f1 == pytest.approx(2 * 160 / (2 * 160 + 20 + 40))


def test_each_known_edit_has_its_distance() -> None:
    for findings, _, distance in EDITS:
        assert pair(findings).comparison.distance == pytest.approx(distance)


def test_any_number_of_words_replaced_is_that_distance() -> None:
    chance = random.Random(4)
    words = [f"word{number}" for number in range(40)]
    for replaced in range(41):
        places = chance.sample(range(40), replaced)
        final = [f"new{n}" if n in places else word for n, word in enumerate(words)]
        report = FinalReport(
            source="csv",
            source_uid="row 1",
            order_key="k",
            verdict="final",
            sections={"findings": " ".join(final)},
        )
        assert compare(" ".join(words), report).distance == replaced / 40


def test_the_order_of_the_pairs_does_not_matter() -> None:
    pairs = three_hundred()
    shuffled = random.Random(7).sample(pairs, len(pairs))
    assert summarise(shuffled) == summarise(pairs)


def test_weeks_are_utcs_and_isos() -> None:
    east = timezone(timedelta(hours=9))
    late = datetime(2024, 3, 11, 8, tzinfo=east)  # still Sunday in UTC
    new_year = datetime(2027, 1, 1, tzinfo=UTC)  # a Friday of the old year's last week
    rows = summarise([pair(DRAFT, at=late), pair(DRAFT, at=new_year)])
    assert [row.week for row in rows] == ["2024-W10", "2026-W53"]


def test_without_any_label_there_is_no_f1() -> None:
    nothing = FinalReport(
        source="csv",
        source_uid="row 1",
        order_key="k",
        verdict="final",
        sections={"findings": "Lungs are clear."},
    )
    one = Pair(
        algorithm_name="m",
        algorithm_version="1",
        digest="",
        at=MONDAY,
        comparison=compare("Clear lungs.", nothing),
    )
    (row,) = summarise([one])
    assert row.f1 is None
    assert row.labels == {}


def test_nothing_is_no_row_and_rows_are_json() -> None:
    assert summarise([]) == []
    (row,) = summarise([pair(DRAFT)])
    assert json.loads(json.dumps(asdict(row)))["labels"]["Cardiomegaly"]["agreed"] == 1
