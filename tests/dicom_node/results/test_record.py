from __future__ import annotations

import datetime
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.errors import Unreadable
from dicom_node.results import text_sr
from dicom_node.results.record import DraftRecord
from tests.dicom_node.results.samples import (
    ALGORITHM,
    FRONTAL,
    chosen,
    record,
    reference,
    second_record,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"])).map("Text: {}".format)


@pytest.mark.parametrize("original", [record(), second_record()], ids=["first", "second"])
def test_a_record_comes_back_from_json_as_it_was(original: DraftRecord) -> None:
    assert DraftRecord.from_json(original.to_json()) == original


@settings(deadline=None, max_examples=50)  # the machine may be busy
@given(findings=TEXT, history=st.none() | TEXT, microsecond=st.integers(0, 999999))
def test_any_text_and_time_survive_json(
    findings: str, history: str | None, microsecond: int
) -> None:
    at = datetime.datetime(2024, 3, 11, 9, 20, 30, microsecond, datetime.UTC)
    original = record(findings=findings, history=history, started_at=at)
    assert DraftRecord.from_json(original.to_json()) == original


def test_a_database_that_reorders_keys_does_not_change_the_document() -> None:
    original = record()
    stored = json.dumps(json.loads(original.to_json()), sort_keys=True)
    again = DraftRecord.from_json(stored)
    assert text_sr.encode(again) == text_sr.encode(original)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        pytest.param({"started_at": datetime.datetime(2024, 3, 11)}, "started_at", id="naive"),
        pytest.param({"findings": " \n"}, "findings", id="nothing said"),
        pytest.param({"findings": "\0\x1b"}, "findings", id="only control characters"),
        pytest.param({"inputs": ()}, "inputs", id="no input"),
        pytest.param({"inputs": (chosen(reference(FRONTAL)),) * 2}, "inputs", id="input twice"),
        pytest.param({"evidence": ()}, "evidence", id="input not in evidence"),
        pytest.param({"study_instance_uid": "1.2"}, "of this study", id="another study"),
        pytest.param({"version": 2}, "version", id="second without predecessor"),
        pytest.param({"version": 0}, "version", id="version nought"),
        pytest.param({"predecessor": reference("1.9")}, "version", id="first with predecessor"),
        pytest.param({"timezone_offset": "+1500"}, "timezone_offset", id="no such zone"),
        pytest.param({"timezone_offset": "+01:00"}, "timezone_offset", id="zone with colon"),
        pytest.param(
            {"algorithm": replace(ALGORITHM, demo=True)}, "DEMO MODEL", id="demo that hides it"
        ),
    ],
)
def test_a_record_that_no_correct_document_could_be_made_of_is_refused(
    changes: dict[str, object], rule: str
) -> None:
    with pytest.raises(ValueError, match=rule):
        record(None, **changes)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("{}", id="no fields"),
        pytest.param("[1]", id="a list"),
        pytest.param(record().to_json().replace("2024-03-11T", "SECRET"), id="no time"),
        pytest.param(record().to_json().replace('"version":1', '"version":2'), id="broken rule"),
    ],
)
def test_what_is_no_record_is_unreadable_and_the_message_quotes_nothing(text: str) -> None:
    with pytest.raises(Unreadable, match="stored draft record") as caught:
        DraftRecord.from_json(text)
    assert "SECRET" not in str(caught.value)
    assert "consolidation" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize("words", ["consolidation", "Cough", "MRN0012345", "Doe"])
def test_a_refusal_never_quotes_the_patient(words: str) -> None:
    with pytest.raises(ValueError, match="version") as caught:
        record(version=2)
    assert words not in str(caught.value)
