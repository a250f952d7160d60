"""One running node: the listeners and a one-second tick.

The tick settles quiet studies, tells workers what is due (and tells them again when a nudge was
lost), takes in final reports and reports the node as alive. Everything it does is a statement on
Postgres, so a tick that dies anywhere is simply repeated.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from dicom_node import __version__, associations, deliveries, heartbeats, jobs, studies
from dicom_node.config import Settings
from dicom_node.db import Database, installation_id
from dicom_node.errors import OutOfResources
from dicom_node.reports import intake, store
from dicom_node.reports.mllp_listener import MllpListener
from dicom_node.results import uids
from dicom_node.scp import Listener, may_call
from dicom_node.storage import Storage, StoredInstance

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0
#: The heartbeat also asks the broker, so not at every tick.
TICKS_PER_BEAT = 3

Wake = Callable[[str, int], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The DICOM side of the service."""

    settings: Settings
    database: Database
    storage: Storage
    wake: Wake  #: tells a worker to look at a job or delivery; False: the broker is away
    broker_answers: Callable[[], bool]

    def serve(self, stop: threading.Event) -> None:
        """Listen and tick until ``stop`` is set.

        A database that is away does not end the node: senders get 0xA700 and try again.
        """
        listener = Listener(self.settings, self.storage, self.register, self.refused)
        with self._hl7_served():
            listener.start()
            logger.info("%s listens on port %d", self.settings.node.ae_title, listener.port)
            ticks = 0
            try:
                while not stop.wait(TICK_SECONDS):
                    self._tick_or_log(beat=ticks % TICKS_PER_BEAT == 0)
                    ticks += 1
            finally:
                listener.stop()
                self._leave()

    @contextmanager
    def _hl7_served(self) -> Iterator[None]:
        """Listen for HL7 messages, where the site wants it."""
        reports = self.settings.reports
        if not reports.hl7_port:
            yield
            return
        sources = [one for one in self.settings.peers if one.protocol == "hl7" and one.is_source]
        listener = MllpListener(
            (reports.hl7_host, reports.hl7_port),
            lambda message: intake.take_message(self.database, self.storage, message),
            lambda address: may_call(sources, address),
            self.refused,
        )
        listener.start()
        logger.info("HL7 messages are taken on port %d", listener.port)
        try:
            yield
        finally:
            listener.stop()

    def register(self, stored: StoredInstance) -> None:
        """Commit the row of an instance whose file is already durable."""
        settings = self.settings
        quiet = timedelta(seconds=settings.quiet_seconds(stored.calling_ae_title))
        ready = timedelta(seconds=min(settings.study.ready_seconds, quiet.total_seconds()))
        with self.database.transaction() as connection:
            studies.register(connection, stored, quiet=quiet, ready=ready)

    def refused(self, calling_ae_title: str, address: str, reason: str) -> None:
        """Remember who was turned away."""
        try:
            with self.database.transaction() as connection:
                associations.refused(connection, calling_ae_title, address, reason)
        except OutOfResources as error:
            logger.warning("refused association not written down: %s", error)

    def tick(self) -> None:
        """Move what is due.

        Raises
        ------
        OutOfResources
            The database is away.
        """
        every = timedelta(seconds=self.settings.jobs.sweep_seconds)
        with self.database.transaction() as connection:
            studies.settle(connection, [self.settings.model.name])
            jobs.give_up(connection, max_attempts=self.settings.jobs.max_attempts)
        with self.database.transaction() as connection:
            due_jobs = jobs.nudge(connection, every=every)
            due_deliveries = deliveries.nudge(connection, every=every)
            due_reports = store.nudge(connection, every=every)
        due = [("worker.analyse", job_id) for job_id in due_jobs]
        due += [("worker.deliver", delivery_id) for delivery_id in due_deliveries]
        due += [("worker.index", report_id) for report_id in due_reports]
        for task, row_id in due:
            if not self.wake(task, row_id):
                break  # the broker is away: one attempt a tick, the rest waits for the next sweep
        self._take_reports()

    def _take_reports(self) -> None:
        with self.database.transaction() as connection:
            node_uid = uids.node_uid(installation_id(connection))
        intake.take_received(self.database, self.storage, node_uid)
        intake.look_again(self.database)

    def _tick_or_log(self, *, beat: bool) -> None:
        try:
            self.tick()
            if beat:
                self._beat()
        except OutOfResources as error:
            logger.warning("tick: %s", error)

    def _beat(self) -> None:
        facts = {
            "version": __version__,
            "ae_title": self.settings.node.ae_title,
            "host": self.settings.node.host,
            "port": self.settings.node.port,
            "broker_up": self.broker_answers(),
            "free_bytes": self.storage.free_bytes(),
        }
        with self.database.transaction() as connection:
            heartbeats.beat(connection, heartbeats.process_name("node"), "node", facts)

    def _leave(self) -> None:
        try:
            with self.database.transaction() as connection:
                heartbeats.leave(connection, heartbeats.process_name("node"))
        except OutOfResources as error:
            logger.warning("not signed off: %s", error)
