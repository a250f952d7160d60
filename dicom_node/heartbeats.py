"""Which processes run: the only writer of ``process``. ``status`` reads it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import Connection, func
from sqlalchemy.dialects import postgresql

from dicom_node.db import process

#: A process that did not report for so long is shown as down. Beats come every 2 s (node) and 5 s.
SILENCE = timedelta(seconds=20)
#: Rows of processes that are gone are dropped after so long.
FORGET = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process of the node."""

    name: str
    role: str  #: node, gpu, net
    facts: Mapping[str, Any]
    last_seen: datetime
    up: bool


def process_name(role: str) -> str:
    """Names this process among all of the node's."""
    return f"{role}@{socket.gethostname()}:{os.getpid()}"


def beat(
    connection: Connection, name: str, role: Literal["node", "gpu", "net"], facts: Mapping[str, Any]
) -> None:
    """Say that process ``name`` is alive."""
    insert = postgresql.insert(process).values(name=name, role=role, facts=facts)
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=[process.c.name],
            set_={"facts": insert.excluded.facts, "last_seen": func.now()},
        )
    )


def leave(connection: Connection, name: str) -> None:
    """Process ``name`` ends by itself; so do rows nobody has touched for a day."""
    gone = sa.or_(process.c.name == name, process.c.last_seen < func.now() - FORGET)
    connection.execute(sa.delete(process).where(gone))


def seen(connection: Connection) -> list[Process]:
    """All known processes, the latest first."""
    rows = connection.execute(
        sa.select(process, (process.c.last_seen > func.now() - SILENCE).label("up")).order_by(
            process.c.last_seen.desc()
        )
    ).mappings()
    return [Process(**{name: row[name] for name in Process.__dataclass_fields__}) for row in rows]
