"""Which due rows a worker must be told of (again): the one statement behind jobs and deliveries."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy import Connection, Table, func

#: At most so many rows of a table are nudged in one sweep.
LIMIT = 50


def mark(
    connection: Connection, table: Table, due: sa.ColumnElement[bool], *, every: timedelta
) -> list[int]:
    """The ids of ``due`` rows nobody was told of within ``every``, the longest due first.

    ``table`` has ``id``, ``due_at`` and ``nudged_at``; only the last is written.
    """
    quiet = func.coalesce(table.c.nudged_at < func.now() - every, True)
    chosen = (
        sa.select(table.c.id)
        .where(due, quiet)
        .order_by(table.c.due_at)
        .limit(LIMIT)
        .with_for_update(skip_locked=True)
        .cte()  # a subquery may be run once per row, and LIMIT with it
    )
    nudged = connection.execute(
        sa.update(table)
        .where(table.c.id == chosen.c.id)
        .values(nudged_at=func.now())
        .returning(table.c.id, table.c.due_at)
    )
    return [row.id for row in sorted(nudged, key=lambda row: row.due_at)]
