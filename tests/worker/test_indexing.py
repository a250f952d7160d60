"""Indexing final reports: what stands is found by its words, and a draft's words no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dicom_node import retrieval
from dicom_node.db import Database
from dicom_node.reports import store
from dicom_node.reports.final import Claim
from dicom_node.reports.store import Report
from dicom_node.retrieval import Hit
from inference.findings import DeviceLost, Embedding, ModelFailure
from tests.conftest import DraftFactory, StudyFactory
from tests.dicom_node.reports.made import final, kept, row
from tests.worker.rule_model import RuleModel
from worker import indexing, tasks
from worker.tasks import Context


def reported(database: Database, uid: str, text: str, **changes: object) -> Report:
    return kept(database, final(text, claim=Claim(study_instance_uid=uid), **changes))


def hits(database: Database, model: RuleModel, text: str) -> list[Hit]:
    with database.transaction() as connection:
        return retrieval.nearest(connection, model.embed_text(text), kind="report", limit=9)


def indexed(database: Database, report: Report) -> bool:
    return row(database, report.id).indexed_at is not None


def test_a_final_report_takes_the_place_of_the_draft(
    database: Database, model: RuleModel, draft_factory: DraftFactory
) -> None:
    draft = draft_factory()
    uid = draft.study_instance_uid
    with database.transaction() as connection:
        vector = model.embed_text(draft.text)
        retrieval.write(connection, uid, draft.sop_instance_uid, "report", vector)
    report = reported(database, uid, "Pneumothorax.")
    indexing.index(database, model, report.id)
    (hit,) = hits(database, model, "Pneumothorax.")
    assert (hit.study_instance_uid, hit.kind, hit.text) == (uid, "report", "Pneumothorax.")
    assert hit.score == pytest.approx(1)
    assert indexed(database, report)


def test_a_study_without_a_draft_is_found_too(
    database: Database, model: RuleModel, study_factory: StudyFactory
) -> None:
    uid = study_factory()
    indexing.index(database, model, reported(database, uid, "Pneumothorax.").id)
    assert [hit.study_instance_uid for hit in hits(database, model, "x")] == [uid]


def test_a_correction_an_addendum_and_a_withdrawal_change_what_is_found(
    database: Database, model: RuleModel, study_factory: StudyFactory
) -> None:
    uid = study_factory()
    for text, verdict, found in (
        ("First.", "final", ["First."]),
        ("Second.", "corrected", ["Second."]),
        ("Third.", "addendum", ["Second.\n\nThird."]),
        ("", "withdrawn", []),
    ):
        report = reported(database, uid, text, verdict=verdict)
        indexing.index(database, model, report.id)
        assert [hit.text for hit in hits(database, model, "x")] == found
        assert indexed(database, report)


def test_several_reports_of_a_study_are_indexed_in_one_go(
    database: Database, model: RuleModel, study_factory: StudyFactory
) -> None:
    uid = study_factory()
    first, second = reported(database, uid, "First."), reported(database, uid, "Second.")
    indexing.index(database, model, first.id)
    assert indexed(database, second)
    with database.transaction() as connection:
        before = store.of_study(connection, uid)
    indexing.index(database, model, second.id)
    with database.transaction() as connection:
        assert store.of_study(connection, uid) == before


def test_a_report_that_comes_meanwhile_stays_due(
    database: Database,
    model: RuleModel,
    study_factory: StudyFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uid = study_factory()
    first = reported(database, uid, "First.")
    place = model.embed_text

    def interrupted(text: str) -> Embedding:
        reported(database, uid, "Second.")
        return place(text)

    monkeypatch.setattr(model, "embed_text", interrupted)
    indexing.index(database, model, first.id)
    assert not indexed(database, first)
    monkeypatch.undo()
    indexing.index(database, model, first.id)
    assert [hit.text for hit in hits(database, model, "x")] == ["Second."]


def test_a_model_that_places_no_texts_leaves_nothing_waiting(
    database: Database,
    model: RuleModel,
    study_factory: StudyFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = reported(database, study_factory(), "First.")
    monkeypatch.setattr(model, "knows_texts", False)
    indexing.index(database, model, report.id)
    assert indexed(database, report)
    monkeypatch.undo()
    assert hits(database, model, "x") == []


def test_a_report_that_is_parked_or_gone_is_not_indexed(
    database: Database, model: RuleModel
) -> None:
    report = reported(database, "1.2.3.4.5", "First.")
    for report_id in (report.id, report.id + 1):
        indexing.index(database, model, report_id)
    assert not indexed(database, report)
    assert hits(database, model, "x") == []


# -- the task --------------------------------------------------------------------------------------


def failing(error: Exception) -> Callable[[str], Embedding]:
    def embed_text(_: str) -> Embedding:
        raise error

    return embed_text


def test_the_task_indexes_with_the_models_own_vectors(
    database: Database, context: Context, model: RuleModel, study_factory: StudyFactory
) -> None:
    report = reported(database, study_factory(), "First.")
    tasks.index(context, report.id)
    assert indexed(database, report)
    assert [hit.text for hit in hits(database, model, "First.")] == ["First."]


@pytest.mark.parametrize(
    ("error", "stops"),
    [
        pytest.param(ModelFailure("out of memory"), False, id="failure"),
        pytest.param(DeviceLost("gone"), True, id="device lost"),
        pytest.param(ZeroDivisionError("First."), False, id="bug"),
    ],
)
def test_what_fails_stays_due(
    database: Database,
    context: Context,
    model: RuleModel,
    study_factory: StudyFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    stops: bool,
) -> None:
    report = reported(database, study_factory(), "First.")
    monkeypatch.setattr(model, "embed_text", failing(error))
    stopped: list[bool] = []
    tasks.index(replace(context, stop=lambda: stopped.append(True)), report.id)
    assert not indexed(database, report)
    assert stopped == [True] * stops
    assert caplog.records
    assert "First." not in caplog.text


def test_a_database_that_is_away_is_waited_for(
    context: Context, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = Database(f"postgresql+psycopg://user@/name?host={tmp_path}")
    tasks.index(replace(context, node=replace(context.node, database=away)), 1)
    assert "report 1 waits for the index: database" in caplog.text


def test_a_process_without_a_model_does_not_index(context: Context) -> None:
    with pytest.raises(TypeError, match="without a model"):
        tasks.index(replace(context, host=None), 1)
