"""One worker process: the model (queue ``gpu``) or the sender (queue ``net``) under Celery."""

from __future__ import annotations

import contextlib
import warnings

import celery.platforms

from dicom_node import drafts, heartbeats
from dicom_node.audit.auditor import Auditor, lifetime
from dicom_node.config import Settings
from dicom_node.db import Database
from worker import pipeline, tasks
from worker.app import Queue, make_app
from worker.host import ModelHost, beating

#: Past drafts the model is reminded of; with more, hardly a token is guessed better
#: (reference/serving.md 5).
REMINDERS = 2000


def work(settings: Settings, database: Database, broker_url: str, queue: Queue) -> None:
    """Serve one queue until SIGTERM (which waits for the reports at hand).

    The pool is ``threads``: ``solo`` is blind while busy and can lose a task, ``prefork`` would
    load the weights once per child (reference/dependencies.md 5). Each report waits in a thread of
    its own; the model reads as many at once as it has slots.

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
    if host:
        remind(host, database)
    with contextlib.ExitStack() as stack:
        if host:
            stack.callback(host.close)
        stack.enter_context(beating(database, name, queue, host))
        stack.enter_context(lifetime(database, Auditor(settings, name)))
        app.worker_main(
            [
                "--quiet",  # no banner
                "worker",
                "--pool=threads",
                f"--concurrency={host.slots if host else _senders(settings)}",
                f"--queues={queue}",
                f"--hostname={name}",
                "--without-gossip",
                "--without-mingle",
                "--loglevel=WARNING",
            ]
        )


def _senders(settings: Settings) -> int:
    """How many threads send: as many as all destinations together may take up.

    Each thread mostly waits for its peer; were there fewer, some peers that hang would hold them
    all, and the others would get nothing.
    """
    destinations = sum(peer.is_destination for peer in settings.peers)
    return destinations * settings.delivery.at_once + tasks.OTHERS


def remind(host: ModelHost, database: Database) -> None:
    """Give the model its own past drafts, never a signed report: it guesses faster then.

    Raises
    ------
    OutOfResources
        The database is away.
    """
    digest = host.model.algorithm.digest
    with database.transaction() as connection:
        texts = drafts.texts(connection, digest=digest, limit=REMINDERS)
    host.model.learn(texts)
