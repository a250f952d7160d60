"""Does this process still answer? It asks itself, as a peer would.

A thread that waits for a lock for ever, or a loop that ended, leaves a port that accepts and says
nothing. Whoever supervises us sees only that we run; so we look, and end where we are deaf:
everything acknowledged is durable, and a fresh process answers again.
"""

from __future__ import annotations

import logging
import threading

from dicom_node.config import Peer
from dicom_node.errors import NodeError
from dicom_node.scu import DicomPeer

logger = logging.getLogger(__name__)

EVERY_SECONDS = 10.0
#: Failures in a row until we call ourselves deaf.
PATIENCE = 3


class Watchdog:
    """Sends a C-ECHO to our own port, again and again."""

    def __init__(self, ae_title: str) -> None:
        self._ae_title = ae_title
        self._failures = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, port: int) -> None:
        """Begin to ask."""
        peer = Peer(name="ourselves", ae_title=self._ae_title, host=("127.0.0.1",), port=port)
        self._thread = threading.Thread(
            target=self._watch, args=(DicomPeer(peer, self._ae_title),), daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Raise ``NodeError`` when we have not answered for long."""
        if self._failures >= PATIENCE:
            raise Deaf(f"no answer from ourselves, {self._failures} times in a row")

    def _watch(self, ourselves: DicomPeer) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            try:
                ourselves.verify()
            except NodeError as error:
                self._failures += 1
                logger.warning("we do not answer ourselves: %s", error)
            else:
                self._failures = 0


class Deaf(NodeError):
    """We run and do not answer."""

    code = "deaf"
