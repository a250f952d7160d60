"""The Celery application: JSON, acknowledged late, one message at a time, no results.

A message is only a nudge ("look at job 42"): Postgres holds what there is to do, so a message lost
costs a sweep interval and a message too many costs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

import celery
import kombu.exceptions

logger = logging.getLogger(__name__)

Wake = Callable[[str, int], bool]
Queue = Literal["gpu", "net"]

ANALYSE = "worker.analyse"
DELIVER = "worker.deliver"
REPORT_COMMITMENT = "worker.report_commitment"
INDEX = "worker.index"
FETCH = "worker.fetch"
SEARCH_PRIORS = "worker.search_priors"
QUEUES: dict[str, Queue] = {
    ANALYSE: "gpu",
    DELIVER: "net",
    REPORT_COMMITMENT: "net",
    INDEX: "gpu",
    FETCH: "net",
    SEARCH_PRIORS: "net",
}

#: Longer than any report takes, or Redis hands the message out twice (harmless: leases decide).
VISIBILITY_SECONDS = 3600


def make_app(broker_url: str) -> celery.Celery:
    """The application; tasks are registered by :mod:`worker.tasks` in worker processes only."""
    app = celery.Celery("dicom-node", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_SECONDS,
            # The defaults look for lost messages every ~100 s (reference/dependencies.md 5).
            "unacked_restore_interval": 2,
            "unacked_restore_throttle": 1,
            "socket_connect_timeout": 3,
        },
    )
    return app


def waker(broker_url: str) -> Wake:
    """A function that nudges a worker: False if the broker is away, the sweep will repeat."""
    app = make_app(broker_url)
    # kombu would try for 6 s per message, and the node's tick waits.
    app.conf.broker_transport_options |= {"max_retries": 1, "interval_start": 0}

    def wake(task: str, row_id: int) -> bool:
        try:
            app.send_task(task, args=[row_id], queue=QUEUES[task], retry=False)
        except (kombu.exceptions.OperationalError, OSError) as error:
            logger.warning("broker away, %s %d waits: %s", task, row_id, type(error).__name__)
            return False
        return True

    return wake


def broker_check(broker_url: str) -> Callable[[], bool]:
    """A function that says whether the broker answers."""
    app = make_app(broker_url)

    def answers() -> bool:
        try:
            with app.connection_for_write(connect_timeout=2) as connection:
                connection.ensure_connection(max_retries=1, timeout=2)
                connection.default_channel.close()
        except (kombu.exceptions.OperationalError, OSError):
            return False
        return True

    return answers
