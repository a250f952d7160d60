"""Hostile files, sent as raw as they are: an answer each time, and the node goes on as before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dicom_node import scu, studies
from tests.acceptance import raw
from tests.acceptance.running_node import MODALITY, PARTS, RunningNode

GROWTH = 200 * 2**20  # bytes

# Our own sender is warned of what it sends.
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore:Invalid value for VR UI")]


@pytest.fixture(scope="module")
def hostile_files(shared_data: Path) -> list[Path]:
    """All of them."""
    files = sorted((shared_data / "hostile").iterdir())
    assert len(files) >= 40
    return files


@pytest.fixture(scope="module")
def processes(node: RunningNode) -> dict[str, int]:
    """Who runs before anything hostile comes."""
    return {part: node.process(part).pid for part in PARTS}


@pytest.fixture(scope="module")
def growths() -> list[int]:
    """By how many bytes the serving process grew; written by ``answers``."""
    return []


@pytest.fixture(scope="module")
def answers(
    node: RunningNode, processes: dict[str, int], hostile_files: list[Path], growths: list[int]
) -> dict[str, int | None]:
    """File name -> status, ``None`` for an abort; the node answers C-ECHO after each."""
    serving = node.process("serve")
    before = serving.memory_info().rss
    statuses = {}
    for file in hostile_files:
        statuses[file.name] = raw.send(file, node.settings.node.port)
        scu.echo(node.peer, MODALITY)
        growths.append(serving.memory_info().rss - before)
    return statuses


def test_every_hostile_file_gets_a_status_or_an_abort(
    answers: dict[str, int | None],
    node: RunningNode,
    hostile_files: list[Path],
    say: Callable[[str], None],
) -> None:
    assert answers.keys() == {file.name for file in hostile_files}
    counted = Counter("abort" if one is None else f"0x{one:04X}" for one in answers.values())
    say(f"hostile: {len(answers)} files, {dict(counted)}")
    # PS3.4 B.2.3; never 0x0110, which would be a bug of ours.
    assert set(counted) <= {"0x0000", "0xA900", "0xC000", "abort"}
    echo = node.cli("echo", f"DICOMNODE@127.0.0.1:{node.settings.node.port}", check=False)
    # The command calls with the node's own title, which is no source: rejected, but answered.
    assert "calling AE title is not recognised" in echo.stderr


def test_the_serving_process_stays_small(
    answers: dict[str, int | None], growths: list[int], say: Callable[[str], None]
) -> None:
    say(f"hostile: grew by at most {max(growths) / 2**20:.0f} MiB")
    assert len(growths) == len(answers)
    assert max(growths) < GROWTH


def test_every_hostile_study_ends_with_a_reason_and_no_process_dies(
    answers: dict[str, int | None],
    node: RunningNode,
    processes: dict[str, int],
    hostile_files: list[Path],
    say: Callable[[str], None],
) -> None:
    sent = {raw.claim_of(file).study_instance_uid for file in hostile_files}
    with node.database.transaction() as connection:
        received = studies.newest(connection, state=None, limit=1000)
    stored = [one for one in received if one.study_instance_uid in sent]
    assert stored
    ends: Counter[str] = Counter()
    for found in node.wait_ended(*(one.study_instance_uid for one in stored)):
        job = found["jobs"][-1]
        assert job["choice"] or job["reason"], found
        assert job["reason"] is None or "bug" not in job["reason"], found
        ends[job["state"]] += 1
    say(f"hostile: {len(stored)} studies ended, {dict(ends)}")
    assert {part: node.process(part).pid for part in PARTS} == processes
    node.wait_healthy()
