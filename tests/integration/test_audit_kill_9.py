"""``kill -9`` of a node while its audit collector is away: everything is told, in order."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from dicom_node import db, scu
from dicom_node.db import Database
from dicom_node.errors import PeerError
from tests.acceptance.receiving import Receiver, receiver
from tests.acceptance.running_node import MODALITY, START_SECONDS, wait_for
from tests.dicom_node.audit import judge
from tests.dicom_node.audit.collectors import TlsServer
from tests.dicom_node.certificates import Authority
from tests.dicom_node.network import CONTEXT, association, encoded, header, send_raw

pytestmark = [
    pytest.mark.alone,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

ACTIVITY, STUDY, ALERT = "110100", "110104", "110113"


@pytest.fixture
def collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TlsServer]:
    """A collector by TLS, which the processes of this test are told of."""
    authority = Authority(tmp_path / "hospital")
    theirs = authority.issue()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(theirs.certificate, theirs.private_key)
    made = TlsServer(context)
    made.start()
    ours = authority.issue()
    for key, value in {
        "AUDIT__URL": made.url,
        "TLS__CERTIFICATE": ours.certificate,
        "TLS__PRIVATE_KEY": ours.private_key,
        "TLS__AUTHORITIES": authority.certificate,
        "STUDY__QUIET_SECONDS": "1",
        "LISTENER__PROCESSES": "1",
    }.items():
        monkeypatch.setenv(f"DICOM_NODE_{key}", str(value))
    yield made
    made.stop()


@pytest.fixture
def spool(fresh_database_url: str) -> Iterator[Database]:
    """The node's database."""
    opened = Database(fresh_database_url)
    yield opened
    opened.dispose()


def waiting(spool: Database) -> list[tuple[str, str]]:
    with spool.transaction() as connection:
        texts = connection.scalars(
            sa.select(db.audit_message.c.message).order_by(db.audit_message.c.id)
        ).all()
    return [fact(one) for one in texts]


def fact(message: str) -> tuple[str, str]:
    """What happened, and to whom."""
    root = judge.judged(message)
    subject = root.find("ParticipantObjectIdentification")
    return judge.event(root), "" if subject is None else subject.attrib["ParticipantObjectID"]


def send(node: Receiver, study: str) -> None:
    data_set = header(
        StudyInstanceUID=study, SeriesInstanceUID=f"{study}.1", SOPInstanceUID=f"{study}.1.1"
    )
    with association(node.peer.port, calling=MODALITY) as opened:
        status = send_raw(
            opened, encoded(data_set), sop_class_uid=CONTEXT[0], sop_instance_uid=f"{study}.1.1"
        )
    assert status == 0


def test_a_node_that_is_killed_while_its_collector_is_away_tells_all_of_it(
    collector: TlsServer, spool: Database, fresh_database_url: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"

    def until(what: str, expected: tuple[str, str]) -> None:
        wait_for(what, START_SECONDS, lambda: expected in waiting(spool) or None)

    with receiver(tmp_path, data, fresh_database_url) as node:
        send(node, "1.2.1")
        assert len(collector.collected.wait(2, START_SECONDS)) == 2
        wait_for("the spool is empty", START_SECONDS, lambda: not waiting(spool) or None)
        collector.stop()
        send(node, "1.2.2")
        until("the second study is told of", (STUDY, "1.2.2"))
        with pytest.raises(PeerError):
            scu.echo(node.peer, "STRANGER")
        until("the stranger is told of", (ALERT, "127.0.0.1"))
        kill(node)
    with receiver(tmp_path, data, fresh_database_url) as node:
        send(node, "1.2.3")
        until("the third study is told of", (STUDY, "1.2.3"))
        collector.start()
        wait_for("the spool is empty", START_SECONDS, lambda: not waiting(spool) or None)
    assert len(collector.collected.wait(7, START_SECONDS)) >= 7  # the end is told of too
    told = [fact(one) for one in dict.fromkeys(collector.collected.messages)]
    assert told == [
        (ACTIVITY, ""),
        (STUDY, "1.2.1"),
        (STUDY, "1.2.2"),
        (ALERT, "127.0.0.1"),
        (ACTIVITY, ""),
        (STUDY, "1.2.3"),
        (ACTIVITY, ""),
    ]


def kill(node: Receiver) -> None:
    """``kill -9`` the process that listens on the node's port."""
    (process,) = {
        one.pid
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr.port == node.peer.port
    }
    assert process is not None
    os.kill(process, signal.SIGKILL)
    wait_for("it is dead", START_SECONDS, lambda: not _listens(node.peer.port) or None)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
