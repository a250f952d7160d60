"""A study has one row: who may fetch it, when, and what becomes of it."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy import func

from dicom_node import account, db, fetches, jobs, studies
from dicom_node.db import Database
from dicom_node.fetches import INCOMPLETE, MISSED, PRIOR, Fetch, Found
from tests.conftest import StudyFactory

LEASE = timedelta(seconds=60)
NOW = timedelta(0)
UID = "2.25.9"


def found(uid: str = UID, *, peer: str = "pacs", study_date: str = "20260304") -> Found:
    return Found(study_instance_uid=uid, study_date=study_date, peer=peer)


def want(
    database: Database,
    uid: str = UID,
    purpose: str = MISSED,
    *,
    peer: str = "pacs",
    study_date: str = "20260304",
    prior_of: str | None = None,
    wait: timedelta = NOW,
) -> bool:
    with database.transaction() as connection:
        one = found(uid, peer=peer, study_date=study_date)
        return fetches.want(connection, one, purpose, prior_of=prior_of, wait=wait)


def id_of(database: Database, uid: str = UID) -> int:
    with database.transaction() as connection:
        row = fetches.of_study(connection, uid)
    assert row is not None
    return row.id


def claim(database: Database, uid: str = UID, *, per_hour: int = 60) -> Fetch | None:
    fetch_id = id_of(database, uid)
    with database.transaction() as connection:
        return fetches.claim(connection, fetch_id, lease=LEASE, worker="w", per_hour=per_hour)


def row_of(database: Database, uid: str = UID) -> Fetch:
    with database.transaction() as connection:
        row = fetches.of_study(connection, uid)
    assert row is not None
    return row


def nudged(database: Database, *, per_hour: int = 60, every: timedelta = NOW) -> list[int]:
    with database.transaction() as connection:
        return fetches.nudge(connection, every=every, per_hour=per_hour)


# -- wanting ---------------------------------------------------------------------------------------


def test_a_study_is_queued_once_whoever_finds_it(database: Database) -> None:
    assert want(database)
    assert not want(database)
    assert not want(database, purpose=PRIOR, peer="other", prior_of="1.2")
    assert row_of(database).peer == "pacs"


def test_a_study_that_is_here_is_not_wanted(
    database: Database, study_factory: StudyFactory
) -> None:
    assert not want(database, study_factory())


def test_what_is_known_is_told_with_its_state(
    database: Database, study_factory: StudyFactory
) -> None:
    here = study_factory()
    want(database)
    with database.transaction() as connection:
        fetches.skip(connection, found("2.25.10"), "of the knee")
        known = fetches.known(connection, [here, UID, "2.25.10", "2.25.11"])
    assert known == {here: "here", UID: "due", "2.25.10": "skipped"}


def test_what_is_skipped_is_never_fetched(database: Database) -> None:
    with database.transaction() as connection:
        fetches.skip(connection, found(), "of the knee")
    assert not want(database)
    assert nudged(database) == []
    assert claim(database) is None


def complete(database: Database, uid: str = UID) -> bool:
    with database.transaction() as connection:
        return fetches.complete(connection, found(uid))


def test_the_rest_of_a_study_that_is_here_is_queued_once(
    database: Database, study_factory: StudyFactory
) -> None:
    uid = study_factory()
    assert complete(database, uid)
    assert not complete(database, uid)
    held = claim(database, uid)
    assert held is not None, "it did not come by itself: a part of it was here before"
    assert held.purpose == INCOMPLETE
    assert not complete(database, uid)


def test_the_rest_of_a_study_that_came_by_a_fetch_is_queued_from_scratch(
    database: Database, study_factory: StudyFactory
) -> None:
    want(database)
    for times in (1, 2):
        held = claim(database)
        assert held
        assert (held.attempts, held.claims) == (1, times)
        study_factory(study_instance_uid=UID)
        with database.transaction() as connection:
            fetches.fetched(connection, held)
        assert complete(database)
    with database.transaction() as connection:
        events = account.of(connection, UID).events
    reasons = [one.reason for one in events if one.to_state == "fetched"]
    assert reasons == ["missed by its sender", "a part of it was missed by its sender"]


def test_the_rest_of_a_failed_one_or_of_a_prior_waits_for_a_person(
    database: Database, study_factory: StudyFactory
) -> None:
    failed = study_factory()
    assert complete(database, failed)
    held = claim(database, failed)
    assert held
    with database.transaction() as connection:
        fetches.fail(connection, held, "refused")
    came_as_prior(database, study_factory)
    assert not complete(database, failed)
    assert not complete(database)


def test_of_incomplete_studies_too_only_so_many_come_in_an_hour(
    database: Database, study_factory: StudyFactory
) -> None:
    want(database)
    assert claim(database, per_hour=1)
    uid = study_factory()
    with database.transaction() as connection:
        assert fetches.complete(connection, found(uid, peer="other"))
    assert claim(database, uid, per_hour=1) is None
    assert claim(database, uid, per_hour=2)


def test_a_study_that_may_still_come_by_itself_is_left_alone(database: Database) -> None:
    want(database, wait=timedelta(minutes=30))
    assert nudged(database) == []
    assert claim(database) is None


# -- claiming --------------------------------------------------------------------------------------


def test_one_worker_gets_it(database: Database) -> None:
    want(database)
    held = claim(database)
    assert held is not None
    assert (held.attempts, held.claims, held.state) == (1, 1, "fetching")
    assert claim(database) is None


def test_of_one_peer_one_study_comes_at_a_time(database: Database) -> None:
    for uid in ("2.25.1", "2.25.2"):
        want(database, uid)
    want(database, "2.25.3", peer="other")
    assert claim(database, "2.25.1")
    assert claim(database, "2.25.2") is None
    assert claim(database, "2.25.3")


def test_of_many_peers_so_many_at_a_time_that_drafts_can_still_go(database: Database) -> None:
    for number in range(fetches.AT_ONCE + 1):
        want(database, f"2.25.{number}", peer=f"pacs{number}")
    taken = [claim(database, f"2.25.{number}") for number in range(fetches.AT_ONCE + 1)]
    assert [one is not None for one in taken] == [True] * fetches.AT_ONCE + [False]


def test_of_missed_studies_only_so_many_come_in_an_hour(database: Database) -> None:
    for number in range(3):
        want(database, f"2.25.{number}", peer=f"pacs{number}")
    assert claim(database, "2.25.0", per_hour=2)
    assert claim(database, "2.25.1", per_hour=2)
    assert claim(database, "2.25.2", per_hour=2) is None
    assert nudged(database, per_hour=2) == []
    with database.transaction() as connection:
        connection.execute(
            sa.update(db.fetch)
            .where(db.fetch.c.study_instance_uid == "2.25.0")
            .values(claimed_at=func.now() - timedelta(minutes=61))
        )
    assert claim(database, "2.25.2", per_hour=2)


def test_priors_do_not_wait_for_the_missed_ones(database: Database) -> None:
    want(database, "2.25.1")
    want(database, "2.25.2", PRIOR, peer="other", prior_of="1.2")
    assert claim(database, "2.25.1", per_hour=1)
    assert claim(database, "2.25.2", per_hour=1)


def test_the_next_of_each_peer_is_nudged_priors_first_then_the_newest(
    database: Database,
) -> None:
    want(database, "2.25.1", study_date="20260101")
    want(database, "2.25.2", study_date="20260303")
    want(database, "2.25.3", PRIOR, study_date="20200101", prior_of="1.2")
    want(database, "2.25.4", peer="other")
    assert sorted(nudged(database)) == [id_of(database, "2.25.3"), id_of(database, "2.25.4")]
    held = claim(database, "2.25.3")
    assert held
    assert nudged(database) == [id_of(database, "2.25.4")]
    with database.transaction() as connection:
        fetches.fetched(connection, held)
    assert id_of(database, "2.25.2") in nudged(database)


def test_a_nudge_is_not_repeated_at_once(database: Database) -> None:
    want(database)
    assert nudged(database, every=timedelta(seconds=15)) == [id_of(database)]
    assert nudged(database, every=timedelta(seconds=15)) == []


def test_what_came_before_we_asked_is_a_study_like_any_other(
    database: Database, study_factory: StudyFactory
) -> None:
    for purpose in (MISSED, PRIOR):
        uid = f"2.25.7.{purpose == PRIOR:d}"
        want(database, uid, purpose, prior_of="1.2")
        study_factory(study_instance_uid=uid)
        assert claim(database, uid) is None
        row = row_of(database, uid)
        assert (row.state, row.purpose, row.reason) == ("fetched", MISSED, "it came by itself")
    with database.transaction() as connection:
        assert studies.settle(connection, ["demo"]) == 4


# -- ending ----------------------------------------------------------------------------------------


def test_a_fetched_study_tells_how_it_came(database: Database, study_factory: StudyFactory) -> None:
    want(database)
    held = claim(database)
    assert held
    study_factory(study_instance_uid=UID)
    with database.transaction() as connection:
        fetches.fetched(connection, held)
        told = account.of(connection, UID).events
    (event,) = [one for one in told if one.subject == f"fetch {held.id} from pacs"]
    assert (event.from_state, event.to_state) == ("fetching", "fetched")
    assert event.reason == "missed by its sender"


def test_a_study_that_did_not_come_is_tried_again_later(database: Database) -> None:
    want(database)
    held = claim(database)
    assert held
    with database.transaction() as connection:
        fetches.retry_later(connection, held, timedelta(minutes=5), "pacs is away")
    assert nudged(database) == []
    row = row_of(database)
    assert (row.state, row.attempts, row.reason) == ("due", 1, "pacs is away")


def test_a_worker_that_lost_its_lease_changes_nothing(database: Database) -> None:
    want(database)
    first = claim(database)
    assert first
    with database.transaction() as connection:
        connection.execute(sa.update(db.fetch).values(lease_until=func.now()))
    second = claim(database)
    assert second
    assert second.claims == 2
    with database.transaction() as connection:
        assert not fetches.renew(connection, first, lease=LEASE)
        fetches.fail(connection, first, "late")
    assert row_of(database).state == "fetching"


@pytest.mark.parametrize("uids", [[UID], None])
def test_a_failed_one_is_queued_again_by_a_person(
    database: Database, uids: list[str] | None
) -> None:
    want(database)
    held = claim(database)
    assert held
    with database.transaction() as connection:
        fetches.fail(connection, held, "refused")
        assert fetches.requeue(connection, study_instance_uids=uids) == 1
    again = claim(database)
    assert again
    assert again.attempts == 1
    assert again.age == NOW


# -- priors ----------------------------------------------------------------------------------------


def came_as_prior(database: Database, study_factory: StudyFactory, **times: float) -> None:
    want(database, purpose=PRIOR, prior_of="1.2")
    held = claim(database)
    assert held
    study_factory(study_instance_uid=UID, **times)
    with database.transaction() as connection:
        fetches.fetched(connection, held)


def jobs_of(database: Database, uid: str = UID) -> int:
    with database.transaction() as connection:
        return len(jobs.of_study(connection, uid))


def test_a_prior_is_complete_and_not_read_and_says_so(
    database: Database, study_factory: StudyFactory
) -> None:
    came_as_prior(database, study_factory)
    with database.transaction() as connection:
        studies.settle(connection, ["demo"])
        told = account.of(connection, UID)
    assert told.jobs == []
    assert told.study.state == "complete"
    assert "not read" in str(told.events[-1].reason)


def test_a_prior_that_is_ready_gets_no_job_either(
    database: Database, study_factory: StudyFactory
) -> None:
    came_as_prior(database, study_factory, quiet=3600)
    with database.transaction() as connection:
        assert studies.settle(connection, ["demo"]) == 0
    assert jobs_of(database) == 0


def test_a_prior_stays_one_when_more_of_it_comes(
    database: Database, study_factory: StudyFactory
) -> None:
    came_as_prior(database, study_factory)
    with database.transaction() as connection:
        studies.settle(connection, ["demo"])
    study_factory(study_instance_uid=UID)
    with database.transaction() as connection:
        assert studies.settle(connection, ["demo"]) == 1
    assert jobs_of(database) == 0


def test_a_person_can_have_a_prior_read(database: Database, study_factory: StudyFactory) -> None:
    came_as_prior(database, study_factory, quiet=3600)
    with database.transaction() as connection:
        assert fetches.read_after_all(connection, UID)
        assert not fetches.read_after_all(connection, UID)
        assert studies.settle(connection, ["demo"]) == 1
    assert jobs_of(database) == 1


def test_priors_are_looked_for_once_and_not_for_priors(
    database: Database, study_factory: StudyFactory
) -> None:
    came_as_prior(database, study_factory)
    current = study_factory()
    with database.transaction() as connection:
        fetches.search(connection, current)
        fetches.search(connection, current)
        fetches.search(connection, UID)
        (search_id,) = fetches.nudge_searches(connection, every=NOW)
        begun = fetches.begin_search(connection, search_id)
        assert begun is not None
        assert begun.study_instance_uid == current
        assert fetches.begin_search(connection, search_id) is None, "another has begun"
        fetches.searched(connection, begun, "2 found")
        assert fetches.nudge_searches(connection, every=NOW) == []
        events = account.of(connection, current).events
    assert [(one.subject, one.reason) for one in events][-1] == ("priors", "2 found")


def test_a_search_whose_peer_is_away_comes_again(
    database: Database, study_factory: StudyFactory
) -> None:
    with database.transaction() as connection:
        fetches.search(connection, study_factory())
        (search_id,) = fetches.nudge_searches(connection, every=NOW)
        begun = fetches.begin_search(connection, search_id)
        assert begun
        fetches.search_later(connection, begun, NOW, "pacs is away")
    with database.transaction() as connection:
        again = fetches.begin_search(connection, search_id)
    assert again
    assert again.attempts == 2
