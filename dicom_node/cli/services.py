"""run, serve, work, doctor: the verbs that run or check processes."""

from __future__ import annotations

import json
import signal
import sys
import threading

from dicom_node import config as configuration
from dicom_node import db, embedded
from dicom_node.cli import guard, logs, tables, wiring
from dicom_node.config import Settings
from dicom_node.errors import ConfigurationError, NodeError
from dicom_node.storage import Storage
from dicom_node.supervisor import Command, Supervisor

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
    """The DICOM side, until SIGTERM or SIGINT."""
    guard.check()

    from dicom_node.node import Node
    from worker.app import broker_check, waker

    logs.log_to_stderr()
    broker_url = wiring.broker_url(settings)
    stop = threading.Event()
    for stopping in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stopping, lambda *_: stop.set())
    Node(
        settings=settings,
        database=wiring.database(settings),
        storage=Storage(settings.node.data),
        wake=waker(broker_url),
        broker_answers=broker_check(broker_url),
    ).serve(stop)


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
    )


def doctor(settings: Settings, peer: str | None, *, as_json: bool) -> None:
    """Run all checks; exit code 1 when one fails."""
    guard.check()

    from dicom_node import doctor as checks

    if peer is not None:
        peers = [wiring.peer(settings, peer)]
        found = checks.peers(settings, wiring.database_or_none(settings), peers)
    else:
        found = checks.everything(settings, wiring.database_or_none(settings))
    if as_json:
        print(json.dumps({"checks": checks.to_json(found)}, indent=2))
    else:
        tables.show_checks(found)
    faults = [one for one in found if not one.passed]
    if faults:
        raise NodeError(f"{len(faults)} of {len(found)} checks failed")
