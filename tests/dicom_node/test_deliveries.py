"""Deliveries: one per draft and destination, proven before they count as delivered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, func

from dicom_node import circuits, db, deliveries, nudges
from dicom_node.config import Peer
from dicom_node.db import Database
from dicom_node.deliveries import Delivery
from dicom_node.drafts import Draft
from dicom_node.priorities import ROUTINE, STAT, URGENT
from tests.conftest import PATIENCE, DraftFactory
from tests.dicom_node.states import MINUTE, expire, transitions, value

SOON = timedelta(seconds=15)
NOTHING = timedelta(0)


def peer(name: str = "pacs", **overrides: Any) -> Peer:
    values = {"name": name, "ae_title": name.upper(), "host": "10.0.0.5", **overrides}
    return Peer.model_validate(values)


def create(database: Database, draft: Draft, *peers: Peer) -> list[int]:
    with database.transaction() as connection:
        deliveries.create(
            connection, draft.study_instance_uid, draft.sop_instance_uid, peers or (peer(),)
        )
        made = deliveries.of_study(connection, draft.study_instance_uid)
    return [one.id for one in made if one.draft_uid == draft.sop_instance_uid]


def claim(database: Database, delivery_id: int, at_once: int = 9) -> Delivery | None:
    with database.transaction() as connection:
        return deliveries.claim(
            connection, delivery_id, at_once=at_once, lease=MINUTE, worker="net"
        )


def create_many(
    database: Database, draft_factory: DraftFactory, priorities: list[int], name: str = "pacs"
) -> list[int]:
    """The deliveries of as many drafts to one peer."""
    ids = []
    for priority in priorities:
        draft = draft_factory()
        with database.transaction() as connection:
            uids = draft.study_instance_uid, draft.sop_instance_uid
            deliveries.create(connection, *uids, [peer(name)], priority)
        ids += [one.id for one in of(database, draft)]
    return ids


def claimed(database: Database, delivery_id: int) -> Delivery:
    held = claim(database, delivery_id)
    assert held is not None
    return held


def of(database: Database, draft: Draft) -> list[Delivery]:
    with database.transaction() as connection:
        return deliveries.of_study(connection, draft.study_instance_uid)


def nudged(database: Database, every: timedelta = SOON) -> list[int]:
    with database.transaction() as connection:
        return deliveries.nudge(connection, every=every, at_once=2)


def test_every_destination_gets_a_delivery_and_a_shadow_keeps_its_own_back(
    database: Database, draft_factory: DraftFactory
) -> None:
    draft = draft_factory()
    create(database, draft, peer("live"), peer("quiet", mode="shadow"))
    assert [(one.peer, one.state) for one in of(database, draft)] == [
        ("live", "due"),
        ("quiet", "withheld"),
    ]


def test_what_is_withheld_is_never_sent(database: Database, draft_factory: DraftFactory) -> None:
    (withheld,) = create(database, draft_factory(), peer(mode="shadow"))
    assert nudged(database) == []
    assert claim(database, withheld) is None


def test_a_draft_goes_to_a_peer_once(database: Database, draft_factory: DraftFactory) -> None:
    draft = draft_factory()
    create(database, draft)
    with pytest.raises(sa.exc.IntegrityError):
        create(database, draft)


def test_a_delivery_goes_its_way(database: Database, draft_factory: DraftFactory) -> None:
    draft = draft_factory()
    (delivery_id,) = create(database, draft)
    held = claimed(database, delivery_id)
    assert (held.state, held.attempts, held.sent_at) == ("sending", 1, None)
    assert (held.peer, held.draft_uid) == ("pacs", draft.sop_instance_uid)
    assert held.study_instance_uid == draft.study_instance_uid
    with database.transaction() as connection:
        deliveries.sent(connection, held, held.draft_uid, None)
        deliveries.delivered(connection, held, "find")
    (ended,) = of(database, draft)
    assert (ended.state, ended.proof, ended.reason) == ("delivered", "find", None)
    assert ended.sent_at is not None
    assert transitions(database, draft.study_instance_uid, "delivery") == [
        (None, "due"),
        ("due", "sending"),
        ("sending", "sent"),
        ("sending", "delivered"),
    ]
    assert claim(database, delivery_id) is None


def test_a_claimed_delivery_can_be_claimed_when_its_lease_is_over(
    database: Database, draft_factory: DraftFactory
) -> None:
    (delivery_id,) = create(database, draft_factory())
    claimed(database, delivery_id)
    assert claim(database, delivery_id) is None
    expire(database, db.delivery, delivery_id)
    assert claimed(database, delivery_id).attempts == 2


STEPS: dict[str, Callable[[Connection, Delivery], None]] = {
    "sent": lambda connection, held: deliveries.sent(connection, held, held.draft_uid, None),
    "delivered": lambda connection, held: deliveries.delivered(connection, held, "none"),
    "unproven": lambda connection, held: deliveries.unproven(connection, held, MINUTE, "why"),
    "retry": lambda connection, held: deliveries.retry_later(connection, held, MINUTE, "why"),
    "fail": lambda connection, held: deliveries.fail(connection, held, "why"),
    "drop": lambda connection, held: deliveries.drop(connection, held, "why"),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_a_sender_that_lost_its_lease_changes_nothing(
    database: Database, draft_factory: DraftFactory, step: Callable[[Connection, Delivery], None]
) -> None:
    draft = draft_factory()
    (delivery_id,) = create(database, draft)
    slow = claimed(database, delivery_id)
    expire(database, db.delivery, delivery_id)
    quick = claimed(database, delivery_id)
    before = of(database, draft), transitions(database, draft.study_instance_uid, "delivery")
    with database.transaction() as connection:
        step(connection, slow)
        assert not deliveries.renew(connection, slow, lease=MINUTE)
    after = of(database, draft), transitions(database, draft.study_instance_uid, "delivery")
    assert after == before
    with database.transaction() as connection:
        assert deliveries.renew(connection, quick, lease=MINUTE)


def test_an_object_the_peer_has_confirmed_is_not_forgotten_when_the_sender_dies(
    database: Database, draft_factory: DraftFactory
) -> None:
    (delivery_id,) = create(database, draft_factory())
    held = claimed(database, delivery_id)
    with database.transaction() as connection:
        deliveries.sent(connection, held, held.draft_uid, None)
    expire(database, db.delivery, delivery_id)
    assert claimed(database, delivery_id).sent_at is not None


@pytest.mark.parametrize(
    ("step", "state"), [(deliveries.retry_later, "due"), (deliveries.unproven, "sent")]
)
def test_what_waits_is_due_again_after_its_delay(
    database: Database,
    draft_factory: DraftFactory,
    step: Callable[[Connection, Delivery, timedelta, str], None],
    state: str,
) -> None:
    draft = draft_factory()
    (delivery_id,) = create(database, draft)
    held = claimed(database, delivery_id)
    with database.transaction() as connection:
        step(connection, held, MINUTE, "busy")
    (waiting,) = of(database, draft)
    assert (waiting.state, waiting.reason) == (state, "busy")
    assert claim(database, delivery_id) is None
    assert nudged(database) == []
    with database.transaction() as connection:
        connection.execute(sa.update(db.delivery).values(due_at=func.now()))
    assert nudged(database) == [delivery_id]
    assert claimed(database, delivery_id).attempts == 2


def test_a_delivery_is_nudged_again_only_after_the_interval(
    database: Database, draft_factory: DraftFactory
) -> None:
    (delivery_id,) = create(database, draft_factory())
    assert nudged(database) == [delivery_id]
    assert nudged(database) == []
    with database.transaction() as connection:
        connection.execute(sa.update(db.delivery).values(nudged_at=func.now() - 2 * SOON))
    assert nudged(database) == [delivery_id]


def test_the_oldest_deliveries_are_nudged_first_and_never_more_than_a_batch(
    database: Database, draft_factory: DraftFactory
) -> None:
    names = [f"peer-{number}" for number in range(nudges.LIMIT + 10)]
    ids = create(database, draft_factory(), *map(peer, names))
    with database.transaction() as connection:
        age = MINUTE * sa.cast(db.delivery.c.id, sa.Integer)
        connection.execute(sa.update(db.delivery).values(due_at=func.now() - age))
    assert nudged(database) == ids[: -nudges.LIMIT - 1 : -1]
    assert nudged(database) == ids[9::-1]


def test_unsent_deliveries_of_a_superseded_draft_are_dropped(
    database: Database, draft_factory: DraftFactory
) -> None:
    draft = draft_factory()
    ids = create(database, draft, *map(peer, ("waiting", "busy", "unproven", "arrived")))
    waiting, busy, unproven, arrived = ids
    claimed(database, busy)
    with database.transaction() as connection:
        held = deliveries.claim(connection, unproven, at_once=9, lease=MINUTE, worker="net")
        assert held is not None
        deliveries.sent(connection, held, held.draft_uid, None)
        deliveries.retry_later(connection, held, NOTHING, "the peer can't be asked")
        held = deliveries.claim(connection, arrived, at_once=9, lease=MINUTE, worker="net")
        assert held is not None
        deliveries.sent(connection, held, held.draft_uid, None)
        deliveries.delivered(connection, held, "none")
        deliveries.drop_unsent(connection, draft.sop_instance_uid, "superseded by 1.2")
    assert {one.id: one.state for one in of(database, draft)} == {
        waiting: "dropped",
        busy: "sending",
        unproven: "due",  # it is there: only its proof is missing
        arrived: "delivered",
    }
    assert value(database, db.delivery.c.reason, waiting) == "superseded by 1.2"


def test_failed_deliveries_start_from_scratch_when_a_person_wants_them_again(
    database: Database, draft_factory: DraftFactory
) -> None:
    draft, other = draft_factory(), draft_factory()
    (delivery_id,), (other_id,) = create(database, draft), create(database, other)
    for one in (delivery_id, other_id):
        held = claimed(database, one)
        with database.transaction() as connection:
            connection.execute(sa.update(db.delivery).values(created_at=func.now() - 2 * MINUTE))
            deliveries.sent(connection, held, held.draft_uid, None)
            deliveries.fail(connection, held, "not proven by find within 24 hours")
    with database.transaction() as connection:
        again = deliveries.requeue(connection, study_instance_uid=draft.study_instance_uid)
    assert again == [delivery_id]
    held = claimed(database, delivery_id)
    assert (held.attempts, held.sent_at) == (1, None)  # it is sent again, not only asked for
    assert held.age + MINUTE < of(database, other)[0].age
    with database.transaction() as connection:
        assert deliveries.requeue(connection, study_instance_uid=None) == [other_id]


def test_a_failed_delivery_of_a_superseded_draft_is_not_wanted_again(
    database: Database, draft_factory: DraftFactory
) -> None:
    draft = draft_factory()
    (delivery_id,) = create(database, draft)
    held = claimed(database, delivery_id)
    with database.transaction() as connection:
        deliveries.fail(connection, held, "refused")
    draft_factory(study_instance_uid=draft.study_instance_uid, revision=2, version=2)
    with database.transaction() as connection:
        assert deliveries.requeue(connection, study_instance_uid=None) == []


def test_a_sender_that_lost_a_delivery_does_not_get_it_back_when_it_is_wanted_again(
    database: Database, draft_factory: DraftFactory
) -> None:
    draft = draft_factory()
    (delivery_id,) = create(database, draft)
    lost = claimed(database, delivery_id)
    expire(database, db.delivery, delivery_id)
    held = claimed(database, delivery_id)
    with database.transaction() as connection:
        deliveries.fail(connection, held, "refused")
        deliveries.requeue(connection, study_instance_uid=None)
    again = claimed(database, delivery_id)
    assert again.attempts == lost.attempts
    with database.transaction() as connection:
        deliveries.delivered(connection, lost, "none")
    assert of(database, draft)[0].state == "sending"


# -- one peer among many ---------------------------------------------------------------------------


def break_off(database: Database, name: str = "pacs") -> None:
    """The peer failed once too often."""
    with database.transaction() as connection:
        circuits.failed(connection, name, "busy", open_after=1, back_off=lambda _: MINUTE)


def wait_is_over(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(sa.update(db.circuit).values(open_until=func.now() - MINUTE))


def test_a_nudge_gets_the_most_urgent_of_the_peer_then_the_longest_due(
    database: Database, draft_factory: DraftFactory
) -> None:
    ids = create_many(database, draft_factory, [ROUTINE, ROUTINE, URGENT, STAT])
    other = create_many(database, draft_factory, [STAT], "other")
    taken = [claimed(database, ids[0]).id for _ in ids]
    assert taken == [ids[3], ids[2], ids[0], ids[1]]
    assert claim(database, ids[0]) is None
    assert claimed(database, other[0]).priority == STAT


def test_a_nudge_for_what_is_not_there_gets_nothing(database: Database) -> None:
    assert claim(database, 12345) is None


def test_a_new_draft_is_sent_before_an_old_one_is_asked_for(
    database: Database, draft_factory: DraftFactory
) -> None:
    old, new = create_many(database, draft_factory, [ROUTINE, ROUTINE])
    with database.transaction() as connection:
        connection.execute(
            sa.update(db.delivery).where(db.delivery.c.id == old).values(sent_at=func.now())
        )
    assert [claimed(database, old).id for _ in range(2)] == [new, old]


def test_a_peer_gets_no_more_at_once_than_it_may(
    database: Database, draft_factory: DraftFactory
) -> None:
    ids = create_many(database, draft_factory, [ROUTINE] * 4)
    first, second = (claim(database, ids[0], at_once=2) for _ in range(2))
    assert first is not None
    assert second is not None
    assert claim(database, ids[2], at_once=2) is None
    with database.transaction() as connection:
        deliveries.fail(connection, first, "refused")
    assert claim(database, ids[2], at_once=2) is not None
    expire(database, db.delivery, second.id)  # its holder is dead and takes no place
    assert claim(database, ids[2], at_once=2) is not None


def test_senders_that_claim_together_do_not_pass_the_limit(
    database: Database, draft_factory: DraftFactory
) -> None:
    ids = create_many(database, draft_factory, [ROUTINE] * 8)
    together = threading.Barrier(8, timeout=PATIENCE)

    def race(delivery_id: int) -> Delivery | None:
        together.wait()
        return claim(database, delivery_id, at_once=3)

    with ThreadPoolExecutor(8) as pool:
        won = [one for one in pool.map(race, ids) if one is not None]
    assert len(won) == 3
    assert len({one.id for one in won}) == 3


def test_a_peer_that_is_left_alone_gets_nothing_until_one_delivery_has_tried(
    database: Database, draft_factory: DraftFactory
) -> None:
    ids = create_many(database, draft_factory, [ROUTINE] * 3)
    (other,) = create_many(database, draft_factory, [ROUTINE], "other")
    break_off(database)
    assert claim(database, ids[0]) is None
    assert claim(database, other) is not None
    wait_is_over(database)
    tries = claimed(database, ids[0])
    assert tries.attempts == 1
    assert claim(database, ids[1]) is None
    with database.transaction() as connection:
        deliveries.answered(connection, "pacs")
    assert claim(database, ids[1]) is not None


def test_what_failed_because_the_peer_was_away_goes_when_it_answers(
    database: Database, draft_factory: DraftFactory
) -> None:
    away, wrong, tries = create_many(database, draft_factory, [ROUTINE] * 3)
    for reason in ("peer: can't be reached", "peer.unsupported: takes none of"):
        held = claimed(database, away)
        with database.transaction() as connection:
            deliveries.retry_later(connection, held, 60 * MINUTE, reason)
    break_off(database)
    with database.transaction() as connection:
        deliveries.answered(connection, "pacs")
    assert sorted([claimed(database, away).id for _ in range(2)]) == [away, tries]
    assert claim(database, wrong) is None


def test_what_waited_too_long_for_a_peer_that_is_away_is_given_up(
    database: Database, draft_factory: DraftFactory
) -> None:
    old, new = create_many(database, draft_factory, [ROUTINE] * 2)
    (other,) = create_many(database, draft_factory, [ROUTINE], "other")
    with database.transaction() as connection:
        old_ones = db.delivery.c.id.in_([old, other])
        connection.execute(
            sa.update(db.delivery).where(old_ones).values(created_at=func.now() - 3 * MINUTE)
        )
        deliveries.give_up(connection, "pacs", 2 * MINUTE, "peer: can't be reached")
    states = [value(database, db.delivery.c.state, one) for one in (old, new, other)]
    assert states == ["failed", "due", "due"]
    assert value(database, db.delivery.c.reason, old) == "peer: can't be reached"


def test_workers_are_told_of_as_many_deliveries_as_the_peer_may_get_now(
    database: Database, draft_factory: DraftFactory
) -> None:
    ids = create_many(database, draft_factory, [ROUTINE] * 4 + [STAT])
    assert sorted(nudged(database)) == [ids[0], ids[4]]
    held = claimed(database, ids[0])
    assert held.id == ids[4]
    assert nudged(database) == []  # one place is taken, and of the other they were told
    for delivery_id in ids[:2]:
        claimed(database, delivery_id)
    assert nudged(database, NOTHING) == []  # none is free


def test_what_waits_for_a_peer_that_is_left_alone_takes_nobodys_place(
    database: Database, draft_factory: DraftFactory
) -> None:
    create_many(database, draft_factory, [STAT] * (nudges.LIMIT + 5), "dead")
    (other,) = create_many(database, draft_factory, [ROUTINE], "other")
    break_off(database, "dead")
    assert nudged(database) == [other]
    wait_is_over(database)
    assert len(nudged(database, NOTHING)) == 2


def test_failed_deliveries_of_one_peer_only_are_wanted_again_and_it_is_tried_at_once(
    database: Database, draft_factory: DraftFactory
) -> None:
    draft = draft_factory()
    mended, other = create(database, draft, peer("mended"), peer("other"))
    for one in (mended, other):
        held = claimed(database, one)
        with database.transaction() as connection:
            deliveries.fail(connection, held, "refused")
    break_off(database, "mended")
    with database.transaction() as connection:
        again = deliveries.requeue(connection, study_instance_uid=None, peer="mended")
    assert again == [mended]
    assert claim(database, mended) is not None


def test_deliveries_are_listed_newest_first_by_state_and_peer(
    database: Database, draft_factory: DraftFactory
) -> None:
    first, second = create_many(database, draft_factory, [ROUTINE, STAT])
    (other,) = create_many(database, draft_factory, [ROUTINE], "other")
    assert claimed(database, first).id == second

    def listed(**which: str | None) -> list[int]:
        asked: dict[str, str | None] = {"state": None, "peer": None, **which}
        with database.transaction() as connection:
            return [one.id for one in deliveries.newest(connection, limit=2, **asked)]

    assert listed() == [other, second]
    assert listed(peer="pacs") == [second, first]
    assert listed(state="sending") == [second]
    assert listed(state="failed", peer="pacs") == []


def test_what_was_queued_before_its_peer_became_a_shadow_is_withheld(
    database: Database, draft_factory: DraftFactory
) -> None:
    draft = draft_factory()
    (delivery_id,) = create(database, draft)
    held = claimed(database, delivery_id)
    with database.transaction() as connection:
        deliveries.withhold(connection, held, "the peer is a shadow")
    assert of(database, draft)[0].state == "withheld"
    assert claim(database, delivery_id) is None


# -- what a peer reports -----------------------------------------------------------------------


def sent(database: Database, delivery_id: int) -> Delivery:
    held = claimed(database, delivery_id)
    with database.transaction() as connection:
        deliveries.sent(connection, held, held.draft_uid, None)
    return held


def report(database: Database, held: Delivery, *, has_it: bool, uid: str | None = None) -> bool:
    sent_uid = uid or held.draft_uid
    with database.transaction() as connection:
        if has_it:
            return deliveries.committed(connection, held.id, sent_uid, "commitment")
        return deliveries.missing(connection, held.id, sent_uid, "no such object", MINUTE)


def test_a_report_proves_a_delivery_whoever_holds_it(
    database: Database, draft_factory: DraftFactory
) -> None:
    draft = draft_factory()
    (delivery_id,) = create(database, draft)
    held = sent(database, delivery_id)
    assert report(database, held, has_it=True)
    assert not report(database, held, has_it=True)
    with database.transaction() as connection:
        deliveries.unproven(connection, held, MINUTE, "not yet")
        deliveries.fail(connection, held, "overdue")
    (ended,) = of(database, draft)
    assert (ended.state, ended.proof) == ("delivered", "commitment")
    assert transitions(database, draft.study_instance_uid, "delivery")[-1] == (
        "sending",
        "delivered",
    )


def test_a_report_that_it_is_missing_has_it_sent_again_once(
    database: Database, draft_factory: DraftFactory
) -> None:
    draft = draft_factory()
    (delivery_id,) = create(database, draft)
    held = sent(database, delivery_id)
    assert report(database, held, has_it=False)
    assert not report(database, held, has_it=False)
    (again,) = of(database, draft)
    assert (again.state, again.sent_at, again.sent_uid) == ("due", None, None)
    assert (again.attempts, again.reason) == (1, "no such object")
    with database.transaction() as connection:
        deliveries.delivered(connection, held, "find")  # the holder comes too late
    assert of(database, draft)[0].state == "due"


@pytest.mark.parametrize("has_it", [True, False])
def test_a_report_of_another_object_than_the_one_sent_last_changes_nothing(
    database: Database, draft_factory: DraftFactory, has_it: bool
) -> None:
    draft = draft_factory()
    (delivery_id,) = create(database, draft)
    held = sent(database, delivery_id)
    before = of(database, draft)
    assert not report(database, held, has_it=has_it, uid="1.2.3")
    assert [(one.state, one.sent_uid) for one in of(database, draft)] == [
        (one.state, one.sent_uid) for one in before
    ]


@pytest.mark.parametrize("has_it", [True, False])
def test_a_report_of_what_was_never_sent_changes_nothing(
    database: Database, draft_factory: DraftFactory, has_it: bool
) -> None:
    draft = draft_factory()
    (delivery_id,) = create(database, draft)
    held = claimed(database, delivery_id)
    assert not report(database, held, has_it=has_it)
    assert of(database, draft)[0].state == "sending"


def test_a_proof_that_comes_after_the_delivery_was_given_up_counts(
    database: Database, draft_factory: DraftFactory
) -> None:
    draft = draft_factory()
    (delivery_id,) = create(database, draft)
    held = sent(database, delivery_id)
    with database.transaction() as connection:
        deliveries.fail(connection, held, "not proven")
    assert not report(database, held, has_it=False)
    assert report(database, held, has_it=True)
    assert of(database, draft)[0].state == "delivered"
