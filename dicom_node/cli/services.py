"""run, serve, work, doctor: the verbs that run or check processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from dicom_node import config as configuration
from dicom_node import db, embedded
from dicom_node.cli import guard, logs, tables, wiring
from dicom_node.config import Settings
from dicom_node.disk import Watermarks
from dicom_node.errors import ConfigurationError, NodeError
from dicom_node.storage import Storage
from dicom_node.supervisor import Command, Supervisor

if TYPE_CHECKING:
    from dicom_node.db import Database
    from dicom_node.doctor import Call
    from dicom_node.receiver import Receiver

QUEUES = ("gpu", "net")


def run(settings: Settings) -> None:
    """The whole node: embedded servers where no URL is set, and our own processes, supervised."""
    guard.check()
    logs.log_to_stderr()
    data = settings.node.data
    with embedded.claim(data), Supervisor(log_directory=data / "log") as supervisor:
        if not settings.database.url:
            supervisor.start(embedded.Postgres(data))
        if not settings.broker.url:
            supervisor.start(embedded.Valkey(data))
        settings = wiring.resolved(settings)
        db.upgrade(settings.database.url)
        supervisor.start(_child(settings, "serve"))
        for queue in QUEUES:
            supervisor.start(_child(settings, f"work-{queue}", "work", "--queues", queue))
        supervisor.wait()


def serve(settings: Settings) -> None:
    """The DICOM side, until SIGTERM or SIGINT: in one process, or as many as share the port."""
    guard.check()
    logs.log_to_stderr()
    processes = settings.listener.processes or _worth_having()
    if processes == 1:
        _serve_here(settings, listens=True)
        return
    listener = settings.listener.model_copy(update={"processes": processes})
    settings = wiring.resolved(settings).model_copy(update={"listener": listener})
    _check_port(settings)  # who shares a port would not notice a stranger on it
    with Supervisor() as supervisor:
        supervisor.start(_child(settings, "tick"))
        for number in range(processes):
            supervisor.start(_child(settings, f"receive-{number + 1}", "receive"))
        supervisor.wait()


def _worth_having() -> int:
    """How many receivers: disk and senders need the other processors (bench/receive.py)."""
    return min(4, max(1, (os.cpu_count() or 1) // 2))


def _check_port(settings: Settings) -> None:
    from dicom_node.listener import Endpoint, check

    check(Endpoint(host=settings.node.host, port=settings.node.port))


def tick(settings: Settings) -> None:
    """What ``serve`` does besides receiving, where other processes receive."""
    guard.check()
    logs.log_to_stderr()
    _serve_here(settings, listens=False)


def receive(settings: Settings) -> None:
    """One of the processes that share the port."""
    guard.check()

    from dicom_node.node import receive as until_stopped

    logs.log_to_stderr()
    storage = Storage(settings.node.data)
    watermarks = Watermarks(settings.node.data, settings.disk)
    until_stopped(_receiver(settings, storage, watermarks), _stop_event())


def _serve_here(settings: Settings, *, listens: bool) -> None:
    from dicom_node.node import Node
    from worker.app import broker_check, waker

    broker_url = wiring.broker_url(settings)
    storage = Storage(settings.node.data)
    watermarks = Watermarks(settings.node.data, settings.disk)
    Node(
        settings=settings,
        database=wiring.database(settings),
        storage=storage,
        wake=waker(broker_url),
        broker_answers=broker_check(broker_url),
        watermarks=watermarks,
        receiver=_receiver(settings, storage, watermarks) if listens else None,
    ).serve(_stop_event())


def _receiver(settings: Settings, storage: Storage, watermarks: Watermarks) -> Receiver:
    from dicom_node.receiver import Receiver

    receiver = Receiver(settings, wiring.database(settings), storage, watermarks)
    signal.signal(signal.SIGHUP, lambda *_: receiver.reload())
    return receiver


def _stop_event() -> threading.Event:
    stop = threading.Event()
    for stopping in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stopping, lambda *_: stop.set())
    return stop


def work(settings: Settings, queues: str) -> None:
    """A worker for one queue; for both, two of them under a supervisor."""
    guard.check()
    logs.log_to_stderr()
    names = [name.strip() for name in queues.split(",")]
    unknown = set(names) - set(QUEUES)
    if unknown or not names:
        raise ConfigurationError(f"--queues {queues}: known queues are {', '.join(QUEUES)}")
    if len(set(names)) == 1:
        _work_here(settings, names[0])
        return
    settings = wiring.resolved(settings)
    with Supervisor() as supervisor:
        for name in names:
            supervisor.start(_child(settings, f"work-{name}", "work", "--queues", name))
        supervisor.wait()


def _work_here(settings: Settings, queue: str) -> None:
    from worker import process

    process.work(
        settings,
        wiring.database(settings),
        wiring.broker_url(settings),
        "gpu" if queue == "gpu" else "net",
    )


def _child(settings: Settings, name: str, *arguments: str) -> Command:
    return Command(
        name=name,
        arguments=(sys.executable, "-m", "dicom_node.cli", *(arguments or (name,))),
        environment=configuration.environment(settings),
        takes_hangup=name == "serve" or name.startswith("receive"),
    )


def doctor(settings: Settings, peer: str | None, *, as_json: bool, store: bool) -> None:
    """Run all checks; exit code 1 when one fails."""
    guard.check()

    from dicom_node import doctor as checks

    database = wiring.database_or_none(settings)
    if peer is not None:
        found = checks.examine(_call(settings, database, peer, store=store))
    else:
        found = checks.everything(settings, database)
    if as_json:
        print(json.dumps(checks.document(found), indent=2))
    else:
        tables.show_checks(found)
    faults = [one for one in found if one.is_fault]
    if faults:
        tried = [one for one in found if one.tried]
        raise NodeError(f"{len(faults)} of {len(tried)} checks failed")


def _call(settings: Settings, database: Database | None, peer: str, *, store: bool) -> Call:
    from dicom_node.doctor import Call
    from worker import records

    return Call(
        settings=settings,
        database=database,
        peer=wiring.peer(settings, peer),
        classes=records.classes,
        store=store,
    )
