"""A receiving process: what it acknowledges is durable, what it refuses is written down."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import func

from dicom_node import associations, db, receiver, studies
from dicom_node.associations import Reason, Refused
from dicom_node.config import Settings
from dicom_node.db import Database
from dicom_node.disk import Watermarks
from dicom_node.errors import OutOfResources
from dicom_node.receiver import Receiver
from dicom_node.storage import Storage
from dicom_node.tls import Material
from tests.conftest import Server
from tests.dicom_node.certificates import Authority
from tests.dicom_node.network import (
    DIGITAL_X_RAY,
    SOURCE,
    associate,
    association,
    encoded,
    header,
    send_raw,
    settings,
)

CALL = Refused(
    calling_ae_title="STRANGER",
    called_ae_title="US",
    address="10.0.0.9",
    reason=Reason.UNKNOWN_TITLE,
)


def receiver_of(database: Database, data: Path, configured: Settings | None = None) -> Receiver:
    configured = configured or settings(SOURCE)
    storage = Storage(data)
    return Receiver(configured, database, storage, Watermarks(data, configured.disk))


@contextmanager
def receiving(
    database: Database, data: Path, configured: Settings | None = None
) -> Iterator[Receiver]:
    """A receiver that listens."""
    started = receiver_of(database, data, configured)
    started.start()
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture
def idle(database: Database, tmp_path: Path) -> Iterator[Receiver]:
    """A receiver that does not listen."""
    made = receiver_of(database, tmp_path)
    yield made
    made.stop()


@pytest.fixture
def away(tmp_path: Path) -> Database:
    """A database that nobody answers for."""
    return Database(f"postgresql+psycopg://user@/name?host={tmp_path}")


def send(port: int, uid: str = "1.2.3.4", data_set: bytes | None = None) -> int | None:
    made = data_set or encoded(header(SOPInstanceUID=uid))
    with association(port) as opened:
        return send_raw(opened, made, sop_class_uid=DIGITAL_X_RAY, sop_instance_uid=uid)


# -- what is acknowledged --------------------------------------------------------------------------


def test_what_is_acknowledged_has_its_row_and_its_file(database: Database, tmp_path: Path) -> None:
    with receiving(database, tmp_path) as node:
        assert send(node.scp.port) == 0x0000
        with database.transaction() as connection:
            (kept,) = studies.instances(connection, "1.2.3")
            sender = sa.select(db.instance.c.calling_ae_title, db.instance.c.address)
            assert connection.execute(sender).one() == ("MODALITY", "127.0.0.1")
        content = (tmp_path / kept.path).read_bytes()
    assert content.endswith(encoded(header()))
    assert (kept.sha256, kept.size) == (hashlib.sha256(content).hexdigest(), len(content))
    assert list((tmp_path / "incoming").iterdir()) == []


def test_many_senders_at_a_time_are_all_kept(database: Database, tmp_path: Path) -> None:
    uids = [f"1.2.3.{number}" for number in range(40)]
    with receiving(database, tmp_path) as node, ThreadPoolExecutor(8) as pool:
        assert set(pool.map(partial(send, node.scp.port), uids)) == {0x0000}
        with database.transaction() as connection:
            kept = studies.instances(connection, "1.2.3")
    assert {one.sop_instance_uid for one in kept} == {*uids}
    assert all((tmp_path / one.path).is_file() for one in kept)


def test_the_same_object_again_is_one_row_and_one_file(database: Database, tmp_path: Path) -> None:
    with receiving(database, tmp_path) as node:
        assert [send(node.scp.port) for _ in range(3)] == [0x0000] * 3
    with database.transaction() as connection:
        assert connection.scalar(sa.select(func.count()).select_from(db.instance)) == 1
    assert len([*(tmp_path / "instances" / "1.2.3").iterdir()]) == 1


def test_a_connection_to_the_database_that_died_meanwhile_costs_nobody_an_object(
    database: Database, server: Server, tmp_path: Path
) -> None:
    with receiving(database, tmp_path) as node:
        assert send(node.scp.port, "1.2.3.1") == 0x0000
        name = database._engine.url.database
        server.execute(
            f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        assert send(node.scp.port, "1.2.3.2") == 0x0000


def test_a_database_that_is_away_is_out_of_resources_and_the_file_is_not_kept(
    away: Database, tmp_path: Path
) -> None:
    with receiving(away, tmp_path / "data") as node:
        assert send(node.scp.port) == 0xA700
    assert list((tmp_path / "data" / "incoming").iterdir()) == []


def test_a_full_disk_is_out_of_resources_and_no_row_is_written(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(storage: Storage, paths: object) -> None:
        raise OutOfResources("instances: No space left on device")

    with receiving(database, tmp_path) as node:
        with monkeypatch.context() as patched:
            patched.setattr(Storage, "sync_folders", full)
            assert send(node.scp.port) == 0xA700
        with database.transaction() as connection:
            assert studies.find(connection, "1.2.3") is None
        assert send(node.scp.port) == 0x0000


def test_what_was_deleted_and_comes_again_is_kept_again(database: Database, tmp_path: Path) -> None:
    with receiving(database, tmp_path) as node:
        assert send(node.scp.port) == 0x0000
        with database.transaction() as connection:
            connection.execute(sa.update(db.instance).values(pixels_deleted_at=func.now()))
            (kept,) = studies.instances(connection, "1.2.3")
        (tmp_path / kept.path).unlink()
        assert send(node.scp.port) == 0x0000
        with database.transaction() as connection:
            assert connection.scalar(sa.select(db.instance.c.pixels_deleted_at)) is None
    assert (tmp_path / kept.path).is_file()


def test_of_a_study_that_is_being_deleted_nothing_is_taken(
    database: Database, tmp_path: Path
) -> None:
    with receiving(database, tmp_path) as node:
        assert send(node.scp.port) == 0x0000
        with database.transaction() as connection:
            connection.execute(sa.update(db.study).values(state="deleting"))
        assert send(node.scp.port) == 0xA700


# -- who is refused --------------------------------------------------------------------------------


def refusals(database: Database) -> list[tuple[str, int]]:
    with database.transaction() as connection:
        return [(one.calling_ae_title, one.count) for one in associations.latest(connection, 1000)]


def test_refusals_are_written_down_at_the_tick(database: Database, tmp_path: Path) -> None:
    with receiving(database, tmp_path) as node:
        for _ in range(3):
            assert associate(node.scp.port, calling="STRANGER").is_rejected
        assert refusals(database) == []
        node.tick()
        assert refusals(database) == [("STRANGER", 3)]
        node.tick()
        assert refusals(database) == [("STRANGER", 3)]


def test_a_scan_is_not_remembered_without_bounds(idle: Receiver, database: Database) -> None:
    for number in range(receiver._REMEMBERED + 50):
        idle.refused(replace(CALL, address=f"10.0.0.{number}"))
    idle.refused(replace(CALL, address="10.0.0.0"))
    idle.tick()
    counts = [count for _, count in refusals(database)]
    assert sorted(counts) == [*[1] * (receiver._REMEMBERED - 1), 2]


def test_a_refusal_is_logged_at_once(idle: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "dicom_node.receiver"):
        idle.refused(CALL)
        idle.refused(replace(CALL, reason=Reason.NOT_DICOM, calling_ae_title=""))
    assert [one.levelname for one in caplog.records] == ["WARNING", "INFO"]
    assert caplog.records[0].message.startswith("refused STRANGER at 10.0.0.9: ")
    assert caplog.records[1].message.startswith("refused a connection at 10.0.0.9: ")


def test_a_refusal_outlasts_a_database_that_is_away(
    database: Database, away: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = receiver_of(away, tmp_path / "data")
    node.refused(CALL)
    with pytest.raises(OutOfResources):
        node.tick()
    monkeypatch.setattr(node, "_database", database)
    node.tick()
    assert refusals(database) == [("STRANGER", 1)]
    node.stop()


# -- bounds ----------------------------------------------------------------------------------------


def test_the_disk_is_looked_at_though_the_database_hangs(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = threading.Semaphore(0)
    monkeypatch.setattr(Watermarks, "look", lambda marks: looked.release())
    with receiving(database, tmp_path):
        looked.acquire()  # as it was made
        assert looked.acquire(timeout=20)


def test_a_database_that_hangs_is_given_up_on(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "HUNG_SECONDS", 0.1)
    with receiving(database, tmp_path) as node:
        assert send(node.scp.port, "1.2.3.1") == 0x0000
        with database.transaction() as holder:
            holder.execute(sa.select(db.study).with_for_update())
            assert send(node.scp.port, "1.2.3.2") == 0xA700
        assert send(node.scp.port, "1.2.3.3") == 0x0000


def test_a_reload_reads_the_certificates_again(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "ca")
    section = authority.issue().settings(authority)
    reloaded: list[Material] = []
    monkeypatch.setattr(Material, "reload", lambda material: reloaded.append(material))
    node = receiver_of(database, tmp_path, settings(SOURCE).model_copy(update={"tls": section}))
    node.reload()
    assert len(reloaded) == 1
    node.stop()


def test_without_certificates_a_reload_does_nothing(idle: Receiver) -> None:
    idle.reload()
