"""Storage commitment as rows (PS3.4 J.3): the only writer of both its tables.

What we ask a peer (``commitment``): the transaction is committed before it is asked for, so that
its report finds it whenever it comes, on the same association, on another one, after a restart.

What a peer asks us (``commitment_request``): the request is committed before it is accepted.

    due -> reporting -> reported | failed(reason)      lease over: due again
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection, Row, RowMapping, func
from sqlalchemy.dialects import postgresql

from dicom_node import deliveries, nudges
from dicom_node.db import commitment, commitment_request, delivery, instance
from dicom_node.errors import NodeError

PROOF = "commitment"

NO_SUCH_INSTANCE = 0x0112
CLASS_INSTANCE_CONFLICT = 0x0119
#: PS3.3 C.14.1.1, Failure Reason.
REASONS = {
    0x0110: "processing failure",
    NO_SUCH_INSTANCE: "no such object instance",
    CLASS_INSTANCE_CONFLICT: "class-instance conflict",
    0x0122: "referenced SOP class not supported",
    0x0131: "duplicate transaction UID",
    0x0213: "resource limitation",
}

#: What has ended is forgotten after this long; until then a repeated message changes nothing.
KEPT = timedelta(days=90)

_CLAIMABLE = sa.or_(
    sa.and_(commitment_request.c.state == "due", commitment_request.c.due_at <= func.now()),
    sa.and_(
        commitment_request.c.state == "reporting", commitment_request.c.lease_until < func.now()
    ),
)


class Item(NamedTuple):
    """An object that is referenced."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Storage Commitment Request (PS3.4 J.3.2.1.1)."""

    transaction_uid: str
    references: tuple[Item, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Storage Commitment Result (PS3.4 J.3.3.1.1): of each object, is it safe?"""

    transaction_uid: str
    committed: tuple[Item, ...]
    failed: Mapping[Item, int] = field(default_factory=dict)  #: Failure Reason


class InvalidArgument(NodeError):
    """Invalid argument value: not a transaction that there is, or not as it was asked for."""

    dimse_status = 0x0115  # PS3.7 C.4.3
    code = "commitment.argument"


def in_words(failure_reason: int) -> str:
    """A Failure Reason for people."""
    return f"0x{failure_reason:04X} {REASONS.get(failure_reason, 'unknown reason')}"


# -- what we ask -----------------------------------------------------------------------------------


class Asked(NamedTuple):
    """A transaction of ours."""

    outcome: str | None  #: committed, failed; ``None``: no report yet
    failure_reason: int | None


def ask(connection: Connection, peer: str, item: Item, *, delivery_id: int | None = None) -> str:
    """Write down that a peer is going to be asked; the Transaction UID (PS3.5 B.2).

    Parameters
    ----------
    delivery_id
        The delivery that the answer proves; ``None``: only :func:`asked` will tell it.
    """
    transaction_uid = f"2.25.{uuid.uuid4().int}"
    connection.execute(
        sa.insert(commitment).values(
            transaction_uid=transaction_uid,
            delivery_id=delivery_id,
            peer=peer,
            **item._asdict(),
        )
    )
    return transaction_uid


def accepted(connection: Connection, transaction_uid: str) -> None:
    """The peer took the request: its report is waited for."""
    connection.execute(
        sa.update(commitment)
        .where(commitment.c.transaction_uid == transaction_uid)
        .values(accepted_at=func.now())
    )


def asked(connection: Connection, transaction_uid: str) -> Asked | None:
    """What is known of a transaction of ours."""
    row = connection.execute(
        sa.select(commitment.c.outcome, commitment.c.failure_reason).where(
            commitment.c.transaction_uid == transaction_uid
        )
    ).one_or_none()
    return Asked(*row) if row else None


def pending(
    connection: Connection, delivery_id: int, sop_instance_uid: str, patience: timedelta
) -> timedelta | None:
    """How much longer to wait for a report on a delivery; ``None``: it is to be asked for.

    A request of before the object was last sent says nothing of it.
    """
    wait: timedelta | None = connection.scalar(
        sa.select(func.max(commitment.c.accepted_at) + patience - func.now())
        .select_from(commitment.join(delivery, delivery.c.id == commitment.c.delivery_id))
        .where(
            delivery.c.id == delivery_id,
            commitment.c.sop_instance_uid == sop_instance_uid,
            commitment.c.requested_at >= delivery.c.sent_at,
            commitment.c.answered_at.is_(None),
        )
    )
    return wait if wait is not None and wait > timedelta(0) else None


def take(
    connection: Connection,
    report: Report,
    peers: Collection[str],
    back_off: Callable[[int], timedelta],
) -> None:
    """Write down what a peer reports, and what it means for the delivery; once.

    Parameters
    ----------
    peers
        Names of the configured peers that the reporting one may be.
    back_off
        How long to wait before an object that the peer does not have is sent again.

    Raises
    ------
    InvalidArgument
        Nobody of ``peers`` was asked for this, or the report does not speak of what we asked.
    """
    row = connection.execute(
        sa.select(commitment)
        .where(commitment.c.transaction_uid == report.transaction_uid)
        .with_for_update()
    ).one_or_none()
    if row is None or row.peer not in peers:
        raise InvalidArgument(f"transaction {report.transaction_uid} was not asked for")
    if row.answered_at is not None:
        return
    failure_reason = _verdict(report, row.sop_instance_uid)
    connection.execute(
        sa.update(commitment)
        .where(commitment.c.transaction_uid == report.transaction_uid)
        .values(
            answered_at=func.now(),
            outcome="committed" if failure_reason is None else "failed",
            failure_reason=failure_reason,
        )
    )
    if row.delivery_id is not None:
        _tell(connection, row, failure_reason, back_off)


def _verdict(report: Report, sop_instance_uid: str) -> int | None:
    """The Failure Reason; ``None``: committed."""
    if any(item.sop_instance_uid == sop_instance_uid for item in report.committed):
        return None
    for item, failure_reason in report.failed.items():
        if item.sop_instance_uid == sop_instance_uid:
            return failure_reason
    raise InvalidArgument(
        f"the report of transaction {report.transaction_uid} does not name the object asked for"
    )


def _tell(
    connection: Connection,
    row: Row[tuple[object, ...]],
    failure_reason: int | None,
    back_off: Callable[[int], timedelta],
) -> None:
    uid = row.sop_instance_uid
    if failure_reason is None:
        deliveries.committed(connection, row.delivery_id, uid, PROOF)
        return
    attempts = connection.scalar(
        sa.select(delivery.c.attempts).where(
            delivery.c.id == row.delivery_id, delivery.c.sent_at <= row.requested_at
        )
    )
    if attempts is not None:  # else it was sent again since, and this is old news
        reason = f"{row.peer} does not commit to it: {in_words(failure_reason)}"
        delay = back_off(max(attempts, 1))
        deliveries.missing(connection, row.delivery_id, uid, reason, delay)


# -- what we are asked -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A request that this process reports on."""

    id: int
    transaction_uid: str
    peer: str
    address: str  #: that it was asked from
    references: tuple[Item, ...]
    attempts: int
    claims: int  #: the token of this claim
    age: timedelta = field(compare=False)


def requested(connection: Connection, request: Request, *, peer: str, address: str) -> None:
    """Keep a request of a peer; one that comes twice is reported on once, unless that failed.

    Raises
    ------
    InvalidArgument
        The peer asked for other objects under this Transaction UID.
    """
    references = [list(item) for item in request.references]
    connection.execute(
        postgresql.insert(commitment_request)
        .values(
            transaction_uid=request.transaction_uid,
            peer=peer,
            address=address,
            references=references,
            state="due",
        )
        .on_conflict_do_nothing()
    )
    mine = (
        commitment_request.c.peer == peer,
        commitment_request.c.transaction_uid == request.transaction_uid,
    )
    kept = connection.scalar(sa.select(commitment_request.c.references).where(*mine))
    if kept != references:
        raise InvalidArgument(f"transaction {request.transaction_uid} is of other objects")
    connection.execute(
        sa.update(commitment_request)
        .where(*mine, commitment_request.c.state == "failed")
        .values(
            state="due",
            address=address,
            attempts=0,
            reason=None,
            received_at=func.now(),
            due_at=func.now(),
            nudged_at=None,
            ended_at=None,
        )
    )


def claim(connection: Connection, request_id: int, *, lease: timedelta, worker: str) -> Held | None:
    """Take a request to report on; ``None``: somebody else has it, or it is done."""
    free = (
        sa.select(commitment_request.c.id)
        .where(commitment_request.c.id == request_id, _CLAIMABLE)
        .with_for_update(skip_locked=True)
    )
    row = (
        connection.execute(
            sa.update(commitment_request)
            .where(commitment_request.c.id.in_(free.scalar_subquery()))
            .values(
                state="reporting",
                attempts=commitment_request.c.attempts + 1,
                claims=commitment_request.c.claims + 1,
                worker=worker,
                lease_until=func.now() + lease,
            )
            .returning(
                commitment_request, (func.now() - commitment_request.c.received_at).label("age")
            )
        )
        .mappings()
        .one_or_none()
    )
    return _held(row) if row else None


def _held(row: RowMapping) -> Held:
    values = {name: row[name] for name in Held.__dataclass_fields__}
    return Held(**values | {"references": tuple(Item(*one) for one in row["references"])})


def renew(connection: Connection, held: Held, *, lease: timedelta) -> bool:
    """Keep the lease; False: it was lost."""
    return _set(connection, held, lease_until=func.now() + lease)


def reported(connection: Connection, held: Held) -> None:
    """The peer took the report."""
    _set(connection, held, state="reported", reason=None, lease_until=None, ended_at=func.now())


def retry_later(connection: Connection, held: Held, delay: timedelta, reason: str) -> None:
    """The peer can't be told now: again after ``delay``."""
    due = func.now() + delay
    _set(connection, held, state="due", reason=reason, due_at=due, lease_until=None, nudged_at=None)


def fail(connection: Connection, held: Held, reason: str) -> None:
    """The peer can't be told; it may ask again."""
    _set(connection, held, state="failed", reason=reason, lease_until=None, ended_at=func.now())


def _set(connection: Connection, held: Held, **values: object) -> bool:
    changed = connection.execute(
        sa.update(commitment_request)
        .where(
            commitment_request.c.id == held.id,
            commitment_request.c.state == "reporting",
            commitment_request.c.claims == held.claims,
        )
        .values(**values)
    )
    return bool(changed.rowcount)


def nudge(connection: Connection, *, every: timedelta) -> list[int]:
    """The due requests nobody was told of within ``every``, the longest due first."""
    return nudges.mark(connection, commitment_request, _CLAIMABLE, every=every)


class Copy(NamedTuple):
    """A file that we hold of an object."""

    sop_class_uid: str
    path: str  #: relative to the data folder
    size: int


def copies(connection: Connection, references: Sequence[Item]) -> Mapping[str, list[Copy]]:
    """What is held of the objects, by SOP Instance UID, without what retention deleted."""
    uids = sa.cast([item.sop_instance_uid for item in references], postgresql.ARRAY(sa.Text))
    rows = connection.execute(
        sa.select(
            instance.c.sop_instance_uid,
            instance.c.sop_class_uid,
            instance.c.path,
            instance.c.size,
        ).where(
            instance.c.sop_instance_uid == sa.any_(uids), instance.c.pixels_deleted_at.is_(None)
        )
    )
    found: dict[str, list[Copy]] = {}
    for uid, *copy in rows:
        found.setdefault(uid, []).append(Copy(*copy))
    return found


def unreported(connection: Connection, *, within: timedelta) -> dict[str, tuple[int, str]]:
    """How many requests of each peer we could not report on lately, and a reason."""
    rows = connection.execute(
        sa.select(
            commitment_request.c.peer,
            func.count(),
            func.max(commitment_request.c.reason),
        )
        .where(
            commitment_request.c.state.in_(("due", "reporting", "failed")),
            commitment_request.c.reason.is_not(None),
            commitment_request.c.received_at > func.now() - within,
        )
        .group_by(commitment_request.c.peer)
        .order_by(commitment_request.c.peer)
    )
    return {peer: (count, reason) for peer, count, reason in rows}


# -- both ------------------------------------------------------------------------------------------


def forget(connection: Connection) -> None:
    """Delete what ended long ago; what a delivery was proven by stays as long as the delivery."""
    connection.execute(
        sa.delete(commitment_request).where(commitment_request.c.ended_at < func.now() - KEPT)
    )
    connection.execute(
        sa.delete(commitment).where(
            commitment.c.delivery_id.is_(None), commitment.c.requested_at < func.now() - KEPT
        )
    )
