"""Where the node tells the auditor: at start and end, of what came, of who was turned away."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
import sqlalchemy as sa
from pydicom import Dataset, dcmread
from sqlalchemy import func

from dicom_node import db, queries, reconciliation, status
from dicom_node.associations import Reason, Refused
from dicom_node.audit import spool
from dicom_node.audit.syslog import UdpCollector
from dicom_node.config import Audit, Reconciliation, Settings
from dicom_node.db import Database
from dicom_node.node import Node
from dicom_node.worklist import Worklists
from tests.conftest import PATIENCE, StoredInstanceFactory
from tests.dicom_node.audit import judge
from tests.dicom_node.audit.collectors import UdpServer
from tests.dicom_node.test_node import Workers, arrive, node_of, receiver_of
from tests.dicom_node.test_worklist import FIND, TODAY, Ris
from tests.query_pacs import QueryPacs

CALL = Refused(
    calling_ae_title="EVIL",
    called_ae_title="DICOMNODE",
    address="10.0.0.9",
    reason=Reason.UNKNOWN_TITLE,
)


@pytest.fixture
def udp() -> Iterator[UdpServer]:
    server = UdpServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def node(database: Database, tmp_path: Path, udp: UdpServer) -> Node:
    """A node with a collector, that only ticks."""
    made = node_of(database, tmp_path, Workers())
    return replace(made, settings=audited(made.settings, udp.url))


def audited(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"audit": Audit(url=url)})


def told(database: Database) -> Sequence[Element]:
    with database.transaction() as connection:
        found = spool.oldest(connection, limit=99, longest=None)
    return [judge.judged(one.message) for one in found]


def test_a_study_that_settles_is_told_of(
    node: Node, stored_instance: StoredInstanceFactory
) -> None:
    arrive(node, stored_instance(calling_ae_title="CR1"))
    node.tick()
    node.tick()
    (root,) = told(node.database)
    assert judge.player(root, "110153").attrib["UserID"] == "CR1"


def test_a_study_that_settles_without_a_collector_is_not(
    node: Node, stored_instance: StoredInstanceFactory
) -> None:
    arrive(node, stored_instance())
    replace(node, settings=audited(node.settings, "")).tick()
    assert told(node.database) == []


def test_a_stranger_at_the_dicom_port_is_told_of_once_an_hour(node: Node) -> None:
    receiver = receiver_of(node)
    try:
        for _ in range(3):
            receiver.refused(CALL)
            receiver.tick()
    finally:
        receiver.stop()
    (root,) = told(node.database)
    assert judge.event(root) == "110113"
    assert judge.participants(root)[1].attrib["UserID"] == "EVIL"


def test_a_stranger_at_the_hl7_port_is_told_of(node: Node) -> None:
    node._hl7_refused("LAB", "10.0.0.9", "no peer")
    (root,) = told(node.database)
    assert judge.participants(root)[1].attrib["UserID"] == "LAB"


def test_a_served_node_tells_that_it_starts_and_that_it_ends(node: Node, udp: UdpServer) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=node.serve, args=(stop,))
    thread.start()
    try:
        assert len(udp.collected.wait(1, PATIENCE)) == 1
    finally:
        stop.set()
        thread.join()
    assert len(udp.collected.wait(2, PATIENCE)) == 2
    assert told(node.database) == []


# -- what we ask -----------------------------------------------------------------------------------


def questions(database: Database) -> list[tuple[str, Dataset]]:
    """SOP class and identifier of each query that was told of."""
    found = []
    for root in told(database):
        assert judge.event(root) == "110112"
        (subject,) = root.iter("ParticipantObjectIdentification")
        query = base64.b64decode(subject.findtext("ParticipantObjectQuery") or "")
        found.append((subject.attrib["ParticipantObjectID"], dcmread(BytesIO(query), force=True)))
    return found


def test_each_worklist_query_is_told_of(database: Database, udp: UdpServer) -> None:
    settings = audited(Settings(), udp.url)
    ris = Ris()
    try:
        Worklists(settings, database, lambda: TODAY).ask(ris.peer)
    finally:
        ris.server.shutdown()
    assert questions(database) == [(FIND, asked) for asked in ris.asked]


def test_each_query_of_a_reconciliation_is_told_of(database: Database, udp: UdpServer) -> None:
    with QueryPacs() as pacs:
        settings = audited(
            Settings(peers=(pacs.peer(),), reconciliation=Reconciliation(days=0)), udp.url
        )
        reconciliation.Sweep(database, settings)()
    asked = questions(database)
    assert {sop_class for sop_class, _ in asked} == {queries.FIND}
    assert [one.ModalitiesInStudy for _, one in asked] == ["CR", "DX"]  # tomorrow's


# -- what `status` says ----------------------------------------------------------------------------


def keep(database: Database, message: str, *, minutes: int) -> None:
    with database.transaction() as connection:
        at = func.now() - timedelta(minutes=minutes)
        connection.execute(sa.insert(db.audit_message).values(message=message, at=at))


def warnings(database: Database, url: str) -> list[status.Problem]:
    found = status.snapshot(database, audited(Settings(), url))
    return [one for one in found.warnings if one.code == "audit"]


def test_messages_that_wait_for_long_are_a_warning(database: Database) -> None:
    assert warnings(database, "udp://collector:514") == []
    keep(database, "new", minutes=0)
    assert warnings(database, "udp://collector:514") == []
    keep(database, "old", minutes=2)
    (warning,) = warnings(database, "udp://collector:514")
    assert warning.text.startswith("2 audit messages wait since ")
    assert "udp://collector:514" in warning.fix


def test_messages_that_wait_for_a_collector_that_was_taken_away_are_one_too(
    database: Database,
) -> None:
    keep(database, "old", minutes=2)
    (warning,) = warnings(database, "")
    assert "set [audit] url again" in warning.fix


def test_a_message_that_is_too_long_for_udp_is_one(database: Database) -> None:
    assert UdpCollector.longest is not None
    keep(database, "x" * (UdpCollector.longest + 1), minutes=0)
    (warning,) = warnings(database, "udp://collector:514")
    assert warning.text == "1 audit messages are too long for a UDP datagram and wait"
    assert warnings(database, "tls://collector:6514") == []


def test_the_document_says_how_many_wait_and_since_when(database: Database) -> None:
    empty = status.to_json(status.snapshot(database, Settings()))["audit"]
    assert empty == {"waiting": 0, "since": None}
    keep(database, "new", minutes=0)
    found = status.to_json(status.snapshot(database, Settings()))["audit"]
    assert found["waiting"] == 1
    assert found["since"]
