"""A lease is renewed as long as the work lasts, and not a moment longer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection

from dicom_node.db import Database
from tests.conftest import PATIENCE
from worker import lease

SHORT = timedelta(seconds=0.15)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


class Renewals:
    """Counts them; the answer of the last is given again and again."""

    def __init__(self, *answers: bool) -> None:
        self.answers = answers
        self.count = 0

    def __call__(self, connection: Connection) -> bool:
        answer = self.answers[min(self.count, len(self.answers) - 1)]
        self.count += 1
        return answer


def keepers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lease"]


def test_a_lease_is_renewed_until_the_block_ends(database: Database) -> None:
    renewals = Renewals(True)
    with lease.kept(database, SHORT, renewals):
        wait_until(lambda: renewals.count >= 3)
    after = renewals.count
    assert keepers() == []
    time.sleep(2 * SHORT.total_seconds())
    assert renewals.count == after


def test_a_block_that_fails_ends_the_renewals_too(database: Database) -> None:
    def fail() -> None:
        with lease.kept(database, SHORT, Renewals(True)):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert keepers() == []


def test_a_block_shorter_than_a_third_of_the_lease_renews_nothing(database: Database) -> None:
    renewals = Renewals(True)
    with lease.kept(database, timedelta(minutes=1), renewals):
        pass
    assert renewals.count == 0


def test_a_lost_lease_is_said_once_and_not_renewed_again(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    renewals = Renewals(True, False)
    with lease.kept(database, SHORT, renewals):
        wait_until(lambda: keepers() == [])
    assert renewals.count == 2
    assert caplog.text.count("lease lost") == 1


def test_a_database_that_is_away_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = Database(f"postgresql+psycopg://user@/name?host={tmp_path}")
    with lease.kept(away, SHORT, Renewals(True)):
        wait_until(lambda: caplog.text.count("lease not renewed: database") >= 2)
