"""Checks of each part and each peer: what is wrong, and the one line that mends it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dicom_node import associations, db, destinations, remedies, tls
from dicom_node import status as node_status
from dicom_node.associations import Refused, RefusedAssociation
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
    """All parts of this node, then every peer both ways, then who else called."""
    found = [*_parts(settings, database), *peers(settings, database, settings.peers)]
    return [*found, *(_strangers(settings, database) if database is not None else ())]


def peers(settings: Settings, database: Database | None, asked: Sequence[Peer]) -> list[Check]:
    """Each peer: do we reach it, and did it ever reach us?"""
    checks = []
    for peer in asked:
        if peer.is_destination:
            checks.append(_outward(settings, peer))
        if peer.is_destination and peer.for_queries != peer:
            checks.append(_outward(settings, peer.for_queries, "queries to"))
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
    if settings.tls.configured:
        yield _certificate(settings)
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


def _certificate(settings: Settings) -> Check:
    def question() -> str:
        return f"ours for TLS ends on {tls.expiry(settings.tls).date()}"

    return _attempt("certificate", question, "mend the files of [tls], then send SIGHUP")


def _destinations(settings: Settings) -> Check:
    names = ", ".join(peer.name for peer in settings.destinations())
    if names:
        return Check(name="destinations", passed=True, text=names)
    fix = 'add [[peers]] with name, ae_title, host, port and roles = ["destination"]'
    return Check(name="destinations", passed=False, text="drafts go nowhere", fix=fix)


def _outward(settings: Settings, peer: Peer, which: str = "to") -> Check:
    def question() -> str:
        destinations.open_destination(peer, settings.node.ae_title, tls=settings.tls).verify()
        return f"{peer.place} answers{' C-ECHO' if peer.protocol == 'dicom' else ''}"

    fix = (
        f"check host, port and ae_title of peer {peer.name}, and that it knows the AE title "
        f"{settings.node.ae_title} at this machine's address"
        if peer.protocol == "dicom"
        else f"check host and port, or url, of peer {peer.name}, and that it lets us in"
    )
    return _attempt(f"{which} {peer.name}", question, fix)


def _inward(settings: Settings, database: Database, peer: Peer) -> Check:
    name = f"from {peer.name}"
    with database.transaction() as connection:
        last = connection.scalar(
            sa.select(sa.func.max(instance.c.received_at)).where(
                instance.c.calling_ae_title.in_(peer.calling_ae_titles)
            )
        )
        refused = associations.latest(connection, associations.KEPT)
    text = f"last instance {_when(last)}" if last else "nothing sent yet"
    for one in refused:
        fix = _fault(settings, peer, one, last)
        if fix:
            said = f"turned away {_caller(one)} at {_when(one.last)}: {one.text}; {text}"
            return Check(name=name, passed=False, text=said, fix=fix)
    return Check(name=name, passed=True, text=text)


def _fault(
    settings: Settings, peer: Peer, one: RefusedAssociation, last: datetime | None
) -> str | None:
    """What lets this caller in, where it was this peer and nothing came from it since."""
    theirs = remedies.peer_of(settings, one) == peer and not (last and _another(peer, one))
    if not theirs or one.reason.expected or (last and last > one.last):
        return None
    return remedies.fix(settings, one)


def _another(peer: Peer, one: Refused) -> bool:
    """Did it call under a title that is not this peer's? One that sends has the right title."""
    return bool(one.calling_ae_title) and one.calling_ae_title not in peer.calling_ae_titles


def _strangers(settings: Settings, database: Database) -> Iterator[Check]:
    """Those who are no peer's: no fault of this node, and perhaps a modality that is new."""
    with database.transaction() as connection:
        refused = associations.latest(connection)
    for one in refused:
        peer = remedies.peer_of(settings, one)
        fix = remedies.fix(settings, one)
        if fix and (peer is None or one.reason.expected or _another(peer, one)):
            text = (
                f"turned away {one.count} times, last {_when(one.last)}: {one.text}{_wanted(one)}"
            )
            yield Check(name=f"caller {_caller(one)}", passed=True, text=text, fix=fix)


def _wanted(one: Refused) -> str:
    from pydicom.uid import UID  # costs 0.7 s: only where there is something to name

    names = [UID(uid).name for uid in one.contexts]
    more = f" and {len(names) - 1} more" if names[1:] else ""
    return f"; it asked for {names[0]}{more}" if names else ""


def _caller(one: Refused) -> str:
    way = " by TLS" if one.tls else ""
    return f"{one.calling_ae_title or '(no title)'} at {one.address}{way}"


def _when(at: datetime) -> str:
    return at.isoformat(timespec="seconds")


def _inward_hl7(settings: Settings, database: Database, peer: Peer) -> Check:
    """HL7 names no caller: what came from anybody counts."""
    name = f"from {peer.name}"
    if not settings.reports.hl7_port:
        fix = "set reports.hl7_port, where this peer sends its reports"
        return Check(name=name, passed=False, text="nobody listens for HL7", fix=fix)
    with database.transaction() as connection:
        latest = sa.select(sa.func.max(report.c.received_at)).where(report.c.source == "hl7")
        last = connection.scalar(latest)
    text = f"last report {_when(last)}" if last else "nothing sent yet"
    return Check(name=name, passed=True, text=text)
