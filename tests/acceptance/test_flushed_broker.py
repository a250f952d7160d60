"""The broker loses everything while jobs wait: the sweep finds them again."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import redis

from dicom_node import scu
from dicom_node.embedded import Valkey
from tests.acceptance import phantoms
from tests.acceptance.running_node import (
    MODALITY,
    START_SECONDS,
    STUDY_SECONDS,
    SWEEP_SECONDS,
    RunningNode,
    wait_for,
)

pytestmark = pytest.mark.alone

STUDIES = 4
TICK_SECONDS = 1


def test_waiting_jobs_run_within_the_sweep_time_after_the_broker_is_flushed(
    node: RunningNode, tmp_path: Path, say: Callable[[str], None]
) -> None:
    sent = [
        one
        for index in range(30_000, 30_000 + STUDIES)
        for one in phantoms.make(tmp_path, index, phantoms.drawn(index))
    ]
    worker = node.process("gpu worker")
    worker.suspend()  # jobs are queued and nudged, and nobody takes them
    try:
        outcomes = scu.send_files([one.path for one in sent], node.peer, MODALITY)
        assert [one.failure for one in outcomes if one.failure] == []
        wait_for("jobs wait", START_SECONDS, lambda: _waiting(node) == STUDIES or None)
        with redis.Redis(unix_socket_path=str(Valkey(node.data).socket)) as broker:
            wait_for("nudges wait", START_SECONDS, lambda: broker.llen("gpu") or None)
            broker.flushall()
            assert broker.dbsize() == 0
    finally:
        worker.resume()
    resumed = time.time()
    accounts = node.wait_ended(*(one.study_instance_uid for one in sent))
    waits = sorted(_claimed(found) - resumed for found in accounts)
    say(f"{STUDIES} waiting jobs claimed {', '.join(f'{one:.1f}' for one in waits)} s after")
    # One nudge may lie in the stopped worker's socket already, so the second job is looked at: it
    # waits for the sweep, a tick, and for one report to be read.
    assert waits[1] <= SWEEP_SECONDS + 2 * TICK_SECONDS + STUDY_SECONDS
    assert [found["jobs"][0]["state"] for found in accounts] == ["drafted"] * STUDIES
    assert node.json("status")["jobs"].keys().isdisjoint({"queued", "running"})


def _waiting(node: RunningNode) -> int:
    return int(node.status()["jobs"].get("queued", 0))


def _claimed(found: dict[str, Any]) -> float:
    """When the study's job was taken, in seconds since the epoch."""
    at = next(event["at"] for event in found["events"] if event["to"] == "running")
    return datetime.fromisoformat(at).timestamp()
