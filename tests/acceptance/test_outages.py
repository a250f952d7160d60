"""A full disk and a stopped Postgres under load: senders may try again, and nothing is missing.

Nobody restarts anything: once there is space or a database again, instances are taken again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dicom_node import db, scu
from dicom_node.db import Database
from dicom_node.embedded import Postgres
from dicom_node.supervisor import Supervisor
from tests.acceptance.receiving import (
    Load,
    Receiver,
    assert_kept,
    assert_only_retryable,
    fill,
    receiver,
    small_volume,
    suspended,
)
from tests.acceptance.running_node import (
    MODALITY,
    PARTS,
    START_SECONDS,
    RunningNode,
    wait_for,
)
from tests.ports import free_port

pytestmark = [pytest.mark.alone, pytest.mark.timeout(1800)]

INSTANCE = 200_000  # bytes
#: MiB; what there is, and what somebody else's file leaves of it: a little more than a node must
#: have to take anything (disk.FLOOR_BYTES).
VOLUME, LEFT = 256, 80
WHOLE_VOLUME = 512  # MiB; Postgres and Valkey are on it too
OUTAGE_FULL, OUTAGE_SHORT = 60.0, 10.0  # seconds


@contextmanager
def _mounted(folder: Path, megabytes: int) -> Iterator[Path]:
    """A small volume; without the right to mount one the test is skipped."""
    try:
        with small_volume(folder, megabytes=megabytes) as mounted:
            yield mounted
    except PermissionError as error:
        pytest.skip(f"no volume can be made to fill: {error}")


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A small volume of this test alone."""
    with _mounted(tmp_path / "volume", VOLUME) as mounted:
        yield mounted


def test_a_disk_that_senders_fill_is_refused_and_recovers_once_there_is_space(
    volume: Path, fresh_database_url: str, tmp_path: Path, say: Callable[[str], None]
) -> None:
    fill(volume / "ballast", leave=LEFT * 2**20)
    with (
        receiver(tmp_path, volume / "data", fresh_database_url) as started,
        Load(started.peer.port, size=INSTANCE) as load,
    ):
        load.wait_acknowledged(20)
        _assert_recovers(started, load, volume / "ballast")
    say(f"filled by senders: {dict(load.answers)}")
    assert_only_retryable(load.answers)
    _assert_kept(load, started.data, fresh_database_url)


def test_a_disk_that_others_fill_to_the_last_byte_is_refused_and_recovers(
    volume: Path, fresh_database_url: str, tmp_path: Path, say: Callable[[str], None]
) -> None:
    with (
        receiver(tmp_path, volume / "data", fresh_database_url) as started,
        Load(started.peer.port, size=INSTANCE) as load,
    ):
        load.wait_acknowledged(20)
        fill(volume / "ballast")
        _assert_recovers(started, load, volume / "ballast")
    say(f"filled by others: {dict(load.answers)}")
    assert_only_retryable(load.answers)
    _assert_kept(load, started.data, fresh_database_url)


def _assert_recovers(started: Receiver, load: Load, ballast: Path) -> None:
    """While the disk is full C-ECHO is answered; without the ballast all goes on."""
    load.wait_refused(20)
    scu.echo(started.peer, MODALITY)
    ballast.unlink()
    load.wait_acknowledged(20)
    assert started.runs


@pytest.mark.slow
def test_a_whole_node_recovers_when_its_postgres_had_no_space_either(
    tmp_path: Path, say: Callable[[str], None]
) -> None:
    with _mounted(tmp_path / "volume", WHOLE_VOLUME) as volume:
        node = RunningNode(volume, pacs_title="PACS", pacs_port=free_port())
        node.start()
        try:
            _wait_up(node)
            _fill_and_free(node, volume, say)
        finally:
            code = node.stop()
    assert code == 0


def _fill_and_free(node: RunningNode, volume: Path, say: Callable[[str], None]) -> None:
    serving = node.process("serve").pid
    with Load(node.settings.node.port, size=INSTANCE) as load:
        load.wait_acknowledged(20)
        fill(volume / "ballast")
        load.wait_refused(20)
        time.sleep(OUTAGE_SHORT)
        scu.echo(node.peer, MODALITY)
        (volume / "ballast").unlink()
        freed = time.monotonic()
        load.wait_acknowledged(20)
    _wait_up(node)
    say(f"all well {time.monotonic() - freed:.0f} s after there was space: {dict(load.answers)}")
    assert node.process("serve").pid == serving
    assert_only_retryable(load.answers)
    assert_kept(load.acknowledged, node.data, node.database)


def _wait_up(node: RunningNode) -> None:
    """Until all runs and works, on a volume that a node always calls too small."""

    def up() -> bool | None:
        if any(node.find(part) is None for part in PARTS):
            return None
        faults = {one["code"] for one in node.status()["problems"]}
        return True if faults <= {"storage"} else None

    wait_for(f"all runs, see {node.home}", START_SECONDS, up)


def _assert_kept(load: Load, data: Path, database_url: str) -> None:
    database = Database(database_url)
    try:
        assert_kept(load.acknowledged, data, database)
    finally:
        database.dispose()


class OwnPostgres:
    """A Postgres of the test's own."""

    def __init__(self, folder: Path) -> None:
        self._postgres = Postgres(folder)
        self._folder = folder
        self._supervisor = Supervisor(log_directory=folder / "log")

    @property
    def url(self) -> str:
        """Where it is, before and after an outage."""
        return self._postgres.url

    def start(self) -> None:
        """Start it, for the first time or again."""
        self._supervisor.start(self._postgres)

    def stop(self) -> None:
        """Stop it as ``pg_ctl stop --mode fast`` does: whoever is connected is thrown out."""
        self._supervisor.stop()

    def process(self) -> psutil.Process:
        """The first of its processes."""
        first, *_ = (self._folder / "postgres" / "cluster" / "postmaster.pid").read_text().split()
        return psutil.Process(int(first))


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[OwnPostgres]:
    """A Postgres of this test alone, with the node's tables."""
    folder = tmp_path / "own"
    folder.mkdir()
    made = OwnPostgres(folder)
    try:
        made.start()
        db.upgrade(made.url)
        yield made
    finally:
        made.stop()


@pytest.fixture
def started(postgres: OwnPostgres, tmp_path: Path) -> Iterator[Receiver]:
    """A receiver that writes its rows there."""
    with receiver(tmp_path, tmp_path / "data", postgres.url) as made:
        yield made


@pytest.fixture
def outage(full: bool) -> float:
    """Seconds without a database."""
    return OUTAGE_FULL if full else OUTAGE_SHORT


def test_without_postgres_senders_are_refused_and_taken_again_once_it_is_back(
    postgres: OwnPostgres, started: Receiver, outage: float, say: Callable[[str], None]
) -> None:
    with Load(started.peer.port, size=INSTANCE) as load:
        load.wait_acknowledged(20)
        postgres.stop()
        time.sleep(outage)
        refused, before = load.refusals, len(load.acknowledged)
        scu.echo(started.peer, MODALITY)
        postgres.start()
        load.wait_acknowledged(20)
    assert started.runs
    say(f"no Postgres for {outage:.0f} s: {before} instances before, {dict(load.answers)} in all")
    assert refused > 0
    assert_only_retryable(load.answers)
    _assert_kept(load, started.data, postgres.url)


def test_a_postgres_that_hangs_costs_no_instance(
    postgres: OwnPostgres, started: Receiver, outage: float, say: Callable[[str], None]
) -> None:
    with Load(started.peer.port, size=INSTANCE) as load:
        load.wait_acknowledged(20)
        with suspended(postgres.process()):
            before = len(load.acknowledged)
            time.sleep(outage)
            scu.echo(started.peer, MODALITY)
        load.wait_acknowledged(20)
    assert started.runs
    say(f"hung for {outage:.0f} s: {before} instances before, {dict(load.answers)} in all,")
    say(f"and a sender waited for {load.longest:.0f} s at most")
    assert_only_retryable(load.answers)
    _assert_kept(load, started.data, postgres.url)
