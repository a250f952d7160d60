"""10,000 associations, each of which stores one small object: nothing grows, nothing slows down.

    python -m pytest --slow tests/integration/test_many_associations.py

It prints a table for the docs. The bounds are wide: they are crossed by what grows with the number
of associations, not by a busy machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import sqlalchemy as sa

from dicom_node import db
from tests.conftest import Server
from tests.integration.adversary import (
    HOSTILE,
    Connection,
    Figures,
    Service,
    data_set,
    message,
    serving,
    store_rq,
)

pytestmark = pytest.mark.alone

BLOCK = 1000
SIZE = 50_000  #: bytes of an object
#: From the first block to the last, while the table grows to all of it.
GROWTH = 32 << 20  #: bytes of resident memory
SLOWER = 3.0  #: times the median latency; neighbours on the machine make half of that


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A thousand associations."""

    latencies: list[float]  #: seconds, from connecting to the released association
    figures: Figures  #: at their end

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.latencies)

    @property
    def slowest(self) -> float:
        """Seconds that 99 of 100 stay below."""
        return statistics.quantiles(self.latencies, n=100)[-1]


@pytest.fixture
def service(
    server: Server, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A node with the product's own deadlines."""
    url = server.create(template=template)
    with serving(tmp_path_factory.mktemp("many"), url, None) as started:
        yield started
    server.drop(url)


def store_one(service: Service, number: int) -> float:
    """Seconds for an association that stores one object."""
    name = f"2.25.70{number}"
    study = f"2.25.71{number // 4}"
    began = time.monotonic()
    with Connection(service.port, HOSTILE) as connection:
        connection.associate()
        connection.send(*message(3, store_rq(name), data_set(name, study, SIZE), 16000))
        assert connection.status() == 0x0000
        connection.release()
    return time.monotonic() - began


def table(blocks: list[Block]) -> str:
    """For the docs."""
    lines = [
        "| associations | RSS, MiB | threads | handles | median, ms | 99 %, ms |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for number, block in enumerate(blocks, 1):
        held = block.figures
        lines.append(
            f"| {number * BLOCK:,} | {held.resident / 2**20:.0f} | {held.threads}"
            f" | {held.handles} | {block.median * 1e3:.1f} | {block.slowest * 1e3:.1f} |"
        )
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_associations_leave_the_node_as_it_was(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = []
    for first in range(0, 10 * BLOCK, BLOCK):
        latencies = [store_one(service, number) for number in range(first, first + BLOCK)]
        blocks.append(Block(latencies=latencies, figures=service.figures()))
        with capsys.disabled():
            print(f"\n    {first + BLOCK} associations", end="", flush=True)
    with capsys.disabled():
        print(f"\n{table(blocks)}")
    first_block, last = blocks[0], blocks[-1]
    assert last.figures.resident - first_block.figures.resident < GROWTH
    assert last.figures.threads <= first_block.figures.threads + 2
    assert last.figures.handles <= first_block.figures.handles + 4
    assert last.median < SLOWER * first_block.median
    with service.database.transaction() as connection:
        kept = connection.scalar(sa.select(sa.func.count()).select_from(db.instance))
    assert kept == 10 * BLOCK
    assert service.complaints() == []
