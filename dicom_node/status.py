"""What administrators read: one snapshot, from Postgres alone, for CLI, JSON and metrics."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, func

from dicom_node import (
    __version__,
    associations,
    circuits,
    commitments,
    fetches,
    heartbeats,
    remedies,
)
from dicom_node.associations import RefusedAssociation
from dicom_node.audit import spool, syslog
from dicom_node.audit.spool import Backlog
from dicom_node.circuits import Circuit
from dicom_node.config import Settings
from dicom_node.db import (
    Database,
    circuit,
    delivery,
    draft,
    fetch,
    instance,
    job,
    reconciled_day,
    report,
    study,
    worklist_answer,
)
from dicom_node.errors import NodeError, NotSupported, Unproven
from dicom_node.fetches import Trouble
from dicom_node.heartbeats import Process

#: Below this the node is about to refuse studies.
LOW_BYTES = 2 * 2**30
#: A delivery that failed this often is worth a look before it is given up.
WORRYING_ATTEMPTS = 4
_LONG = delivery.c.attempts >= WORRYING_ATTEMPTS
#: Our certificate is to be replaced at the latest when only so much time is left; and soon.
CERTIFICATE_LATE, CERTIFICATE_SOON = timedelta(days=7), timedelta(days=30)
#: A peer that was not asked for so many sweeps is told.
SWEEPS = 3
#: Replaced bytes are shown for so long.
RECENT = timedelta(days=7)

#: Whatever kind of object was tried, the peer does not take it.
_UNSUPPORTED = func.coalesce(delivery.c.reason, "").startswith(NotSupported.code)
#: The peer answered success to it, or did and is sent it again.
_UNPROVEN = sa.or_(
    delivery.c.sent_at.is_not(None),
    func.coalesce(delivery.c.reason, "").startswith(Unproven.code),
)
_LEFT_ALONE = delivery.c.peer.in_(
    sa.select(circuit.c.peer).where(circuit.c.open_until.is_not(None))
)

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
    #: peer -> drafts that it answered success to, and that are not proven to be there
    unproven: Mapping[str, int] = field(default_factory=dict)
    circuits: Sequence[Circuit] = ()  #: the peers that are left alone for a while
    waiting: Mapping[str, int] = field(default_factory=dict)  #: peer -> drafts not there yet
    #: peer -> drafts that wait, for it takes no such objects
    unsupported: Mapping[str, int] = field(default_factory=dict)
    #: (peer, SOP class that it got, how often lately) where it did not take the draft itself
    fallen_back: Sequence[tuple[str, str, int]] = ()
    #: peer -> how many of its storage commitment requests it can't be answered, and why
    unreported: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    #: peer -> why its worklist is not known now, and since when it was last
    worklists: Mapping[str, tuple[str, datetime | None]] = field(default_factory=dict)
    fetches: Counts = field(default_factory=dict)  #: studies that peers have and we want
    not_fetched: Sequence[Trouble] = ()  #: ... and that do not come
    #: peers that are asked, and when one last answered for a day
    reconciled: Mapping[str, datetime | None] = field(default_factory=dict)
    untold: Backlog = field(default_factory=Backlog)  #: audit messages the collector has not got
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
        worrying=_waiting(connection, _LONG, ~_UNSUPPORTED, ~_UNPROVEN, ~_LEFT_ALONE),
        unproven=_waiting(connection, _UNPROVEN, sa.or_(_LONG, _unproven_late(settings))),
        circuits=[one for one in circuits.opened(connection) if settings.peer(one.peer)],
        waiting=_waiting(connection),
        unsupported=_waiting(connection, _UNSUPPORTED),
        fallen_back=_fallen_back(connection),
        unreported=commitments.unreported(connection, within=RECENT),
        worklists=_worklists(connection, settings),
        fetches=_count(connection, fetch.c.state),
        not_fetched=fetches.troubles(connection, attempts=WORRYING_ATTEMPTS),
        reconciled=_reconciled(connection, settings),
        untold=spool.backlog(connection, longest=syslog.longest_message(settings)),
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


def _worklists(
    connection: Connection, settings: Settings
) -> dict[str, tuple[str, datetime | None]]:
    asked = [peer.name for peer in settings.asked("worklist")]
    failing = sa.select(worklist_answer).where(
        worklist_answer.c.peer.in_(asked), worklist_answer.c.failed_at.is_not(None)
    )
    rows = connection.execute(failing.order_by(worklist_answer.c.peer))
    return {row.peer: (row.fault, row.answered_at) for row in rows}


def _reconciled(connection: Connection, settings: Settings) -> dict[str, datetime | None]:
    if not settings.reconciliation.days:
        return {}
    latest = dict(
        connection.execute(
            sa.select(reconciled_day.c.peer, func.max(reconciled_day.c.asked_at)).group_by(
                reconciled_day.c.peer
            )
        ).all()
    )
    return {peer.name: latest.get(peer.name) for peer in settings.asked("query")}


def _unproven_late(settings: Settings) -> sa.ColumnElement[bool]:
    patience = timedelta(seconds=settings.delivery.commitment_seconds)
    return delivery.c.sent_at < func.now() - patience


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
            fix="`dicom-node deliveries --state failed` names the reasons; mend them, then"
            " `dicom-node retry --failed`",
        )
    yield from _undelivered(status)


def _undelivered(status: Status) -> Iterator[Problem]:
    for one in status.circuits:
        if not (count := status.waiting.get(one.peer)):
            continue
        yield Problem(
            code="circuit",
            text=f"{count} drafts wait for {one.peer}, which fails since {_iso(one.opened_at)}"
            f" and is tried now and then: {one.reason}",
            fix=f"`dicom-node doctor {one.peer}` names the fault; what waits then goes by itself",
        )
    for peer, count in status.unproven.items():
        yield Problem(
            code="unproven",
            text=f"{count} drafts were answered with success and are not proven at {peer}",
            fix=f"`dicom-node deliveries --peer {peer}` says why; `dicom-node doctor {peer}`",
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
    for peer, (count, reason) in status.unreported.items():
        yield Problem(
            code="commitment",
            text=f"{count} storage commitment requests of {peer} are not reported on: {reason}",
            fix=f"peer {peer}: host and port where it takes reports; it may also ask again",
        )
    yield from _audit(status)
    for peer, (fault, answered_at) in status.worklists.items():
        yield Problem(
            code="worklist",
            text=f"orders of {peer} are not known since {_iso(answered_at) or 'ever'}: {fault}",
            fix=f"`dicom-node doctor {peer}` names the fault; studies are read without its orders",
        )
    yield from _queries(status)
    if not status.settings.destinations():
        yield Problem(
            code="no-destination",
            text="no peer is a destination: drafts stay here",
            fix='add [[peers]] with roles = ["destination"]',
        )
    yield from _slow(status)
    yield from _certificate(status, CERTIFICATE_LATE, CERTIFICATE_SOON)


def _queries(status: Status) -> Iterator[Problem]:
    for one in status.not_fetched:
        count = one.failed + one.waiting
        yield Problem(
            code="fetch",
            text=f"{count} studies do not come from {one.peer}, {one.failed} of them were given up:"
            f" {one.reason}",
            fix=f"`dicom-node doctor {one.peer}`, mend it, then `dicom-node retry --failed`",
        )
    patience = timedelta(minutes=SWEEPS * status.settings.reconciliation.every_minutes)
    for peer, asked_at in status.reconciled.items():
        if asked_at is None or datetime.now(UTC) - asked_at > patience:
            yield Problem(
                code="reconciliation",
                text=f"{peer} has not told what it has since {_iso(asked_at) or 'ever'}",
                fix=f"`dicom-node reconcile --peer {peer}` says why; `dicom-node doctor {peer}`",
            )


def _audit(status: Status) -> Iterator[Problem]:
    untold, url = status.untold, status.settings.audit.url
    if untold.late and untold.since:
        yield Problem(
            code="audit",
            text=f"{untold.count} audit messages wait since {untold.since:%Y-%m-%d %H:%M %Z}",
            fix=f"check the collector at {url}; the node's log says what it answers; none is lost"
            if url
            else "set [audit] url again: what was to be told then waits for it",
        )
    if untold.too_long:
        yield Problem(
            code="audit",
            text=f"{untold.too_long} audit messages are too long for a UDP datagram and wait",
            fix='let the collector take TLS: [audit] url = "tls://HOST:PORT"',
        )


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
        "audit": {
            "waiting": status.untold.count,
            "since": _iso(status.untold.since),
        },
        "tls": {
            "port": settings.tls.port or None,
            "certificate_expires": _iso(status.certificate_expires),
            "fault": status.certificate_fault,
        },
        "workers": [_worker(one) for one in status.workers],
        "studies": dict(status.studies),
        "jobs": dict(status.jobs),
        "deliveries": dict(status.deliveries),
        "circuits": [_circuit(one, status.waiting) for one in status.circuits],
        "reports": dict(status.reports),
        "fetches": dict(status.fetches),
        "reconciliation": {peer: _iso(at) for peer, at in status.reconciled.items()},
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


def _circuit(one: Circuit, waiting: Counts) -> dict[str, Any]:
    return {
        "peer": one.peer,
        "since": _iso(one.opened_at),
        "failures": one.failures,
        "reason": one.reason,
        "next_attempt": _iso(one.open_until),
        "waiting": waiting.get(one.peer, 0),
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
