"""Making what was received durable: its file in place and synced, its row committed.

The last step before success is answered, whoever receives: our SCP, and our SCU of C-GET.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

from dicom_node import retention, studies
from dicom_node.config import Settings
from dicom_node.db import Database
from dicom_node.group_commit import GroupCommit
from dicom_node.storage import Storage, StoredInstance
from dicom_node.studies import Arrival


class Registrar:
    """Writes received instances down; for many threads, which share their commits."""

    def __init__(self, settings: Settings, database: Database, storage: Storage) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._arrivals = studies.Arrivals(database)
        self._commit_together = GroupCommit(self._commit)

    def register(self, stored: StoredInstance, settle: Callable[[], None]) -> None:
        """Make an instance durable: its row, and by ``settle`` its file.

        Raises
        ------
        OutOfResources
            Disk or database are away: nothing is promised.
        """
        settings = self._settings
        quiet = settings.quiet_seconds(stored.calling_ae_title)
        arrival = Arrival(
            stored=stored,
            quiet=timedelta(seconds=quiet),
            ready=timedelta(seconds=min(settings.study.ready_seconds, quiet)),
        )
        self._commit_together(arrival, settle)

    def cut_if_hung(self, seconds: float) -> None:
        """Give up on a database that does not answer for so long; from any thread."""
        self._arrivals.cut_if_hung(seconds)

    def close(self) -> None:
        """Close the connection."""
        self._arrivals.close()

    def _commit(self, arrivals: Sequence[Arrival], settled: Callable[[], None]) -> None:
        def files_first() -> None:
            settled()
            self._storage.sync_folders(arrival.stored.path for arrival in arrivals)

        for one in self._arrivals.register(arrivals, files_first):
            with self._database.transaction() as connection:
                retention.restore(connection, self._storage, one.stored)
                studies.register(connection, [one])
