"""Work that comes round again and again in a thread of its own: it may wait for a peer.

The tick must not, and neither may what receives. What such work finds out it writes into rows, so
that one which dies anywhere is simply done again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from dicom_node.errors import NodeError, trace

logger = logging.getLogger(__name__)

#: How long a round that waits for a peer is waited for at the end; its thread is a daemon.
_FAREWELL = 1.0  # seconds


class Periodic:
    """Calls ``work`` at once and then every ``seconds``, until it is stopped.

    Parameters
    ----------
    name
        Of the thread, and of the work in the log.
    seconds
        From the end of one round to the beginning of the next.
    work
        One round. What it raises ends the round only: a :class:`NodeError` is one line in the log,
        anything else a bug. It may be left alone in the middle when the process ends.
    """

    def __init__(self, name: str, seconds: float, work: Callable[[], object]) -> None:
        self._name = name
        self._seconds = seconds
        self._work = work
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; returns within about a second, even where a round still waits for a peer."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_FAREWELL)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._round()
            self._stop.wait(self._seconds)

    def _round(self) -> None:
        try:
            self._work()
        except NodeError as error:
            logger.warning("%s: %s", self._name, error)
        except Exception as error:  # border: our bug; the next round may do better
            logger.error("%s: bug\n%s", self._name, trace(error))
