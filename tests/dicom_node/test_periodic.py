"""Work that comes round again: it outlives its own faults and ends when it is told to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from dicom_node.errors import PeerError
from dicom_node.periodic import Periodic

PATIENCE = 20.0  #: seconds; far above what a loaded machine needs


@contextmanager
def running(work: Callable[[], object], seconds: float = 0.01) -> Iterator[None]:
    periodic = Periodic("sweep", seconds, work)
    periodic.start()
    try:
        yield
    finally:
        periodic.stop()


class Rounds:
    """Counts, and raises what it is told to in the first round."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.count = 0
        self._fault = fault
        self.second = threading.Event()

    def __call__(self) -> None:
        self.count += 1
        if self.count == 1 and self._fault:
            raise self._fault
        if self.count == 2:
            self.second.set()


def test_the_work_is_done_at_once_and_again() -> None:
    rounds = Rounds()
    with running(rounds):
        assert rounds.second.wait(PATIENCE)


def test_the_first_round_does_not_wait_for_the_period() -> None:
    begun = threading.Event()
    with running(lambda: begun.set(), seconds=3600):
        assert begun.wait(PATIENCE)


def test_a_peer_that_is_away_is_one_line_and_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    rounds = Rounds(PeerError("pacs can't be reached"))
    with caplog.at_level(logging.WARNING), running(rounds):
        assert rounds.second.wait(PATIENCE)
    assert "sweep: pacs can't be reached" in caplog.messages


def test_a_bug_is_told_without_its_message_and_the_work_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rounds = Rounds(ValueError("DOE^JANE"))
    with caplog.at_level(logging.ERROR), running(rounds):
        assert rounds.second.wait(PATIENCE)
    assert "sweep: bug" in caplog.text
    assert "ValueError" in caplog.text
    assert "DOE" not in caplog.text


def test_stopping_does_not_wait_for_a_peer() -> None:
    peer = threading.Event()
    with running(lambda: peer.wait(PATIENCE)):
        pass
    assert not peer.is_set()
    peer.set()


def test_what_was_never_started_can_be_stopped() -> None:
    Periodic("sweep", 1, lambda: None).stop()
