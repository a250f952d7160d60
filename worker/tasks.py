"""The tasks: claim, call the pipeline, map errors. Exceptions become states here."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeVar

import celery

from dicom_node import commitments, deliveries, fetches, jobs
from dicom_node.db import Database
from dicom_node.deliveries import Delivery
from dicom_node.errors import NodeError, OutOfResources, PeerError, trace
from dicom_node.fetches import Fetch, Search
from dicom_node.jobs import Job, LeaseLost
from inference.findings import DeviceLost, InferenceError
from worker import committing, fetching, indexing, lease, pipeline, sending
from worker.app import ANALYSE, DELIVER, FETCH, INDEX, REPORT_COMMITMENT, SEARCH_PRIORS
from worker.host import ModelHost
from worker.pipeline import Node

logger = logging.getLogger(__name__)

Held = TypeVar("Held")

#: Threads of the sender for what is no delivery; what finds none free waits for its next nudge,
#: so that sources that hang hold up no draft.
OTHERS = 4


def end_process() -> None:
    """Let Celery finish what it can and end; the supervisor (or container) starts a new process."""
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a worker process has."""

    node: Node
    name: str  #: of this process
    host: ModelHost | None  #: only where the queue ``gpu`` is served
    stop: Callable[[], None] = end_process  #: when this process can't go on

    @property
    def database(self) -> Database:
        return self.node.database

    @property
    def lease(self) -> timedelta:
        return timedelta(seconds=self.node.settings.jobs.lease_seconds)


def register(app: celery.Celery, context: Context) -> None:
    """Give the application its tasks."""
    others = threading.BoundedSemaphore(OTHERS)

    @app.task(name=ANALYSE)  # type: ignore[untyped-decorator]
    def analyse_task(job_id: int) -> None:
        analyse(context, job_id)

    @app.task(name=DELIVER)  # type: ignore[untyped-decorator]
    def deliver_task(delivery_id: int) -> None:
        deliver(context, delivery_id)

    @app.task(name=REPORT_COMMITMENT)  # type: ignore[untyped-decorator]
    def report_commitment_task(request_id: int) -> None:
        _in_a_place(others, report_commitment, context, request_id)

    @app.task(name=FETCH)  # type: ignore[untyped-decorator]
    def fetch_task(fetch_id: int) -> None:
        _in_a_place(others, fetch, context, fetch_id)

    @app.task(name=SEARCH_PRIORS)  # type: ignore[untyped-decorator]
    def search_priors_task(search_id: int) -> None:
        _in_a_place(others, search_priors, context, search_id)

    @app.task(name=INDEX)  # type: ignore[untyped-decorator]
    def index_task(report_id: int) -> None:
        index(context, report_id)


def _in_a_place(
    places: threading.BoundedSemaphore,
    work: Callable[[Context, int], None],
    context: Context,
    row_id: int,
) -> None:
    if places.acquire(blocking=False):
        try:
            work(context, row_id)
        finally:
            places.release()


def _work_on(
    context: Context,
    what: str,
    row_id: int,
    claim: Callable[..., Held | None],
    renew: Callable[..., bool],
    work: Callable[[Context, Held], None],
    **bounds: int,
) -> bool:
    """Take a row in hand, keep its lease and work on it; False: there was nothing to do, or no way.

    What can't be written now stays as it is: the lease ends by itself and the sweep wakes it again.
    """
    try:
        with context.database.transaction() as connection:
            held = claim(connection, row_id, lease=context.lease, worker=context.name, **bounds)
        if held is None:
            return False
        renewed = partial(renew, held=held, lease=context.lease)
        with lease.kept(context.database, context.lease, renewed):
            work(context, held)
    except OutOfResources as error:
        logger.warning("%s %d waits: %s", what, row_id, error)
        return False
    except LeaseLost as error:
        logger.warning("%s", error)
        return False
    return True


def _at_border(
    what: str,
    work: Callable[[], None],
    judge: Callable[[NodeError], None],
    fail: Callable[[str], None],
) -> None:
    """Do what needs a peer; every fault becomes a state of its row.

    Parameters
    ----------
    judge
        Decides whether a fault that we know is tried again.
    fail
        Ends the row, with this reason.

    Raises
    ------
    OutOfResources
        Nothing can be written now.
    """
    try:
        work()
    except OutOfResources:
        raise
    except NodeError as error:
        judge(error)
    except Exception as error:  # our bug, or a foreign exception nobody mapped
        logger.error("%s: bug\n%s", what, trace(error))
        fail(f"bug: {type(error).__name__}")


def analyse(context: Context, job_id: int) -> None:
    """Read one job's study, or a more urgent one, if nobody else has it."""
    host = context.host
    if host is None:
        raise TypeError("the queue gpu is served by a process without a model")

    def read(context: Context, job: Job) -> None:
        _analyse(context, host, job)

    _work_on(context, "job", job_id, jobs.claim_next, jobs.renew, read)


def _analyse(context: Context, host: ModelHost, job: Job) -> None:
    try:
        pipeline.analyse(context.node, host, job)
    except (OutOfResources, LeaseLost):
        raise
    except DeviceLost as error:
        _model_failed(context, job, error)
        logger.error("this process ends: only a new one gets a working device")
        context.stop()
    except InferenceError as error:
        _model_failed(context, job, error)
    except NodeError as error:
        _fail(context, job, error.code, str(error))
    except Exception as error:  # border: our bug, or a foreign exception nobody mapped
        logger.error("job %d: bug\n%s", job.id, trace(error))
        _fail(context, job, "bug", type(error).__name__)


def _model_failed(context: Context, job: Job, error: InferenceError) -> None:
    if error.retry and job.attempts < 2:
        delay = context.node.settings.jobs.back_off(job.attempts)
        with context.database.transaction() as connection:
            jobs.retry_later(connection, job, delay, f"{error.code}: {error}")
    else:
        _fail(context, job, error.code, str(error))


def _fail(context: Context, job: Job, code: str, text: str) -> None:
    logger.error("job %d failed: %s: %s", job.id, code, text)
    with context.database.transaction() as connection:
        jobs.fail(connection, job, code, text)


def deliver(context: Context, delivery_id: int) -> None:
    """Send what is due at the peer of this delivery, the most urgent first, and for a while.

    Another nudge goes on after that: what was urgent at another task's turn, or a stop that was
    asked for, need not wait for the last of many.
    """
    until = time.monotonic() + context.node.settings.jobs.sweep_seconds
    while _deliver_next(context, delivery_id) and time.monotonic() < until:
        pass


def _deliver_next(context: Context, delivery_id: int) -> bool:
    at_once = context.node.settings.delivery.at_once
    claim, renew = deliveries.claim, deliveries.renew
    return _work_on(context, "delivery", delivery_id, claim, renew, _deliver, at_once=at_once)


def _deliver(context: Context, held: Delivery) -> None:
    _at_border(
        f"delivery {held.id}",
        partial(sending.deliver, context.node, held),
        partial(_not_delivered, context, held),
        partial(_fail_delivery, context, held),
    )


def _not_delivered(context: Context, held: Delivery, error: NodeError) -> None:
    reason = f"{error.code}: {error}"
    if isinstance(error, PeerError):
        sending.judge_peer(context.node, held, error)
    if not error.retry or sending.is_overdue(context.node, held):
        _fail_delivery(context, held, reason)
        return
    logger.info("delivery %d again later: %s", held.id, error)
    delay = context.node.settings.jobs.back_off(held.attempts)
    with context.database.transaction() as connection:
        deliveries.retry_later(connection, held, delay, reason)


def _fail_delivery(context: Context, held: Delivery, reason: str) -> None:
    logger.error("delivery %d to %s failed: %s", held.id, held.peer, reason)
    with context.database.transaction() as connection:
        deliveries.fail(connection, held, reason)


def report_commitment(context: Context, request_id: int) -> None:
    """Tell a source what became of its storage commitment request, if nobody else does."""
    what = "storage commitment request"
    claim, renew = commitments.claim, commitments.renew
    _work_on(context, what, request_id, claim, renew, _report_commitment)


def _report_commitment(context: Context, held: commitments.Held) -> None:
    _at_border(
        f"storage commitment request {held.id}",
        partial(committing.report, context.node, held),
        partial(_not_reported, context, held),
        partial(_fail_report, context, held),
    )


def _not_reported(context: Context, held: commitments.Held, error: NodeError) -> None:
    jobs = context.node.settings.jobs
    reason = f"{error.code}: {error}"
    if not error.retry or held.age > timedelta(hours=jobs.give_up_hours):
        _fail_report(context, held, reason)
        return
    logger.info("storage commitment request %d again later: %s", held.id, error)
    with context.database.transaction() as connection:
        commitments.retry_later(connection, held, jobs.back_off(held.attempts), reason)


def _fail_report(context: Context, held: commitments.Held, reason: str) -> None:
    logger.error("storage commitment request %d of %s failed: %s", held.id, held.peer, reason)
    with context.database.transaction() as connection:
        commitments.fail(connection, held, reason)


def fetch(context: Context, fetch_id: int) -> None:
    """Fetch one study from its peer, if nobody else does."""
    per_hour = context.node.settings.reconciliation.studies_per_hour
    _work_on(context, "fetch", fetch_id, fetches.claim, fetches.renew, _fetch, per_hour=per_hour)


def _fetch(context: Context, held: Fetch) -> None:
    if fetching.is_overdue(context.node, held.age):
        _fail_fetch(context, held, held.reason or "its worker died again and again")
        return
    _at_border(
        f"fetch {held.id}",
        partial(fetching.fetch, context.node, held),
        partial(_not_fetched, context, held),
        partial(_fail_fetch, context, held),
    )


def _not_fetched(context: Context, held: Fetch, error: NodeError) -> None:
    reason = f"{error.code}: {error}"
    if not error.retry:
        _fail_fetch(context, held, reason)
        return
    logger.info("fetch %d again later: %s", held.id, error)
    delay = context.node.settings.jobs.back_off(held.attempts)
    with context.database.transaction() as connection:
        fetches.retry_later(connection, held, delay, reason)


def _fail_fetch(context: Context, held: Fetch, reason: str) -> None:
    logger.error("fetch %d from %s failed: %s", held.id, held.peer, reason)
    with context.database.transaction() as connection:
        fetches.fail(connection, held, reason)


def search_priors(context: Context, search_id: int) -> None:
    """Look for the earlier studies of one study's patient, if nobody else does."""
    try:
        with context.database.transaction() as connection:
            begun = fetches.begin_search(connection, search_id)
        if begun is not None:
            _search_priors(context, begun)
    except OutOfResources as error:
        logger.warning("prior search %d waits: %s", search_id, error)


def _search_priors(context: Context, begun: Search) -> None:
    _at_border(
        f"prior search {begun.id}",
        partial(fetching.search, context.node, begun),
        partial(_not_searched, context, begun),
        partial(_fail_search, context, begun),
    )


def _not_searched(context: Context, begun: Search, error: NodeError) -> None:
    reason = f"{error.code}: {error}"
    if not error.retry or fetching.is_overdue(context.node, begun.age):
        logger.warning("prior search %d: %s", begun.id, error)
        _fail_search(context, begun, reason)
        return
    delay = context.node.settings.jobs.back_off(begun.attempts)
    with context.database.transaction() as connection:
        fetches.search_later(connection, begun, delay, reason)


def _fail_search(context: Context, begun: Search, reason: str) -> None:
    with context.database.transaction() as connection:
        fetches.search_failed(connection, begun, reason)


def index(context: Context, report_id: int) -> None:
    """Make the final report of one study findable; what fails is nudged again by the sweep."""
    host = context.host
    if host is None:
        raise TypeError("the queue gpu is served by a process without a model")
    try:
        indexing.index(context.database, host.model, report_id)
    except OutOfResources as error:
        logger.warning("report %d waits for the index: %s", report_id, error)
    except DeviceLost:
        logger.error("this process ends: only a new one gets a working device")
        context.stop()
    except InferenceError as error:
        logger.warning("report %d waits for the index: %s", report_id, error)
    except Exception as error:  # border: our bug
        logger.error("report %d: bug\n%s", report_id, trace(error))
