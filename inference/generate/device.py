"""The one thread that runs the device, and what its failures are called.

Kernels of two threads would only wait for each other, and a CUDA graph must not be captured while
another thread allocates. So callers put their work in an inbox and wait for its answer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from inference.findings import DeviceLost, ModelFailure

logger = logging.getLogger(__name__)

T = TypeVar("T")


@contextmanager
def device_errors() -> Iterator[None]:
    """Map what torch raises when the device gives out.

    Raises:
        ModelFailure: out of memory.
        DeviceLost: the device failed; CUDA repeats such an error for as long as the process lives.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelFailure("the device is out of memory") from error
    except torch.AcceleratorError as error:
        raise DeviceLost(f"the device gave out: {type(error).__name__}") from error


@contextmanager
def delivering(*answers: Future[Any]) -> Iterator[None]:
    """A border: whatever is raised inside goes to those who wait, and to nobody else."""
    try:
        with device_errors():
            yield
    except Exception as error:
        for answer in answers:
            answer.set_exception(error)


class DeviceThread:
    """Runs what is posted, and ``turn`` again and again while it returns True.

    It sleeps when there is neither. It never touches its owner, so ``close`` must end it.
    """

    def __init__(self, turn: Callable[[], bool]) -> None:
        self._turn = turn
        self._inbox: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._lock = threading.Lock()
        self._promised: set[Future[Any]] = set()
        self._ended: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._main, name="device", daemon=True)
        self._thread.start()

    def post(self, work: Callable[[], object], answer: Future[Any]) -> None:
        """Run ``work`` between two turns; it, or a later turn, sets ``answer``.

        However the thread ends, ``answer`` is set.

        Raises:
            ModelFailure: closed.
            Exception: what ended the thread.
        """
        with self._lock:
            if self._ended:
                raise self._ended
            self._promised.add(answer)
            answer.add_done_callback(self._promised.discard)
            self._inbox.put(work)

    def call(self, work: Callable[[], T]) -> T:
        """Run ``work`` between two turns and return what it returns, or raise what it raises.

        From the device thread itself it is run at once.
        """
        if threading.current_thread() is self._thread:
            return work()
        answer: Future[T] = Future()

        def run() -> None:
            with delivering(answer):
                answer.set_result(work())

        self.post(run, answer)
        return answer.result()

    def close(self) -> None:
        """End the thread after the current turn; whoever still waits gets a ``ModelFailure``."""
        self._inbox.put(self._close)
        self._thread.join()

    def _close(self) -> None:
        self._closing = True

    def _main(self) -> None:
        ended: BaseException = ModelFailure("the engine was closed")
        try:
            with torch.inference_mode():
                self._loop()
        except BaseException as error:  # a thread has no caller: those who wait are told
            logger.exception("the device thread ended")
            ended = error
        with self._lock:
            self._ended = ended
            promised = list(self._promised)
        for answer in promised:
            answer.set_exception(ended)

    def _loop(self) -> None:
        more = False
        while self._work(wait=not more):
            more = self._turn()

    def _work(self, *, wait: bool) -> bool:
        """Run what was posted; False when it is time to end."""
        while not self._closing and (wait or not self._inbox.empty()):
            self._inbox.get()()
            wait = False
        return not self._closing
