"""One worker process: the model (queue ``gpu``) or the sender (queue ``net``) under Celery."""

from __future__ import annotations

import contextlib
import warnings

import celery.platforms

from dicom_node import heartbeats
from dicom_node.config import Settings
from dicom_node.db import Database
from worker import pipeline, tasks
from worker.app import CONCURRENCY, Queue, make_app
from worker.host import ModelHost, beating


def work(settings: Settings, database: Database, broker_url: str, queue: Queue) -> None:
    """Serve one queue until SIGTERM (which waits for the report at hand).

    The pool is ``threads``: ``solo`` is blind while busy and can lose a task, ``prefork`` would
    load the weights once per child (reference/dependencies.md 5).

    Raises
    ------
    ModelUnavailable
        The configured model can't be loaded (queue ``gpu``).
    """
    # Messages are JSON: nothing in them can run code, whoever we are.
    warnings.filterwarnings("ignore", category=celery.platforms.SecurityWarning)
    host = ModelHost(settings.model) if queue == "gpu" else None
    name = heartbeats.process_name(queue)
    app = make_app(broker_url)
    node = pipeline.open_node(settings, database)
    tasks.register(app, tasks.Context(node=node, name=name, host=host))
    with contextlib.ExitStack() as stack:
        stack.enter_context(beating(database, name, queue, host))
        app.worker_main(
            [
                "--quiet",  # no banner
                "worker",
                "--pool=threads",
                f"--concurrency={CONCURRENCY[queue]}",
                f"--queues={queue}",
                f"--hostname={name}",
                "--without-gossip",
                "--without-mingle",
                "--loglevel=WARNING",
            ]
        )
