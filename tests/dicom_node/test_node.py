"""The running node: what one tick does, and that nothing outside stops it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import func

from dicom_node import associations, db, deliveries, fetches, heartbeats, jobs, studies
from dicom_node.config import Node as NodeSettings
from dicom_node.config import Peer, Reconciliation, Reports, Settings, Study
from dicom_node.db import Database
from dicom_node.disk import Watermarks
from dicom_node.errors import PeerError
from dicom_node.fetches import Found
from dicom_node.mllp import MllpPeer
from dicom_node.node import Node, receive
from dicom_node.receiver import Receiver
from dicom_node.reports import store
from dicom_node.status import snapshot
from dicom_node.storage import Storage, StoredInstance
from dicom_node.studies import Arrival
from dicom_node.watchdog import Deaf, Watchdog
from tests.conftest import BASIC_TEXT_SR, PATIENCE, DraftFactory, StoredInstanceFactory
from tests.dicom_node.network import (
    associate,
    association,
    encoded,
    header,
    keep_instance,
    send_raw,
)
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
from tests.dicom_node.worklists import Ris, entry
from tests.ports import free_port

MODALITY = Peer(name="modality", ae_title="MODALITY", host=("127.0.0.1",), roles=("source",))
PACS = Peer(name="pacs", ae_title="PACS", host=("10.0.0.5",), roles=("destination",))
NOTHING = timedelta(0)


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


def node_of(database: Database, data: Path, workers: Workers) -> Node:
    """A node that only ticks."""
    settings = settings_of(data)
    return Node(
        settings=settings,
        database=database,
        storage=Storage(data),
        wake=workers.wake,
        broker_answers=lambda: True,
        watermarks=Watermarks(data, settings.disk),
    )


def settings_of(data: Path) -> Settings:
    # Port 0, which no administrator may set: a free one.
    place = NodeSettings(host="127.0.0.1", data=data).model_copy(update={"port": 0})
    study = Study(quiet_seconds=0, ready_seconds=0)
    return Settings(node=place, peers=(MODALITY, PACS), study=study)


def receiving(node: Node) -> Node:
    """The same, with a receiver."""
    return replace(node, receiver=receiver_of(node))


def receiver_of(node: Node) -> Receiver:
    return Receiver(node.settings, node.database, node.storage, node.watermarks)


@pytest.fixture
def workers() -> Workers:
    return Workers()


@pytest.fixture
def node(database: Database, tmp_path: Path, workers: Workers) -> Node:
    return node_of(database, tmp_path, workers)


def arrive(node: Node, stored: StoredInstance) -> None:
    """An instance comes; its study is ready and complete at once."""
    with node.database.transaction() as connection:
        studies.register(connection, [Arrival(stored=stored, quiet=NOTHING, ready=NOTHING)])


# -- the tick --------------------------------------------------------------------------------------


def test_a_tick_queues_a_quiet_study_and_wakes_a_worker_once(
    node: Node, workers: Workers, stored_instance: StoredInstanceFactory
) -> None:
    stored = stored_instance()
    arrive(node, stored)
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
    arrive(node, stored_instance())
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
    stored = stored_instance()
    arrive(node, stored)
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
    arrive(node, stored_instance())
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
        arrive(node, stored_instance())
    workers.broker_up = False
    node.tick()
    assert len(workers.woken) == 1


# -- final reports ---------------------------------------------------------------------------------


def test_a_tick_wakes_a_worker_for_what_is_to_be_fetched(node: Node, workers: Workers) -> None:
    found = Found(study_instance_uid="2.25.9", study_date="20260304", peer="pacs")
    with node.database.transaction() as connection:
        fetches.want(connection, found, fetches.MISSED)
    node.tick()
    assert workers.woken == [("worker.fetch", 1)]


@pytest.mark.parametrize("wanted", [0, 2])
def test_a_complete_study_has_its_priors_looked_for_where_the_site_wants_them(
    node: Node, workers: Workers, stored_instance: StoredInstanceFactory, wanted: int
) -> None:
    settings = node.settings.model_copy(update={"reconciliation": Reconciliation(priors=wanted)})
    arrive(node, stored_instance())
    replace(node, settings=settings).tick()
    assert (("worker.search_priors", 1) in workers.woken) is bool(wanted)


def test_a_tick_takes_a_received_report_and_wakes_a_worker_for_it(
    node: Node, workers: Workers, stored_instance: StoredInstanceFactory
) -> None:
    image = stored_instance(
        study_instance_uid=STUDY, identity=identity("MRN0012345", issuer="GENHOSP")
    )
    report = document(container(FINDINGS, text(FINDING, "Small effusion.")))
    kept = keep_instance(
        node.storage,
        study_instance_uid=STUDY,
        sop_instance_uid=DOCUMENT,
        sop_class_uid=BASIC_TEXT_SR,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        data_set=encoded(report),
    )
    came = {"study_instance_uid": STUDY, "sop_class_uid": BASIC_TEXT_SR, **kept._asdict()}
    arrive(node, stored_instance(sop_instance_uid=DOCUMENT, **came))
    node.tick()
    assert reports(node) == [("parked", None)]
    arrive(node, image)
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
    assert refusals(node) == ["HL7"]


def test_a_served_node_asks_its_worklist_peers(
    database: Database, tmp_path: Path, workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    ris = Ris()
    ris.entries = [entry()]
    node = node_of(database, tmp_path / "data", workers)
    peers = (*node.settings.peers, ris.peer)
    try:
        node = replace(node, settings=node.settings.model_copy(update={"peers": peers}))
        with serving(receiving(node), caplog):
            wait_until(lambda: orders_of(database) == 1)
    finally:
        ris.server.shutdown()


def orders_of(database: Database) -> int:
    with database.transaction() as connection:
        return connection.scalar(sa.select(func.count()).select_from(db.imaging_order)) or 0


def refusals(node: Node) -> list[str]:
    with node.database.transaction() as connection:
        return [one.calling_ae_title for one in associations.latest(connection)]


@contextmanager
def serving(node: Node, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The node serves, in a thread, until the block ends."""
    with in_thread(node.serve, caplog):
        yield


@contextmanager
def in_thread(
    serve: Callable[[threading.Event], None], caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """It serves, from when it listens until the block ends."""
    stop = threading.Event()
    thread = threading.Thread(target=serve, args=(stop,))
    caplog.clear()
    with caplog.at_level("INFO", "dicom_node"):
        thread.start()
        try:
            wait_until(lambda: "on port" in caplog.text)
            yield
        finally:
            stop.set()
            thread.join(PATIENCE)
    assert not thread.is_alive()


# -- serving ---------------------------------------------------------------------------------------


def node_away(data: Path, workers: Workers) -> Node:
    """A node whose database is away."""
    away = Database(f"postgresql+psycopg://user@/name?host={data}")
    return node_of(away, data / "data", workers)


def test_a_served_node_receives_settles_beats_and_signs_off(
    node: Node, workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(receiving(node), caplog):
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
    with node.database.transaction() as connection:
        assert studies.find(connection, "1.2.3") is not None
        assert heartbeats.seen(connection) == []


def test_a_node_whose_database_is_away_keeps_serving(
    tmp_path: Path, workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(receiving(node_away(tmp_path, workers)), caplog):
        wait_until(lambda: caplog.text.count("tick: database") >= 2)
    assert "not signed off" in caplog.text


def test_a_process_that_only_receives_receives_and_writes_refusals_down(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = receiver_of(node)
    with in_thread(partial(receive, receiver), caplog):
        assert associate(receiver.scp.port, calling="STRANGER").is_rejected
        with association(receiver.scp.port) as opened:
            assert opened.is_established
        wait_until(lambda: refusals(node) == ["STRANGER"])
    with node.database.transaction() as connection:
        assert heartbeats.seen(connection) == []  # another process ticks and beats


def test_a_process_that_only_receives_bears_a_database_that_is_away(
    tmp_path: Path, workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    node = node_away(tmp_path, workers)
    receiver = receiver_of(node)
    with in_thread(partial(receive, receiver), caplog):
        assert associate(receiver.scp.port, calling="STRANGER").is_rejected
        wait_until(lambda: "tick: database" in caplog.text)
        with association(receiver.scp.port) as opened:
            assert opened.is_established


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with the tick"])
def test_a_process_that_does_not_answer_itself_ends(
    node: Node, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    def deaf(watchdog: Watchdog) -> None:
        raise Deaf("no answer")

    monkeypatch.setattr(Watchdog, "check", deaf)
    served = receiving(node)
    assert served.receiver is not None
    with pytest.raises(Deaf):
        receive(served.receiver, threading.Event()) if alone else served.serve(threading.Event())
    assert [one.name for one in threading.enumerate() if one.name in ("accept", "watchdog")] == []
