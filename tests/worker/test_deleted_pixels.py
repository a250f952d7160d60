"""Jobs of studies whose images retention deleted: a clear end, never a crash."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa

from dicom_node import db
from dicom_node.cli import acting, wiring
from dicom_node.errors import NotFound
from dicom_node.jobs import Job
from dicom_node.retention import PixelsDeleted
from tests.conftest import BASIC_TEXT_SR
from tests.worker.study import Study
from worker import tasks
from worker.tasks import Context

NOTHING = timedelta(0)
Analyse = Callable[[], Job]


@pytest.fixture
def analyse(study: Study, context: Context) -> Analyse:
    """``analyse()``: a worker does what is due of the study; its latest job."""

    def run() -> Job:
        tasks.analyse(context, study.queue())
        return study.job

    return run


def delete(study: Study) -> None:
    """What retention does to a finished study."""
    for one in study.account.instances:
        study.node.storage.path(one.path).unlink(missing_ok=True)
    with study.node.database.transaction() as connection:
        connection.execute(sa.update(db.instance).values(pixels_deleted_at=sa.func.now()))


def receive_report(study: Study) -> None:
    """An object without an image, as a PACS sends it weeks later."""
    study.keep_bytes(
        b"", sop_instance_uid=f"{study.uid}.88", sop_class_uid=BASIC_TEXT_SR, quiet=NOTHING
    )


def test_a_job_on_deleted_images_fails_and_says_what_to_do(study: Study, analyse: Analyse) -> None:
    study.receive()
    delete(study)
    job = analyse()
    assert job.state == "failed"
    assert job.reason is not None
    assert job.reason.startswith(f"pixels.deleted: 1 of 1 images of study {study.uid} were deleted")
    assert f"dicom-node retry {study.uid}" in job.reason


def test_a_new_image_is_not_read_without_those_it_belongs_to(
    study: Study, analyse: Analyse
) -> None:
    study.receive()
    analyse()
    delete(study)
    study.receive(2)
    job = analyse()
    assert job.state == "failed"
    assert str(job.reason).startswith("pixels.deleted: 1 of 2 images")
    assert len(study.account.drafts) == 1


def test_a_report_that_comes_after_the_images_went_leaves_the_draft_as_it_is(
    study: Study, analyse: Analyse
) -> None:
    study.receive()
    first = analyse()
    delete(study)
    receive_report(study)
    job = analyse()
    assert job.id != first.id
    assert (job.state, job.choice) == ("drafted", first.choice)
    assert job.reason == "the images are deleted: the draft of them stands"
    assert len(study.account.drafts) == 1


def test_a_report_that_comes_after_refused_images_went_leaves_the_refusal_as_it_is(
    study: Study, analyse: Analyse
) -> None:
    study.receive(view_position="LL", quiet=NOTHING)
    first = analyse()
    assert first.state == "refused"
    delete(study)
    receive_report(study)
    job = analyse()
    assert job.id != first.id
    assert (job.state, job.choice) == ("refused", first.choice)


def test_deleted_objects_that_nobody_reads_hinder_nothing(study: Study, analyse: Analyse) -> None:
    receive_report(study)
    delete(study)
    study.receive()
    assert analyse().state == "drafted"


def test_retry_says_that_the_images_are_deleted_and_queues_nothing(
    study: Study, analyse: Analyse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "database", lambda _: study.node.database)
    study.receive()
    job = analyse()
    delete(study)
    with pytest.raises(PixelsDeleted, match="send them again"):
        acting.retry(study.node.settings, study.uid)
    assert study.job == job


def test_retry_of_a_study_that_is_being_deleted_finds_none(
    study: Study, analyse: Analyse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "database", lambda _: study.node.database)
    study.receive()
    analyse()
    with study.node.database.transaction() as connection:
        connection.execute(sa.update(db.study).values(state="deleting"))
    with pytest.raises(NotFound, match="no study"):
        acting.retry(study.node.settings, study.uid)
