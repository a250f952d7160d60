"""The tasks: claim, call the pipeline, map errors. Exceptions become states here."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import celery

from dicom_node import deliveries, jobs
from dicom_node.db import Database
from dicom_node.deliveries import Delivery
from dicom_node.errors import NodeError, OutOfResources, PeerError, trace
from dicom_node.jobs import Job, LeaseLost
from inference.findings import DeviceLost, InferenceError
from worker import indexing, lease, pipeline, sending
from worker.app import ANALYSE, DELIVER, INDEX
from worker.host import ModelHost
from worker.pipeline import Node

logger = logging.getLogger(__name__)


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

    @app.task(name=ANALYSE)  # type: ignore[untyped-decorator]
    def analyse_task(job_id: int) -> None:
        analyse(context, job_id)

    @app.task(name=DELIVER)  # type: ignore[untyped-decorator]
    def deliver_task(delivery_id: int) -> None:
        deliver(context, delivery_id)

    @app.task(name=INDEX)  # type: ignore[untyped-decorator]
    def index_task(report_id: int) -> None:
        index(context, report_id)


def analyse(context: Context, job_id: int) -> None:
    """Read one job's study, if nobody else has it."""
    host = context.host
    if host is None:
        raise TypeError("the queue gpu is served by a process without a model")
    try:
        with context.database.transaction() as connection:
            job = jobs.claim(connection, job_id, lease=context.lease, worker=context.name)
        if job is None:
            return
        with lease.kept(
            context.database,
            context.lease,
            lambda connection: jobs.renew(connection, job, lease=context.lease),
        ):
            _analyse(context, host, job)
    except OutOfResources as error:
        # Nothing can be written now; the lease ends by itself and the sweep wakes the job again.
        logger.warning("job %d waits: %s", job_id, error)
    except LeaseLost as error:
        logger.warning("%s", error)


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
    """Send one draft to one destination, if nobody else does."""
    try:
        with context.database.transaction() as connection:
            held = deliveries.claim(
                connection, delivery_id, lease=context.lease, worker=context.name
            )
        if held is None:
            return
        with lease.kept(
            context.database,
            context.lease,
            lambda connection: deliveries.renew(connection, held, lease=context.lease),
        ):
            _deliver(context, held)
    except OutOfResources as error:
        logger.warning("delivery %d waits: %s", delivery_id, error)


def _deliver(context: Context, held: Delivery) -> None:
    try:
        sending.deliver(context.node, held)
    except OutOfResources:
        raise
    except PeerError as error:
        _peer_failed(context, held, error)
    except NodeError as error:
        _fail_delivery(context, held, f"{error.code}: {error}")
    except Exception as error:  # border: our bug
        logger.error("delivery %d: bug\n%s", held.id, trace(error))
        _fail_delivery(context, held, f"bug: {type(error).__name__}")


def _peer_failed(context: Context, held: Delivery, error: PeerError) -> None:
    settings = context.node.settings.jobs
    reason = f"{error.code}: {error}"
    if not error.retry or sending.is_overdue(context.node, held):
        _fail_delivery(context, held, reason)
        return
    logger.info("delivery %d again later: %s", held.id, error)
    with context.database.transaction() as connection:
        deliveries.retry_later(connection, held, settings.back_off(held.attempts), reason)


def _fail_delivery(context: Context, held: Delivery, reason: str) -> None:
    logger.error("delivery %d to %s failed: %s", held.id, held.peer, reason)
    with context.database.transaction() as connection:
        deliveries.fail(connection, held, reason)


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
