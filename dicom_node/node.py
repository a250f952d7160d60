"""One running node: what receives, and a one-second tick.

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

from sqlalchemy import Connection

from dicom_node import (
    __version__,
    associations,
    commitments,
    deliveries,
    fetches,
    heartbeats,
    jobs,
    orders,
    reconciliation,
    retention,
    studies,
    tls,
)
from dicom_node.associations import Reason, Refused
from dicom_node.audit.auditor import Auditor
from dicom_node.audit.forwarder import Forwarder
from dicom_node.config import Settings
from dicom_node.db import Database, installation_id
from dicom_node.disk import Watermarks
from dicom_node.errors import OutOfResources
from dicom_node.receiver import Receiver
from dicom_node.reports import intake, store
from dicom_node.reports.mllp_listener import MllpListener
from dicom_node.results import uids
from dicom_node.scp import may_call
from dicom_node.storage import Storage
from dicom_node.worklist import Worklists

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0
#: The heartbeat also asks the broker, so not at every tick.
TICKS_PER_BEAT = 3

Wake = Callable[[str, int], bool]


def receive(receiver: Receiver, stop: threading.Event) -> None:
    """Receive and nothing else, until ``stop`` is set; another process ticks.

    Raises
    ------
    ConfigurationError
        A port is taken, or a setting is wrong.
    Deaf
        We listen and do not answer any more.
    """
    with _listening(receiver):
        while not stop.wait(TICK_SECONDS):
            try:
                receiver.tick()
            except OutOfResources as error:
                logger.warning("tick: %s", error)


@contextmanager
def _listening(receiver: Receiver | None) -> Iterator[None]:
    if receiver is None:
        yield
        return
    receiver.start()
    try:
        yield
    finally:
        receiver.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The DICOM side of the service.

    ``receiver`` listens; ``None``: other processes do, and this one only ticks.
    """

    settings: Settings
    database: Database
    storage: Storage
    wake: Wake  #: tells a worker to look at a job or delivery; False: the broker is away
    broker_answers: Callable[[], bool]
    watermarks: Watermarks
    receiver: Receiver | None = None

    def serve(self, stop: threading.Event) -> None:
        """Listen and tick until ``stop`` is set.

        A database that is away does not end the node: senders get 0xA700 and try again.

        Raises
        ------
        ConfigurationError
            A port is taken, or a setting is wrong.
        Deaf
            We listen and do not answer any more.
        """
        with self._audited(), self._asking(), self._hl7_served(), _listening(self.receiver):
            ticks = 0
            try:
                while not stop.wait(TICK_SECONDS):
                    self._tick_or_log(beat=ticks % TICKS_PER_BEAT == 0)
                    if ticks % self._ticks_between_clearings == 0:
                        self._clear_or_log()
                    ticks += 1
            finally:
                self._leave()

    @property
    def _auditor(self) -> Auditor:
        return Auditor(self.settings, heartbeats.process_name("node"))

    @contextmanager
    def _audited(self) -> Iterator[None]:
        """Take audit messages to their collector, where the site has one."""
        if not self.settings.audit.url:
            yield
            return
        forwarder = Forwarder(self.settings, self.database, self._auditor)
        forwarder.start()
        try:
            yield
        finally:
            forwarder.stop()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Ask other nodes again and again for what is planned, and for what we have missed."""
        periodics = [
            *Worklists(self.settings, self.database).periodics,
            *reconciliation.periodics(self.settings, self.database),
        ]
        for one in periodics:
            one.start()
        try:
            yield
        finally:
            for one in periodics:
                one.stop()

    def _study_received(self, connection: Connection, study_instance_uid: str) -> None:
        self._auditor.received(connection, self.storage, study_instance_uid)
        if self.settings.reconciliation.priors:
            fetches.search(connection, study_instance_uid)

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
            self._hl7_refused,
        )
        listener.start()
        logger.info("HL7 messages are taken on port %d", listener.port)
        try:
            yield
        finally:
            listener.stop()

    def _hl7_refused(self, caller: str, address: str, reason: str) -> None:
        refused = Refused(
            calling_ae_title=caller,
            called_ae_title="",
            address=address,
            reason=Reason.HL7,
            detail=reason,
        )
        try:
            with self.database.transaction() as connection:
                for one in associations.refused(connection, refused):
                    self._auditor.refused(connection, one.calling_ae_title, one.address, one.text)
        except OutOfResources as error:
            logger.warning("refused HL7 connection not written down: %s", error)

    def tick(self) -> None:
        """Move what is due.

        Raises
        ------
        OutOfResources
            The database is away.
        """
        every = timedelta(seconds=self.settings.jobs.sweep_seconds)
        with self.database.transaction() as connection:
            studies.settle(connection, [self.settings.model.name], self._study_received)
            jobs.give_up(connection, max_attempts=self.settings.jobs.max_attempts)
        with self.database.transaction() as connection:
            due_jobs = jobs.nudge(connection, every=every)
            due_deliveries = deliveries.nudge(
                connection, every=every, at_once=self.settings.delivery.at_once
            )
            due_commitments = commitments.nudge(connection, every=every)
            due_fetches = fetches.nudge(
                connection,
                every=every,
                per_hour=self.settings.reconciliation.studies_per_hour,
            )
            due_searches = fetches.nudge_searches(connection, every=every)
            due_reports = store.nudge(connection, every=every)
        due = [("worker.analyse", job_id) for job_id in due_jobs]
        due += [("worker.deliver", delivery_id) for delivery_id in due_deliveries]
        due += [("worker.report_commitment", request_id) for request_id in due_commitments]
        due += [("worker.fetch", fetch_id) for fetch_id in due_fetches]
        due += [("worker.search_priors", search_id) for search_id in due_searches]
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

    @property
    def _ticks_between_clearings(self) -> int:
        return 60 if self.watermarks.accepting else 10

    def _clear_or_log(self) -> None:
        """Let finished studies go whose time has come, and what a kill -9 left half written."""
        try:
            self.storage.sweep()
            retention.apply(self.database, self.storage, self.settings, self.watermarks)
            with self.database.transaction() as connection:
                commitments.forget(connection)
                orders.forget(connection)
        except OutOfResources as error:
            logger.warning("retention: %s", error)

    def _tick_or_log(self, *, beat: bool) -> None:
        self.watermarks.look()
        try:
            if self.receiver is not None:
                self.receiver.tick()
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
            "disk": self.watermarks.state,
            "tls": tls.facts(self.settings.tls),
        }
        with self.database.transaction() as connection:
            heartbeats.beat(connection, heartbeats.process_name("node"), "node", facts)

    def _leave(self) -> None:
        try:
            with self.database.transaction() as connection:
                heartbeats.leave(connection, heartbeats.process_name("node"))
        except OutOfResources as error:
            logger.warning("not signed off: %s", error)
