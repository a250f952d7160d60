"""One draft on its way to one destination: the only writer of ``delivery``.

    due -> sending -> sent -> delivered | failed(reason)
    peer down: due later     shadow peer: withheld     superseded before sending: dropped

``sent`` is what the peer's status says; ``delivered`` is proven as its ``proof`` asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping, func

from dicom_node import circuits, events, nudges, priorities
from dicom_node.config import Peer
from dicom_node.db import circuit, delivery, draft
from dicom_node.errors import PeerError, Unproven

_CLAIMABLE = sa.or_(
    sa.and_(delivery.c.state.in_(("due", "sent")), delivery.c.due_at <= func.now()),
    sa.and_(delivery.c.state == "sending", delivery.c.lease_until < func.now()),
)
#: Whose reasons say that the peer, not the object, was at fault.
_AWAY = (PeerError.code, Unproven.code)

#: What is sent first where several wait for one peer; a new object before a question about an old.
_URGENCY = (
    delivery.c.priority.desc(),
    delivery.c.sent_at.is_not(None),
    delivery.c.due_at,
    delivery.c.id,
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
    priority: int
    due_at: datetime

    @property
    def next_attempt(self) -> datetime | None:
        """When it is sent or asked for next, if its peer is not left alone then."""
        return self.due_at if self.state in ("due", "sent") else None


def _delivery(row: RowMapping) -> Delivery:
    return Delivery(**{name: row[name] for name in Delivery.__dataclass_fields__})


def create(
    connection: Connection,
    study_instance_uid: str,
    draft_uid: str,
    peers: Iterable[Peer],
    priority: int = priorities.ROUTINE,
) -> None:
    """Put a draft on its way to every destination; a shadow peer's copy is withheld."""
    for peer in peers:
        state = "withheld" if peer.mode == "shadow" else "due"
        delivery_id = connection.scalar(
            sa.insert(delivery)
            .values(draft_uid=draft_uid, peer=peer.name, state=state, priority=priority)
            .returning(delivery.c.id)
        )
        subject = f"delivery {delivery_id} to {peer.name}"
        events.append(connection, study_instance_uid, subject, None, state)


def claim(
    connection: Connection, delivery_id: int, *, at_once: int, lease: timedelta, worker: str
) -> Delivery | None:
    """Take what is most urgent at the peer of that delivery.

    ``None``: nothing of that peer is due, its circuit is open, or ``at_once`` are under way there.
    A delivery whose object the peer already confirmed (``sent_at`` is set) keeps that fact: only
    its proof is missing.
    """
    peer = connection.scalar(sa.select(delivery.c.peer).where(delivery.c.id == delivery_id))
    if peer is None:
        return None
    circuits.hold(connection, peer)  # whoever claims for this peer beside us waits here
    if not connection.scalar(sa.select(_room(at_once)).where(circuit.c.peer == peer)):
        return None
    first = (
        sa.select(delivery.c.id)
        .where(delivery.c.peer == peer, _CLAIMABLE)
        .order_by(*_URGENCY)
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte()  # a subquery may be run once per row, and LIMIT with it
    )
    claimed_id = connection.scalar(
        sa.update(delivery)
        .where(delivery.c.id == first.c.id)
        .values(
            state="sending",
            attempts=delivery.c.attempts + 1,
            claims=delivery.c.claims + 1,
            worker=worker,
            lease_until=func.now() + lease,
        )
        .returning(delivery.c.id)
    )
    if claimed_id is None:
        return None
    claimed = _delivery(
        connection.execute(_joined().where(delivery.c.id == claimed_id)).mappings().one()
    )
    _event(connection, claimed, "sent" if claimed.sent_at else "due", "sending", None)
    return claimed


def _room(at_once: int) -> sa.ColumnElement[bool]:
    """May the peer of a row of ``circuit`` get another delivery now?"""
    return circuits.places(at_once) > _under_way(circuit.c.peer)


def _under_way(peer: sa.ColumnElement[str]) -> sa.ScalarSelect[int]:
    other = delivery.alias()
    return (
        sa.select(func.count())
        .where(other.c.peer == peer, other.c.state == "sending", other.c.lease_until >= func.now())
        .scalar_subquery()
    )


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


def committed(connection: Connection, delivery_id: int, sent_uid: str, proof: str) -> bool:
    """Proven from outside the claim, by a report that the peer sent us.

    Whoever holds the delivery changes nothing any more; a report that comes twice, or of an object
    that is not the one sent last, changes nothing either. A proof that comes after the delivery was
    given up is still one. False: nothing changed.
    """
    values = {"state": "delivered", "proof": proof, "lease_until": None}
    return _judge(connection, delivery_id, sent_uid, ("due", "sending", "sent", "failed"), values)


def missing(
    connection: Connection, delivery_id: int, sent_uid: str, reason: str, delay: timedelta
) -> bool:
    """The peer says that it does not have what it took: it is sent again after ``delay``.

    Idempotent as :func:`committed` is.
    """
    values = {
        "state": "due",
        "due_at": func.now() + delay,
        "nudged_at": None,
        "lease_until": None,
        "sent_at": None,
        "sent_uid": None,
    }
    return _judge(connection, delivery_id, sent_uid, ("due", "sending", "sent"), values, reason)


def _judge(
    connection: Connection,
    delivery_id: int,
    sent_uid: str,
    states: tuple[str, ...],
    values: Mapping[str, object],
    reason: str | None = None,
) -> bool:
    """Apply what the peer says of the object that it was sent, unless that is old news."""
    known = (
        _joined()
        .where(delivery.c.id == delivery_id, delivery.c.sent_uid == sent_uid)
        .where(delivery.c.state.in_(states))
        .with_for_update(of=delivery)
    )
    row = connection.execute(known).mappings().one_or_none()
    if row is None:
        return False
    connection.execute(
        sa.update(delivery).where(delivery.c.id == delivery_id).values(reason=reason, **values)
    )
    _event(connection, _delivery(row), row["state"], str(values["state"]), reason)
    return True


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


def withhold(connection: Connection, held: Delivery, reason: str) -> None:
    """The peer is to get nothing."""
    _advance(connection, held, "withheld", reason, lease_until=None)


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


def answered(connection: Connection, peer: str) -> None:
    """The peer is there: where it was left alone, all that waited for it goes at once."""
    if circuits.succeeded(connection, peer):
        away = sa.or_(*(delivery.c.reason.startswith(f"{code}: ") for code in _AWAY))
        connection.execute(
            sa.update(delivery)
            .where(delivery.c.peer == peer, delivery.c.state == "due", away)
            .values(due_at=func.now(), nudged_at=None)
        )


def give_up(connection: Connection, peer: str, patience: timedelta, reason: str) -> None:
    """What waited longer than ``patience`` for a peer that is away has failed."""
    overdue = _joined().where(
        delivery.c.peer == peer,
        delivery.c.state.in_(("due", "sent")),
        delivery.c.created_at < func.now() - patience,
    )
    for row in connection.execute(overdue.with_for_update(of=delivery)).mappings().all():
        connection.execute(
            sa.update(delivery)
            .where(delivery.c.id == row["id"])
            .values(state="failed", reason=reason)
        )
        _event(connection, _delivery(row), row["state"], "failed", reason)


def nudge(connection: Connection, *, every: timedelta, at_once: int) -> list[int]:
    """The due deliveries nobody was told of within ``every``, the longest due first.

    Of each peer no more than it may get now: what waits for one that is away or busy takes
    nobody's place.
    """
    peers = sa.select(delivery.c.peer).where(_CLAIMABLE).distinct().subquery()
    place = func.row_number().over(order_by=_URGENCY).label("place")
    first = (
        sa.select(delivery.c.id, place)
        .where(delivery.c.peer == peers.c.peer, _CLAIMABLE)
        .order_by(*_URGENCY)
        .limit(at_once)
        .lateral()
    )
    room = circuits.places(at_once) - _under_way(peers.c.peer)
    sendable = (
        sa.select(first.c.id)
        .select_from(
            peers.outerjoin(circuit, circuit.c.peer == peers.c.peer).join(first, sa.true())
        )
        .where(room > 0, first.c.place <= room)
    )
    due = sa.and_(_CLAIMABLE, delivery.c.id.in_(sendable))
    return nudges.mark(connection, delivery, due, every=every)


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


def requeue(
    connection: Connection, *, study_instance_uid: str | None, peer: str | None = None
) -> list[int]:
    """Make failed deliveries due again: those of one study, of one peer, or all (``None``).

    They are sent again too: of one that was never proven, the peer may have nothing. A peer that
    was left alone is tried at once.
    """
    failed = _joined().where(delivery.c.state == "failed", draft.c.superseded_by.is_(None))
    if study_instance_uid is not None:
        failed = failed.where(draft.c.study_instance_uid == study_instance_uid)
    if peer is not None:
        failed = failed.where(delivery.c.peer == peer)
    found = [_delivery(row) for row in connection.execute(failed).mappings()]
    for name in sorted({one.peer for one in found}):
        circuits.try_now(connection, name)
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


def newest(
    connection: Connection, *, state: str | None, peer: str | None, limit: int
) -> list[Delivery]:
    """Deliveries in a state, to a peer, or all (``None``), newest first."""
    query = _joined().order_by(delivery.c.id.desc()).limit(limit)
    for column, wanted in ((delivery.c.state, state), (delivery.c.peer, peer)):
        if wanted is not None:
            query = query.where(column == wanted)
    return [_delivery(row) for row in connection.execute(query).mappings()]


def _joined() -> sa.Select[tuple[object, ...]]:
    age = (func.now() - delivery.c.created_at).label("age")
    return sa.select(delivery, draft.c.study_instance_uid, age).join(
        draft, draft.c.sop_instance_uid == delivery.c.draft_uid
    )
