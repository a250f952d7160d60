"""The model of this process: loaded once, used by one thread at a time, watched by a heartbeat."""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from dicom_node import heartbeats
from dicom_node.config import Model
from dicom_node.db import Database
from dicom_node.errors import OutOfResources
from inference import models
from inference.findings import Findings, Image

logger = logging.getLogger(__name__)

BEAT_SECONDS = 5.0


class ModelHost:
    """Holds the configured report model."""

    def __init__(self, settings: Model) -> None:
        path = Path(settings.path) if settings.path else None
        self.name = settings.name
        self.model = models.load(settings.name, path=path, device=settings.device)
        self._device = threading.Lock()
        self._seconds: deque[float] = deque(maxlen=50)

    def read(self, images: Sequence[Image], history: str | None) -> Findings:
        """One report; see :class:`inference.models.ReportModel`."""
        with self._device:
            began = time.monotonic()
            findings = self.model.read(images, history)
            self._seconds.append(time.monotonic() - began)
        return findings

    def facts(self) -> dict[str, Any]:
        """For ``status``: which model this is and how fast it is here."""
        algorithm = self.model.algorithm
        return {
            "model": self.name,
            "algorithm": f"{algorithm.name} {algorithm.version}",
            "demo": algorithm.demo,
            "device": str(self.model.device),
            "digest": algorithm.digest,
            "state": "busy" if self._device.locked() else "idle",
            "seconds_per_report": statistics.median(self._seconds) if self._seconds else None,
        }


@contextmanager
def beating(
    database: Database, name: str, role: Literal["gpu", "net"], host: ModelHost | None
) -> Iterator[None]:
    """Report this process as alive until the block ends."""
    done = threading.Event()

    def beat() -> None:
        while True:
            facts = host.facts() if host else {"state": "idle"}
            try:
                with database.transaction() as connection:
                    heartbeats.beat(connection, name, role, facts)
            except OutOfResources as error:
                logger.warning("no heartbeat: %s", error)
            if done.wait(BEAT_SECONDS):
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _leave(database, name)


def _leave(database: Database, name: str) -> None:
    try:
        with database.transaction() as connection:
            heartbeats.leave(connection, name)
    except OutOfResources as error:
        logger.warning("not signed off: %s", error)
