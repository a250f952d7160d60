"""Messages on their way to the collector: the only writer of ``audit_message``.

A message is written in the transaction of what it tells of, so there is none without the other,
whoever is killed when. It stays until the collector has it, however long that takes and however
many they are: an audit trail has no holes that nobody decided on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy import Connection, func

from dicom_node.db import audit_message


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A message that the collector has not got yet."""

    id: int
    at: datetime
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """How much waits."""

    count: int = 0
    since: datetime | None = None  #: the oldest; ``None``: nothing waits
    late: bool = False  #: the oldest waits for more than a minute
    too_long: int = 0  #: messages that are too long for the transport


def put(connection: Connection, message: str) -> None:
    """Keep a message until the collector has it."""
    connection.execute(sa.insert(audit_message).values(message=message))


def oldest(connection: Connection, *, limit: int, longest: int | None) -> list[Waiting]:
    """The next messages to be sent, in order.

    Parameters
    ----------
    longest
        Bytes of a message that the transport takes; longer ones are left where they are.
    """
    query = sa.select(audit_message).order_by(audit_message.c.id).limit(limit)
    if longest is not None:
        query = query.where(_length() <= longest)
    return [Waiting(**row) for row in connection.execute(query).mappings()]


def remove(connection: Connection, ids: Iterable[int]) -> None:
    """The collector has them."""
    connection.execute(sa.delete(audit_message).where(audit_message.c.id.in_(list(ids))))


def backlog(connection: Connection, *, longest: int | None) -> Backlog:
    """What waits; ``longest`` as in :func:`oldest`."""
    since = func.min(audit_message.c.at)
    too_long = func.count().filter(_length() > longest) if longest is not None else sa.literal(0)
    late = func.coalesce(since < func.now() - sa.text("interval '1 minute'"), sa.false())
    row = connection.execute(sa.select(func.count(), since, late, too_long)).one()
    return Backlog(count=row[0], since=row[1], late=row[2], too_long=row[3])


def _length() -> sa.ColumnElement[int]:
    return func.octet_length(audit_message.c.message)
