"""Pairs: a final report is held against the draft that the radiologist could see."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from dicom_node import db, drafts
from dicom_node.db import Database
from dicom_node.drafts import Draft
from dicom_node.reports import pairs, store
from dicom_node.reports.feedback import Pair, summarise
from dicom_node.reports.final import Claim
from dicom_node.reports.pairs import Compared
from dicom_node.reports.store import CurrentReport
from tests.conftest import DraftFactory, StudyFactory
from tests.dicom_node.reports.made import MORNING, final, kept

ALGORITHM = {"name": "LLaVA-Rad", "version": "1.0", "digest": "abc"}
TEXT = "There is a small left pleural effusion."


@pytest.fixture
def draft(database: Database, draft_factory: DraftFactory) -> Draft:
    """A draft that was made in the morning."""
    made = draft_factory(text=TEXT, record={"algorithm": ALGORITHM})
    with database.transaction() as connection:
        connection.execute(sa.update(db.draft).values(created_at=MORNING))
    return made


def report(database: Database, uid: str, text: str = TEXT, *, after: float, **how: object) -> None:
    """A final report that came so many minutes after the morning."""
    claim = Claim(study_instance_uid=uid)
    at = MORNING + timedelta(minutes=after)
    kept(database, final(text, claim=claim, verified_at=at, **how), received_at=at)


def compared(database: Database, uid: str) -> tuple[CurrentReport, list[Compared]] | None:
    with database.transaction() as connection:
        return pairs.compared(drafts.of_study(connection, uid), store.of_study(connection, uid))


def found(database: Database) -> list[Pair]:
    with database.transaction() as connection:
        return list(pairs.feedback(connection))


def test_a_report_is_compared_with_the_draft_that_was_there(
    database: Database, draft: Draft
) -> None:
    report(database, draft.study_instance_uid, after=5)
    (pair,) = found(database)
    assert (pair.algorithm_name, pair.algorithm_version, pair.digest) == ("LLaVA-Rad", "1.0", "abc")
    assert pair.at == MORNING + timedelta(minutes=5)
    assert (pair.comparison.outcome, pair.comparison.distance) == ("accepted", 0)


def test_a_draft_that_came_after_the_report_was_not_seen(database: Database, draft: Draft) -> None:
    report(database, draft.study_instance_uid, after=-5)
    assert found(database) == []


def test_of_two_versions_the_one_that_was_live_is_compared(
    database: Database, draft: Draft, draft_factory: DraftFactory
) -> None:
    uid = draft.study_instance_uid
    second = draft_factory(study_instance_uid=uid, revision=2, version=2, text="Clear lungs.")
    late = MORNING + timedelta(minutes=10)
    with database.transaction() as connection:
        named = db.draft.c.sop_instance_uid == second.sop_instance_uid
        connection.execute(sa.update(db.draft).where(named).values(created_at=late))
    report(database, uid, after=5)
    result = compared(database, uid)
    assert result is not None
    assert [one.draft.version for one in result[1]] == [1]
    report(database, uid, after=15)
    result = compared(database, uid)
    assert result is not None
    assert [one.draft.version for one in result[1]] == [2]


def test_kinds_alternatives_and_status_documents_make_no_further_pairs(
    database: Database, draft_factory: DraftFactory, study_factory: StudyFactory
) -> None:
    uid = study_factory()
    first = draft_factory(study_instance_uid=uid, text=TEXT, record={"algorithm": ALGORITHM})
    same = {"study_instance_uid": uid, "job_id": first.job_id, "record": {"algorithm": ALGORITHM}}
    with database.transaction() as connection:
        rows = sa.select(db.draft).where(db.draft.c.sop_instance_uid == first.sop_instance_uid)
        row = dict(connection.execute(rows).mappings().one())
        for number, changes in enumerate(
            (
                {"kind": "pdf"},
                {"alternative_of": first.sop_instance_uid},
                {"kind": "capture", "text": "", "model": "other"},
            )
        ):
            values = {**row, **same, "sop_instance_uid": f"2.25.9.{number}", **changes}
            connection.execute(sa.insert(db.draft).values(values))
    kept(database, final(TEXT, claim=Claim(study_instance_uid=uid)))
    assert len(found(database)) == 1


def test_a_correction_replaces_the_pair_and_a_withdrawal_ends_it(
    database: Database, draft: Draft
) -> None:
    uid = draft.study_instance_uid
    report(database, uid, after=5)
    report(database, uid, "Pneumothorax.", after=6, verdict="corrected")
    (pair,) = found(database)
    assert pair.comparison.outcome == "rejected"
    report(database, uid, after=7, verdict="withdrawn")
    assert found(database) == []


def test_pairs_are_summed_up_by_model_and_week(database: Database, draft: Draft) -> None:
    report(database, draft.study_instance_uid, after=5)
    (row,) = summarise(found(database))
    assert (row.week, row.n, row.accepted, row.f1) == ("2024-W11", 1, 1, 1.0)


def test_a_study_without_a_final_report_makes_no_pair(database: Database, draft: Draft) -> None:
    report(database, draft.study_instance_uid, after=5, verdict="addendum")
    assert compared(database, draft.study_instance_uid) is None
