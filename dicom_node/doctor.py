"""Checks of each part and each peer: what is wrong, and the one line that mends it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dicom_node import associations, db, destinations
from dicom_node import status as node_status
from dicom_node.config import Peer, Settings
from dicom_node.db import Database, instance, report
from dicom_node.errors import NodeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question and its answer."""

    name: str
    passed: bool
    text: str
    fix: str = ""


def everything(settings: Settings, database: Database | None) -> list[Check]:
    """All parts of this node, then every peer both ways."""
    found = [*_parts(settings, database)]
    return [*found, *peers(settings, database, settings.peers)]


def peers(settings: Settings, database: Database | None, asked: Sequence[Peer]) -> list[Check]:
    """Each peer: do we reach it, and did it ever reach us?"""
    checks = []
    for peer in asked:
        if peer.is_destination:
            checks.append(_outward(settings, peer))
        if peer.is_source and database is not None:
            inward = _inward_hl7 if peer.protocol == "hl7" else _inward
            checks.append(inward(settings, database, peer))
    return checks


def to_json(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """One object a check."""
    return [
        {"name": one.name, "passed": one.passed, "text": one.text, "fix": one.fix} for one in checks
    ]


def _parts(settings: Settings, database: Database | None) -> Iterator[Check]:
    snapshot = node_status.snapshot(database, settings)
    codes = {problem.code: problem for problem in snapshot.problems}
    for code in ("database", "node", "broker", "worker-gpu", "worker-net"):
        problem = codes.get(code)
        if problem is not None:
            yield Check(name=code, passed=False, text=problem.text, fix=problem.fix)
        elif snapshot.database_up:
            yield Check(name=code, passed=True, text="up")
    if snapshot.database_up and database is not None:
        yield _schema(settings)
    yield _disk(settings)
    yield _destinations(settings)


def _attempt(name: str, question: Callable[[], str], fix: str) -> Check:
    try:
        return Check(name=name, passed=True, text=question())
    except NodeError as error:
        return Check(name=name, passed=False, text=str(error), fix=fix)


def _schema(settings: Settings) -> Check:
    def question() -> str:
        from dicom_node.embedded import Postgres

        url = settings.database.url or Postgres(settings.node.data).url
        present, wanted = db.revisions(url)
        if present != wanted:
            raise NodeError(f"the database is at {present or 'nothing'}, we need {wanted}")
        return f"revision {present}"

    return _attempt("schema", question, "run `dicom-node db upgrade`")


def _disk(settings: Settings) -> Check:
    folder = settings.node.data
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        fix = "start the node once, or set [node] data"
        return Check(name="disk", passed=False, text=f"{folder}: {error.strerror}", fix=fix)
    enough = free >= node_status.LOW_BYTES
    text = f"{free / 2**30:.1f} GiB free at {folder}"
    return Check(name="disk", passed=enough, text=text, fix="" if enough else "free space there")


def _destinations(settings: Settings) -> Check:
    names = ", ".join(peer.name for peer in settings.destinations())
    if names:
        return Check(name="destinations", passed=True, text=names)
    fix = 'add [[peers]] with name, ae_title, host, port and roles = ["destination"]'
    return Check(name="destinations", passed=False, text="drafts go nowhere", fix=fix)


def _outward(settings: Settings, peer: Peer) -> Check:
    def question() -> str:
        destinations.open_destination(peer, settings.node.ae_title).verify()
        return f"{peer.place} answers{' C-ECHO' if peer.protocol == 'dicom' else ''}"

    fix = (
        f"check host, port and ae_title of peer {peer.name}, and that it knows the AE title "
        f"{settings.node.ae_title} at this machine's address"
        if peer.protocol == "dicom"
        else f"check host and port, or url, of peer {peer.name}, and that it lets us in"
    )
    return _attempt(f"to {peer.name}", question, fix)


def _inward(settings: Settings, database: Database, peer: Peer) -> Check:
    name = f"from {peer.name}"
    with database.transaction() as connection:
        last = connection.scalar(
            sa.select(sa.func.max(instance.c.received_at)).where(
                instance.c.calling_ae_title == peer.ae_title
            )
        )
        turned_away = [
            one
            for one in associations.latest(connection, limit=200)
            if one.calling_ae_title == peer.ae_title or peer.may_call_from({one.address})
        ]
    if turned_away and (last is None or turned_away[0].last > last):
        one = turned_away[0]
        text = f"turned away {one.calling_ae_title} at {one.address}: {one.reason}"
        fix = f'peer {peer.name}: ae_title = "{one.calling_ae_title}", host = "{one.address}"'
        return Check(name=name, passed=False, text=text, fix=fix)
    text = f"last instance {last.isoformat(timespec='seconds')}" if last else "nothing sent yet"
    return Check(name=name, passed=True, text=text)


def _inward_hl7(settings: Settings, database: Database, peer: Peer) -> Check:
    """HL7 names no caller: what came from anybody counts."""
    name = f"from {peer.name}"
    if not settings.reports.hl7_port:
        fix = "set reports.hl7_port, where this peer sends its reports"
        return Check(name=name, passed=False, text="nobody listens for HL7", fix=fix)
    with database.transaction() as connection:
        latest = sa.select(sa.func.max(report.c.received_at)).where(report.c.source == "hl7")
        last = connection.scalar(latest)
    text = f"last report {last.isoformat(timespec='seconds')}" if last else "nothing sent yet"
    return Check(name=name, passed=True, text=text)
