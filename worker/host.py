"""The model of this process: loaded once, used by several threads, watched by a heartbeat."""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
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
#: Medians are over so many reports.
LATELY = 50


class ModelHost:
    """Holds the configured report model."""

    def __init__(self, settings: Model) -> None:
        path = Path(settings.path) if settings.path else None
        self.name = settings.name
        options = models.Options(
            slots=settings.slots,
            draft_tokens=settings.draft_tokens,
            max_new_tokens=settings.max_new_tokens,
            report_seconds=settings.report_seconds,
        )
        self.model = models.load(settings.name, path=path, device=settings.device, options=options)
        self.slots = self.model.slots
        self._counting = threading.Lock()
        self._busy = 0
        self._seconds: deque[float] = deque(maxlen=LATELY)
        self._tokens_per_pass: deque[float] = deque(maxlen=LATELY)

    def read(self, images: Sequence[Image], history: str | None) -> Findings:
        """One report; see :class:`inference.models.ReportModel`.

        May be called from ``slots`` threads at once: the model sees to its device itself.
        """
        with self._busy_meanwhile():
            began = time.monotonic()
            findings = self.model.read(images, history)
            seconds = time.monotonic() - began
        with self._counting:
            self._seconds.append(seconds)
            if findings.passes:
                self._tokens_per_pass.append(findings.generated_tokens / findings.passes)
        return findings

    def close(self) -> None:
        """Give the device back."""
        self.model.close()

    def facts(self) -> dict[str, Any]:
        """For ``status``: which model this is and how fast it is here."""
        algorithm = self.model.algorithm
        with self._counting:
            busy = self._busy
            seconds, tokens_per_pass = _median(self._seconds), _median(self._tokens_per_pass)
        return {
            "model": self.name,
            "algorithm": f"{algorithm.name} {algorithm.version}",
            "demo": algorithm.demo,
            "device": str(self.model.device),
            "digest": algorithm.digest,
            "state": "busy" if busy else "idle",
            "slots": self.slots,
            "busy": busy,
            "seconds_per_report": seconds,
            "tokens_per_pass": tokens_per_pass,
        }

    @contextmanager
    def _busy_meanwhile(self) -> Iterator[None]:
        with self._counting:
            self._busy += 1
        try:
            yield
        finally:
            with self._counting:
                self._busy -= 1


def _median(values: Collection[float]) -> float | None:
    return statistics.median(values) if values else None


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
