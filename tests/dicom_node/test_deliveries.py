"""Deliveries: one per draft and destination, proven before they count as delivered."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, func

from dicom_node import db, deliveries, nudges
from dicom_node.config import Peer
from dicom_node.db import Database
from dicom_node.deliveries import Delivery
from dicom_node.drafts import Draft
from tests.conftest import DraftFactory
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


def claim(database: Database, delivery_id: int) -> Delivery | None:
    with database.transaction() as connection:
        return deliveries.claim(connection, delivery_id, lease=MINUTE, worker="net")


def claimed(database: Database, delivery_id: int) -> Delivery:
    held = claim(database, delivery_id)
    assert held is not None
    return held


def of(database: Database, draft: Draft) -> list[Delivery]:
    with database.transaction() as connection:
        return deliveries.of_study(connection, draft.study_instance_uid)


def nudged(database: Database, every: timedelta = SOON) -> list[int]:
    with database.transaction() as connection:
        return deliveries.nudge(connection, every=every)


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
        held = deliveries.claim(connection, unproven, lease=MINUTE, worker="net")
        assert held is not None
        deliveries.sent(connection, held, held.draft_uid, None)
        deliveries.retry_later(connection, held, NOTHING, "the peer can't be asked")
        held = deliveries.claim(connection, arrived, lease=MINUTE, worker="net")
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
