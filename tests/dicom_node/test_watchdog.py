"""A process that does not answer itself knows it, and one that does is left alone."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dicom_node import watchdog
from dicom_node.errors import NodeError
from dicom_node.scu import DicomPeer
from dicom_node.watchdog import Deaf, Watchdog
from tests.dicom_node.network import running

TITLE = "DICOMNODE"
PATIENCE = 20.0  #: seconds; far above what a loaded machine needs, so that only a fault reaches it


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks come quickly."""
    monkeypatch.setattr(watchdog, "EVERY_SECONDS", 0.01)


@pytest.fixture
def nobodys_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port: int = closed.getsockname()[1]
    return port


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def is_deaf(watching: Watchdog) -> bool:
    try:
        watching.check()
    except Deaf:
        return True
    return False


class Answers:
    """In place of a C-ECHO: fails where it is told to, and counts."""

    def __init__(self, *failing: bool) -> None:
        self.asked = 0
        self._failing = failing
        self.all_asked = threading.Event()

    def __call__(self, peer: DicomPeer) -> None:
        self.asked += 1
        if self.asked > len(self._failing):
            self.all_asked.set()
            return
        if self._failing[self.asked - 1]:
            raise NodeError("no answer")


def test_who_answers_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    verify = DicomPeer.verify

    def counted(peer: DicomPeer) -> None:
        nonlocal asked
        verify(peer)
        asked += 1

    monkeypatch.setattr(DicomPeer, "verify", counted)
    with running(tmp_path) as node:  # no peer may call it, and it answers itself
        watching = Watchdog(TITLE)
        watching.start(node.scp.own_port)
        wait_until(lambda: asked > watchdog.PATIENCE)
        watching.check()
        watching.stop()
    assert node.refused == []


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # pynetdicom leaves it open
def test_who_does_not_answer_is_deaf_after_some_failures(
    nobodys_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    watching = Watchdog(TITLE)
    watching.start(nobodys_port)
    try:
        wait_until(lambda: is_deaf(watching))
    finally:
        watching.stop()
    assert caplog.text.count("we do not answer ourselves") >= watchdog.PATIENCE


@pytest.mark.parametrize(
    ("failing", "deaf"),
    [
        ((True, True), False),
        ((True, True, False, True, True), False),
        ((False, True, True, True), True),
    ],
    ids=["two", "two and two", "three"],
)
def test_only_failures_in_a_row_count(
    monkeypatch: pytest.MonkeyPatch, failing: tuple[bool, ...], deaf: bool
) -> None:
    heard: list[bool] = []
    answers = Answers(*failing)

    def verify(peer: DicomPeer) -> None:
        heard.append(is_deaf(watching))
        answers(peer)

    monkeypatch.setattr(DicomPeer, "verify", verify)
    watching = Watchdog(TITLE)
    watching.start(1)
    assert answers.all_asked.wait(PATIENCE)
    watching.stop()
    assert any(heard) is deaf


def test_it_stops_though_it_was_never_started() -> None:
    watching = Watchdog(TITLE)
    watching.check()
    watching.stop()


def test_stopping_does_not_wait_for_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "EVERY_SECONDS", 3600)
    watching = Watchdog(TITLE)
    watching.start(1)
    watching.stop()
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]
