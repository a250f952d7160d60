"""Refused associations: counted, the latest first, never too many."""

from __future__ import annotations

from collections.abc import Callable

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
    with database.transaction() as connection:  # older than any that comes now
        connection.execute(
            sa.insert(db.refused_association),
            [
                {
                    "calling_ae_title": f"SCAN{number}",
                    "address": "10.0.0.1",
                    "reason": REASON,
                    "count": 1,
                    "last": func.now() - sa.text(f"interval '{KEPT - number} minutes'"),
                }
                for number in range(1)
            ],
        )
        rows: Callable[[int], dict[str, object]] = lambda number: {  # noqa: E731
            "calling_ae_title": f"SCAN{number}",
            "address": "10.0.0.1",
            "reason": REASON,
            "count": 1,
        }
        for number in range(1, KEPT + 10):
            age = sa.text(f"interval '{2 * KEPT - number} minutes'")
            connection.execute(
                sa.insert(db.refused_association).values(**rows(number), last=func.now() - age)
            )
    refuse(database, ("NEW", "10.0.0.1", REASON))
    kept = latest(database, limit=1000)
    assert len(kept) == KEPT
    assert kept[0].calling_ae_title == "NEW"
