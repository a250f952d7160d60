"""One draft on its way to one destination: the only writer of ``delivery``.

    due -> sending -> sent -> delivered | failed(reason)
    peer down: due later     shadow peer: withheld     superseded before sending: dropped

``sent`` is what the peer's status says; ``delivered`` is proven as its ``proof`` asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping, func

from dicom_node import events, nudges
from dicom_node.config import Peer
from dicom_node.db import delivery, draft

_CLAIMABLE = sa.or_(
    sa.and_(delivery.c.state.in_(("due", "sent")), delivery.c.due_at <= func.now()),
    sa.and_(delivery.c.state == "sending", delivery.c.lease_until < func.now()),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One draft for one destination."""

    id: int
    draft_uid: str
    study_instance_uid: str
    peer: str
    state: str
    attempts: int  #: since it was last made due from scratch
    claims: int  #: ever; never reset: the token of this claim
    proof: str | None
    reason: str | None
    age: timedelta = field(compare=False)  #: since it was made, or a person queued it again
    sent_at: datetime | None
    sent_uid: str | None  #: what the peer got: the draft, or an alternative of it


def _delivery(row: RowMapping) -> Delivery:
    return Delivery(**{name: row[name] for name in Delivery.__dataclass_fields__})


def create(
    connection: Connection, study_instance_uid: str, draft_uid: str, peers: Iterable[Peer]
) -> None:
    """Put a draft on its way to every destination; a shadow peer's copy is withheld."""
    for peer in peers:
        state = "withheld" if peer.mode == "shadow" else "due"
        delivery_id = connection.scalar(
            sa.insert(delivery)
            .values(draft_uid=draft_uid, peer=peer.name, state=state)
            .returning(delivery.c.id)
        )
        subject = f"delivery {delivery_id} to {peer.name}"
        events.append(connection, study_instance_uid, subject, None, state)


def claim(
    connection: Connection, delivery_id: int, *, lease: timedelta, worker: str
) -> Delivery | None:
    """Take the delivery if it is free; ``None`` means another worker has it, or it is done.

    A delivery whose object the peer already confirmed (``sent_at`` is set) keeps that fact: only
    its proof is missing.
    """
    before = (
        sa.select(delivery.c.id)
        .where(delivery.c.id == delivery_id, _CLAIMABLE)
        .with_for_update(skip_locked=True)
    )
    changed = connection.execute(
        sa.update(delivery)
        .where(delivery.c.id.in_(before.scalar_subquery()))
        .values(
            state="sending",
            attempts=delivery.c.attempts + 1,
            claims=delivery.c.claims + 1,
            worker=worker,
            lease_until=func.now() + lease,
        )
    ).rowcount
    if not changed:
        return None
    claimed = _delivery(
        connection.execute(_joined().where(delivery.c.id == delivery_id)).mappings().one()
    )
    _event(connection, claimed, "sent" if claimed.sent_at else "due", "sending", None)
    return claimed


def renew(connection: Connection, held: Delivery, *, lease: timedelta) -> bool:
    """Keep the lease; False: it was lost."""
    return bool(
        connection.execute(
            sa.update(delivery).where(*_held(held)).values(lease_until=func.now() + lease)
        ).rowcount
    )


def sent(connection: Connection, held: Delivery, sent_uid: str, reason: str | None) -> None:
    """The peer answered success to this object; the lease is kept for the proof."""
    _advance(connection, held, "sending", reason, sent_at=func.now(), sent_uid=sent_uid)


def delivered(connection: Connection, held: Delivery, proof: str) -> None:
    """Proven to be at the peer."""
    _advance(connection, held, "delivered", None, proof=proof, lease_until=None)


def unproven(connection: Connection, held: Delivery, delay: timedelta, reason: str) -> None:
    """Sent, but not proven yet: ask again after ``delay``."""
    due = func.now() + delay
    _advance(connection, held, "sent", reason, due_at=due, lease_until=None, nudged_at=None)


def retry_later(connection: Connection, held: Delivery, delay: timedelta, reason: str) -> None:
    """The peer is away or busy: send again after ``delay``."""
    due = func.now() + delay
    _advance(connection, held, "due", reason, due_at=due, lease_until=None, nudged_at=None)


def fail(connection: Connection, held: Delivery, reason: str) -> None:
    """It will not go: an administrator must look."""
    _advance(connection, held, "failed", reason, lease_until=None)


def drop(connection: Connection, held: Delivery, reason: str) -> None:
    """No longer wanted at the peer."""
    _advance(connection, held, "dropped", reason, lease_until=None)


def _advance(
    connection: Connection, held: Delivery, state: str, reason: str | None, **values: object
) -> None:
    changed = connection.execute(
        sa.update(delivery).where(*_held(held)).values(state=state, reason=reason, **values)
    ).rowcount
    if changed:  # else another worker holds it now and will come to the same end
        step = "sent" if "sent_at" in values else state
        _event(connection, held, "sending", step, reason)


def _held(held: Delivery) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        delivery.c.id == held.id,
        delivery.c.state == "sending",
        delivery.c.claims == held.claims,
    )


def _event(
    connection: Connection, one: Delivery, from_state: str, to_state: str, reason: str | None
) -> None:
    subject = f"delivery {one.id} to {one.peer}"
    events.append(connection, one.study_instance_uid, subject, from_state, to_state, reason)


def nudge(connection: Connection, *, every: timedelta) -> list[int]:
    """The due deliveries nobody was told of within ``every``, the longest due first."""
    return nudges.mark(connection, delivery, _CLAIMABLE, every=every)


def drop_unsent(connection: Connection, draft_uid: str, reason: str) -> None:
    """A newer draft took this one's place before it was sent."""
    rows = connection.scalars(
        sa.update(delivery)
        .where(
            delivery.c.draft_uid == draft_uid,
            delivery.c.state == "due",
            delivery.c.sent_at.is_(None),  # else it is there, and only its proof is missing
        )
        .values(state="dropped", reason=reason)
        .returning(delivery.c.id)
    ).all()
    for delivery_id in rows:
        row = connection.execute(_joined().where(delivery.c.id == delivery_id)).mappings().one()
        _event(connection, _delivery(row), "due", "dropped", reason)


def requeue(connection: Connection, *, study_instance_uid: str | None) -> list[int]:
    """Make failed deliveries due again: those of one study, or all (``None``).

    They are sent again too: of one that was never proven, the peer may have nothing.
    """
    failed = _joined().where(delivery.c.state == "failed", draft.c.superseded_by.is_(None))
    if study_instance_uid is not None:
        failed = failed.where(draft.c.study_instance_uid == study_instance_uid)
    found = [_delivery(row) for row in connection.execute(failed).mappings()]
    for one in found:
        connection.execute(
            sa.update(delivery)
            .where(delivery.c.id == one.id)
            .values(
                state="due",
                attempts=0,
                due_at=func.now(),
                nudged_at=None,
                sent_at=None,
                sent_uid=None,
                created_at=func.now(),
            )
        )
        _event(connection, one, "failed", "due", "retry")
    return [one.id for one in found]


def of_study(connection: Connection, study_instance_uid: str) -> list[Delivery]:
    """All deliveries of a study's drafts."""
    query = _joined().where(draft.c.study_instance_uid == study_instance_uid)
    rows = connection.execute(query.order_by(delivery.c.id))
    return [_delivery(row) for row in rows.mappings()]


def _joined() -> sa.Select[tuple[object, ...]]:
    age = (func.now() - delivery.c.created_at).label("age")
    return sa.select(delivery, draft.c.study_instance_uid, age).join(
        draft, draft.c.sop_instance_uid == delivery.c.draft_uid
    )
