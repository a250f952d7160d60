"""A study's account: everything the node knows, in the shape of interface.md."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dicom_node import account, deliveries, jobs
from dicom_node.config import Peer
from dicom_node.db import Database
from dicom_node.errors import NotFound
from dicom_node.reports.final import Claim
from tests.conftest import DraftFactory, JobFactory, StudyFactory
from tests.dicom_node.reports.made import final, kept
from tests.dicom_node.states import MINUTE, claimed

CHOICE = {"sop_instance_uid": "1.2.3", "rule": "2.2-1/PA+2.3-only"}

#: interface.md, `study --json`: the keys that must be there
STUDY = {
    "study_instance_uid",
    "state",
    "revision",
    "instances",
    "choice",
    "jobs",
    "drafts",
    "events",
}
INSTANCE = {"sop_instance_uid", "sop_class_uid", "path", "sha256"}
JOB = {"id", "revision", "model", "state", "attempts"}
DRAFT = {
    "sop_instance_uid",
    "series_instance_uid",
    "kind",
    "text",
    "superseded_by",
    "deliveries",
}
DELIVERY = {"peer", "state", "proof"}
EVENT = {"at", "from", "to", "reason"}


def document(database: Database, uid: str) -> dict[str, Any]:
    with database.transaction() as connection:
        found = account.to_json(account.of(connection, uid))
    read: dict[str, Any] = json.loads(json.dumps(found))
    return read


def test_a_study_that_never_came_is_not_found(database: Database) -> None:
    with pytest.raises(NotFound, match=r"1\.2\.3"), database.transaction() as connection:
        account.of(connection, "1.2.3")


def test_a_study_says_where_the_indication_was_found_and_not_what_it_is(
    database: Database, draft_factory: DraftFactory
) -> None:
    source = "Modality Worklist ris > ReasonForTheRequestedProcedure"
    given = {"history": "VERYSECRET", "history_source": source}
    uid = draft_factory(record=given).study_instance_uid
    found = document(database, uid)
    assert found["indication"] == {"source": source}
    assert "VERYSECRET" not in json.dumps(found)
    assert document(database, draft_factory().study_instance_uid)["indication"] is None


def test_a_study_that_just_came_has_no_choice_yet(
    database: Database, study_factory: StudyFactory
) -> None:
    found = document(database, study_factory())
    assert set(found) >= STUDY
    assert (found["state"], found["revision"], found["choice"]) == ("receiving", 1, None)
    assert (found["jobs"], found["drafts"]) == ([], [])
    (instance,) = found["instances"]
    assert set(instance) >= INSTANCE
    (event,) = found["events"]
    assert set(event) >= EVENT
    assert (event["from"], event["to"]) == (None, "receiving")


def test_a_drafted_study_tells_its_whole_way(
    database: Database, draft_factory: DraftFactory
) -> None:
    draft = draft_factory()
    uid = draft.study_instance_uid
    live, shadow = (
        Peer(name="live", ae_title="A", host=("a",)),
        Peer(name="shadow", ae_title="B", host=("b",), mode="shadow"),
    )
    held = claimed(database, draft.job_id)
    with database.transaction() as connection:
        jobs.drafted(connection, held, CHOICE)
        deliveries.create(connection, uid, draft.sop_instance_uid, (live, shadow))
    found = document(database, uid)
    assert found["choice"] == CHOICE
    (job,) = found["jobs"]
    assert set(job) >= JOB
    assert (job["id"], job["state"], job["attempts"]) == (draft.job_id, "drafted", 1)
    (drafted,) = found["drafts"]
    assert set(drafted) >= DRAFT
    assert (drafted["text"], drafted["superseded_by"]) == (draft.text, None)
    assert all(set(one) >= DELIVERY for one in drafted["deliveries"])
    assert {one["peer"]: one["state"] for one in drafted["deliveries"]} == {
        "live": "due",
        "shadow": "withheld",
    }
    moved = [(one["subject"], one["to"]) for one in found["events"]]
    assert moved[-3:] == [
        (f"job {draft.job_id}", "drafted"),
        ("delivery 1 to live", "due"),
        ("delivery 2 to shadow", "withheld"),
    ]


def test_deliveries_stand_under_their_own_draft(
    database: Database, draft_factory: DraftFactory
) -> None:
    first = draft_factory()
    uid = first.study_instance_uid
    second = draft_factory(study_instance_uid=uid, revision=2, version=2)
    peer = Peer(name="pacs", ae_title="A", host=("a",))
    with database.transaction() as connection:
        deliveries.create(connection, uid, second.sop_instance_uid, (peer,))
    old, new = document(database, uid)["drafts"]
    assert (old["superseded_by"], old["deliveries"]) == (second.sop_instance_uid, [])
    assert [one["peer"] for one in new["deliveries"]] == ["pacs"]


def test_the_choice_is_that_of_the_latest_job_that_has_ended(
    database: Database, job_factory: JobFactory, study_factory: StudyFactory
) -> None:
    uid = study_factory()
    ids = [job_factory(study_instance_uid=uid, revision=revision) for revision in (1, 2, 3)]
    with database.transaction() as connection:
        for job_id in ids[:2]:
            held = jobs.claim(connection, job_id, lease=MINUTE, worker="w")
            assert held is not None
            if job_id == ids[0]:
                jobs.refuse(connection, held, "NOT_FRONTAL", "view is lateral")
            else:
                jobs.drafted(connection, held, CHOICE)
    assert document(database, uid)["choice"] == CHOICE


def test_a_refusal_is_a_choice(database: Database, job_factory: JobFactory) -> None:
    held = claimed(database, job_factory())
    with database.transaction() as connection:
        jobs.refuse(connection, held, "NOT_CHEST", "nothing says chest")
    assert document(database, held.study_instance_uid)["choice"] == {
        "refusal": {"code": "NOT_CHEST", "text": "nothing says chest"}
    }


REPORT = {"source", "source_uid", "state", "verdict", "verified_at", "text", "sections"}


def test_a_reported_study_holds_the_draft_against_the_report(
    database: Database, draft_factory: DraftFactory
) -> None:
    draft = draft_factory(text="Small left pleural effusion.")
    claim = Claim(study_instance_uid=draft.study_instance_uid)
    kept(database, final("Clear.", claim=claim))
    kept(database, final("Left pleural effusion.", verdict="corrected", claim=claim))
    first, second = document(database, draft.study_instance_uid)["reports"]
    assert set(first) >= REPORT
    assert (first["text"], first["current"]) == ("Clear.", False)
    assert (second["verdict"], second["state"], second["current"]) == ("corrected", "matched", True)
    assert "comparison" not in first
    comparison = second["comparison"]
    assert comparison["draft_uid"] == draft.sop_instance_uid
    assert (comparison["outcome"], comparison["distance"]) == ("edited", 0.25)
    assert comparison["agreed"] == ["Pleural Effusion"]


def test_a_report_without_a_draft_before_it_is_compared_with_nothing(
    database: Database, study_factory: StudyFactory, draft_factory: DraftFactory
) -> None:
    uid = study_factory()
    kept(database, final("Clear.", claim=Claim(study_instance_uid=uid)))
    draft_factory(study_instance_uid=uid)
    (report,) = document(database, uid)["reports"]
    assert report["current"]
    assert "comparison" not in report
