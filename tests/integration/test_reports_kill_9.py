"""``kill -9`` of whoever takes HL7 messages: what was acknowledged is here, and here once."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dicom_node.db import Database
from dicom_node.reports import store
from dicom_node.reports.store import Report
from tests.conftest import PATIENCE
from tests.dicom_node.reports.test_intake import message
from tests.dicom_node.reports.test_mllp_listener import answer, framed

pytestmark = pytest.mark.alone

ROUNDS = 4
#: Messages that one life of the listener acknowledges before it is killed.
ACKNOWLEDGED = 12

LISTENER = """
import sys, threading
from pathlib import Path
from dicom_node.db import Database
from dicom_node.reports import intake
from dicom_node.reports.mllp_listener import MllpListener
from dicom_node.storage import Storage

database, storage = Database(sys.argv[1]), Storage(Path(sys.argv[2]))
listener = MllpListener(
    ("127.0.0.1", 0),
    lambda raw: intake.take_message(database, storage, raw),
    lambda address: True,
    lambda *refusal: None,
)
listener.start()
print(listener.port, flush=True)
threading.Event().wait()
"""


@contextmanager
def listening(url: str, data: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that takes messages, and its port; killed in the end."""
    command = [sys.executable, "-c", LISTENER, url, str(data)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def send(port: int, ids: list[str], acknowledged: list[str], enough: threading.Event) -> None:
    """Send until the connection breaks; ``enough`` is set when there are plenty of answers."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        for number, control_id in enumerate(ids, 1):
            try:
                connection.sendall(framed(message(control_id=control_id)))
                reply = answer(connection)
            except OSError:
                return
            if f"MSA|AA|{control_id}".encode() not in reply:
                return
            acknowledged.append(control_id)
            if number >= ACKNOWLEDGED:
                enough.set()


def kept(database: Database) -> list[Report]:
    with database.transaction() as connection:
        return store.newest(connection, state=None, limit=10_000)


def test_what_was_acknowledged_survives_and_what_is_sent_again_is_one_row(
    fresh_database_url: str, tmp_path: Path
) -> None:
    data, acknowledged = tmp_path / "data", list[str]()
    for life in range(ROUNDS):
        enough = threading.Event()
        # Each begins with what the one before it may have got no answer to.
        first = max(0, life * 20 - 10)
        ids = [f"M{number}" for number in range(first, first + 400)]
        with listening(fresh_database_url, data) as (process, port):
            sender = threading.Thread(target=send, args=(port, ids, acknowledged, enough))
            sender.start()
            assert enough.wait(PATIENCE)
            process.kill()
            sender.join(PATIENCE)
    database = Database(fresh_database_url)
    try:
        rows = kept(database)
    finally:
        database.dispose()
    times = Counter(one.source_uid for one in rows)
    assert len(acknowledged) >= ROUNDS * ACKNOWLEDGED
    assert set(acknowledged) <= set(times)
    assert set(times.values()) == {1}
    files = {one.read_bytes() for one in (data / "reports").rglob("*.hl7")}
    assert {message(control_id=control_id) for control_id in acknowledged} <= files
