"""retry, send, echo: the verbs that make something happen."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from sqlalchemy import Connection

from dicom_node import deliveries, destinations, fetches, jobs, retention, scu, studies
from dicom_node.cli import wiring
from dicom_node.config import Settings
from dicom_node.errors import NodeError, NotFound


def retry(settings: Settings, study_uid: str | None, peer: str | None = None) -> None:
    """Queue again what ended without success (one study: its latest job in any case).

    Of a peer only its deliveries.
    """
    if peer is not None:
        wiring.peer(settings, peer)
    with wiring.database(settings).transaction() as connection:
        if study_uid is not None:
            _check_can_be_read(connection, study_uid)
        again = comes = 0
        if peer is None:
            again = len(jobs.requeue_ended(connection, study_instance_uid=study_uid))
            again += _read_a_prior(connection, settings, study_uid)
            comes = fetches.requeue(connection, study_instance_uids=study_uid and [study_uid])
        sends = len(deliveries.requeue(connection, study_instance_uid=study_uid, peer=peer))
    told = f", {comes} studies to be fetched" if comes else ""
    print(f"queued again: {again} jobs, {sends} deliveries{told}")


def _read_a_prior(connection: Connection, settings: Settings, study_uid: str | None) -> int:
    """A study that came as somebody's prior has no job, until a person asks for one."""
    if study_uid is None or not fetches.read_after_all(connection, study_uid):
        return 0
    found = studies.find(connection, study_uid)
    if found is None or found.state != "complete":
        return 0  # it gets its job as every study does
    return int(jobs.create(connection, study_uid, found.revision, settings.model.name) is not None)


def _check_can_be_read(connection: Connection, study_uid: str) -> None:
    # Under the study's lock: what is queued here is no longer finished when retention looks.
    found = studies.snapshot(connection, study_uid)
    if found is None or found[0].state == "deleting":
        raise NotFound(f"no study {study_uid} was received")
    retention.check_images(connection, study_uid)


def send(settings: Settings, paths: list[Path], to: str) -> None:
    """C-STORE or STOW-RS files; a line per failure, exit code 1 if there was one."""
    peer = wiring.peer(settings, to)
    files = scu.files_under(paths)
    if not files:
        raise NotFound(f"no files in {', '.join(str(path) for path in paths)}")
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(f"to {peer.name}", total=len(files))
        outcomes = destinations.send_files(
            files,
            peer,
            settings.node.ae_title,
            lambda outcome: progress.advance(bar),
            tls=settings.tls,
        )
    failed = [outcome for outcome in outcomes if outcome.failure]
    for outcome in failed:
        print(f"{outcome.path}: {outcome.failure}", file=sys.stderr)
    print(f"sent {len(outcomes) - len(failed)} of {len(outcomes)} to {peer.name}")
    if failed:
        raise NodeError(f"{len(failed)} of {len(outcomes)} files were not stored by {peer.name}")


def echo(settings: Settings, target: str) -> None:
    """C-ECHO, or what the peer's protocol has for it."""
    peer = wiring.peer(settings, target)
    destinations.open_destination(peer, settings.node.ae_title, tls=settings.tls).verify()
    print(f"{peer.place} answers")
