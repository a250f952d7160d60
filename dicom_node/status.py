"""What administrators read: one snapshot, from Postgres alone, for CLI, JSON and metrics."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, func

from dicom_node import __version__, associations, heartbeats, remedies
from dicom_node.associations import RefusedAssociation
from dicom_node.config import Settings
from dicom_node.db import Database, delivery, draft, instance, job, report, study
from dicom_node.errors import NodeError, NotSupported
from dicom_node.heartbeats import Process

#: Below this the node is about to refuse studies.
LOW_BYTES = 2 * 2**30
#: A delivery that failed this often is worth a look before it is given up.
WORRYING_ATTEMPTS = 4
#: Our certificate is to be replaced at the latest when only so much time is left; and soon.
CERTIFICATE_LATE, CERTIFICATE_SOON = timedelta(days=7), timedelta(days=30)
#: Replaced bytes are shown for so long.
RECENT = timedelta(days=7)

#: Whatever kind of object was tried, the peer does not take it.
_UNSUPPORTED = func.coalesce(delivery.c.reason, "").startswith(NotSupported.code)

Counts = Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something a person must (problem) or may want to (warning) look at."""

    code: str
    text: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """What passed between a peer and us."""

    name: str
    last_received: datetime | None
    last_sent: datetime | None
    failures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The node at one moment."""

    settings: Settings
    database_up: bool
    processes: Sequence[Process] = ()
    studies: Counts
    jobs: Counts
    deliveries: Counts
    reports: Counts = field(default_factory=dict)  #: the radiologists' final ones
    peers: Sequence[PeerStatus] = ()
    refused: Sequence[RefusedAssociation] = ()
    replaced: int = 0  #: instances that came again with other bytes, lately
    worrying: Mapping[str, int]  #: peer -> deliveries that keep failing
    #: peer -> drafts that wait, for it takes no such objects
    unsupported: Mapping[str, int] = field(default_factory=dict)
    #: (peer, SOP class that it got, how often lately) where it did not take the draft itself
    fallen_back: Sequence[tuple[str, str, int]] = ()
    failed_jobs: int = 0  #: those no later job of the study took the place of
    failed_deliveries: int = 0  #: those of drafts that nothing supersedes
    problems: Sequence[Problem] = ()
    warnings: Sequence[Problem] = ()

    @property
    def healthy(self) -> bool:
        """True: nobody needs to do anything."""
        return not self.problems

    @property
    def node(self) -> Process | None:
        """The process that listens, if one is alive."""
        return next((one for one in self.processes if one.role == "node" and one.up), None)

    @property
    def broker_up(self) -> bool:
        """As the node last saw it; unknown counts as down."""
        return bool(self.node and self.node.facts.get("broker_up"))

    @property
    def workers(self) -> list[Process]:
        """Worker processes that are alive."""
        return [one for one in self.processes if one.role != "node" and one.up]

    @property
    def disk(self) -> str:
        """ok, low, full, or unknown while no node runs."""
        free = self.free_bytes
        if self.node is None or free is None:
            return "unknown"
        state = str(self.node.facts.get("disk", "ok"))
        return "low" if state == "ok" and free < LOW_BYTES else state

    @property
    def free_bytes(self) -> int | None:
        """Free space where the node writes."""
        return self.node.facts.get("free_bytes") if self.node else None

    @property
    def certificate_expires(self) -> datetime | None:
        """When our certificate for TLS ends, as the node reads it."""
        expires = self._tls.get("certificate_expires")
        return datetime.fromisoformat(expires) if expires else None

    @property
    def certificate_fault(self) -> str | None:
        """Why the files for TLS can't be used."""
        return self._tls.get("fault")

    @property
    def _tls(self) -> Mapping[str, str]:
        return (self.node.facts.get("tls") if self.node else None) or {}


def snapshot(database: Database | None, settings: Settings) -> Status:
    """Read everything; a database that is away is a problem in the answer, not an exception."""
    empty: Counts = {}
    down = Status(
        settings=settings,
        database_up=False,
        studies=empty,
        jobs=empty,
        deliveries=empty,
        worrying=empty,
    )
    if database is None:
        return _judged(down, "the embedded database is not running")
    try:
        with database.transaction() as connection:
            return _judged(_read(connection, settings), None)
    except NodeError as error:
        return _judged(down, str(error))


def _read(connection: Connection, settings: Settings) -> Status:
    return Status(
        settings=settings,
        database_up=True,
        processes=heartbeats.seen(connection),
        studies=_count(connection, study.c.state),
        jobs=_count(connection, job.c.state),
        deliveries=_count(connection, delivery.c.state),
        reports=_count(connection, report.c.state),
        peers=_peers(connection, settings),
        refused=associations.latest(connection),
        replaced=_replaced(connection),
        worrying=_waiting(connection, delivery.c.attempts >= WORRYING_ATTEMPTS, ~_UNSUPPORTED),
        unsupported=_waiting(connection, _UNSUPPORTED),
        fallen_back=_fallen_back(connection),
        failed_jobs=_failed_jobs(connection),
        failed_deliveries=_failed_deliveries(connection),
    )


def _count(connection: Connection, column: sa.Column[str]) -> dict[str, int]:
    rows = connection.execute(sa.select(column, func.count()).group_by(column).order_by(column))
    return {state: count for state, count in rows}


def _peers(connection: Connection, settings: Settings) -> list[PeerStatus]:
    received = dict(
        connection.execute(
            sa.select(instance.c.calling_ae_title, func.max(instance.c.received_at)).group_by(
                instance.c.calling_ae_title
            )
        ).all()
    )
    sent = {
        name: (last, failures)
        for name, last, failures in connection.execute(
            sa.select(
                delivery.c.peer,
                func.max(delivery.c.sent_at),
                func.count().filter(delivery.c.state == "failed"),
            ).group_by(delivery.c.peer)
        )
    }
    return [
        PeerStatus(
            name=peer.name,
            last_received=_newest(received, peer.calling_ae_titles) if peer.is_source else None,
            last_sent=sent.get(peer.name, (None, 0))[0],
            failures=sent.get(peer.name, (None, 0))[1],
        )
        for peer in settings.peers
    ]


def _newest(received: Mapping[str, datetime], titles: Collection[str]) -> datetime | None:
    return max((received[title] for title in titles if title in received), default=None)


def _replaced(connection: Connection) -> int:
    changed = sa.select(func.count()).where(
        instance.c.revision > 1, instance.c.received_at > func.now() - RECENT
    )
    return connection.scalar(changed) or 0


def _waiting(connection: Connection, *which: sa.ColumnElement[bool]) -> dict[str, int]:
    rows = connection.execute(
        sa.select(delivery.c.peer, func.count())
        .where(delivery.c.state.in_(("due", "sent", "sending")), *which)
        .group_by(delivery.c.peer)
    )
    return {peer: count for peer, count in rows}


def _fallen_back(connection: Connection) -> list[tuple[str, str, int]]:
    rows = connection.execute(
        sa.select(delivery.c.peer, draft.c.sop_class_uid, func.count())
        .join(draft, draft.c.sop_instance_uid == delivery.c.sent_uid)
        .where(
            delivery.c.sent_uid != delivery.c.draft_uid, delivery.c.sent_at > func.now() - RECENT
        )
        .group_by(delivery.c.peer, draft.c.sop_class_uid)
        .order_by(delivery.c.peer, draft.c.sop_class_uid)
    )
    return [(peer, sop_class_uid, count) for peer, sop_class_uid, count in rows]


def _failed_jobs(connection: Connection) -> int:
    """What ``retry --failed`` would queue again: a later job of the study heals an earlier one."""
    latest = sa.select(func.max(job.c.id)).group_by(job.c.study_instance_uid, job.c.model)
    failed = sa.select(func.count()).where(job.c.id.in_(latest), job.c.state == "failed")
    return connection.scalar(failed) or 0


def _failed_deliveries(connection: Connection) -> int:
    failed = (
        sa.select(func.count())
        .select_from(delivery)
        .join(draft, draft.c.sop_instance_uid == delivery.c.draft_uid)
        .where(delivery.c.state == "failed", draft.c.superseded_by.is_(None))
    )
    return connection.scalar(failed) or 0


def _judged(status: Status, database_fault: str | None) -> Status:
    if database_fault is not None:
        fix = "start the node (`dicom-node run`) or check [database] url and the server"
        problem = Problem(code="database", text=database_fault, fix=fix)
        return replace(status, problems=(problem,))
    problems = (*_down(status), *_failed(status), *_late_certificate(status))
    return replace(status, problems=problems, warnings=tuple(_warnings(status)))


def _down(status: Status) -> Iterator[Problem]:
    if status.node is None:
        yield Problem(
            code="node",
            text="no process listens: studies can't be received",
            fix="start `dicom-node run` or `dicom-node serve`",
        )
    elif not status.broker_up:
        yield Problem(
            code="broker",
            text="the broker does not answer: jobs wait",
            fix="check [broker] url and the server; waiting jobs then run by themselves",
        )
    for role, what in (("gpu", "studies are not read"), ("net", "drafts are not sent")):
        if not any(one.role == role for one in status.workers):
            yield Problem(
                code=f"worker-{role}",
                text=f"no worker for the queue {role}: {what}",
                fix=f"start `dicom-node work --queues {role}`; its log says why it ended",
            )
    yield from _disk(status)


def _disk(status: Status) -> Iterator[Problem]:
    free = status.free_bytes
    fix = f"free space below {status.settings.node.data}; `dicom-node retention` says what may go"
    if status.disk == "full":
        text = "the disk is full: no objects are taken, senders must wait"
        yield Problem(code="storage", text=text, fix=fix)
    elif free is not None and free < LOW_BYTES:
        text = f"only {free // 2**20} MiB are free where the node writes"
        yield Problem(code="storage", text=text, fix=fix)


def _failed(status: Status) -> Iterator[Problem]:
    if failed := status.failed_jobs:
        yield Problem(
            code="jobs",
            text=f"{failed} jobs failed",
            fix="`dicom-node study UID` names the reason; then `dicom-node retry --failed`",
        )
    if failed := status.failed_deliveries:
        yield Problem(
            code="deliveries",
            text=f"{failed} drafts could not be delivered",
            fix="`dicom-node doctor PEER`, mend it, then `dicom-node retry --failed`",
        )
    for peer, count in status.worrying.items():
        yield Problem(
            code="peer",
            text=f"{count} drafts for {peer} keep failing and are tried again",
            fix=f"`dicom-node doctor {peer}` names the fault",
        )
    for peer, count in status.unsupported.items():
        yield Problem(
            code="unsupported",
            text=f"{count} drafts wait: {peer} takes no kind of object that we may send",
            fix=f"let {peer} accept Basic Text SR, or choose others in [results] (fallback)",
        )


def _warnings(status: Status) -> Iterator[Problem]:
    if status.replaced:
        yield Problem(
            code="replaced",
            text=f"{status.replaced} instances came again with other bytes in the last 7 days",
            fix="`dicom-node study UID` shows which; the newest bytes are used",
        )
    yield from _replacements(status)
    if parked := status.reports.get("parked"):
        yield Problem(
            code="reports",
            text=f"{parked} final reports could not be matched to a study",
            fix="`dicom-node reports list --parked` says why; they are tried again as studies come",
        )
    if not status.settings.destinations():
        yield Problem(
            code="no-destination",
            text="no peer is a destination: drafts stay here",
            fix='add [[peers]] with roles = ["destination"]',
        )
    yield from _slow(status)
    yield from _certificate(status, CERTIFICATE_LATE, CERTIFICATE_SOON)


def _late_certificate(status: Status) -> Iterator[Problem]:
    if status.certificate_fault:
        yield Problem(
            code="certificate",
            text=f"TLS does not work with the files of now: {status.certificate_fault}",
            fix="mend them, then send SIGHUP to the node (what it loaded before stays in use)",
        )
    yield from _certificate(status, timedelta.min, CERTIFICATE_LATE)


def _certificate(status: Status, least: timedelta, most: timedelta) -> Iterator[Problem]:
    """Ours ends in more than ``least`` and at most ``most``."""
    expires = status.certificate_expires
    if expires and least < (left := expires - datetime.now(UTC)) <= most:
        yield Problem(
            code="certificate",
            text=f"our certificate for TLS ends on {expires.date()}, in {left.days} days",
            fix=f"put a new one at {status.settings.tls.certificate}, then send SIGHUP to the node",
        )


def _replacements(status: Status) -> Iterator[Problem]:
    if not status.fallen_back:
        return
    from pydicom.uid import UID  # costs 0.7 s: only where there is something to name

    for peer, sop_class_uid, count in status.fallen_back:
        yield Problem(
            code="fallback",
            text=f"{peer} got {count} drafts as {UID(sop_class_uid).name}: it takes no other",
            fix=f"nothing is lost; for a text SR let {peer} accept Basic Text SR Storage",
        )


def _slow(status: Status) -> Iterator[Problem]:
    for facts in (one.facts for one in status.workers if one.facts.get("model")):
        if facts.get("device") == "cpu" and not facts.get("demo"):
            yield Problem(
                code="cpu",
                text=f"{facts['model']} takes {_pace(facts)} on this CPU",
                fix="nothing is wrong; where that is too slow, let a worker with a GPU read",
            )


def _pace(facts: Mapping[str, Any]) -> str:
    """How long a report takes: as measured, or else what is usual without a GPU."""
    seconds = facts.get("seconds_per_report")
    if seconds is None:
        return "minutes for a report"
    long = f"{seconds:.0f} seconds" if seconds < 60 else f"{seconds / 60:.1f} minutes"
    return f"{long} for a report"


def to_json(status: Status) -> dict[str, Any]:
    """The document of ``status --json`` (interface.md)."""
    node, settings = status.node, status.settings
    return {
        "version": __version__,
        "healthy": status.healthy,
        "problems": [_problem(one) for one in status.problems],
        "warnings": [_problem(one) for one in status.warnings],
        "node": {
            "ae_title": settings.node.ae_title,
            "host": settings.node.host,
            "port": settings.node.port,
            "up": node is not None,
        },
        "database": {"up": status.database_up},
        "broker": {"up": status.broker_up},
        "tls": {
            "port": settings.tls.port or None,
            "certificate_expires": _iso(status.certificate_expires),
            "fault": status.certificate_fault,
        },
        "workers": [_worker(one) for one in status.workers],
        "studies": dict(status.studies),
        "jobs": dict(status.jobs),
        "deliveries": dict(status.deliveries),
        "reports": dict(status.reports),
        "peers": [
            {
                "name": peer.name,
                "last_received": _iso(peer.last_received),
                "last_sent": _iso(peer.last_sent),
                "failures": peer.failures,
            }
            for peer in status.peers
        ],
        "refused_associations": [_refused(one, settings) for one in status.refused],
        "storage": {
            "free_bytes": status.free_bytes,
            "state": status.disk,
        },
    }


def _refused(one: RefusedAssociation, settings: Settings) -> dict[str, Any]:
    return {
        "calling_ae_title": one.calling_ae_title,
        "called_ae_title": one.called_ae_title,
        "address": one.address,
        "tls": one.tls,
        "contexts": list(one.contexts),
        "code": one.reason.value,
        "reason": one.text,
        "fix": remedies.fix(settings, one),
        "count": one.count,
        "first": _iso(one.first),
        "last": _iso(one.last),
    }


def _problem(one: Problem) -> dict[str, str]:
    return {"code": one.code, "text": one.text, "fix": one.fix}


def _worker(one: Process) -> dict[str, Any]:
    return {
        "name": one.name,
        "queue": one.role,
        "model": one.facts.get("model"),
        "algorithm": one.facts.get("algorithm"),
        "demo": one.facts.get("demo", False),
        "device": one.facts.get("device"),
        "state": one.facts.get("state"),
        "slots": one.facts.get("slots"),
        "busy": one.facts.get("busy"),
        "seconds_per_report": one.facts.get("seconds_per_report"),
        "tokens_per_pass": one.facts.get("tokens_per_pass"),
        "last_seen": _iso(one.last_seen),
    }


def _iso(at: datetime | None) -> str | None:
    return at.isoformat(timespec="seconds") if at else None
