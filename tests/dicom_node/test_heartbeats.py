"""Heartbeats: who is alive, by the database's clock."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy import func

from dicom_node import db, heartbeats
from dicom_node.db import Database
from dicom_node.heartbeats import FORGET, SILENCE, Process

SECOND = timedelta(seconds=1)


def beat(database: Database, name: str = "gpu@host:1", **facts: object) -> None:
    with database.transaction() as connection:
        heartbeats.beat(connection, name, "gpu", facts)


def seen(database: Database) -> list[Process]:
    with database.transaction() as connection:
        return heartbeats.seen(connection)


def silent_for(database: Database, name: str, age: timedelta) -> None:
    with database.transaction() as connection:
        connection.execute(
            sa.update(db.process)
            .where(db.process.c.name == name)
            .values(last_seen=func.now() - age)
        )


def test_a_process_that_beats_is_up(database: Database) -> None:
    beat(database, state="idle")
    (process,) = seen(database)
    assert (process.name, process.role, process.facts) == ("gpu@host:1", "gpu", {"state": "idle"})
    assert process.up


def test_a_later_beat_brings_newer_facts_and_time(database: Database) -> None:
    beat(database, state="idle")
    silent_for(database, "gpu@host:1", SILENCE + SECOND)
    (before,) = seen(database)
    beat(database, state="busy")
    (after,) = seen(database)
    assert not before.up
    assert after.up
    assert after.facts == {"state": "busy"}
    assert after.last_seen > before.last_seen


def test_a_process_that_is_silent_for_too_long_is_down(database: Database) -> None:
    beat(database)
    silent_for(database, "gpu@host:1", SILENCE - 5 * SECOND)
    assert seen(database)[0].up
    silent_for(database, "gpu@host:1", SILENCE + SECOND)
    assert not seen(database)[0].up


def test_the_latest_comes_first(database: Database) -> None:
    for name in ("first", "second"):
        beat(database, name)
    silent_for(database, "second", SECOND)
    assert [one.name for one in seen(database)] == ["first", "second"]


def test_a_process_that_leaves_is_gone_and_takes_the_long_dead_along(database: Database) -> None:
    for name in ("leaves", "stays", "dead", "long dead"):
        beat(database, name)
    silent_for(database, "dead", FORGET - SECOND)
    silent_for(database, "long dead", FORGET + SECOND)
    with database.transaction() as connection:
        heartbeats.leave(connection, "leaves")
    assert [one.name for one in seen(database)] == ["stays", "dead"]
