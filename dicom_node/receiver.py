"""What one receiving process does: listen, make durable, note refusals, and listen to itself.

Several of these may share the port; each keeps its own bounds, and none knows of the others.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter

from dicom_node import associations, heartbeats
from dicom_node.associations import Refused
from dicom_node.audit.auditor import Auditor
from dicom_node.commitment_service import Books, Ledger
from dicom_node.config import Settings
from dicom_node.db import Database
from dicom_node.disk import Watermarks
from dicom_node.errors import OutOfResources
from dicom_node.registering import Registrar
from dicom_node.scp import Caller, Scp
from dicom_node.storage import SPARE, Storage
from dicom_node.tls import Material
from dicom_node.watchdog import Watchdog

logger = logging.getLogger(__name__)

#: A database that takes longer for a commit is given up on: senders get 0xA700 before they tire.
HUNG_SECONDS = 20.0
#: Different refusals remembered until they are written; more in one second are a scan.
_REMEMBERED = 100


class Receiver:
    """A listening process's work; :meth:`tick` is to be called every second or so."""

    def __init__(
        self, settings: Settings, database: Database, storage: Storage, watermarks: Watermarks
    ) -> None:
        self._settings = settings
        self._database = database
        self._auditor = Auditor(settings, heartbeats.process_name("node"))
        self._storage = storage
        self._registrar = Registrar(settings, database, storage)
        self._refusals: Counter[Refused] = Counter()
        self._refusing = threading.Lock()
        self._watermarks = watermarks
        self._tls = Material(settings.tls) if settings.tls.port else None
        self.scp = Scp(
            settings,
            storage,
            self._registrar.register,
            self._commitments,
            self.refused,
            self._watermarks,
            self._tls,
        )
        self._watchdog = Watchdog(settings.node.ae_title)
        self._stop = threading.Event()
        self._guard = threading.Thread(target=self._keep_bounds, name="guard", daemon=True)

    def start(self) -> None:
        """Listen.

        Raises
        ------
        ConfigurationError
            A port is taken, or the host is not ours.
        """
        self._prepare()
        self.scp.start()
        self._guard.start()
        self._watchdog.start(self.scp.own_port)
        logger.info("%s listens on port %d", self._settings.node.ae_title, self.scp.port)

    def stop(self) -> None:
        """Stop listening; what is being received gets a moment to end."""
        self._watchdog.stop()
        self.scp.stop()
        self._stop.set()
        if self._guard.is_alive():
            self._guard.join()
        self._registrar.close()
        self._storage.close()

    def reload(self) -> None:
        """Read the certificates again; running associations keep theirs."""
        if self._tls is not None:
            self._tls.reload()

    def tick(self) -> None:
        """Write down who was turned away.

        Raises
        ------
        OutOfResources
            The database is away.
        NodeError
            We do not answer ourselves any more: this process should end.
        """
        self._watchdog.check()
        self._write_refusals()

    def _keep_bounds(self) -> None:
        """What must not wait for the database."""
        while not self._stop.wait(1.0):
            self._watermarks.look()
            self._registrar.cut_if_hung(HUNG_SECONDS)
            self._prepare()

    def _prepare(self) -> None:
        for _ in range(SPARE):
            self._storage.prepare()

    def _commitments(self, caller: Caller) -> Books:
        return Ledger(self._database, self._settings.jobs, caller.peers, caller.address)

    def refused(self, refused: Refused) -> None:
        """Remember who was turned away, until the next tick."""
        level = logging.INFO if refused.reason.expected else logging.WARNING
        logger.log(
            level,
            "refused %s at %s: %s",
            refused.calling_ae_title or "a connection",
            refused.address,
            refused.text,
        )
        with self._refusing:
            if refused in self._refusals or len(self._refusals) < _REMEMBERED:
                self._refusals[refused] += 1

    def _write_refusals(self) -> None:
        with self._refusing:
            refusals, self._refusals = self._refusals, Counter()
        if not refusals:
            return
        try:
            with self._database.transaction() as connection:
                for one in associations.refused_many(connection, refusals):
                    self._auditor.refused(connection, one.calling_ae_title, one.address, one.text)
        except OutOfResources:
            with self._refusing:
                self._refusals = refusals  # those of the meantime are the fewer
            raise
