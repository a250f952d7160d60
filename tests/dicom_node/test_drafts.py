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


def test_drafts_of_other_models_live_side_by_side(
    database: Database, draft_factory: DraftFactory
) -> None:
    first = draft_factory()
    draft_factory(study_instance_uid=first.study_instance_uid, revision=2, model="other")
    assert find(database, first.sop_instance_uid).superseded_by is None


def reading(number: int, of: Draft, *kinds: str) -> list[Draft]:
    """What one reading of the study gives, one draft of each kind."""
    return [
        replace(of, sop_instance_uid=f"1.2.{number}.{place}", kind=kind, version=number)
        for place, kind in enumerate(kinds)
    ]


def test_the_drafts_of_one_reading_live_together_the_readable_one_first(
    database: Database, draft_factory: DraftFactory
) -> None:
    first = draft_factory()
    uid = first.study_instance_uid
    with database.transaction() as connection:
        drafts.keep(connection, *reading(2, first, "pdf", "coded_sr", "text_sr"))
    with database.transaction() as connection:
        live = [one.kind for one in drafts.live(connection, uid)]
        present = drafts.current(connection, uid)
    assert live == ["text_sr", "coded_sr", "pdf"]
    assert present is not None
    assert present.kind == "text_sr"


def test_a_new_reading_takes_the_place_of_every_kind(
    database: Database, draft_factory: DraftFactory
) -> None:
    first = draft_factory()
    with database.transaction() as connection:
        drafts.keep(connection, *reading(2, first, "text_sr", "coded_sr", "pdf"))
        gone = drafts.keep(connection, *reading(3, first, "text_sr", "pdf"))
        live = drafts.live(connection, first.study_instance_uid)
        by_kind = [drafts.find(connection, f"1.2.2.{place}") for place in range(3)]
    assert sorted(gone) == ["1.2.2.0", "1.2.2.1", "1.2.2.2"]
    assert [one.version for one in live] == [3, 3]
    # The coded one is no longer made: the text stands in its place.
    assert [one and one.superseded_by for one in by_kind] == ["1.2.3.0", "1.2.3.0", "1.2.3.1"]


def test_an_alternative_is_no_draft_of_its_own(
    database: Database, draft_factory: DraftFactory
) -> None:
    first = draft_factory()
    other = replace(first, sop_instance_uid="1.2.3", alternative_of=first.sop_instance_uid)
    with database.transaction() as connection:
        drafts.keep_alternative(connection, other)
        drafts.keep_alternative(connection, other)
        live = drafts.live(connection, first.study_instance_uid)
        kept = drafts.alternatives(connection, first.sop_instance_uid)
    assert [one.sop_instance_uid for one in live] == [first.sop_instance_uid]
    assert [one.sop_instance_uid for one in kept] == ["1.2.3"]


def test_an_alternative_names_its_draft(database: Database, draft_factory: DraftFactory) -> None:
    with pytest.raises(ValueError, match="names its draft"), database.transaction() as connection:
        drafts.keep_alternative(connection, draft_factory())


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


def test_a_text_counts_once_however_many_kinds_it_was_written_in(
    database: Database, draft_factory: DraftFactory
) -> None:
    first = draft_factory(record={"algorithm": {"digest": "ours"}}, text="First.")
    status = replace(first, sop_instance_uid="1.2.9", text="")
    with database.transaction() as connection:
        drafts.keep(connection, *reading(2, first, "text_sr", "pdf"))
        drafts.keep(connection, status)
        assert drafts.texts(connection, digest="ours", limit=10) == ["First."]


def test_a_draft_can_not_be_kept_twice(database: Database, draft_factory: DraftFactory) -> None:
    kept = draft_factory()
    with pytest.raises(sa.exc.IntegrityError), database.transaction() as connection:
        drafts.keep(connection, kept)


def test_what_was_never_kept_is_none(database: Database) -> None:
    with database.transaction() as connection:
        assert drafts.find(connection, "1.2.3") is None
        assert drafts.current(connection, "1.2.3") is None
        assert drafts.of_study(connection, "1.2.3") == []
