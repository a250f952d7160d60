"""Peers that fail again and again are left alone for a while: the only writer of ``circuit``.

    closed --failures in a row--> open --back-off--> half open --success--> closed
                                   ^---------- failure, a longer back-off -----'

While a circuit is open nothing is sent to the peer, half open one delivery at a time is tried. A
peer's row is also the lock under which its deliveries are claimed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy import Connection, func
from sqlalchemy.dialects import postgresql

from dicom_node.db import circuit

logger = logging.getLogger(__name__)

_HALF_OPEN = circuit.c.open_until <= func.now()


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """A peer that was left alone, and is perhaps still."""

    peer: str
    failures: int  #: in a row
    reason: str  #: the last one's
    opened_at: datetime | None
    open_until: datetime | None  #: ``None``: closed
    is_half_open: bool  #: a delivery may try


def hold(connection: Connection, peer: str) -> Circuit:
    """Lock the peer's row until the transaction ends; it is made where there is none."""
    query = _circuits().where(circuit.c.peer == peer).with_for_update()
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        first = postgresql.insert(circuit).values(peer=peer, failures=0, reason="")
        connection.execute(first.on_conflict_do_nothing())
        row = connection.execute(query).mappings().one()
    return Circuit(**row)


def places(at_once: int) -> sa.ColumnElement[int]:
    """How many deliveries the peer of a row of ``circuit`` may get at one time."""
    return sa.case((circuit.c.open_until.is_(None), at_once), (_HALF_OPEN, 1), else_=0)


def failed(
    connection: Connection,
    peer: str,
    reason: str,
    *,
    open_after: int,
    back_off: Callable[[int], timedelta],
    counts: bool = True,
) -> bool:
    """The peer could not be reached, rejected us, was busy or too slow; is it left alone now?

    What was under way when the circuit opened, and fails later, does not prolong the wait. What
    does not count (``counts=False``) opens no circuit, but as a try keeps one open.
    """
    held = hold(connection, peer)
    if held.open_until is not None and not held.is_half_open:
        return True
    if held.open_until is None and not counts:
        return False
    failures = held.failures + 1
    values: dict[str, object] = {"failures": failures, "reason": reason}
    left_alone = held.is_half_open or failures >= open_after
    if left_alone:
        wait = back_off(max(failures - open_after, 0) + 1)
        values["open_until"] = func.now() + wait
        values["opened_at"] = func.coalesce(circuit.c.opened_at, func.now())
        logger.warning("%s is left alone for %.0f s: %s", peer, wait.total_seconds(), reason)
    connection.execute(sa.update(circuit).where(circuit.c.peer == peer).values(values))
    return left_alone


def succeeded(connection: Connection, peer: str) -> bool:
    """The peer answered; True: its circuit was open."""
    held = hold(connection, peer)
    if held.failures:
        connection.execute(
            sa.update(circuit)
            .where(circuit.c.peer == peer)
            .values(failures=0, reason="", opened_at=None, open_until=None)
        )
    return held.open_until is not None


def try_now(connection: Connection, peer: str) -> None:
    """A person has mended it: the next delivery is tried at once."""
    connection.execute(
        sa.update(circuit)
        .where(circuit.c.peer == peer, circuit.c.open_until.is_not(None))
        .values(open_until=func.now())
    )


def opened(connection: Connection) -> list[Circuit]:
    """The circuits that are open or half open, by peer."""
    query = _circuits().where(circuit.c.open_until.is_not(None)).order_by(circuit.c.peer)
    return [Circuit(**row) for row in connection.execute(query).mappings()]


def _circuits() -> sa.Select[tuple[object, ...]]:
    return sa.select(circuit, func.coalesce(_HALF_OPEN, False).label("is_half_open"))
