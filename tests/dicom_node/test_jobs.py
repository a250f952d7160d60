"""Jobs: claimed once, held as long as the lease is renewed, ended once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, func

from dicom_node import db, events, jobs, nudges, orders, studies
from dicom_node.db import Database
from dicom_node.jobs import Job, LeaseLost
from dicom_node.orders import Told, order_key
from dicom_node.priorities import ROUTINE, STAT
from dicom_node.storage import Identity
from tests.conftest import JobFactory, StudyFactory
from tests.dicom_node.states import (
    MINUTE,
    claim,
    claimed,
    expire,
    job_state,
    transitions,
    value,
)

SOON = timedelta(seconds=15)
CHOICE = {"sop_instance_uid": "1.2.3", "rule": "2.2-1/PA+2.3-only"}


def nudged(database: Database, every: timedelta = SOON) -> list[int]:
    with database.transaction() as connection:
        return jobs.nudge(connection, every=every)


def draft(database: Database, held: Job) -> None:
    with database.transaction() as connection:
        jobs.drafted(connection, held, CHOICE)


def next_of(database: Database, job_id: int) -> Job | None:
    with database.transaction() as connection:
        return jobs.claim_next(connection, job_id, lease=MINUTE, worker="worker")


def prioritised(database: Database, study_factory: StudyFactory, *priority: int) -> list[int]:
    """A job of each priority, the oldest first."""
    made = []
    for one in priority:
        uid = study_factory()
        with database.transaction() as connection:
            made.append(jobs.create(connection, uid, 1, "demo", one))
    return [one for one in made if one is not None]


# -- which one is next -----------------------------------------------------------------------------


def test_the_urgent_job_overtakes_those_that_were_named_before(
    database: Database, study_factory: StudyFactory
) -> None:
    first, second, urgent = prioritised(database, study_factory, ROUTINE, ROUTINE, STAT)
    taken = [next_of(database, named) for named in (first, second, urgent)]
    assert [one.id for one in taken if one] == [urgent, second, first]


def test_of_equally_urgent_jobs_the_one_that_is_named_is_taken(
    database: Database, study_factory: StudyFactory
) -> None:
    first, second = prioritised(database, study_factory, STAT, STAT)
    taken = next_of(database, second)
    assert taken is not None
    assert taken.id == second
    assert first != second


def test_where_nothing_is_due_a_name_too_many_takes_nothing(
    database: Database, study_factory: StudyFactory
) -> None:
    (only,) = prioritised(database, study_factory, STAT)
    assert next_of(database, only) is not None
    assert next_of(database, only) is None


def test_a_study_is_as_urgent_as_its_order(database: Database, study_factory: StudyFactory) -> None:
    whose = Identity(patient_id_key="p", accession_key="a")
    stat = Told(
        source="worklist", peer="ris", order_key=order_key("A1"), identity=whose, priority=STAT
    )
    with database.transaction() as connection:
        orders.keep(connection, [stat])
    study_factory(identity=whose)
    study_factory(identity=replace(whose, patient_id_key="another"))
    with database.transaction() as connection:
        studies.settle(connection, ["demo"])
        priority = sa.select(db.job.c.priority).order_by(db.job.c.priority)
        assert connection.scalars(priority).all() == [ROUTINE, STAT]


# -- creating and claiming -------------------------------------------------------------------------


def test_a_revision_has_one_job_per_model(database: Database, study_factory: StudyFactory) -> None:
    uid = study_factory()
    with database.transaction() as connection:
        first = jobs.create(connection, uid, 1, "demo")
        assert jobs.create(connection, uid, 1, "demo") is None
        assert jobs.create(connection, uid, 1, "other") not in (None, first)
        assert jobs.create(connection, uid, 2, "demo") not in (None, first)
        assert len(jobs.of_study(connection, uid)) == 3


def test_a_claimed_job_tells_what_it_is(database: Database, study_factory: StudyFactory) -> None:
    uid = study_factory()
    with database.transaction() as connection:
        job_id = jobs.create(connection, uid, 1, "demo")
    assert job_id is not None
    held = claimed(database, job_id)
    assert (held.study_instance_uid, held.revision, held.model) == (uid, 1, "demo")
    assert (held.state, held.attempts, held.reason, held.choice) == ("running", 1, None, None)
    assert held.started_at is not None


def test_a_claimed_job_can_not_be_claimed(database: Database, job_factory: JobFactory) -> None:
    job_id = job_factory()
    assert claim(database, job_id) is not None
    assert claim(database, job_id) is None


def test_a_job_that_is_not_there_can_not_be_claimed(database: Database) -> None:
    assert claim(database, 12345) is None


@pytest.mark.parametrize("threads", [8])
def test_every_job_is_claimed_once_however_many_try(
    database: Database, job_factory: JobFactory, study_factory: StudyFactory, threads: int
) -> None:
    uid = study_factory()
    ids = [job_factory(study_instance_uid=uid, revision=number) for number in range(1, 41)]
    together = threading.Barrier(threads)

    def try_all(worker: int) -> list[int]:
        together.wait()
        return [job_id for job_id in ids if claim(database, job_id, worker=str(worker))]

    with ThreadPoolExecutor(threads) as pool:
        wins = [job_id for won in pool.map(try_all, range(threads)) for job_id in won]
    assert Counter(wins) == Counter(ids)


def test_a_job_whose_lease_is_over_can_be_claimed_again(
    database: Database, job_factory: JobFactory
) -> None:
    job_id = job_factory()
    first = claimed(database, job_id, worker="first")
    expire(database, db.job, job_id)
    second = claimed(database, job_id, worker="second")
    assert second.attempts == 2
    assert second.started_at == first.started_at  # the draft's content date: the first claim's
    assert value(database, db.job.c.worker, job_id) == "second"


def test_a_renewed_lease_is_not_over(database: Database, job_factory: JobFactory) -> None:
    job_id = job_factory()
    held = claimed(database, job_id)
    expire(database, db.job, job_id)
    with database.transaction() as connection:
        assert jobs.renew(connection, held, lease=MINUTE)
    assert claim(database, job_id) is None


def test_a_job_that_is_due_later_can_not_be_claimed_now(
    database: Database, job_factory: JobFactory
) -> None:
    job_id = job_factory()
    with database.transaction() as connection:
        held = jobs.claim(connection, job_id, lease=MINUTE, worker="w")
        assert held is not None
        jobs.retry_later(connection, held, MINUTE, "device away")
    assert claim(database, job_id) is None


# -- who lost the lease changes nothing ------------------------------------------------------------

STEPS: dict[str, Callable[[Connection, Job], None]] = {
    "drafted": lambda connection, held: jobs.drafted(connection, held, CHOICE),
    "refuse": lambda connection, held: jobs.refuse(connection, held, "NOT_CHEST", "text"),
    "fail": lambda connection, held: jobs.fail(connection, held, "bug", "text"),
    "retry": lambda connection, held: jobs.retry_later(connection, held, MINUTE, "text"),
    "defer": lambda connection, held: jobs.defer(connection, held, held.due_at, "text"),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_a_worker_that_lost_its_lease_changes_nothing(
    database: Database, job_factory: JobFactory, step: Callable[[Connection, Job], None]
) -> None:
    job_id = job_factory()
    slow = claimed(database, job_id, worker="slow")
    expire(database, db.job, job_id)
    quick = claimed(database, job_id, worker="quick")
    with pytest.raises(LeaseLost, match=f"job {job_id}"), database.transaction() as connection:
        step(connection, slow)
    with database.transaction() as connection:
        assert not jobs.renew(connection, slow, lease=MINUTE)
        assert jobs.renew(connection, quick, lease=MINUTE)
    draft(database, quick)
    assert job_state(database, job_id) == "drafted"


def test_what_a_worker_wrote_before_it_found_its_lease_lost_is_rolled_back(
    database: Database, job_factory: JobFactory
) -> None:
    job_id = job_factory()
    slow = claimed(database, job_id)
    expire(database, db.job, job_id)
    claimed(database, job_id)

    def keep_and_end() -> None:
        with database.transaction() as connection:
            events.append(connection, slow.study_instance_uid, "draft", None, "kept")
            jobs.drafted(connection, slow, CHOICE)

    with pytest.raises(LeaseLost):
        keep_and_end()
    assert transitions(database, slow.study_instance_uid, "draft") == []


def test_a_job_can_not_be_ended_twice(database: Database, job_factory: JobFactory) -> None:
    held = claimed(database, job_factory())
    draft(database, held)
    with pytest.raises(LeaseLost):
        draft(database, held)


def test_a_deferred_job_does_not_give_an_old_token_out_again(
    database: Database, job_factory: JobFactory
) -> None:
    job_id = job_factory()
    lost = claimed(database, job_id, worker="lost")
    expire(database, db.job, job_id)
    second = claimed(database, job_id, worker="second")
    with database.transaction() as connection:
        jobs.defer(connection, second, second.due_at, "not yet")
    third = claimed(database, job_id, worker="third")
    assert third.attempts == lost.attempts == 1
    with pytest.raises(LeaseLost):
        draft(database, lost)
    draft(database, third)


# -- how a job ends --------------------------------------------------------------------------------


def test_a_drafted_job_names_its_choice(database: Database, job_factory: JobFactory) -> None:
    held = claimed(database, job_factory())
    draft(database, held)
    with database.transaction() as connection:
        (ended,) = jobs.of_study(connection, held.study_instance_uid)
    assert (ended.state, ended.choice, ended.reason) == ("drafted", CHOICE, None)


def test_a_refused_job_names_code_and_reason(database: Database, job_factory: JobFactory) -> None:
    held = claimed(database, job_factory())
    with database.transaction() as connection:
        jobs.refuse(connection, held, "NOT_CHEST", "nothing says chest")
        (ended,) = jobs.of_study(connection, held.study_instance_uid)
    assert ended.state == "refused"
    assert ended.choice == {"refusal": {"code": "NOT_CHEST", "text": "nothing says chest"}}
    assert ended.reason == "NOT_CHEST: nothing says chest"


def test_a_failed_job_names_its_reason(database: Database, job_factory: JobFactory) -> None:
    held = claimed(database, job_factory())
    with database.transaction() as connection:
        jobs.fail(connection, held, "unreadable", "gone")
        (ended,) = jobs.of_study(connection, held.study_instance_uid)
    assert (ended.state, ended.reason, ended.choice) == ("failed", "unreadable: gone", None)


def test_a_retry_counts_and_a_deferral_does_not(
    database: Database, job_factory: JobFactory
) -> None:
    job_id = job_factory()
    with database.transaction() as connection:
        held = jobs.claim(connection, job_id, lease=MINUTE, worker="w")
        assert held is not None
        jobs.retry_later(connection, held, timedelta(0), "device away")
    again = claimed(database, job_id)
    assert again.attempts == 2
    with database.transaction() as connection:
        jobs.defer(connection, again, again.due_at, "not yet: NOT_FRONTAL")
    assert claimed(database, job_id).attempts == 1


def test_every_transition_is_written_down(database: Database, job_factory: JobFactory) -> None:
    job_id = job_factory()
    held = claimed(database, job_id)
    draft(database, held)
    assert transitions(database, held.study_instance_uid, f"job {job_id}") == [
        (None, "queued"),
        ("queued", "running"),
        ("running", "drafted"),
    ]


# -- workers that die ------------------------------------------------------------------------------


def die(database: Database, job_id: int, times: int) -> None:
    for _ in range(times):
        claimed(database, job_id)
        expire(database, db.job, job_id)


def test_a_job_that_killed_its_workers_too_often_is_given_up(
    database: Database, job_factory: JobFactory
) -> None:
    deadly, unlucky = job_factory(), job_factory()
    die(database, deadly, times=3)
    die(database, unlucky, times=2)
    with database.transaction() as connection:
        assert jobs.give_up(connection, max_attempts=3) == [deadly]
    assert job_state(database, deadly) == "failed"
    assert str(value(database, db.job.c.reason, deadly)).startswith("crashed: ")
    assert job_state(database, unlucky) == "running"
    assert claim(database, deadly) is None
    assert claim(database, unlucky) is not None


def test_a_job_that_is_still_held_is_not_given_up(
    database: Database, job_factory: JobFactory
) -> None:
    job_id = job_factory()
    die(database, job_id, times=2)
    claimed(database, job_id)
    with database.transaction() as connection:
        assert jobs.give_up(connection, max_attempts=3) == []


# -- nudges ----------------------------------------------------------------------------------------


def test_a_due_job_is_nudged_at_once_and_again_only_after_the_interval(
    database: Database, job_factory: JobFactory
) -> None:
    job_id = job_factory()
    assert nudged(database) == [job_id]
    assert nudged(database) == []
    with database.transaction() as connection:
        connection.execute(sa.update(db.job).values(nudged_at=func.now() - 2 * SOON))
    assert nudged(database) == [job_id]


def test_a_job_that_is_held_done_or_due_later_is_not_nudged(
    database: Database, job_factory: JobFactory
) -> None:
    running, done, later = job_factory(), job_factory(), job_factory()
    claimed(database, running)
    draft(database, claimed(database, done))
    with database.transaction() as connection:
        held = jobs.claim(connection, later, lease=MINUTE, worker="w")
        assert held is not None
        jobs.retry_later(connection, held, MINUTE, "device away")
    assert nudged(database) == []


def test_a_job_whose_worker_died_is_nudged(database: Database, job_factory: JobFactory) -> None:
    job_id = job_factory()
    claimed(database, job_id)
    expire(database, db.job, job_id)
    assert nudged(database) == [job_id]


def test_a_job_that_waits_again_is_nudged_as_soon_as_it_is_due(
    database: Database, job_factory: JobFactory
) -> None:
    job_id = job_factory()
    assert nudged(database) == [job_id]
    with database.transaction() as connection:
        held = jobs.claim(connection, job_id, lease=MINUTE, worker="w")
        assert held is not None
        jobs.retry_later(connection, held, timedelta(0), "device away")
    assert nudged(database) == [job_id]


@pytest.mark.parametrize("analysed", [False, True], ids=["no-statistics", "analysed"])
def test_the_oldest_jobs_are_nudged_first_and_never_more_than_a_batch(
    database: Database, job_factory: JobFactory, study_factory: StudyFactory, analysed: bool
) -> None:
    uid = study_factory()
    count = 2 * nudges.LIMIT + 20
    ids = [job_factory(study_instance_uid=uid, revision=number) for number in range(1, count + 1)]
    with database.transaction() as connection:  # the one made last is due first
        connection.execute(
            sa.update(db.job).values(due_at=func.now() - MINUTE * sa.cast(db.job.c.id, sa.Integer))
        )
        if analysed:
            connection.execute(sa.text("ANALYZE job"))
    waiting = ids[::-1]
    while waiting:
        batch, waiting = waiting[: nudges.LIMIT], waiting[nudges.LIMIT :]
        assert nudged(database) == batch
    assert nudged(database) == []


# -- images that come while a job waits ------------------------------------------------------------


# -- a person wants it again -----------------------------------------------------------------------


def test_a_study_is_queued_again_by_its_latest_job_only(
    database: Database, job_factory: JobFactory, study_factory: StudyFactory
) -> None:
    uid = study_factory()
    first, second = (job_factory(study_instance_uid=uid, revision=revision) for revision in (1, 2))
    for job_id in (first, second):
        draft(database, claimed(database, job_id))
    with database.transaction() as connection:
        assert jobs.requeue_ended(connection, study_instance_uid=uid) == [second]
    assert job_state(database, first) == "drafted"
    assert claimed(database, second).attempts == 1


def test_a_job_that_waits_or_runs_is_not_queued_again(
    database: Database, job_factory: JobFactory, study_factory: StudyFactory
) -> None:
    uid = study_factory()
    job_id = job_factory(study_instance_uid=uid)
    with database.transaction() as connection:
        assert jobs.requeue_ended(connection, study_instance_uid=uid) == []
    held = claimed(database, job_id)
    with database.transaction() as connection:
        assert jobs.requeue_ended(connection, study_instance_uid=uid) == []
        assert jobs.renew(connection, held, lease=MINUTE)


def test_all_failed_jobs_are_queued_again_and_nothing_else(
    database: Database, job_factory: JobFactory
) -> None:
    failed, refused, done = job_factory(), job_factory(), job_factory()
    held = {job_id: claimed(database, job_id) for job_id in (failed, refused, done)}
    with database.transaction() as connection:
        jobs.fail(connection, held[failed], "bug", "text")
        jobs.refuse(connection, held[refused], "NOT_CHEST", "text")
        jobs.drafted(connection, held[done], CHOICE)
        assert jobs.requeue_ended(connection, study_instance_uid=None) == [failed]
    assert value(database, db.job.c.reason, failed) is None
    assert claim(database, failed) is not None


def test_a_worker_that_lost_a_job_does_not_get_it_back_when_it_is_queued_again(
    database: Database, job_factory: JobFactory
) -> None:
    job_id = job_factory()
    lost = claimed(database, job_id, worker="lost")
    expire(database, db.job, job_id)
    with database.transaction() as connection:
        jobs.give_up(connection, max_attempts=1)
        assert jobs.requeue_ended(connection, study_instance_uid=None) == [job_id]
    again = claimed(database, job_id, worker="again")
    with pytest.raises(LeaseLost):
        draft(database, lost)
    draft(database, again)


# -- any order of all of it ------------------------------------------------------------------------


class Workers(RuleBasedStateMachine):
    """Two jobs and any number of workers, living and dead, that each believe they hold one."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.database = database
        self.study = "1.2.3"
        self.believed: list[Job] = []  #: every claim ever made
        self.holder: dict[int, Job] = {}  #: job id -> whose lease it is
        self.drafts: Counter[int] = Counter()
        self.requeued: Counter[int] = Counter()
        with database.transaction() as connection:
            connection.execute(sa.text("TRUNCATE study CASCADE"))
            connection.execute(
                sa.insert(db.study).values(
                    study_instance_uid=self.study, state="complete", revision=1, patient_key=""
                )
            )
            made = [jobs.create(connection, self.study, 1, model) for model in ("a", "b")]
        self.ids = [job_id for job_id in made if job_id is not None]

    @rule(which=st.integers(0, 1), worker=st.sampled_from(["x", "y"]))
    def claim(self, which: int, worker: str) -> None:
        job_id = self.ids[which]
        state = job_state(self.database, job_id)
        free = state == "queued" or (state == "running" and job_id not in self.holder)
        held = claim(self.database, job_id, worker=worker)
        assert (held is not None) == free
        if held is not None:
            self.believed.append(held)
            self.holder[job_id] = held

    @rule(which=st.integers(0, 1))
    def lease_is_over(self, which: int) -> None:
        expire(self.database, db.job, self.ids[which])
        self.holder.pop(self.ids[which], None)

    @precondition(lambda self: self.believed)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.believed))
        with self.database.transaction() as connection:
            kept = jobs.renew(connection, held, lease=MINUTE)
        # A lease that is over but not taken yet can still be saved.
        last = next(one for one in reversed(self.believed) if one.id == held.id)
        if self.holder.get(held.id, last) is not held:
            assert not kept
        if kept:
            self.holder[held.id] = held

    @precondition(lambda self: self.believed)
    @rule(data=st.data(), step=st.sampled_from(sorted(STEPS)))
    def end(self, data: st.DataObject, step: str) -> None:
        held = data.draw(st.sampled_from(self.believed))
        last = next(one for one in reversed(self.believed) if one.id == held.id)
        try:
            with self.database.transaction() as connection:
                if step == "retry":
                    jobs.retry_later(connection, held, timedelta(0), "again")
                else:
                    STEPS[step](connection, held)
        except LeaseLost:
            assert self.holder.get(held.id) is not held
            return
        assert held is last
        self.holder.pop(held.id, None)
        self.drafts[held.id] += step == "drafted"

    @rule(attempts=st.integers(1, 3))
    def give_up(self, attempts: int) -> None:
        with self.database.transaction() as connection:
            given_up = jobs.give_up(connection, max_attempts=attempts)
        assert not set(given_up) & set(self.holder)

    @rule()
    def a_person_wants_it_again(self) -> None:
        with self.database.transaction() as connection:
            again = jobs.requeue_ended(connection, study_instance_uid=self.study)
        assert not set(again) & set(self.holder)
        self.requeued.update(again)

    @invariant()
    def a_job_is_drafted_once_unless_a_person_asks_again(self) -> None:
        assert all(self.drafts[job_id] <= 1 + self.requeued[job_id] for job_id in self.ids)

    @invariant()
    def a_held_job_runs(self) -> None:
        assert all(job_state(self.database, job_id) == "running" for job_id in self.holder)


def test_no_order_of_events_gives_a_job_two_holders(database: Database) -> None:
    run_state_machine_as_test(
        lambda: Workers(database),  # type: ignore[arg-type]  # anything that makes one will do
        settings=settings(max_examples=30, stateful_step_count=25, deadline=None, database=None),
    )
