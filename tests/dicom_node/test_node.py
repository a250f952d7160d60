"""The running node: what one tick does, and that nothing outside stops it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import func

from dicom_node import associations, db, deliveries, heartbeats, jobs, studies
from dicom_node.config import Node as NodeSettings
from dicom_node.config import Peer, Reports, Settings, Study
from dicom_node.db import Database
from dicom_node.errors import OutOfResources, PeerError
from dicom_node.mllp import MllpPeer
from dicom_node.node import Node
from dicom_node.reports import store
from dicom_node.status import snapshot
from dicom_node.storage import Storage
from tests.conftest import BASIC_TEXT_SR, PATIENCE, DraftFactory, StoredInstanceFactory
from tests.dicom_node.network import association, encoded, header, send_raw
from tests.dicom_node.reports.documents import (
    DOCUMENT,
    FINDING,
    FINDINGS,
    STUDY,
    container,
    document,
    text,
)
from tests.dicom_node.reports.made import identity
from tests.dicom_node.reports.test_intake import message
from tests.dicom_node.states import claimed, expire

MODALITY = Peer(
    name="modality", ae_title="MODALITY", host=("127.0.0.1",), roles=("source",), quiet_seconds=7
)
PACS = Peer(name="pacs", ae_title="PACS", host=("10.0.0.5",), roles=("destination",))


class Workers:
    """Notes down who was woken."""

    def __init__(self) -> None:
        self.woken: list[tuple[str, int]] = []
        self.broker_up = True

    def wake(self, task: str, row_id: int) -> bool:
        self.woken.append((task, row_id))
        return self.broker_up


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def node_of(
    database: Database, data: Path, workers: Workers, *, study: Study | None = None
) -> Node:
    # Port 0, which no administrator may set: a free one.
    place = NodeSettings(host="127.0.0.1", data=data).model_copy(update={"port": 0})
    return Node(
        settings=Settings(node=place, peers=(MODALITY, PACS), study=study or Study()),
        database=database,
        storage=Storage(data),
        wake=workers.wake,
        broker_answers=lambda: True,
    )


@pytest.fixture
def workers() -> Workers:
    return Workers()


@pytest.fixture
def node(database: Database, tmp_path: Path, workers: Workers) -> Node:
    study = Study(quiet_seconds=0, ready_seconds=0)
    return node_of(database, tmp_path, workers, study=study)


def sender(stored_instance: StoredInstanceFactory) -> StoredInstanceFactory:
    return lambda **overrides: stored_instance(**{"calling_ae_title": "OTHER", **overrides})


# -- the tick --------------------------------------------------------------------------------------


def test_a_tick_queues_a_quiet_study_and_wakes_a_worker_once(
    node: Node, workers: Workers, stored_instance: StoredInstanceFactory
) -> None:
    stored = sender(stored_instance)()
    node.register(stored)
    node.tick()
    with node.database.transaction() as connection:
        (job,) = jobs.of_study(connection, stored.study_instance_uid)
    assert workers.woken == [("worker.analyse", job.id)]
    assert job.model == node.settings.model.name
    node.tick()
    assert len(workers.woken) == 1


def test_a_lost_nudge_is_repeated_after_the_interval(
    node: Node, workers: Workers, stored_instance: StoredInstanceFactory
) -> None:
    node.register(sender(stored_instance)())
    node.tick()
    long_ago = func.now() - timedelta(seconds=node.settings.jobs.sweep_seconds + 1)
    with node.database.transaction() as connection:
        connection.execute(sa.update(db.job).values(nudged_at=long_ago))
    node.tick()
    assert workers.woken == [("worker.analyse", 1)] * 2


def test_a_tick_wakes_a_worker_for_what_is_to_be_delivered(
    node: Node, workers: Workers, draft_factory: DraftFactory
) -> None:
    draft = draft_factory()
    with node.database.transaction() as connection:
        connection.execute(sa.update(db.job).values(state="drafted"))
        connection.execute(sa.update(db.study).values(state="complete"))
        peers = node.settings.destinations()
        deliveries.create(connection, draft.study_instance_uid, draft.sop_instance_uid, peers)
    node.tick()
    assert workers.woken == [("worker.deliver", 1)]


def test_a_tick_gives_a_deadly_job_up_instead_of_waking_for_it(
    node: Node, workers: Workers, stored_instance: StoredInstanceFactory
) -> None:
    stored = sender(stored_instance)()
    node.register(stored)
    node.tick()
    for _ in range(node.settings.jobs.max_attempts):
        claimed(node.database, 1)
        expire(node.database, db.job, 1)
    node.tick()
    with node.database.transaction() as connection:
        (job,) = jobs.of_study(connection, stored.study_instance_uid)
    assert job.state == "failed"
    assert workers.woken == [("worker.analyse", 1)]


def test_a_nudge_is_committed_before_it_is_sent(
    node: Node, stored_instance: StoredInstanceFactory
) -> None:
    node.register(sender(stored_instance)())
    seen: list[object] = []

    def look(task: str, row_id: int) -> bool:
        with node.database.transaction() as connection:
            seen.append(connection.scalar(sa.select(db.job.c.nudged_at)))
        return True

    replace(node, wake=look).tick()
    assert len(seen) == 1
    assert seen[0] is not None


def test_a_broker_that_is_away_is_tried_once_a_tick(
    node: Node, workers: Workers, stored_instance: StoredInstanceFactory
) -> None:
    for _ in range(3):
        node.register(sender(stored_instance)())
    workers.broker_up = False
    node.tick()
    assert len(workers.woken) == 1


# -- final reports ---------------------------------------------------------------------------------


def test_a_tick_takes_a_received_report_and_wakes_a_worker_for_it(
    node: Node, workers: Workers, stored_instance: StoredInstanceFactory
) -> None:
    image = stored_instance(
        study_instance_uid=STUDY, identity=identity("MRN0012345", issuer="GENHOSP")
    )
    report = document(container(FINDINGS, text(FINDING, "Small effusion.")))
    kept = node.storage.keep_instance(
        study_instance_uid=STUDY,
        sop_instance_uid=DOCUMENT,
        sop_class_uid=BASIC_TEXT_SR,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        data_set=encoded(report),
    )
    came = {"study_instance_uid": STUDY, "sop_class_uid": BASIC_TEXT_SR, **kept._asdict()}
    node.register(stored_instance(sop_instance_uid=DOCUMENT, **came))
    node.tick()
    assert reports(node) == [("parked", None)]
    node.register(image)
    node.tick()
    assert reports(node) == [("matched", STUDY)]
    node.tick()
    assert ("worker.index", 1) in workers.woken
    node.tick()
    assert workers.woken.count(("worker.index", 1)) == 1


def reports(node: Node) -> list[tuple[str, str | None]]:
    with node.database.transaction() as connection:
        found = store.newest(connection, state=None, limit=9)
    return [(one.state, one.study_instance_uid) for one in found]


def test_a_served_node_takes_hl7_messages_from_its_hl7_peers_only(
    database: Database, tmp_path: Path, workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    ris = Peer(name="ris", protocol="hl7", host=("127.0.0.1",), roles=("source",))
    file = tmp_path / "report.hl7"
    file.write_bytes(message())
    for peers, taken in (((MODALITY,), False), ((ris,), True)):
        node = node_of(database, tmp_path / "data", workers)
        served = Reports(hl7_host="127.0.0.1", hl7_port=free_port())
        settings = node.settings.model_copy(update={"peers": peers, "reports": served})
        with serving(replace(node, settings=settings), caplog):
            us = Peer(name="us", protocol="hl7", host=("127.0.0.1",), port=served.hl7_port)
            if taken:
                assert MllpPeer(us, "US").send(file) == 0
            else:
                with pytest.raises(PeerError):
                    MllpPeer(us, "US").send(file)
        assert len(reports(node)) == int(taken)
    with database.transaction() as connection:
        (refused,) = associations.latest(connection)
    assert (refused.calling_ae_title, refused.address) == ("HL7", "127.0.0.1")


@contextmanager
def serving(node: Node, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The node serves, in a thread, until the block ends."""
    stop = threading.Event()
    thread = threading.Thread(target=node.serve, args=(stop,))
    caplog.clear()
    with caplog.at_level("INFO", "dicom_node.node"):
        thread.start()
        try:
            wait_until(lambda: "listens on port" in caplog.text)
            yield
        finally:
            stop.set()
            thread.join(PATIENCE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


# -- registering -----------------------------------------------------------------------------------


def test_a_senders_own_quiet_time_is_used(
    database: Database, tmp_path: Path, workers: Workers, stored_instance: StoredInstanceFactory
) -> None:
    node = node_of(database, tmp_path, workers)
    for title, seconds in (("MODALITY", 7), ("OTHER", 60)):
        stored = stored_instance(calling_ae_title=title)
        node.register(stored)
        with database.transaction() as connection:
            study = studies.find(connection, stored.study_instance_uid)
        assert study is not None
        assert study.settle_at - study.received_at == timedelta(seconds=seconds)


def test_a_study_is_never_ready_after_it_is_complete(
    database: Database, tmp_path: Path, workers: Workers, stored_instance: StoredInstanceFactory
) -> None:
    node = node_of(database, tmp_path, workers, study=Study(quiet_seconds=1, ready_seconds=30))
    node.register(stored_instance(calling_ae_title="OTHER"))
    with database.transaction() as connection:
        ready, settle = connection.execute(
            sa.select(db.study.c.ready_at, db.study.c.settle_at)
        ).one()
    assert ready == settle


def test_a_database_that_is_away_reaches_the_sender_as_out_of_resources(
    tmp_path: Path, workers: Workers, stored_instance: StoredInstanceFactory
) -> None:
    away = Database(f"postgresql+psycopg://user@/name?host={tmp_path}")
    node = node_of(away, tmp_path, workers)
    with pytest.raises(OutOfResources):
        node.register(stored_instance())
    with pytest.raises(OutOfResources):
        node.tick()
    node.refused("STRANGER", "10.0.0.9", "unknown")  # only logged: the refusal itself stands


# -- serving ---------------------------------------------------------------------------------------


def test_a_served_node_receives_settles_beats_and_signs_off(
    node: Node, workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    stop = threading.Event()
    serving = threading.Thread(target=node.serve, args=(stop,))
    with caplog.at_level("INFO", "dicom_node.node"):
        serving.start()
        try:
            wait_until(lambda: "listens on port" in caplog.text)
            port = int(caplog.text.rsplit("listens on port ")[1].split()[0])
            wait_until(lambda: snapshot(node.database, node.settings).node is not None)
            with association(port) as opened:
                status = send_raw(
                    opened,
                    encoded(header()),
                    sop_class_uid="1.2.840.10008.5.1.4.1.1.1.1",
                    sop_instance_uid="1.2.3.4",
                )
            assert status == 0x0000
            wait_until(lambda: bool(workers.woken))
        finally:
            stop.set()
            serving.join(PATIENCE)
    assert not serving.is_alive()
    with node.database.transaction() as connection:
        assert studies.find(connection, "1.2.3") is not None
        assert heartbeats.seen(connection) == []


def test_a_node_whose_database_is_away_keeps_serving(
    tmp_path: Path, workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    away = Database(f"postgresql+psycopg://user@/name?host={tmp_path}")
    node = node_of(away, tmp_path / "data", workers)
    stop = threading.Event()
    serving = threading.Thread(target=node.serve, args=(stop,))
    serving.start()
    try:
        wait_until(lambda: caplog.text.count("tick: database") >= 2)
        assert serving.is_alive()
    finally:
        stop.set()
        serving.join(PATIENCE)
    assert not serving.is_alive()
    assert "not signed off" in caplog.text
