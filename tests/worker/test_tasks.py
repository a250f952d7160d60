"""The two tasks: whatever happens becomes a state, and no patient's name becomes a log line."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import func

from dicom_node import db, deliveries
from dicom_node.config import Peer
from dicom_node.db import Database
from dicom_node.deliveries import Delivery
from inference.findings import DeviceLost, InferenceError, ModelFailure, ModelUnavailable
from tests.conftest import PATIENCE
from tests.dicom_node.states import MINUTE, claimed, expire, transitions
from tests.pacs import ABORT, Pacs
from tests.worker.conftest import open_node
from tests.worker.rule_model import RuleModel
from tests.worker.study import Study
from worker import tasks
from worker.app import make_app
from worker.host import ModelHost
from worker.tasks import Context

NAME = "VERYSECRET^NAME"

# pynetdicom/transport.py, AssociationSocket.connect: forgotten, not closed, when nobody listens.
pynetdicom_leaves_its_socket_open = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


def raising(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def make_due(database: Database) -> None:
    """Whatever waits has waited long enough."""
    with database.transaction() as connection:
        for table in (db.job, db.delivery):
            connection.execute(sa.update(table).values(due_at=func.now()))


# -- analyse ---------------------------------------------------------------------------------------


def test_a_queued_job_is_read(study: Study, context: Context) -> None:
    study.receive()
    tasks.analyse(context, study.queue())
    assert study.job.state == "drafted"


def test_a_nudge_too_many_does_nothing(study: Study, context: Context, model: RuleModel) -> None:
    study.receive()
    job_id = study.queue()
    for _ in range(3):
        tasks.analyse(context, job_id)
    tasks.analyse(context, 12345)
    assert len(model.seen) == 1
    assert len(study.account.drafts) == 1


def test_a_job_that_another_worker_holds_is_left_alone(
    study: Study, context: Context, model: RuleModel
) -> None:
    study.receive()
    job_id = study.queue()
    claimed(study.node.database, job_id, worker="other")
    tasks.analyse(context, job_id)
    assert model.seen == []


def test_several_studies_are_read_at_once_and_each_by_one_thread_only(
    context: Context, model: RuleModel
) -> None:
    together = threading.Barrier(3, timeout=PATIENCE)  # nobody passes unless all three are inside

    def meet() -> None:
        together.wait()

    model.while_reading = meet
    found = [Study(node=context.node, uid=f"2.25.77{seed}") for seed in range(3)]
    images = {study.receive(seed) for seed, study in enumerate(found)}
    nudges = [study.queue() for study in found] * 2
    with ThreadPoolExecutor(len(nudges)) as pool:
        list(pool.map(lambda job_id: tasks.analyse(context, job_id), nudges))
    assert [study.job.state for study in found] == ["drafted"] * 3
    assert [len(study.account.drafts) for study in found] == [1] * 3
    assert set(model.seen) == images
    assert len(model.seen) == 3


def test_a_reading_that_fails_leaves_the_others_alone(context: Context, model: RuleModel) -> None:
    together = threading.Barrier(3, timeout=PATIENCE)

    def fail_one() -> None:
        if together.wait() == 0:
            raise ModelFailure("NaN in the logits")

    model.while_reading = fail_one
    found = [Study(node=context.node, uid=f"2.25.77{seed}") for seed in range(3)]
    for seed, study in enumerate(found):
        study.receive(seed)
    queued = [study.queue() for study in found]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda job_id: tasks.analyse(context, job_id), queued))
    assert sorted(study.job.state for study in found) == ["drafted", "drafted", "queued"]


def test_a_model_that_fails_once_is_asked_again(
    study: Study, context: Context, model: RuleModel
) -> None:
    study.receive()
    job_id = study.queue()
    model.while_reading = raising(ModelFailure("out of device memory"))
    tasks.analyse(context, job_id)
    job = study.job
    assert (job.state, job.reason) == ("queued", "model.failed: out of device memory")
    first_retry = timedelta(seconds=context.node.settings.jobs.first_retry_seconds)
    assert job.started_at is not None
    assert first_retry / 2 <= job.due_at - job.started_at < first_retry + MINUTE
    model.while_reading = lambda: None
    make_due(study.node.database)
    tasks.analyse(context, job_id)
    assert study.job.state == "drafted"


def test_a_model_that_fails_twice_has_failed(
    study: Study, context: Context, model: RuleModel
) -> None:
    study.receive()
    job_id = study.queue()
    model.while_reading = raising(ModelFailure("NaN in the logits"))
    for _ in range(2):
        make_due(study.node.database)
        tasks.analyse(context, job_id)
    assert (study.job.state, study.job.reason) == ("failed", "model.failed: NaN in the logits")


@pytest.mark.parametrize("error", [ModelUnavailable("no weights"), InferenceError("no")])
def test_a_model_that_can_not_help_itself_is_not_asked_again(
    study: Study, context: Context, model: RuleModel, error: InferenceError
) -> None:
    study.receive()
    model.while_reading = raising(error)
    tasks.analyse(context, study.queue())
    assert (study.job.state, study.job.reason) == ("failed", f"{error.code}: {error}")


def test_a_stored_file_that_is_gone_fails_the_job(study: Study, context: Context) -> None:
    study.receive()
    study.node.storage.path(study.account.instances[0].path).unlink()
    tasks.analyse(context, study.queue())
    assert study.job.state == "failed"
    assert str(study.job.reason).startswith("unreadable: instances/")


def test_an_error_of_unknown_kind_is_a_bug_and_its_words_are_told_to_nobody(
    study: Study, context: Context, model: RuleModel, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        try:
            raise KeyError(NAME)
        except KeyError as error:
            raise ValueError(f"could not convert {NAME!r}") from error

    study.receive()
    model.while_reading = fail
    tasks.analyse(context, study.queue())
    assert (study.job.state, study.job.reason) == ("failed", "bug: ValueError")
    events = [one.reason for one in study.account.events]
    assert NAME not in repr(events)
    assert NAME not in caplog.text
    assert "SECRET" not in caplog.text
    assert "builtins.ValueError\ncaused by" in caplog.text
    assert "builtins.KeyError" in caplog.text
    assert "in fail" in caplog.text  # where it came from


def test_a_worker_that_lost_its_lease_says_so_and_does_nothing(
    study: Study, context: Context, model: RuleModel, caplog: pytest.LogCaptureFixture
) -> None:
    study.receive()
    job_id = study.queue()

    def lose() -> None:
        expire(study.node.database, db.job, job_id)
        claimed(study.node.database, job_id, worker="other")

    model.while_reading = lose
    tasks.analyse(context, job_id)
    assert study.job.state == "running"
    assert study.account.drafts == []
    assert f"job {job_id}: claim 1 no longer holds it" in caplog.text


@pytest.mark.parametrize("error", [ValueError(NAME), ModelFailure("NaN")])
def test_a_worker_that_lost_its_lease_and_then_fails_does_nothing_either(
    study: Study, context: Context, model: RuleModel, error: Exception
) -> None:
    study.receive()
    job_id = study.queue()

    def lose_and_fail() -> None:
        expire(study.node.database, db.job, job_id)
        claimed(study.node.database, job_id, worker="other")
        raise error

    model.while_reading = lose_and_fail
    tasks.analyse(context, job_id)
    assert study.job.state == "running"


def test_a_lease_is_kept_while_the_model_reads_longer_than_it_lasts(
    database: Database, tmp_path: Path, host: ModelHost, model: RuleModel
) -> None:
    node = open_node(database, tmp_path, lease_seconds=0.6)
    study = Study(node=node)
    study.receive()
    job_id = study.queue()
    stolen: list[object] = []

    def be_slow() -> None:
        for _ in range(8):
            time.sleep(0.2)
            with database.transaction() as connection:
                stolen.append(connection.scalar(sa.select(db.job.c.lease_until < func.now())))

    model.while_reading = be_slow
    tasks.analyse(Context(node=node, name="gpu@test", host=host), job_id)
    assert stolen == [False] * 8
    assert study.job.state == "drafted"
    assert study.job.attempts == 1


def test_a_lost_device_ends_the_process_and_keeps_the_job(
    study: Study, context: Context, model: RuleModel
) -> None:
    study.receive()
    job_id = study.queue()
    stopped: list[bool] = []

    def lose() -> None:
        raise DeviceLost("the device gave out: AcceleratorError")

    model.while_reading = lose
    tasks.analyse(replace(context, stop=lambda: stopped.append(True)), job_id)
    assert stopped == [True]
    assert study.job.state == "queued"


def test_a_process_without_a_model_does_not_take_jobs(study: Study, context: Context) -> None:
    study.receive()
    job_id = study.queue()
    with pytest.raises(TypeError, match="without a model"):
        tasks.analyse(replace(context, host=None), job_id)
    assert study.job.state == "queued"


# -- deliver ---------------------------------------------------------------------------------------


class Outbox:
    """A drafted study of a node, and its one delivery."""

    def __init__(self, database: Database, data: Path, host: ModelHost, peer: Peer) -> None:
        self.database = database
        self.data = data
        self.host = host
        self.configure(peer)
        self.study = Study(node=self.context.node)
        self.study.receive(view_position="AP")
        tasks.analyse(self.context, self.study.queue())

    def configure(self, *peers: Peer, **settings: float) -> None:
        """Restart with other settings."""
        node = open_node(self.database, self.data, *peers, **settings)
        self.context = Context(node=node, name="net@test", host=self.host)

    def deliver(self) -> None:
        """What the tick's nudge would lead to."""
        make_due(self.database)
        tasks.deliver(self.context, self.delivery.id)

    @property
    def delivery(self) -> Delivery:
        return self.study.account.deliveries[0]

    @property
    def waits(self) -> timedelta:
        """How long until it is due again, by the database's clock."""
        with self.database.transaction() as connection:
            due = db.delivery.c.due_at - func.now()
            found: timedelta | None = connection.scalar(sa.select(due))
        assert found is not None
        return found


@pytest.fixture
def outbox(database: Database, tmp_path: Path, host: ModelHost, peer_scp: Pacs) -> Outbox:
    return Outbox(database, tmp_path, host, peer_scp.peer())


def test_a_draft_arrives_as_it_was_kept(outbox: Outbox, peer_scp: Pacs) -> None:
    outbox.deliver()
    (draft,) = outbox.study.account.drafts
    kept = outbox.study.node.storage.path(draft.path).read_bytes()
    (arrived,) = peer_scp.received.values()
    assert kept.endswith(arrived)  # preamble and file meta stay here
    delivery = outbox.delivery
    assert (delivery.state, delivery.proof, delivery.reason) == ("delivered", "none", None)
    assert transitions(outbox.database, outbox.study.uid, f"delivery {delivery.id}") == [
        (None, "due"),
        ("due", "sending"),
        ("sending", "sent"),
        ("sending", "delivered"),
    ]


def test_a_delivered_draft_is_not_sent_again(outbox: Outbox, peer_scp: Pacs) -> None:
    for _ in range(3):
        outbox.deliver()
    tasks.deliver(outbox.context, 12345)
    assert peer_scp.stores == 1


def test_a_shadow_peer_gets_nothing(
    database: Database, tmp_path: Path, host: ModelHost, peer_scp: Pacs
) -> None:
    outbox = Outbox(database, tmp_path, host, peer_scp.peer(mode="shadow"))
    outbox.deliver()
    assert outbox.delivery.state == "withheld"
    assert peer_scp.stores == 0


def test_a_peer_that_became_a_shadow_gets_nothing_of_what_was_queued_before(
    outbox: Outbox, peer_scp: Pacs
) -> None:
    outbox.configure(peer_scp.peer(mode="shadow"))
    outbox.deliver()
    assert outbox.delivery.state == "withheld"
    assert peer_scp.stores == 0


# PS3.4 Table B.2-1: out of resources; none at all
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(0xA700, "answered C-STORE with 0xA700", id="out-of-resources"),
        pytest.param(ABORT, "aborted the association", id="no-status"),
    ],
)
def test_a_peer_that_can_not_now_gets_it_later_and_ever_later(
    outbox: Outbox, peer_scp: Pacs, answer: int, reason: str
) -> None:
    peer_scp.answers = [answer, answer]
    outbox.deliver()
    delivery = outbox.delivery
    assert delivery.state == "due"
    assert reason in str(delivery.reason)
    first = outbox.waits
    outbox.deliver()
    second = outbox.waits
    assert timedelta(seconds=2) < first <= timedelta(seconds=5)
    assert timedelta(seconds=4) < second <= timedelta(seconds=10)
    outbox.deliver()
    assert outbox.delivery.state == "delivered"
    assert len(peer_scp.received) == 1


@pynetdicom_leaves_its_socket_open
def test_a_peer_that_is_not_there_gets_it_later(outbox: Outbox, peer_scp: Pacs) -> None:
    peer_scp.stop()
    outbox.deliver()
    assert outbox.delivery.state == "due"
    assert str(outbox.delivery.reason).startswith("peer: pacs (PACS@127.0.0.1:")


# PS3.4 Table B.2-1 and PS3.7 C: cannot understand, does not match SOP class, not authorised
@pytest.mark.parametrize("answer", [0xC000, 0xA900, 0x0124])
def test_a_peer_that_refuses_for_good_fails_the_delivery(
    outbox: Outbox, peer_scp: Pacs, answer: int
) -> None:
    peer_scp.answers = [answer]
    outbox.deliver()
    delivery = outbox.delivery
    assert delivery.state == "failed"
    assert str(delivery.reason).startswith("peer.refused: ")
    assert f"0x{answer:04X}" in str(delivery.reason)
    outbox.deliver()
    assert peer_scp.stores == 1


# PS3.7 C.5.7 duplicate; PS3.4 Table B.2-1 coercion of data elements
@pytest.mark.parametrize("answer", [0x0111, 0xB000])
def test_a_peer_that_has_it_with_a_remark_has_it(
    outbox: Outbox, peer_scp: Pacs, answer: int
) -> None:
    peer_scp.answers = [answer]
    outbox.deliver()
    assert outbox.delivery.state == "delivered"
    reasons = [one.reason for one in outbox.study.account.events]
    assert f"the peer stored it with status 0x{answer:04X}" in reasons


def test_a_draft_that_was_superseded_before_it_was_sent_is_dropped(
    outbox: Outbox, peer_scp: Pacs
) -> None:
    (old,) = outbox.study.account.drafts
    with outbox.database.transaction() as connection:  # as if it was on its way to the peer
        held = deliveries.claim(
            connection, outbox.delivery.id, at_once=9, lease=MINUTE, worker="net"
        )
    assert held is not None
    outbox.study.receive(seed=2, view_position="PA")
    tasks.analyse(outbox.context, outbox.study.queue())
    expire(outbox.database, db.delivery, held.id)
    outbox.deliver()
    assert outbox.delivery.draft_uid == old.sop_instance_uid
    assert outbox.delivery.state == "dropped"
    assert str(outbox.delivery.reason).startswith("superseded by ")
    assert old.sop_instance_uid not in peer_scp.received


def test_a_peer_that_is_no_destination_any_more_fails_the_delivery(
    outbox: Outbox, peer_scp: Pacs
) -> None:
    outbox.configure(peer_scp.peer(roles=("source",)))
    outbox.deliver()
    assert outbox.delivery.state == "failed"
    assert "no longer a destination" in str(outbox.delivery.reason)


def test_a_draft_whose_file_is_gone_fails_the_delivery(outbox: Outbox, peer_scp: Pacs) -> None:
    (draft,) = outbox.study.account.drafts
    outbox.study.node.storage.path(draft.path).unlink()
    outbox.deliver()
    assert outbox.delivery.state == "failed"
    assert str(outbox.delivery.reason).startswith("unreadable: ")


def test_a_draft_that_the_peer_lists_is_proven(
    database: Database, tmp_path: Path, host: ModelHost, peer_scp: Pacs
) -> None:
    outbox = Outbox(database, tmp_path, host, peer_scp.peer(proof="find"))
    outbox.deliver()
    assert (outbox.delivery.state, outbox.delivery.proof) == ("delivered", "find")


def test_a_draft_that_the_peer_does_not_list_yet_is_asked_for_again_but_not_sent_again(
    database: Database, tmp_path: Path, host: ModelHost, peer_scp: Pacs
) -> None:
    outbox = Outbox(database, tmp_path, host, peer_scp.peer(proof="find"))
    peer_scp.lists = False
    outbox.deliver()
    assert outbox.delivery.state == "sent"
    assert outbox.delivery.reason == "not yet proven by find"
    assert timedelta(seconds=2) < outbox.waits <= timedelta(seconds=5)
    peer_scp.lists = True
    outbox.deliver()
    assert outbox.delivery.state == "delivered"
    assert peer_scp.stores == 1


@pynetdicom_leaves_its_socket_open
def test_a_proof_that_can_not_be_had_now_is_asked_for_later(
    database: Database, tmp_path: Path, host: ModelHost, peer_scp: Pacs
) -> None:
    outbox = Outbox(database, tmp_path, host, peer_scp.peer(proof="find"))
    peer_scp.lists = False
    outbox.deliver()
    peer_scp.stop()
    outbox.deliver()
    delivery = outbox.delivery
    assert delivery.state == "due"
    assert delivery.sent_at is not None


def test_a_draft_that_is_never_proven_fails_in_the_end(
    database: Database, tmp_path: Path, host: ModelHost, peer_scp: Pacs
) -> None:
    outbox = Outbox(database, tmp_path, host, peer_scp.peer(proof="find"))
    peer_scp.lists = False
    outbox.deliver()
    assert (outbox.delivery.state, outbox.delivery.reason) == ("sent", "not yet proven by find")
    days_pass(outbox)
    outbox.deliver()
    assert outbox.delivery.state == "failed"
    lie = "peer.unproven: the peer answered success, and does not have it (find) for 24 hours"
    assert outbox.delivery.reason == lie


@pynetdicom_leaves_its_socket_open
def test_a_peer_that_is_never_there_fails_in_the_end(outbox: Outbox, peer_scp: Pacs) -> None:
    peer_scp.stop()
    outbox.deliver()
    days_pass(outbox)
    outbox.deliver()
    assert outbox.delivery.state == "failed"
    assert str(outbox.delivery.reason).startswith("peer: ")


def days_pass(outbox: Outbox) -> None:
    with outbox.database.transaction() as connection:
        long_ago = func.now() - timedelta(days=2)
        connection.execute(sa.update(db.delivery).values(created_at=long_ago))


def test_an_error_of_unknown_kind_fails_the_delivery_and_its_words_are_told_to_nobody(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any) -> None:
        raise ValueError(NAME)

    # No input of ours leads to a bug that we know of, so one is put there.
    monkeypatch.setattr("dicom_node.scu.DicomPeer.send", fail)
    outbox.deliver()
    assert (outbox.delivery.state, outbox.delivery.reason) == ("failed", "bug: ValueError")
    assert NAME not in caplog.text
    assert NAME not in repr(outbox.study.account.events)


# -- Celery ----------------------------------------------------------------------------------------


def test_sources_that_hang_take_up_no_more_threads_than_they_may(context: Context) -> None:
    places = threading.BoundedSemaphore(2)
    entered, end = threading.Semaphore(0), threading.Event()

    def hang(context: Context, row_id: int) -> None:
        entered.release()
        assert end.wait(PATIENCE)

    with ThreadPoolExecutor(2) as pool:
        for row_id in (1, 2):
            pool.submit(tasks._in_a_place, places, hang, context, row_id)
            assert entered.acquire(timeout=PATIENCE)
        tasks._in_a_place(places, hang, context, 3)  # returns at once
        end.set()
    assert not entered.acquire(blocking=False)
    tasks._in_a_place(places, hang, context, 3)  # a place is free again
    assert entered.acquire(blocking=False)


def test_the_registered_tasks_do_the_work(outbox: Outbox, peer_scp: Pacs) -> None:
    app = make_app("memory://")
    tasks.register(app, outbox.context)
    outbox.study.receive(seed=2, view_position="PA")
    job_id = outbox.study.queue()
    app.tasks["worker.analyse"].apply((job_id,), throw=True)
    newest = outbox.study.account.deliveries[-1]
    app.tasks["worker.deliver"].apply((newest.id,), throw=True)
    assert outbox.study.account.deliveries[-1].state == "delivered"
    assert list(peer_scp.received) == [newest.draft_uid]
