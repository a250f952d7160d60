"""Whatever happens to deliveries in whatever order: no twin senders, no proof that nobody gave."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, func

from dicom_node import circuits, db, deliveries
from dicom_node.config import Peer
from dicom_node.db import Database
from dicom_node.deliveries import Delivery
from dicom_node.errors import PeerError
from tests.conftest import DraftFactory
from tests.dicom_node.states import MINUTE

NAMES = ("one", "other")
AT_ONCE, OPEN_AFTER = 2, 2
PEERS = st.sampled_from(NAMES)
HOUR = timedelta(hours=1)
AWAY = f"{PeerError.code}: can't be reached"


@dataclass
class Holder:
    """A sender; it may have lost its lease and not know it."""

    held: Delivery
    alive: bool = True  #: its lease is; who is late, and was not followed by another, may go on
    sent: bool = False


class Deliveries(RuleBasedStateMachine):
    """Two peers, senders that come, go and die, and what a plain reading of the rules says."""

    database: Database
    draft_factory: DraftFactory

    def __init__(self) -> None:
        super().__init__()
        tables = [one.name for one in db.metadata.sorted_tables if one is not db.installation]
        with self.database.transaction() as connection:
            connection.execute(sa.text(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY"))
        self.holders: list[Holder] = []
        self.proven: set[int] = set()

    # -- what happens --------------------------------------------------------------------------

    @initialize(priorities=st.lists(st.integers(0, 2), min_size=3, max_size=3))
    def begin(self, priorities: list[int]) -> None:
        for name in NAMES:
            for priority in priorities:
                self.create(name, priority, shadow=False)

    @rule(name=PEERS, priority=st.integers(0, 2), shadow=st.booleans())
    def create(self, name: str, priority: int, shadow: bool) -> None:
        draft = self.draft_factory()
        to = Peer(
            name=name, ae_title="PACS", host=("10.0.0.5",), mode="shadow" if shadow else "live"
        )
        with self.database.transaction() as connection:
            uids = draft.study_instance_uid, draft.sop_instance_uid
            deliveries.create(connection, *uids, [to], priority)

    @rule(name=PEERS, times=st.integers(1, 3))
    def claim(self, name: str, times: int) -> None:
        for _ in range(times):
            self.claim_one(name)

    def claim_one(self, name: str) -> None:
        nudge = next((one["id"] for one in self.rows() if one["peer"] == name), 0)
        could = self.claimable(name)
        with self.database.transaction() as connection:
            held = deliveries.claim(connection, nudge, at_once=AT_ONCE, lease=MINUTE, worker="net")
        assert (held is not None) == bool(could)
        if held is None:
            return
        assert held.id == could[0]["id"]
        assert not [one for one in self.holders if one.held.id == held.id and one.alive]
        self.holders.append(Holder(held, sent=held.sent_at is not None))

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), step=st.sampled_from(["answer", "away", "refuse", "drop", "unlisted"]))
    def step(self, data: Any, step: str) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        before = self.rows()
        holds = any(_is_held_by(one, holder) for one in before)
        with self.database.transaction() as connection:
            getattr(self, f"_{step}")(connection, holder)
        if not holds:  # it changed its peer's circuit at most, and when what waits is due
            assert [_fate(one) for one in self.rows()] == [_fate(one) for one in before]
        elif not any(_is_held_by(one, holder) for one in self.rows()):
            self.forget(holder.held.id)
        self.proven |= {one["id"] for one in self.rows() if holds and _ends_by(one, holder)}

    def _answer(self, connection: Connection, holder: Holder) -> None:
        """First success, then proof."""
        held = holder.held
        deliveries.answered(connection, held.peer)
        if holder.sent:
            deliveries.delivered(connection, held, "find")
        else:
            deliveries.sent(connection, held, held.draft_uid, None)
            holder.sent = True

    def _away(self, connection: Connection, holder: Holder) -> None:
        circuits.failed(
            connection,
            holder.held.peer,
            AWAY,
            open_after=OPEN_AFTER,
            back_off=lambda tries: tries * MINUTE,
        )
        deliveries.retry_later(connection, holder.held, MINUTE, AWAY)

    def _refuse(self, connection: Connection, holder: Holder) -> None:
        deliveries.answered(connection, holder.held.peer)
        deliveries.fail(connection, holder.held, "refused")

    def _drop(self, connection: Connection, holder: Holder) -> None:
        deliveries.drop(connection, holder.held, "superseded")

    def _unlisted(self, connection: Connection, holder: Holder) -> None:
        if holder.sent:
            deliveries.unproven(connection, holder.held, MINUTE, "not yet")
        else:
            deliveries.withhold(connection, holder.held, "a shadow")

    @precondition(lambda self: self.rows())
    @rule(data=st.data(), has_it=st.booleans(), stale=st.booleans())
    def report(self, data: Any, has_it: bool, stale: bool) -> None:
        row = data.draw(st.sampled_from(self.rows()))
        uid = "1.2.3" if stale else row["draft_uid"]
        with self.database.transaction() as connection:
            if has_it:
                changed = deliveries.committed(connection, row["id"], uid, "commitment")
            else:
                changed = deliveries.missing(connection, row["id"], uid, "gone", MINUTE)
        states = ("due", "sending", "sent") + (("failed",) if has_it else ())
        assert changed == (row["sent_uid"] == uid and row["state"] in states)
        if changed:
            self.forget(row["id"])
            self.proven |= {row["id"]} if has_it else set()

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def die(self, data: Any) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        with self.database.transaction() as connection:
            connection.execute(
                sa.update(db.delivery)
                .where(db.delivery.c.id == holder.held.id, db.delivery.c.state == "sending")
                .values(lease_until=func.now() - MINUTE)
            )
        self.forget(holder.held.id)

    @rule()
    def time_passes(self) -> None:
        """So much that all that waits is due; leases are renewed meanwhile."""
        with self.database.transaction() as connection:
            for column in (db.delivery.c.due_at, db.delivery.c.created_at, db.circuit.c.open_until):
                connection.execute(sa.update(column.table).values({column: column - HOUR}))

    @rule(name=PEERS)
    def give_up(self, name: str) -> None:
        with self.database.transaction() as connection:
            deliveries.give_up(connection, name, HOUR / 2, AWAY)

    @rule(name=st.sampled_from([None, *NAMES]))
    def retry(self, name: str | None) -> None:
        with self.database.transaction() as connection:
            deliveries.requeue(connection, study_instance_uid=None, peer=name)

    @precondition(lambda self: self.rows())
    @rule(data=st.data())
    def supersede(self, data: Any) -> None:
        row = data.draw(st.sampled_from(self.rows()))
        with self.database.transaction() as connection:
            deliveries.drop_unsent(connection, row["draft_uid"], "superseded")

    @rule()
    def nudge(self) -> None:
        could = [one["id"] for name in NAMES for one in self.claimable(name)]
        with self.database.transaction() as connection:
            told = deliveries.nudge(connection, every=timedelta(0), at_once=AT_ONCE)
        assert set(told) <= set(could)
        assert bool(told) == bool(could)

    # -- what always holds ---------------------------------------------------------------------

    @invariant()
    def no_peer_gets_more_at_once_than_it_may(self) -> None:
        for name in NAMES:
            assert len([one for one in self.rows() if one["peer"] == name and one["live"]]) <= 2

    @invariant()
    def what_counts_as_delivered_was_proven_and_stays_so(self) -> None:
        delivered = {one["id"]: one for one in self.rows() if one["state"] == "delivered"}
        assert delivered.keys() == self.proven
        for one in delivered.values():
            assert one["proof"] in ("find", "commitment")
            assert one["sent_uid"] == one["draft_uid"]
            assert self.ends(one["id"]) == 1

    @invariant()
    def who_holds_a_lease_is_known(self) -> None:
        live = sorted(one["id"] for one in self.rows() if one["live"])
        assert live == sorted(one.held.id for one in self.holders if one.alive)

    # -- a plain reading -----------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        now = func.now()
        with self.database.transaction() as connection:
            query = sa.select(
                db.delivery,
                sa.and_(db.delivery.c.state == "sending", db.delivery.c.lease_until >= now).label(
                    "live"
                ),
                (db.delivery.c.due_at <= now).label("is_due"),
            ).order_by(db.delivery.c.id)
            return [dict(row) for row in connection.execute(query).mappings()]

    def claimable(self, name: str) -> list[dict[str, Any]]:
        """What may be claimed of a peer now, the most urgent first; none where it has no place."""
        found = [one for one in self.rows() if one["peer"] == name]
        waiting = [
            one
            for one in found
            if (one["state"] in ("due", "sent") and one["is_due"])
            or (one["state"] == "sending" and not one["live"])
        ]
        if sum(one["live"] for one in found) >= self.places(name):
            return []
        return sorted(
            waiting,
            key=lambda one: (-one["priority"], bool(one["sent_at"]), one["due_at"], one["id"]),
        )

    def places(self, name: str) -> int:
        with self.database.transaction() as connection:
            alone = {one.peer: one.is_half_open for one in circuits.opened(connection)}
        return (1 if alone[name] else 0) if name in alone else AT_ONCE

    def ends(self, delivery_id: int) -> int:
        with self.database.transaction() as connection:
            return (
                connection.scalar(
                    sa.select(func.count()).where(
                        db.event.c.subject.startswith(f"delivery {delivery_id} "),
                        db.event.c.to == "delivered",
                    )
                )
                or 0
            )

    def forget(self, delivery_id: int) -> None:
        for one in self.holders:
            one.alive = one.alive and one.held.id != delivery_id


def _is_held_by(row: dict[str, Any], holder: Holder) -> bool:
    return (row["id"], row["claims"]) == (holder.held.id, holder.held.claims) and (
        row["state"] == "sending"
    )


def _ends_by(row: dict[str, Any], holder: Holder) -> bool:
    return row["id"] == holder.held.id and holder.sent and row["state"] == "delivered"


def _fate(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in row.keys() - {"due_at", "is_due", "nudged_at", "live"}}


def test_every_history_of_deliveries_keeps_the_rules(
    database: Database, draft_factory: DraftFactory
) -> None:
    class OfThisTest(Deliveries):
        pass

    OfThisTest.database = database
    OfThisTest.draft_factory = staticmethod(draft_factory)
    run_state_machine_as_test(
        OfThisTest,
        settings=settings(
            max_examples=12,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
