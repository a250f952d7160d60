"""``kill -9`` of each part, at random moments, while studies are under way.

Whatever was acknowledged is on disk byte for byte, and every study ends with exactly one draft,
delivered once. A part that dies under ``run`` is started again by it; where ``run`` itself dies, an
administrator starts it again at once.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dicom_node import scu
from tests.acceptance import phantoms
from tests.acceptance.phantoms import Sent
from tests.acceptance.running_node import (
    MODALITY,
    PARTS,
    START_SECONDS,
    RunningNode,
    wait_for,
)
from tests.pacs import Pacs

VICTIMS = (*PARTS, "run", "everything")
PATIENCE = scu.Timeouts(connect=2, associate=5, answer=30, network=30)
#: Seconds between two studies: as fast as they are read, so that receiving, reading and sending go
#: on side by side and a kill meets them all.
PACE = 0.4
JITTER = 0.5  # seconds
#: Seconds that the C-STORE of a study takes.
TRANSFER = 0.1

pytestmark = [pytest.mark.alone, pytest.mark.timeout(3600)]


class Modality(threading.Thread):
    """Sends studies one after the other; what was not acknowledged is sent again."""

    def __init__(self, node: RunningNode, studies: Sequence[list[Sent]]) -> None:
        super().__init__(name="modality", daemon=True)
        self.acknowledged: list[Sent] = []
        self.refusals: Counter[str] = Counter()
        self._peer = node.peer
        self._studies = studies
        self._sending = threading.Event()

    def run(self) -> None:
        """Send all."""
        for study in self._studies:
            time.sleep(PACE)
            waiting = {one.path: one for one in study}
            deadline = time.monotonic() + START_SECONDS
            while waiting and time.monotonic() < deadline:
                self._send(waiting)

    def wait_somewhere(self) -> None:
        """Wait for a random moment, every second time one within a transfer."""
        if random.random() < 0.5 and self._sending.wait(2 * PACE):
            time.sleep(random.uniform(0, TRANSFER))
        else:
            time.sleep(random.uniform(0, JITTER))

    def _send(self, waiting: dict[Path, Sent]) -> None:
        self._sending.set()
        for outcome in scu.send_files(list(waiting), self._peer, MODALITY, timeouts=PATIENCE):
            if outcome.failure is None:
                self.acknowledged.append(waiting.pop(outcome.path))
            else:
                self.refusals[outcome.failure] += 1
        self._sending.clear()
        if waiting:
            time.sleep(0.5)


@pytest.fixture
def studies(request: pytest.FixtureRequest, full: bool, tmp_path: Path) -> list[list[Sent]]:
    """30 studies, in the short form 6; every third has a lateral view too. No two tests share any.

    A lateral may come after the frontal was read: a new revision, for which the draft stands.
    """
    count = 30 if full else 6
    first = 10_000 + 100 * VICTIMS.index(request.node.callspec.params["victim"])
    return [
        phantoms.make(
            tmp_path,
            index,
            phantoms.drawn(index),
            views=("PA", "LL") if index % 3 == 0 else ("PA",),
        )
        for index in range(first, first + count)
    ]


@pytest.mark.parametrize("victim", VICTIMS)
def test_nothing_acknowledged_is_lost_and_no_study_drafted_twice_by_kill_9_of(
    victim: str,
    node: RunningNode,
    pacs: Pacs,
    studies: list[list[Sent]],
    full: bool,
    say: Callable[[str], None],
) -> None:
    node.wait_healthy()
    before = len(pacs.received)
    modality = Modality(node, studies)
    sent = [one for study in studies for one in study]
    # Progress is what left the modality and what reached the PACS, so that kills fall on all steps.
    everything = len(sent) + len(studies)
    moments = sorted(random.sample(range(1, everything - 1), 3 if full else 1))

    def progress() -> int:
        return len(modality.acknowledged) + len(pacs.received) - before

    started = time.monotonic()
    modality.start()
    for moment in moments:
        wait_for(
            f"step {moment} of {everything}",
            START_SECONDS,
            lambda moment=moment: progress() >= moment or None,  # type: ignore[misc]
        )
        modality.wait_somewhere()
        node.kill(victim)
    modality.join(START_SECONDS)
    assert len(modality.acknowledged) == len(sent), modality.refusals

    accounts = node.wait_ended(*(study[0].study_instance_uid for study in studies))
    node.wait_healthy()
    seconds = time.monotonic() - started
    say(
        f"{victim}: killed at steps {moments} of {everything}, {len(studies)} studies in"
        f" {seconds:.0f} s, {modality.refusals.total()} sendings refused"
    )
    for study, found in zip(studies, accounts, strict=True):
        _assert_kept(node, study, found)
        _assert_drafted_once(node, found)
    _assert_delivered_once(pacs, studies)


def _assert_kept(node: RunningNode, study: Sequence[Sent], found: dict[str, Any]) -> None:
    instances = {one["sop_instance_uid"]: one for one in found["instances"]}
    assert set(instances) == {one.sop_instance_uid for one in study}
    for one in study:
        row = instances[one.sop_instance_uid]
        file = node.data / row["path"]
        assert row["revision"] == 1  # sent again, but never with other bytes
        assert hashlib.sha256(file.read_bytes()).hexdigest() == row["sha256"]
        assert phantoms.data_set_of(file) == one.data_set


def _assert_drafted_once(node: RunningNode, found: dict[str, Any]) -> None:
    assert [one["state"] for one in found["jobs"]] == ["drafted"] * len(found["jobs"]), found
    (draft,) = found["drafts"]
    assert [one["state"] for one in draft["deliveries"]] == ["delivered"], found
    file = node.data / draft["path"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == draft["sha256"]


def _assert_delivered_once(pacs: Pacs, studies: Sequence[list[Sent]]) -> None:
    """The same object may come twice; another object of the same study may not."""
    held = Counter(
        str(phantoms.parsed(data_set).StudyInstanceUID) for data_set in pacs.received.values()
    )
    expected = {study[0].study_instance_uid for study in studies}
    assert {uid: held[uid] for uid in expected} == dict.fromkeys(expected, 1)
