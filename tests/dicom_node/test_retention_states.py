"""Whatever happens in whatever order: nothing unfinished goes, and no row claims what is gone."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from dicom_node import db, deliveries, drafts, jobs, retention
from dicom_node.config import Retention
from dicom_node.db import Database
from dicom_node.errors import OutOfResources
from tests.dicom_node.retained import open_site
from tests.dicom_node.states import claim

UIDS = ("2.25.1", "2.25.2")
STUDIES = st.sampled_from(UIDS)
INSTANCES = st.sampled_from(["1", "2"])
CONTENTS = st.sampled_from([b"these pixels", b"other pixels"])
FULL = {"high_percent": 0.0002, "low_percent": 0.0001}
ROOM = {"high_percent": 100, "low_percent": 99.9}


class Histories(RuleBasedStateMachine):
    """A site, what it acknowledged, and what a plain reading of the rules says of its studies."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        empty(self.database)
        self.data = Path(tempfile.mkdtemp())
        keep = Retention(pixels_days=10, metadata_days=20)
        self.site = open_site(self.database, self.data, keep)
        self.acknowledged: set[str] = set()  #: paths, until their study is forgotten

    def teardown(self) -> None:
        self.site.close()
        shutil.rmtree(self.data)

    @rule(uid=STUDIES, instance=INSTANCES, content=CONTENTS)
    def receive(self, uid: str, instance: str, content: bytes) -> None:
        stored = self.site.receive(uid, f"{uid}.{instance}", content=content)
        self.acknowledged.add(stored.path)
        assert self.site.storage.path(stored.path).exists()

    @rule()
    def settle(self) -> None:
        self.site.settle()

    @rule(uid=STUDIES, state=st.sampled_from(["due", "sending", "sent", "failed", "delivered"]))
    def draft(self, uid: str, state: str) -> None:
        if any(one.state == "queued" for one in self.jobs(uid)):
            self.site.draft(uid, state)

    @rule(uid=STUDIES, state=st.sampled_from(["failed", "delivered"]))
    def deliver(self, uid: str, state: str) -> None:
        self.site.deliver(uid, state)

    @rule(uid=STUDIES, fails=st.booleans())
    def read_without_a_draft(self, uid: str, fails: bool) -> None:
        for one in self.jobs(uid):
            held = claim(self.database, one.id)
            if held is not None:
                with self.database.transaction() as connection:
                    (jobs.fail if fails else jobs.refuse)(connection, held, "code", "text")

    @rule(uid=STUDIES)
    def retry(self, uid: str) -> None:
        with self.database.transaction() as connection:
            jobs.requeue_ended(connection, study_instance_uid=uid)

    @rule(days=st.sampled_from([1, 9, 11, 21]))
    def pass_days(self, days: int) -> None:
        self.site.pass_days(days)

    @rule(full=st.booleans(), dies=st.sampled_from([None, "_unlink", "_erase"]))
    def apply(self, full: bool, dies: str | None) -> None:
        unfinished = {uid: self.there(uid) for uid in UIDS if self.unfinished(uid)}
        with pytest.MonkeyPatch.context() as patch:
            if dies:  # as if killed before the files go: what was begun is found marked
                patch.setattr(retention, dies, _die)
            try:
                self.site.apply(**(FULL if full else ROOM))
            except OutOfResources:
                assert dies
        for uid, files in unfinished.items():
            assert self.there(uid) == files
            assert self.site.state(uid) is not None

    @invariant()
    def what_a_row_claims_is_there(self) -> None:
        instances, drafts = self.site.claimed_files()
        assert instances | drafts <= self.site.files()

    @invariant()
    def what_was_acknowledged_is_there_or_marked(self) -> None:
        rows = [row for uid in UIDS for row in self.site.rows(uid)]
        known = {row["path"]: row["pixels_deleted_at"] for row in rows}
        self.acknowledged = {one for one in self.acknowledged if self.site.state(study(one))}
        assert self.acknowledged <= known.keys()
        here = {one for one in self.acknowledged if known[one] is None}
        assert here <= self.site.files()

    def jobs(self, uid: str) -> list[jobs.Job]:
        with self.database.transaction() as connection:
            return jobs.of_study(connection, uid)

    def there(self, uid: str) -> set[str]:
        return {one for one in self.site.files() if study(one) == uid}

    def unfinished(self, uid: str) -> bool:
        """Read from the rows without any SQL of the module under test."""
        with self.database.transaction() as connection:
            replaced = {
                one.sop_instance_uid: one.superseded_by is not None
                for one in drafts.of_study(connection, uid)
            }
            sends = deliveries.of_study(connection, uid)
        found = self.jobs(uid)
        return (
            self.site.state(uid) == "receiving"
            or (bool(found) and found[-1].state in ("queued", "running", "failed"))
            or any(one.state in ("due", "sending", "sent") for one in sends)
            or any(one.state == "failed" and not replaced[one.draft_uid] for one in sends)
        )


def study(path: str) -> str:
    return path.split("/")[1]


def empty(database: Database) -> None:
    tables = [one.name for one in db.metadata.sorted_tables if one is not db.installation]
    with database.transaction() as connection:
        connection.execute(sa.text(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY"))


def _die(*arguments: object) -> None:
    raise OutOfResources("killed here")


def test_every_history_keeps_what_is_unfinished_and_what_it_claims(database: Database) -> None:
    class ThisDatabase(Histories):
        pass

    ThisDatabase.database = database
    run_state_machine_as_test(
        ThisDatabase,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
