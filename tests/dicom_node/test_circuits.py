"""Circuits: who fails again and again is left alone, and tried again after ever longer waits."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy import func

from dicom_node import circuits, db
from dicom_node.circuits import Circuit
from dicom_node.db import Database
from tests.dicom_node.states import MINUTE

PATIENT = 3  #: failures in a row


def fail(database: Database, *, counts: bool = True, waits: list[int] | None = None) -> bool:
    def back_off(tries: int) -> timedelta:
        if waits is not None:
            waits.append(tries)
        return MINUTE

    with database.transaction() as connection:
        return circuits.failed(
            connection, "pacs", "busy", open_after=PATIENT, back_off=back_off, counts=counts
        )


def open_circuit(database: Database) -> None:
    for _ in range(PATIENT):
        fail(database)


def succeed(database: Database) -> bool:
    with database.transaction() as connection:
        return circuits.succeeded(connection, "pacs")


def wait_is_over(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(sa.update(db.circuit).values(open_until=func.now() - MINUTE))


def held(database: Database) -> Circuit:
    with database.transaction() as connection:
        return circuits.hold(connection, "pacs")


def places(database: Database) -> int | None:
    with database.transaction() as connection:
        return connection.scalar(sa.select(circuits.places(5)).select_from(db.circuit))


def test_a_peer_nobody_knows_anything_about_gets_all_its_places(database: Database) -> None:
    found = held(database)
    assert (found.failures, found.open_until, found.is_half_open) == (0, None, False)
    assert places(database) == 5


def test_so_many_failures_in_a_row_and_the_peer_is_left_alone(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    assert [fail(database) for _ in range(PATIENT)] == [False, False, True]
    assert places(database) == 0
    assert "pacs is left alone for 60 s: busy" in caplog.text
    with database.transaction() as connection:
        (found,) = circuits.opened(connection)
    assert (found.peer, found.failures, found.reason) == ("pacs", PATIENT, "busy")
    assert found.opened_at is not None
    assert found.open_until == found.opened_at + MINUTE


def test_a_success_between_begins_the_count_again(database: Database) -> None:
    fail(database)
    fail(database)
    assert not succeed(database)
    assert [fail(database) for _ in range(PATIENT)] == [False, False, True]


def test_after_the_wait_one_delivery_may_try(database: Database) -> None:
    open_circuit(database)
    wait_is_over(database)
    assert held(database).is_half_open
    assert places(database) == 1


def test_a_try_that_fails_makes_the_next_wait_longer_and_keeps_the_beginning(
    database: Database,
) -> None:
    waits: list[int] = []
    for _ in range(PATIENT):
        fail(database, waits=waits)
    since = held(database).opened_at
    for _ in range(3):
        wait_is_over(database)
        assert fail(database, waits=waits)
        assert places(database) == 0
    assert waits == [1, 2, 3, 4]
    assert held(database).opened_at == since


def test_what_was_under_way_and_fails_later_does_not_make_the_wait_longer(
    database: Database,
) -> None:
    open_circuit(database)
    before = held(database)
    assert fail(database)
    assert held(database) == before


def test_a_try_that_succeeds_closes_the_circuit(database: Database) -> None:
    open_circuit(database)
    wait_is_over(database)
    assert succeed(database)
    assert places(database) == 5
    found = held(database)
    assert (found.failures, found.reason, found.opened_at) == (0, "", None)
    with database.transaction() as connection:
        assert circuits.opened(connection) == []


def test_what_does_not_count_opens_nothing_but_keeps_open_what_it_tried(
    database: Database,
) -> None:
    assert not any(fail(database, counts=False) for _ in range(2 * PATIENT))
    assert places(database) == 5
    open_circuit(database)
    wait_is_over(database)
    assert fail(database, counts=False)
    assert places(database) == 0


def test_a_person_need_not_wait(database: Database) -> None:
    with database.transaction() as connection:
        circuits.try_now(connection, "pacs")
    assert places(database) is None  # nothing was left alone: nothing to try
    open_circuit(database)
    with database.transaction() as connection:
        circuits.try_now(connection, "pacs")
    assert places(database) == 1
