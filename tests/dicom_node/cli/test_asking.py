"""reconcile and priors: what the verbs print, and what they queue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from dicom_node import db, fetches, studies
from dicom_node.cli import acting, asking, wiring
from dicom_node.config import Node, Peer, Reconciliation, Settings
from dicom_node.db import Database
from dicom_node.errors import ConfigurationError, NodeError
from dicom_node.fetches import PRIOR, Found
from tests.conftest import StudyFactory
from tests.query_pacs import QueryPacs, chest

DAY = "20260304"


@pytest.fixture(scope="module")
def shared() -> Iterator[QueryPacs]:
    """One for all, for its end takes half a second."""
    with QueryPacs() as started:
        yield started


@pytest.fixture
def pacs(shared: QueryPacs, database: Database, monkeypatch: pytest.MonkeyPatch) -> QueryPacs:
    """A PACS that holds nothing yet, beside our database."""
    monkeypatch.setattr(wiring, "database", lambda _: database)
    shared.hold()
    return shared


def site(*peers: Peer, data: Path = Path("data")) -> Settings:
    wanted = Reconciliation(days=1)
    return Settings(node=Node(data=data), peers=peers, reconciliation=wanted)


def reconciled(
    settings: Settings, capsys: pytest.CaptureFixture[str], *, fetch: bool = False
) -> dict[str, Any]:
    asking.reconcile(settings, day=DAY, peer=None, fetch=fetch, as_json=True)
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def states(database: Database) -> list[str]:
    with database.transaction() as connection:
        return list(connection.scalars(sa.select(db.fetch.c.state)))


def test_what_is_missing_is_one_document_and_nothing_is_queued(
    pacs: QueryPacs, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    missed = chest()
    pacs.hold(missed)
    document = reconciled(site(pacs.peer()), capsys)
    (day,) = document["days"]
    assert (day["peer"], day["study_date"], day["found"]) == ("pacs", DAY, 1)
    (one,) = day["missing"]
    assert one["study_instance_uid"] == missed.StudyInstanceUID
    assert one["fetch"] is None
    assert states(database) == []


def test_by_hand_it_is_queued_at_once_and_what_failed_again(
    pacs: QueryPacs, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    pacs.hold(chest())
    assert reconciled(site(pacs.peer()), capsys, fetch=True)["queued"] == 1
    assert reconciled(site(pacs.peer()), capsys, fetch=True)["queued"] == 0
    with database.transaction() as connection:
        connection.execute(sa.update(db.fetch).values(state="failed"))
    assert reconciled(site(pacs.peer()), capsys, fetch=True)["queued"] == 1
    assert states(database) == ["due"]


def test_people_read_a_table(pacs: QueryPacs, capsys: pytest.CaptureFixture[str]) -> None:
    missed = chest()
    pacs.hold(missed)
    asking.reconcile(site(pacs.peer()), day=DAY, peer="pacs", fetch=True, as_json=False)
    said = capsys.readouterr()
    assert missed.StudyInstanceUID in said.out
    assert "queued: 1 studies" in said.err
    assert "SECRET" not in said.out


@pytest.mark.parametrize("name", [None, "elsewhere"])
def test_without_anybody_to_ask_it_says_what_to_set(pacs: QueryPacs, name: str | None) -> None:
    settings = site(pacs.peer(roles=("source",)))
    with pytest.raises(ConfigurationError, match='roles = \\["source", "query"\\]'):
        asking.reconcile(settings, day=DAY, peer=name, fetch=False, as_json=True)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # pynetdicom's
def test_a_peer_that_is_away_is_told_after_what_the_others_have(
    pacs: QueryPacs, capsys: pytest.CaptureFixture[str]
) -> None:
    pacs.hold(chest())
    away = Peer(name="away", ae_title="AWAY", host=("127.0.0.1",), port=1, roles=("query",))
    settings = site(away, pacs.peer())
    with pytest.raises(NodeError, match=r"away .*can't be reached"):
        asking.reconcile(settings, day=DAY, peer=None, fetch=False, as_json=True)
    assert len(json.loads(capsys.readouterr().out)["days"]) == 1


# -- a prior that is read after all ----------------------------------------------------------------


def prior(database: Database, study_factory: StudyFactory, **times: float) -> str:
    uid = "2.25.88"
    found = Found(study_instance_uid=uid, study_date=DAY, peer="pacs")
    with database.transaction() as connection:
        fetches.want(connection, found, PRIOR, prior_of="1.2")
        connection.execute(sa.update(db.fetch).values(state="fetched", claimed_at=sa.func.now()))
    study_factory(study_instance_uid=uid, **times)
    with database.transaction() as connection:
        studies.settle(connection, ["demo"])
    return uid


@pytest.mark.parametrize("quiet", [0, 3600], ids=["complete", "still receiving"])
def test_a_prior_is_read_when_a_person_wants_it(
    pacs: QueryPacs,
    database: Database,
    study_factory: StudyFactory,
    quiet: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uid = prior(database, study_factory, quiet=quiet)
    acting.retry(Settings(), uid)
    with database.transaction() as connection:
        studies.settle(connection, [Settings().model.name])
        queued = connection.scalars(sa.select(db.job.c.study_instance_uid)).all()
    assert queued == [uid]
    assert f"queued again: {int(not quiet)} jobs" in capsys.readouterr().out


def test_what_could_not_be_fetched_is_queued_again_with_everything_that_failed(
    pacs: QueryPacs, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    pacs.hold(chest())
    reconciled(site(pacs.peer()), capsys, fetch=True)
    with database.transaction() as connection:
        connection.execute(sa.update(db.fetch).values(state="failed"))
    acting.retry(Settings(), None)
    assert "1 studies to be fetched" in capsys.readouterr().out
    assert states(database) == ["due"]
