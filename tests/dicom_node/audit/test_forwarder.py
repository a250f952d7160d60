"""From the spool to the collector: all of it, in order, whoever is away in between."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import pytest

from dicom_node.audit import forwarder, spool
from dicom_node.audit.auditor import Auditor
from dicom_node.audit.forwarder import Forwarder, forward
from dicom_node.audit.spool import Waiting
from dicom_node.config import Audit, Settings
from dicom_node.db import Database
from dicom_node.errors import OutOfResources, PeerError
from tests.conftest import PATIENCE
from tests.dicom_node.audit import judge
from tests.dicom_node.audit.collectors import UdpServer
from tests.dicom_node.audit.test_spool import keep, waiting


class Memory:
    """A collector that remembers, and is away when it is told to be."""

    longest: int | None = None

    def __init__(self) -> None:
        self.got: list[str] = []
        self.away = False
        self.lets_through = 10**6  #: messages, then it breaks down

    def deliver(self, batch: Sequence[Waiting]) -> None:
        texts = [one.message for one in batch]
        self.got += texts[: self.lets_through]
        if self.away or len(texts) > self.lets_through:
            raise PeerError("the audit collector is away")


@pytest.fixture
def udp() -> Iterator[UdpServer]:
    server = UdpServer()
    server.start()
    yield server
    server.stop()


def test_what_waits_is_sent_in_order_and_removed(database: Database) -> None:
    texts = [f"m{number}" for number in range(forwarder._BATCH * 2 + 1)]
    keep(database, *texts)
    collector = Memory()
    assert forward(database, collector) == len(texts)
    assert collector.got == texts
    assert waiting(database) == []


def test_while_the_collector_is_away_everything_stays(database: Database) -> None:
    keep(database, "a", "b")
    collector = Memory()
    collector.away = True
    with pytest.raises(PeerError):
        forward(database, collector)
    assert waiting(database) == ["a", "b"]


def test_a_batch_that_broke_off_is_sent_again_whole(database: Database) -> None:
    keep(database, "a", "b", "c")
    collector = Memory()
    collector.lets_through = 1
    with pytest.raises(PeerError):
        forward(database, collector)
    collector.lets_through = 9
    forward(database, collector)
    assert collector.got == ["a", "a", "b", "c"]  # twice, but never not at all


def running(udp: UdpServer, database: Database) -> Forwarder:
    settings = Settings(audit=Audit(url=udp.url))
    return Forwarder(settings, database, Auditor(settings, "node@host:7"))


def test_start_and_stop_of_the_node_reach_the_collector(udp: UdpServer, database: Database) -> None:
    node = running(udp, database)
    node.start()
    assert len(udp.collected.wait(1, PATIENCE)) == 1
    node.stop()
    found = [judge.judged(one) for one in udp.collected.wait(2, PATIENCE)]
    types = [one.find("EventIdentification/EventTypeCode") for one in found]
    assert [one.attrib["originalText"] for one in types if one is not None] == [
        "Application Start",
        "Application Stop",
    ]
    assert waiting(database) == []


def test_a_collector_that_is_away_is_left_alone_for_longer_and_longer(
    udp: UdpServer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(forwarder.time, "monotonic", lambda: now)
    udp.stop()
    node = running(udp, database)
    tried = []
    for second in range(300):
        now = 100.0 + second
        try:
            node.round()
        except PeerError:
            tried.append(second)
    assert tried == [0, 2, 6, 14, 30, 62, 122, 182, 242]
    udp.start()
    now = 1000.0
    node.round()
    assert len(udp.collected.wait(1, PATIENCE)) == 1


def test_the_start_is_told_as_soon_as_the_database_is_there(
    udp: UdpServer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = running(udp, database)
    with monkeypatch.context() as away:
        away.setattr(node, "_database", Database("postgresql+psycopg://127.0.0.1:1/x"))
        with pytest.raises(OutOfResources):
            node.round()
    node.round()
    node.round()
    assert len(udp.collected.wait(1, PATIENCE)) == 1
    with database.transaction() as connection:
        assert spool.oldest(connection, limit=9, longest=None) == []


def test_a_collector_that_goes_away_before_the_end_is_one_line(
    udp: UdpServer, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    node = running(udp, database)
    node.round()
    udp.stop()
    with caplog.at_level(logging.WARNING):
        node.stop()
    assert "audit messages wait for the next start" in caplog.text
    assert len(waiting(database)) == 1
