"""deliveries, retry: the list of what is on its way or was given up, and what sends it again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from dicom_node import deliveries
from dicom_node.cli import acting, app, looking, wiring
from dicom_node.config import Peer, Settings
from dicom_node.db import Database
from dicom_node.errors import ConfigurationError
from tests.conftest import DraftFactory
from tests.dicom_node.states import MINUTE

PEERS = tuple(Peer(name=name, ae_title=name.upper(), host=("10.0.0.5",)) for name in ("one", "two"))
SETTINGS = Settings(peers=PEERS)
REFUSED = "peer.refused: answered C-STORE with 0xC000"


@pytest.fixture
def given_up(
    database: Database, draft_factory: DraftFactory, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A study whose draft went to neither of two peers; the node's database is the test's."""
    monkeypatch.setattr(wiring, "database", lambda _: database)
    draft = draft_factory()
    with database.transaction() as connection:
        uids = draft.study_instance_uid, draft.sop_instance_uid
        deliveries.create(connection, *uids, PEERS)
        for one in deliveries.of_study(connection, draft.study_instance_uid):
            held = deliveries.claim(connection, one.id, at_once=1, lease=MINUTE, worker="net")
            assert held is not None
            deliveries.fail(connection, held, REFUSED)
    return draft.study_instance_uid


def listed(capsys: pytest.CaptureFixture[str], **which: str) -> list[dict[str, Any]]:
    """The rows of ``deliveries --json``."""
    asked: dict[str, str | None] = {"state": None, "peer": None, **which}
    looking.deliveries(SETTINGS, **asked, limit=10, as_json=True)
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["deliveries"]
    return rows


def test_what_was_given_up_is_listed_with_its_reason(
    given_up: str, capsys: pytest.CaptureFixture[str]
) -> None:
    two, one = listed(capsys, state="failed")
    assert (two["peer"], one["peer"]) == ("two", "one")
    expected = {"study_instance_uid": given_up, "state": "failed", "attempts": 1}
    assert one.items() >= {**expected, "reason": REFUSED, "next_attempt": None}.items()
    assert listed(capsys, state="due") == []


def test_people_read_a_table(given_up: str, capsys: pytest.CaptureFixture[str]) -> None:
    looking.deliveries(SETTINGS, state="failed", peer="one", limit=10, as_json=False)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if given_up in line]
    assert row.split()[1:3] == ["one", "failed"]
    assert row.rstrip().endswith(REFUSED)


def test_what_was_given_up_for_one_peer_is_sent_again_to_that_one(
    given_up: str, capsys: pytest.CaptureFixture[str]
) -> None:
    acting.retry(SETTINGS, None, "one")
    assert capsys.readouterr().out == "queued again: 0 jobs, 1 deliveries\n"
    (due,) = listed(capsys, state="due")
    assert due["peer"] == "one"
    assert due["next_attempt"] is not None


def test_a_peer_that_nobody_configured_is_named(given_up: str) -> None:
    with pytest.raises(ConfigurationError, match="no peer is named there"):
        acting.retry(SETTINGS, None, "there")


def test_one_study_goes_to_all_its_peers_again() -> None:
    said = CliRunner().invoke(app, ["retry", "2.25.1", "--peer", "one"])
    assert said.exit_code == 2
    assert "--peer goes with --failed" in said.output
