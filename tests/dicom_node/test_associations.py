"""Refused associations: counted, the latest first, never too many."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy import func

from dicom_node import associations, db
from dicom_node.associations import KEPT, RefusedAssociation
from dicom_node.db import Database

REASON = "calling AE title not recognised"


def refuse(database: Database, *calls: tuple[str, str, str]) -> None:
    for call in calls:  # each in a transaction of its own: now() is the transaction's time
        with database.transaction() as connection:
            associations.refused(connection, *call)


def latest(database: Database, limit: int = 20) -> list[RefusedAssociation]:
    with database.transaction() as connection:
        return associations.latest(connection, limit)


def test_the_same_refusal_again_is_counted(database: Database) -> None:
    refuse(database, ("A", "10.0.0.1", REASON))
    (first,) = latest(database)
    refuse(database, ("A", "10.0.0.1", REASON))
    (second,) = latest(database)
    assert (first.count, second.count) == (1, 2)
    assert second.last > first.last
    assert (second.calling_ae_title, second.address, second.reason) == ("A", "10.0.0.1", REASON)


@pytest.mark.parametrize(
    "other", [("B", "10.0.0.1", REASON), ("A", "10.0.0.2", REASON), ("A", "10.0.0.1", "other")]
)
def test_another_caller_address_or_reason_is_another_refusal(
    database: Database, other: tuple[str, str, str]
) -> None:
    refuse(database, ("A", "10.0.0.1", REASON), other)
    assert [one.count for one in latest(database)] == [1, 1]


def test_the_latest_come_first(database: Database) -> None:
    calls = [(title, "10.0.0.1", REASON) for title in "ABC"]
    refuse(database, *calls, calls[0])
    assert [one.calling_ae_title for one in latest(database)] == ["A", "C", "B"]
    assert [one.calling_ae_title for one in latest(database, limit=1)] == ["A"]


def test_a_port_scan_does_not_fill_the_table(database: Database) -> None:
    scan = sa.select(
        sa.literal("SCAN") + sa.cast(sa.column("number"), sa.Text),
        sa.literal("10.0.0.1"),
        sa.literal(REASON),
        sa.literal(1),
        func.now() - sa.column("number", sa.Integer) * timedelta(minutes=1),
    ).select_from(func.generate_series(1, KEPT + 10).alias("number"))
    columns = ["calling_ae_title", "address", "reason", "count", "last"]
    with database.transaction() as connection:
        connection.execute(sa.insert(db.refused_association).from_select(columns, scan))
    refuse(database, ("NEW", "10.0.0.1", REASON))
    kept = [one.calling_ae_title for one in latest(database, limit=1000)]
    assert kept == ["NEW", *(f"SCAN{number}" for number in range(1, KEPT))]
