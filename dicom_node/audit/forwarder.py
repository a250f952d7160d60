"""What takes the messages of the spool to the collector, in a thread of the process that ticks."""

from __future__ import annotations

import logging
import time

from dicom_node.audit import auditor, spool, syslog
from dicom_node.audit.auditor import Auditor
from dicom_node.audit.syslog import Collector
from dicom_node.config import Settings
from dicom_node.db import Database
from dicom_node.errors import NodeError
from dicom_node.periodic import Periodic

logger = logging.getLogger(__name__)

_SECONDS = 1.0
_BATCH = 100  # messages; a few hundred kilobytes
_LONGEST_PAUSE = 60.0  # seconds


class Forwarder:
    """Tells that the node starts, sends what waits, and tells that the node ends.

    While the collector is away the messages stay, and it is tried again after 2, 4, ... at most 60
    seconds.
    """

    def __init__(self, settings: Settings, database: Database, told: Auditor) -> None:
        self._database = database
        self._told = told
        self._collector = syslog.open_collector(settings.audit.url, settings.tls)
        self._periodic = Periodic("audit", _SECONDS, self.round)
        self._start_is_told = False
        self._failures = 0
        self._not_before = 0.0  # monotonic seconds

    def start(self) -> None:
        """Begin."""
        self._periodic.start()

    def stop(self) -> None:
        """Tell that the node ends, and send that too if the collector was there until now."""
        self._periodic.stop()
        auditor.tell(self._database, self._told.stopped)
        try:
            if not self._failures:
                forward(self._database, self._collector)
        except NodeError as error:
            logger.warning("audit messages wait for the next start: %s", error)

    def round(self) -> None:
        """Send what waits, unless the collector was away a moment ago.

        Raises
        ------
        NodeError
            Collector or database are away; nothing is lost.
        """
        if not self._start_is_told:
            with self._database.transaction() as connection:
                self._told.started(connection)
            self._start_is_told = True
        if time.monotonic() < self._not_before:
            return
        try:
            forward(self._database, self._collector)
        except NodeError:
            self._failures += 1
            pause = min(2.0 ** min(self._failures, 10), _LONGEST_PAUSE)
            self._not_before = time.monotonic() + pause
            raise
        self._failures = 0


def forward(database: Database, collector: Collector) -> int:
    """Send all that waits, the oldest first; how many messages that were.

    A message is removed after the collector has it. Who is killed in between sends it again.

    Raises
    ------
    PeerError
        The collector is away.
    OutOfResources
        The database is away.
    """
    sent = 0
    while True:
        with database.transaction() as connection:
            batch = spool.oldest(connection, limit=_BATCH, longest=collector.longest)
        if not batch:
            return sent
        collector.deliver(batch)
        with database.transaction() as connection:
            spool.remove(connection, [one.id for one in batch])
        sent += len(batch)
