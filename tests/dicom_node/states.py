"""What the tests of the state modules share: short ways to claim, expire and look."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy import func

from dicom_node import db, events, jobs
from dicom_node.db import Database
from dicom_node.jobs import Job

MINUTE = timedelta(minutes=1)


def claim(database: Database, job_id: int, *, worker: str = "worker") -> Job | None:
    """Claim a job in a transaction of its own."""
    with database.transaction() as connection:
        return jobs.claim(connection, job_id, lease=MINUTE, worker=worker)


def claimed(database: Database, job_id: int, *, worker: str = "worker") -> Job:
    """A job that must have been free."""
    held = claim(database, job_id, worker=worker)
    assert held is not None
    return held


def expire(database: Database, table: sa.Table, row_id: int) -> None:
    """The lease was over a second ago, as if its holder had died."""
    past = func.now() - timedelta(seconds=1)
    with database.transaction() as connection:
        connection.execute(
            sa.update(table)
            .where(table.c.id == row_id, table.c.lease_until.is_not(None))
            .values(lease_until=past)
        )


def value(database: Database, column: sa.Column[object], row_id: int | str) -> object:
    """One cell, by the table's (one-column) primary key."""
    table = column.table
    (key,) = table.primary_key.columns
    with database.transaction() as connection:
        return connection.execute(sa.select(column).where(key == row_id)).scalar_one()


def job_state(database: Database, job_id: int) -> object:
    """A job's state."""
    return value(database, db.job.c.state, job_id)


def transitions(
    database: Database, study_instance_uid: str, subject: str
) -> list[tuple[str | None, str]]:
    """What happened to ``subject``, oldest first, as (from, to)."""
    with database.transaction() as connection:
        found = events.of_study(connection, study_instance_uid)
    return [(one.from_state, one.to_state) for one in found if one.subject.startswith(subject)]
