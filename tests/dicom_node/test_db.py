"""Transactions: what a database that is away or empty becomes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_node import db
from dicom_node.db import Database
from dicom_node.embedded import Postgres
from dicom_node.errors import ConfigurationError, OutOfResources
from dicom_node.supervisor import Supervisor
from tests.conftest import PATIENCE, Server, StudyFactory


def test_a_transaction_is_rolled_back_when_its_block_fails(
    database: Database, study_factory: StudyFactory
) -> None:
    uid = study_factory()

    def change_and_fail() -> None:
        with database.transaction() as connection:
            connection.execute(sa.update(db.study).values(state="complete"))
            raise KeyError(uid)

    with pytest.raises(KeyError):
        change_and_fail()
    with database.transaction() as connection:
        assert connection.scalar(sa.select(db.study.c.state)) == "receiving"


def test_a_database_without_tables_says_what_to_run(empty_database_url: str) -> None:
    empty = Database(empty_database_url)
    with (
        pytest.raises(ConfigurationError, match="dicom-node db upgrade"),
        empty.transaction() as connection,
    ):
        connection.execute(sa.select(db.study))
    empty.dispose()


def test_a_programming_mistake_is_not_taken_for_missing_tables(database: Database) -> None:
    with (
        pytest.raises(sa.exc.ProgrammingError, match="syntax"),
        database.transaction() as connection,
    ):
        connection.execute(sa.text("SELEKT 1"))


@pytest.mark.parametrize("url", ["nonsense", "nosuchdialect://host/name"])
def test_a_wrong_url_names_the_key_but_does_not_repeat_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"database\.url") as raised:
        Database(url)
    assert url not in str(raised.value)


def test_nobody_there_is_out_of_resources(tmp_path: Path) -> None:
    nobody = Database(f"postgresql+psycopg://user:secret@/name?host={tmp_path}")
    with pytest.raises(OutOfResources, match="database: ") as raised, nobody.transaction():
        pass
    assert "secret" not in str(raised.value)


def test_a_lock_that_is_never_given_is_out_of_resources(
    database: Database, study_factory: StudyFactory
) -> None:
    study_factory()
    lock = sa.select(db.study).with_for_update()

    def wait_for_it() -> None:
        with database.transaction() as waiting:
            waiting.execute(sa.text("SET LOCAL lock_timeout = '50ms'"))
            waiting.execute(lock)

    with database.transaction() as holder:
        holder.execute(lock)
        with pytest.raises(OutOfResources, match="lock timeout"):
            wait_for_it()


def test_errors_do_not_repeat_parameters(database: Database, study_factory: StudyFactory) -> None:
    uid = study_factory()
    with pytest.raises(sa.exc.IntegrityError) as raised, database.transaction() as connection:
        connection.execute(
            sa.insert(db.job).values(
                study_instance_uid=uid, revision=None, model="DOE^JANE", state="queued"
            )
        )
    assert "parameters hidden" in str(raised.value)


def test_a_server_that_stops_is_out_of_resources_and_one_that_returns_is_used_again(
    tmp_path: Path,
) -> None:
    postgres = Postgres(tmp_path)
    supervisor = Supervisor(log_directory=tmp_path / "log")
    try:
        supervisor.start(postgres, timeout=PATIENCE)
        db.upgrade(postgres.url)
        opened = Database(postgres.url)
        with opened.transaction() as connection:
            connection.execute(sa.select(db.study))
        supervisor.stop()
        started = time.monotonic()
        with pytest.raises(OutOfResources, match="database: "), opened.transaction():
            pass
        assert time.monotonic() - started < 10
        with pytest.raises(OutOfResources, match="database: "):
            db.upgrade(postgres.url)
        supervisor.start(postgres, timeout=PATIENCE)
        with opened.transaction() as connection:  # the pooled connection is a dead one
            assert connection.execute(sa.select(db.study)).all() == []
        opened.dispose()
    finally:
        supervisor.stop()


def test_a_connection_that_is_cut_in_the_middle_is_out_of_resources(
    database: Database, server: Server
) -> None:
    def be_cut() -> None:
        with database.transaction() as connection:
            pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
            server.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
            connection.execute(sa.text("SELECT 1"))

    with pytest.raises(OutOfResources, match="database: "):
        be_cut()
    with database.transaction() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1


def test_the_schema_tells_its_revision(fresh_database_url: str, empty_database_url: str) -> None:
    present, wanted = db.revisions(fresh_database_url)
    assert present == wanted is not None
    assert db.revisions(empty_database_url) == (None, wanted)


def test_an_upgrade_of_an_up_to_date_database_changes_nothing(fresh_database_url: str) -> None:
    def identity() -> object:
        opened = Database(fresh_database_url)
        with opened.transaction() as connection:
            found = connection.scalars(sa.select(db.installation.c.id)).one()
        opened.dispose()
        return found

    before = identity()
    db.upgrade(fresh_database_url)
    assert identity() == before
