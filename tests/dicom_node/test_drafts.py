"""Drafts: kept for ever, one of them live."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa

from dicom_node import drafts
from dicom_node.db import Database
from dicom_node.drafts import Draft
from tests.conftest import DraftFactory


def find(database: Database, uid: str) -> Draft:
    with database.transaction() as connection:
        found = drafts.find(connection, uid)
    assert found is not None
    return found


def test_a_draft_comes_back_as_it_was_kept(database: Database, draft_factory: DraftFactory) -> None:
    kept = draft_factory(text="No acute disease.\n\nÄ ✓", record={"a": [1, None]})
    found = find(database, kept.sop_instance_uid)
    assert found.created_at is not None
    assert replace(found, created_at=None) == kept


def test_the_newer_draft_of_a_study_supersedes_the_older(
    database: Database, draft_factory: DraftFactory
) -> None:
    first = draft_factory()
    uid = first.study_instance_uid
    second = draft_factory(study_instance_uid=uid, revision=2, version=2)
    third = draft_factory(study_instance_uid=uid, revision=3, version=3)
    with database.transaction() as connection:
        live = drafts.current(connection, uid)
        all_of_them = drafts.of_study(connection, uid)
    assert live is not None
    assert live.sop_instance_uid == third.sop_instance_uid
    assert [one.superseded_by for one in all_of_them] == [
        second.sop_instance_uid,
        third.sop_instance_uid,
        None,
    ]


def test_keeping_says_what_was_superseded(database: Database, draft_factory: DraftFactory) -> None:
    first = draft_factory()
    new = replace(first, sop_instance_uid="1.2.3", version=2)
    with database.transaction() as connection:
        assert drafts.keep(connection, new) == [first.sop_instance_uid]


@pytest.mark.parametrize("other", [{"model": "other"}, {"kind": "pdf"}], ids=["model", "kind"])
def test_drafts_of_other_models_and_kinds_live_side_by_side(
    database: Database, draft_factory: DraftFactory, other: dict[str, str]
) -> None:
    first = draft_factory()
    draft_factory(study_instance_uid=first.study_instance_uid, revision=2, **other)
    assert find(database, first.sop_instance_uid).superseded_by is None


def test_drafts_of_other_studies_are_left_alone(
    database: Database, draft_factory: DraftFactory
) -> None:
    first, other = draft_factory(), draft_factory()
    assert find(database, first.sop_instance_uid).superseded_by is None
    assert find(database, other.sop_instance_uid).superseded_by is None


def test_the_live_draft_of_one_model(database: Database, draft_factory: DraftFactory) -> None:
    first = draft_factory(model="first")
    uid = first.study_instance_uid
    second = draft_factory(study_instance_uid=uid, revision=2, model="second")
    with database.transaction() as connection:
        for kept in (first, second):
            live = drafts.current(connection, uid, model=kept.model)
            assert live is not None
            assert live.sop_instance_uid == kept.sop_instance_uid
        assert drafts.current(connection, uid, model="third") is None


def test_what_one_models_weights_wrote_lately_comes_oldest_first(
    database: Database, draft_factory: DraftFactory
) -> None:
    for number, digest in enumerate(["ours", "others", "ours", "ours"]):
        draft_factory(text=f"Text {number}.", record={"algorithm": {"digest": digest}})
    with database.transaction() as connection:
        assert drafts.texts(connection, digest="ours", limit=10) == [
            "Text 0.",
            "Text 2.",
            "Text 3.",
        ]
        assert drafts.texts(connection, digest="ours", limit=2) == ["Text 2.", "Text 3."]
        assert drafts.texts(connection, digest="nobody's", limit=10) == []


def test_a_superseded_draft_is_still_what_the_model_wrote(
    database: Database, draft_factory: DraftFactory
) -> None:
    record = {"algorithm": {"digest": "ours"}}
    first = draft_factory(record=record, text="First.")
    uid = first.study_instance_uid
    draft_factory(study_instance_uid=uid, revision=2, version=2, record=record, text="Second.")
    with database.transaction() as connection:
        assert drafts.texts(connection, digest="ours", limit=10) == ["First.", "Second."]


def test_a_draft_can_not_be_kept_twice(database: Database, draft_factory: DraftFactory) -> None:
    kept = draft_factory()
    with pytest.raises(sa.exc.IntegrityError), database.transaction() as connection:
        drafts.keep(connection, kept)


def test_what_was_never_kept_is_none(database: Database) -> None:
    with database.transaction() as connection:
        assert drafts.find(connection, "1.2.3") is None
        assert drafts.current(connection, "1.2.3") is None
        assert drafts.of_study(connection, "1.2.3") == []
