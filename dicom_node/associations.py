"""Refused associations, kept for the administrator: the only writer of ``refused_association``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy import Connection, func
from sqlalchemy.dialects import postgresql

from dicom_node.db import refused_association

#: A port scan must not fill the table: the oldest rows beyond this go.
KEPT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedAssociation:
    """Somebody who was turned away."""

    calling_ae_title: str
    address: str
    reason: str
    count: int
    last: datetime


def refused(connection: Connection, calling_ae_title: str, address: str, reason: str) -> None:
    """Count one refusal."""
    table = refused_association
    insert = postgresql.insert(table).values(
        calling_ae_title=calling_ae_title, address=address, reason=reason, count=1
    )
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=list(table.primary_key.columns),
            set_={"count": table.c.count + 1, "last": func.now()},
        )
    )
    newest = sa.select(table.c.last).order_by(table.c.last.desc()).offset(KEPT).limit(1)
    connection.execute(sa.delete(table).where(table.c.last <= newest.scalar_subquery()))


def latest(connection: Connection, limit: int = 20) -> list[RefusedAssociation]:
    """The most recent refusals."""
    rows = connection.execute(
        sa.select(refused_association).order_by(refused_association.c.last.desc()).limit(limit)
    ).mappings()
    names = RefusedAssociation.__dataclass_fields__
    return [RefusedAssociation(**{name: row[name] for name in names}) for row in rows]
