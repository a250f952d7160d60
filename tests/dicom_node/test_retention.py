"""Retention: what goes when, what never goes, and what a sender may do meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_node import db, disk, jobs, retention
from dicom_node.config import Disk, Retention
from dicom_node.db import Database
from dicom_node.errors import OutOfResources
from dicom_node.reports.final import Claim
from dicom_node.retention import Deleted, Plan
from tests.conftest import BASIC_TEXT_SR, PATIENCE
from tests.dicom_node.reports.made import final, kept
from tests.dicom_node.reports.made import row as report_row
from tests.dicom_node.retained import KEEP, Site, open_site
from tests.dicom_node.states import claimed, transitions

STUDY = "2.25.7"
#: A disk is always fuller than this.
CROWDED = {"high_percent": 0.0002, "low_percent": 0.0001}


@pytest.fixture
def site(database: Database, tmp_path: Path) -> Iterator[Site]:
    opened = open_site(database, tmp_path / "data")
    yield opened
    opened.close()


@pytest.fixture
def crowded(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Deleted]:
    """``crowded(n)``: apply while the disk is full until ``n`` more studies' files are gone."""

    def apply(studies: int) -> Deleted:
        enough = len(list(site.storage.path("instances").iterdir())) - studies

        def usage(folder: Path) -> disk.Usage:
            here = len(list(site.storage.path("instances").iterdir()))
            return disk.Usage(used_percent=99 if here > enough else 1, free_bytes=2**40)

        monkeypatch.setattr(disk, "usage", usage)
        return site.apply(high_percent=90, low_percent=80)

    return apply


def plan(site: Site, keep: Retention = KEEP) -> list[Plan]:
    with site.database.transaction() as connection:
        return retention.plan(connection, keep, limit=100)


# -- by age ----------------------------------------------------------------------------------------


def test_pixels_of_a_finished_study_go_after_their_days_and_the_rows_stay(site: Site) -> None:
    site.finished(STUDY)
    (before,) = site.rows(STUDY)
    site.pass_days(29)
    assert site.apply() == Deleted()
    assert not site.deleted(STUDY)
    site.pass_days(2)
    assert site.apply() == Deleted(pixels=1)
    assert site.deleted(STUDY)
    (after,) = site.rows(STUDY)
    assert (after["sha256"], after["path"]) == (before["sha256"], before["path"])
    assert not site.storage.path(f"instances/{STUDY}").exists()
    assert transitions(site.database, STUDY, "pixels") == [("kept", "deleted")]
    assert site.apply() == Deleted()


def test_all_that_is_known_of_a_study_goes_last(site: Site) -> None:
    site.finished(STUDY)
    site.pass_days(366)
    assert site.apply() == Deleted(pixels=1)
    assert site.state(STUDY) == "complete"  # who was sending may still register
    site.pass_days(1)
    assert site.apply() == Deleted(metadata=1)
    assert site.state(STUDY) is None
    assert site.files() == set()
    with site.database.transaction() as connection:
        for table in (db.instance, db.job, db.draft, db.delivery, db.event, db.embedding):
            assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 0


def test_nothing_is_forgotten_where_metadata_is_kept_for_ever(
    database: Database, tmp_path: Path
) -> None:
    site = open_site(database, tmp_path, Retention(pixels_days=1, metadata_days=0))
    site.finished(STUDY)
    for _ in range(2):
        site.pass_days(4000)
        site.apply()
    assert site.deleted(STUDY)
    assert site.state(STUDY) == "complete"
    site.close()


def test_pixels_that_are_kept_for_ever_stay_on_a_full_disk_too(
    database: Database, tmp_path: Path
) -> None:
    site = open_site(database, tmp_path, Retention(pixels_days=0, metadata_days=1))
    site.finished(STUDY)
    site.pass_days(4000)
    assert site.apply(**CROWDED) == Deleted()
    assert not site.deleted(STUDY)
    assert site.state(STUDY) == "complete"
    site.close()


def test_one_call_deletes_no_more_than_it_may(site: Site) -> None:
    uids = [site.finished(f"{STUDY}.{number}") for number in range(3)]
    site.pass_days(31)
    marks = disk.Watermarks(site.storage.path(""), site.settings.disk)
    done = retention.apply(site.database, site.storage, site.settings, marks, limit=2)
    assert done.pixels == 2
    assert [site.deleted(uid) for uid in uids] == [True, True, False]


def test_nothing_is_marked_while_the_disk_is_away(site: Site) -> None:
    site.finished(STUDY)
    site.pass_days(31)
    data = site.storage.path("instances")
    data.rename(data.with_name("away"))
    with pytest.raises(OutOfResources, match="instances is away"):
        site.apply()
    data.with_name("away").rename(data)
    assert not site.deleted(STUDY)


# -- what is unfinished ----------------------------------------------------------------------------


def _receiving(site: Site) -> None:
    site.receive(STUDY)


def _queued(site: Site) -> None:
    site.receive(STUDY)
    site.settle()


def _running(site: Site) -> None:
    _queued(site)
    claimed(site.database, 1)


def _failed(site: Site) -> None:
    _queued(site)
    held = claimed(site.database, 1)
    with site.database.transaction() as connection:
        jobs.fail(connection, held, "pixels", "gone")


def _delivery(state: str) -> Callable[[Site], None]:
    def make(site: Site) -> None:
        site.receive(STUDY)
        site.draft(STUDY, state)

    return make


def _sending(site: Site) -> None:
    site.receive(STUDY)
    site.draft(STUDY, "sending")


def _unread(site: Site) -> None:
    site.receive(STUDY, sop_class_uid=BASIC_TEXT_SR)
    site.draft(STUDY)


def _parked(site: Site) -> None:
    kept(site.database, final(claim=Claim(study_instance_uid=STUDY)))  # no such study yet
    site.finished(STUDY)


def _unindexed(site: Site) -> None:
    site.finished(STUDY)
    kept(site.database, final(claim=Claim(study_instance_uid=STUDY)))


UNFINISHED = [
    pytest.param(_receiving, "images are still arriving", id="receiving"),
    pytest.param(_queued, "a job waits or runs", id="queued"),
    pytest.param(_running, "a job waits or runs", id="running"),
    pytest.param(_failed, "a job failed", id="failed"),
    pytest.param(_delivery("due"), "a draft is on its way", id="due"),
    pytest.param(_sending, "a draft is on its way", id="sending"),
    pytest.param(_delivery("sent"), "a draft is on its way", id="sent-unproven"),
    pytest.param(_delivery("failed"), "a draft could not be delivered", id="not-delivered"),
    pytest.param(_unread, "an SR document has not been read", id="unread-sr"),
    pytest.param(_parked, "a final report for it is parked", id="parked-report"),
    pytest.param(_unindexed, "a final report is not in the index", id="unindexed-report"),
]


@pytest.mark.parametrize(("make", "why"), UNFINISHED)
def test_what_is_unfinished_is_kept_and_told(
    site: Site, make: Callable[[Site], None], why: str
) -> None:
    make(site)
    site.pass_days(4000)
    assert site.apply(**CROWDED) == Deleted()
    assert not site.deleted(STUDY)
    (found,) = plan(site)
    assert (found.kept_because, found.pixels_go_at, found.metadata_goes_at) == (why, None, None)


def test_a_failed_job_is_healed_by_a_later_one(site: Site) -> None:
    _failed(site)
    site.receive(STUDY)
    site.draft(STUDY)
    site.pass_days(31)
    assert site.apply() == Deleted(pixels=1)


def test_a_failed_delivery_of_a_superseded_draft_keeps_nothing(site: Site) -> None:
    _delivery("failed")(site)
    site.receive(STUDY)
    site.draft(STUDY)
    site.pass_days(31)
    assert site.apply() == Deleted(pixels=1)


def test_a_study_is_as_old_as_the_last_thing_that_happened_to_it(site: Site) -> None:
    site.receive(STUDY)
    site.settle()
    site.pass_days(31)
    site.draft(STUDY)
    assert site.apply() == Deleted()
    site.pass_days(31)
    assert site.apply() == Deleted(pixels=1)


def test_a_study_that_somebody_holds_is_left_for_the_next_time(site: Site) -> None:
    site.finished(STUDY)
    site.pass_days(31)
    held = sa.select(db.study).where(db.study.c.study_instance_uid == STUDY)
    with site.database.transaction() as connection:
        connection.execute(held.with_for_update())
        assert site.apply() == Deleted()
    assert not site.deleted(STUDY)
    assert site.apply() == Deleted(pixels=1)


def test_a_study_that_became_unfinished_since_it_was_chosen_is_kept(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.finished(STUDY)
    site.pass_days(31)
    lock = retention._lock

    def retried(connection: sa.Connection, uid: str, due: sa.ColumnElement[bool]) -> bool:
        with site.database.transaction() as other:
            jobs.requeue_ended(other, study_instance_uid=STUDY)
        return lock(connection, uid, due)

    monkeypatch.setattr(retention, "_lock", retried)
    assert site.apply() == Deleted()
    assert not site.deleted(STUDY)


# -- when the disk is full -------------------------------------------------------------------------


def test_a_full_disk_takes_the_oldest_finished_studies_until_there_is_room(
    site: Site, crowded: Callable[[int], Deleted]
) -> None:
    uids = []
    for number in range(4):
        uids.append(site.finished(f"{STUDY}.{number}"))
        site.pass_days(1)
    site.receive(f"{STUDY}.9")
    assert crowded(2) == Deleted(pixels=2)
    assert [site.deleted(uid) for uid in uids] == [True, True, False, False]


def test_the_next_call_goes_on_until_below_the_low_mark(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        site.finished(f"{STUDY}.{number}")
    percent = {3: 95, 2: 85, 1: 79, 0: 0}

    def usage(folder: Path) -> disk.Usage:
        here = len(list(site.storage.path("instances").iterdir()))
        return disk.Usage(used_percent=percent[here], free_bytes=2**40)

    monkeypatch.setattr(disk, "usage", usage)
    marks = disk.Watermarks(site.storage.path(""), Disk(high_percent=90, low_percent=80))
    counts = []
    for _ in range(3):
        done = retention.apply(site.database, site.storage, site.settings, marks, limit=1)
        counts.append((done.pixels, marks.accepting))
    assert counts == [(1, False), (1, True), (0, True)]


# -- what comes again ------------------------------------------------------------------------------


def test_a_deleted_instance_that_comes_again_is_kept_as_long_as_a_new_one(site: Site) -> None:
    site.finished(STUDY)
    (before,) = site.rows(STUDY)
    site.pass_days(31)
    site.apply()
    site.receive(STUDY, before["sop_instance_uid"])
    assert not site.deleted(STUDY)
    assert [one["revision"] for one in site.rows(STUDY)] == [1]
    subject = f"instance {before['sop_instance_uid']}"
    assert transitions(site.database, STUDY, subject) == [("pixels deleted", "kept")]
    assert site.apply() == Deleted()
    site.pass_days(31)
    assert site.apply() == Deleted(pixels=1)
    assert site.deleted(STUDY)


def test_bytes_of_an_earlier_revision_that_come_again_are_kept(site: Site) -> None:
    first = site.receive(STUDY, "1.2.3", content=b"first")
    site.receive(STUDY, "1.2.3", content=b"second")
    site.draft(STUDY)
    site.pass_days(31)
    assert site.apply() == Deleted(pixels=1)
    assert site.receive(STUDY, "1.2.3", content=b"first").path == first.path
    gone = {row["revision"]: row["pixels_deleted_at"] is not None for row in site.rows(STUDY)}
    assert gone == {1: False, 2: True, 3: False}
    assert site.storage.path(first.path).exists()


def test_a_late_instance_does_not_bring_back_the_others(site: Site) -> None:
    site.finished(STUDY)
    site.pass_days(31)
    site.apply()
    site.receive(STUDY)
    site.draft(STUDY)
    gone = [row["pixels_deleted_at"] is not None for row in site.rows(STUDY)]
    assert gone == [True, False]
    site.pass_days(31)
    assert site.apply() == Deleted(pixels=1)
    assert site.deleted(STUDY)


def test_a_file_that_went_between_its_writing_and_its_registering_is_sent_again(
    site: Site,
) -> None:
    site.finished(STUDY)
    (before,) = site.rows(STUDY)
    site.pass_days(31)
    written = site.write(STUDY, before["sop_instance_uid"])
    site.apply()
    site.write(STUDY)  # so that the folder is there
    with pytest.raises(OutOfResources, match="was deleted while it came"):
        site.register(written)
    assert site.deleted(STUDY)
    site.receive(STUDY, before["sop_instance_uid"])
    assert not site.deleted(STUDY)


def test_a_file_that_came_after_the_mark_is_not_deleted_with_the_old_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.finished(STUDY)
    (before,) = site.rows(STUDY)
    site.pass_days(31)
    with monkeypatch.context() as patch:
        patch.setattr(retention, "_unlink", lambda *arguments: None)  # as if killed here
        patch.setattr(retention, "_finish_begun", lambda *arguments: None)
        assert site.apply() == Deleted(pixels=1)
    site.receive(STUDY, before["sop_instance_uid"])
    site.apply()
    assert not site.deleted(STUDY)


def test_a_study_that_is_being_deleted_takes_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.finished(STUDY)
    for days in (366, 1):
        site.pass_days(days)
        with monkeypatch.context() as patch:
            patch.setattr(retention, "_erase", lambda *arguments: None)  # as if killed here
            site.apply()
    assert site.state(STUDY) == "deleting"
    with pytest.raises(OutOfResources, match="is being deleted"):
        site.receive(STUDY)
    site.apply()
    assert site.state(STUDY) is None
    site.receive(STUDY)
    assert site.state(STUDY) == "receiving"


def send_often(site: Site, uid: str, sop_instance_uid: str) -> int:
    """Send the same instance again and again; how often it was acknowledged."""
    acknowledged = 0
    for _ in range(40):
        with suppress(OutOfResources):
            site.receive(uid, sop_instance_uid)
            acknowledged += 1
            assert_nothing_is_lost(site, uid)
    return acknowledged


def assert_nothing_is_lost(site: Site, uid: str) -> None:
    """What a row claims is there, as seen while nobody else changes the study."""
    held = sa.select(db.study).where(db.study.c.study_instance_uid == uid).with_for_update()
    with site.database.transaction() as connection:
        connection.execute(held)
        for row in site.rows(uid):
            there = site.storage.path(row["path"]).exists()
            assert there or row["pixels_deleted_at"] is not None


def delete_until(site: Site, ended: threading.Event) -> int:
    """Make room on a disk that stays full; how many studies' files went."""
    gone = 0
    while not ended.is_set():
        gone += site.apply(high_percent=90, low_percent=80).pixels
    return gone


def test_senders_and_retention_at_once_lose_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = disk.Usage(used_percent=99, free_bytes=2**40)
    monkeypatch.setattr(disk, "usage", lambda folder: full)
    uids = [site.finished(f"{STUDY}.{number}") for number in range(3)]
    instances = {uid: next(site.rows(uid))["sop_instance_uid"] for uid in uids}
    for uid in uids:
        site.write(uid)  # never registered: so the folder stays
    ended = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        deleting = pool.submit(delete_until, site, ended)
        sending = [pool.submit(send_often, site, uid, instances[uid]) for uid in uids]
        try:
            acknowledged = [one.result(PATIENCE) for one in sending]
        finally:
            ended.set()
        gone = deleting.result(PATIENCE)
    assert all(acknowledged)
    assert gone > len(uids)  # or the test shows nothing
    said, _ = site.claimed_files()
    assert said <= site.files()


# -- reports ---------------------------------------------------------------------------------------


def reported(site: Site, uid: str, path: str) -> None:
    """An indexed final report of the study, in a file that may hold others'."""
    kept(site.database, final(claim=Claim(study_instance_uid=uid)), path=path)
    with site.database.transaction() as connection:
        connection.execute(sa.update(db.report).values(indexed_at=sa.func.now()))


def test_a_reports_file_goes_with_the_last_study_it_reports_on(site: Site) -> None:
    path = site.storage.keep_report(b"two reports", ".hl7").path
    for uid in (f"{STUDY}.1", f"{STUDY}.2"):
        site.finished(uid)
        reported(site, uid, path)
        site.pass_days(200)
    for gone in (f"{STUDY}.1", f"{STUDY}.2"):
        assert site.storage.path(path).exists()
        site.apply()
        site.pass_days(1)
        site.apply()
        assert site.state(gone) is None
        site.pass_days(200)
    assert site.files() == set()


def test_a_report_that_comes_while_its_study_goes_is_parked(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.finished(STUDY)
    for days in (366, 1):
        site.pass_days(days)
        with monkeypatch.context() as patch:
            patch.setattr(retention, "_erase", lambda *arguments: None)  # as if killed here
            site.apply()
    report = kept(site.database, final(claim=Claim(study_instance_uid=STUDY)))
    assert report.state == "matched"
    site.apply()
    assert site.state(STUDY) is None
    report = report_row(site.database, report.id)
    assert (report.state, report.reason) == ("parked", "its study was deleted")


# -- what will go ----------------------------------------------------------------------------------


def test_the_plan_says_when_what_goes(site: Site) -> None:
    site.finished(STUDY)
    (found,) = plan(site)
    assert found.kept_because is None
    assert found.size == next(site.rows(STUDY))["size"]
    assert found.pixels_go_at is not None
    assert found.metadata_goes_at is not None
    assert (found.metadata_goes_at - found.pixels_go_at).days == 335
    site.pass_days(31)
    site.apply()
    (found,) = plan(site)
    assert (found.size, found.pixels_go_at) == (0, None)
    assert found.pixels_deleted_at is not None
    assert plan(site, Retention(metadata_days=0)) == []  # nothing more will go


def test_metadata_never_goes_before_the_pixels(site: Site) -> None:
    site.finished(STUDY)
    (found,) = plan(site, Retention(pixels_days=30, metadata_days=1))
    assert found.metadata_goes_at == found.pixels_go_at
    (found,) = plan(site, Retention(pixels_days=0, metadata_days=1))
    assert (found.pixels_go_at, found.metadata_goes_at) == (None, None)
