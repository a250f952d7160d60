"""Refused associations: counted, the latest first, never too many, and nothing in them believed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func
from sqlalchemy.dialects.postgresql import JSONB

from dicom_node import associations, db
from dicom_node.associations import (
    KEPT,
    KEPT_PER_ADDRESS,
    Reason,
    Refused,
    RefusedAssociation,
)
from dicom_node.db import Database

CALL = Refused(
    calling_ae_title="A",
    called_ae_title="DICOMNODE",
    address="10.0.0.1",
    contexts=("1.2.840.10008.1.1",),
    reason=Reason.UNKNOWN_TITLE,
)


def refuse(database: Database, *calls: Refused) -> None:
    for call in calls:  # each in a transaction of its own: now() is the transaction's time
        with database.transaction() as connection:
            associations.refused(connection, call)


def latest(database: Database, limit: int = 20) -> list[RefusedAssociation]:
    with database.transaction() as connection:
        return associations.latest(connection, limit)


def test_a_refusal_is_kept_with_all_that_is_known(database: Database) -> None:
    call = replace(CALL, tls=True, detail="certificate expired", reason=Reason.TLS_HANDSHAKE)
    refuse(database, call)
    (kept,) = latest(database)
    told = {name: getattr(kept, name) for name in Refused.__dataclass_fields__}
    assert Refused(**told) == call
    assert kept.contexts == CALL.contexts
    assert kept.text == "no TLS connection came about: certificate expired"
    assert (kept.count, kept.first) == (1, kept.last)


def test_the_same_refusal_again_is_counted(database: Database) -> None:
    refuse(database, CALL)
    (first,) = latest(database)
    refuse(database, CALL)
    (second,) = latest(database)
    assert (first.count, second.count) == (1, 2)
    assert second.first == first.first
    assert second.last > first.last


def test_the_contexts_are_those_of_the_last_call(database: Database) -> None:
    refuse(database, CALL, replace(CALL, contexts=("1.2.3", "1.2.4")))
    (kept,) = latest(database)
    assert (kept.count, kept.contexts) == (2, ("1.2.3", "1.2.4"))


@pytest.mark.parametrize(
    "change",
    [
        {"calling_ae_title": "B"},
        {"called_ae_title": "OTHER"},
        {"address": "10.0.0.2"},
        {"reason": Reason.WRONG_ADDRESS},
        {"tls": True},
        {"detail": "no certificate"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whoever_differs_is_another_refusal(database: Database, change: dict[str, object]) -> None:
    refuse(database, CALL, replace(CALL, **change))  # type: ignore[arg-type]
    assert [one.count for one in latest(database)] == [1, 1]


def test_a_flood_is_written_down_at_once(database: Database) -> None:
    other = replace(CALL, calling_ae_title="B")
    with database.transaction() as connection:
        associations.refused_many(connection, {CALL: 7, other: 3 * 10**9})
        associations.refused_many(connection, {CALL: 2})
        associations.refused_many(connection, {})
    counted = {one.calling_ae_title: one.count for one in latest(database)}
    assert counted == {"A": 9, "B": 3 * 10**9}


def test_receivers_that_write_at_once_do_not_stop_each_other(database: Database) -> None:
    calls = [replace(CALL, calling_ae_title=f"T{number}") for number in range(KEPT_PER_ADDRESS)]

    def write(order: list[Refused]) -> None:
        for _ in range(10):
            with database.transaction() as connection:
                associations.refused_many(connection, dict.fromkeys(order, 1))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, [calls, calls[::-1]]))
    assert {one.count for one in latest(database, KEPT)} == {20}


def test_the_latest_come_first(database: Database) -> None:
    calls = [replace(CALL, calling_ae_title=title) for title in "ABC"]
    refuse(database, *calls, calls[0])
    assert [one.calling_ae_title for one in latest(database)] == ["A", "C", "B"]
    assert [one.calling_ae_title for one in latest(database, limit=1)] == ["A"]


def scanned(database: Database, number: int, *, address: sa.ColumnElement[str]) -> None:
    """Rows of a scan, the first a minute ago, each of the others a minute before."""
    at = func.now() - sa.column("number", sa.Integer) * timedelta(minutes=1)
    values = {
        "calling_ae_title": sa.literal("SCAN") + sa.cast(sa.column("number"), sa.Text),
        "called_ae_title": sa.literal("ANY"),
        "address": address,
        "reason": sa.literal(Reason.UNKNOWN_TITLE.value),
        "detail": sa.literal(""),
        "tls": sa.false(),
        "contexts": sa.literal([], JSONB),
        "count": sa.literal(1),
        "first": at,
        "last": at,
    }
    rows = sa.select(*values.values()).select_from(func.generate_series(1, number).alias("number"))
    with database.transaction() as connection:
        connection.execute(sa.insert(db.refused_association).from_select(list(values), rows))


def test_a_scan_from_everywhere_does_not_fill_the_table(database: Database) -> None:
    scanned(database, KEPT + 10, address=sa.cast(sa.column("number"), sa.Text))
    refuse(database, replace(CALL, calling_ae_title="NEW"))
    kept = [one.calling_ae_title for one in latest(database, limit=1000)]
    assert kept == ["NEW", *(f"SCAN{number}" for number in range(1, KEPT))]


def test_a_scan_from_one_address_does_not_drive_out_the_others(database: Database) -> None:
    refuse(database, replace(CALL, address="10.0.0.77"))
    scanned(database, KEPT + 10, address=sa.literal("10.0.0.1"))
    refuse(database, replace(CALL, calling_ae_title="NEW"))
    kept = latest(database, limit=1000)
    scan = [one.calling_ae_title for one in kept if one.address == "10.0.0.1"]
    assert scan == ["NEW", *(f"SCAN{number}" for number in range(1, KEPT_PER_ADDRESS))]
    assert [one.address for one in kept if one.address != "10.0.0.1"] == ["10.0.0.77"]


# -- which of them are security alerts -------------------------------------------------------------


def alerts(database: Database, *calls: Refused) -> list[Refused]:
    with database.transaction() as connection:
        return associations.refused_many(connection, dict.fromkeys(calls, 1))


def test_a_stranger_is_an_alert_and_a_busy_port_is_none(database: Database) -> None:
    full = replace(CALL, reason=Reason.LIMIT)
    assert alerts(database, CALL, full) == [CALL]
    assert alerts(database) == []


def test_of_one_address_and_reason_an_hour_has_one_alert(database: Database) -> None:
    other_title = replace(CALL, calling_ae_title="B")
    assert alerts(database, CALL, other_title) == [CALL]
    assert alerts(database, CALL, other_title) == []
    elsewhere = replace(CALL, address="10.0.0.2")
    otherwise = replace(CALL, reason=Reason.TLS_REQUIRED)
    assert alerts(database, CALL, elsewhere, otherwise) == [elsewhere, otherwise]


def test_whoever_goes_on_is_an_alert_in_each_hour(database: Database) -> None:
    assert alerts(database, CALL) == [CALL]
    with database.transaction() as connection:
        last = db.refused_association.c.last - timedelta(hours=1)
        connection.execute(sa.update(db.refused_association).values(last=last))
    assert alerts(database, CALL) == [CALL]


# -- what comes from the network -------------------------------------------------------------------


def test_a_title_that_would_steer_a_terminal_is_escaped() -> None:
    call = replace(CALL, calling_ae_title="\x1b[2J\nPACS\x00", detail="\x9b31m \u202e")
    assert call.calling_ae_title == r"\x1b[2J\nPACS\x00"
    assert call.detail == r"\x9b31m \u202e"


@given(st.text(), st.integers(0, 300))
def test_whatever_comes_is_short_printable_and_stays_as_it_was_kept(text: str, limit: int) -> None:
    shown = associations.printable(text, limit)
    assert len(shown) <= limit
    assert shown.isascii()
    assert shown.isprintable()
    assert associations.printable(shown, limit) == shown


@given(st.from_regex(r"\A[!-~][ -~]{0,14}[!-~]\Z"))
def test_a_real_title_is_kept_as_it_is(title: str) -> None:
    assert replace(CALL, calling_ae_title=f" {title} ").calling_ae_title == title


def test_contexts_are_uids_each_once_and_not_too_many() -> None:
    many = tuple(f"1.2.{number}" for number in range(1000))
    call = replace(CALL, contexts=("1.2.3", "\x1b[2J", "1" * 65, "1.2.3", *many))
    assert call.contexts[0] == "1.2.3"
    assert len(set(call.contexts)) == len(call.contexts) == 32
    assert replace(CALL, contexts=("", "1.2\n", "a")).contexts == ()


@pytest.mark.parametrize("reason", Reason)
def test_each_reason_has_a_text_for_people(reason: Reason) -> None:
    assert reason.text
    assert reason.text != reason.value
