"""The spool: messages stay in order until the collector has them."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy import func

from dicom_node import db
from dicom_node.audit import spool
from dicom_node.audit.spool import Backlog
from dicom_node.db import Database


def keep(database: Database, *messages: str) -> None:
    with database.transaction() as connection:
        for one in messages:
            spool.put(connection, one)


def waiting(database: Database, *, limit: int = 100, longest: int | None = None) -> list[str]:
    with database.transaction() as connection:
        found = spool.oldest(connection, limit=limit, longest=longest)
    return [one.message for one in found]


def backlog(database: Database, longest: int | None = None) -> Backlog:
    with database.transaction() as connection:
        return spool.backlog(connection, longest=longest)


def test_the_oldest_come_first(database: Database) -> None:
    keep(database, "a", "b", "c")
    assert waiting(database) == ["a", "b", "c"]
    assert waiting(database, limit=2) == ["a", "b"]


def test_what_is_removed_is_gone_and_nothing_else(database: Database) -> None:
    keep(database, "a", "b", "c")
    with database.transaction() as connection:
        spool.remove(connection, [one.id for one in spool.oldest(connection, limit=2, longest=9)])
    assert waiting(database) == ["c"]


def test_there_is_no_message_of_what_did_not_happen(database: Database) -> None:
    with suppress(RuntimeError), database.transaction() as connection:
        spool.put(connection, "a")
        raise RuntimeError
    assert waiting(database) == []


def test_what_is_too_long_for_the_transport_lets_the_others_by(database: Database) -> None:
    keep(database, "a", "long", "b")
    assert waiting(database, longest=3) == ["a", "b"]
    assert (backlog(database, 3).too_long, backlog(database).too_long) == (1, 0)


def test_the_backlog_is_late_after_a_minute(database: Database) -> None:
    assert backlog(database) == Backlog()
    keep(database, "a", "b")
    new = backlog(database)
    assert (new.count, new.late) == (2, False)
    with database.transaction() as connection:
        before = func.now() - timedelta(minutes=2)
        connection.execute(sa.update(db.audit_message).values(at=before))
    old = backlog(database)
    assert old.late
    assert new.since is not None
    assert old.since is not None
    assert old.since < new.since
