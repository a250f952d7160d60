"""A connection that is kept: one round trip a transaction, and what its end becomes."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from dicom_node import db
from dicom_node.db import Database
from dicom_node.errors import ConfigurationError, OutOfResources
from dicom_node.kept_connection import KeptConnection
from tests.conftest import PATIENCE, Server, StudyFactory


@pytest.fixture
def kept(database: Database) -> Iterator[KeptConnection]:
    opened = database.kept_connection()
    yield opened
    opened.close()


ADD_STUDY = """
    INSERT INTO study (study_instance_uid, state, revision, patient_key)
    VALUES ($1, 'receiving', 1, '') RETURNING to_jsonb(study_instance_uid)
"""
WHO = "SELECT to_jsonb(pg_backend_pid())"


def nothing() -> None:
    """Meanwhile."""


def study_uids(database: Database) -> list[str]:
    with database.transaction() as connection:
        return list(connection.scalars(sa.select(db.study.c.study_instance_uid)))


def test_what_is_run_is_committed_and_its_value_returned(
    database: Database, kept: KeptConnection
) -> None:
    for uid in ("1.2.3", "1.2.4"):
        assert kept.run(ADD_STUDY, [uid], nothing) == uid
    assert study_uids(database) == ["1.2.3", "1.2.4"]
    assert kept.run(WHO, [], nothing) == kept.run(WHO, [], nothing)  # the same connection


def test_a_large_parameter_is_sent_whole(kept: KeptConnection) -> None:
    text = "x" * (8 << 20)
    assert kept.run("SELECT to_jsonb(length($1))", [text], nothing) == len(text)


def test_nothing_is_committed_before_what_runs_meanwhile_has_returned(
    database: Database, kept: KeptConnection
) -> None:
    seen: list[list[str]] = []
    kept.run(ADD_STUDY, ["1.2.3"], lambda: seen.append(study_uids(database)))
    assert seen == [[]]


def test_nothing_is_committed_where_what_runs_meanwhile_fails(
    database: Database, kept: KeptConnection
) -> None:
    def fail() -> None:
        raise KeyError

    for _ in range(2):  # on a new connection, and on a kept one
        with pytest.raises(KeyError):
            kept.run(ADD_STUDY, ["1.2.3"], fail)
        assert study_uids(database) == []
        kept.run(WHO, [], nothing)


@pytest.mark.parametrize("value", ["1.2.3", None], ids=["there already", "null"])
def test_what_the_server_refuses_is_not_committed_and_harms_nobody_else(
    database: Database, kept: KeptConnection, value: str | None
) -> None:
    kept.run(ADD_STUDY, ["1.2.3"], nothing)
    refused = ADD_STUDY if value else ADD_STUDY.replace("($1,", "(nullif($1, $1),")
    with pytest.raises(psycopg.errors.IntegrityError):
        kept.run(refused, ["1.2.3"], nothing)
    kept.run(ADD_STUDY, ["1.2.4"], nothing)
    assert study_uids(database) == ["1.2.3", "1.2.4"]


def end(server: Server, pid: int) -> None:
    server.execute(f"SELECT pg_terminate_backend({pid}, 5000)")


def test_a_connection_that_died_since_the_last_time_is_replaced(
    database: Database, server: Server, kept: KeptConnection
) -> None:
    end(server, kept.run(WHO, [], nothing))
    ran: list[None] = []
    assert kept.run(ADD_STUDY, ["1.2.3"], lambda: ran.append(None)) == "1.2.3"
    assert study_uids(database) == ["1.2.3"]
    assert len(ran) in (1, 2)


def end_all(server: Server, database: Database) -> None:
    """Of all who are in the middle of a transaction, or wait for the next."""
    name = database._engine.url.database
    server.execute(
        f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'"
    )


def test_a_new_connection_that_dies_in_the_middle_is_out_of_resources(
    database: Database, server: Server, kept: KeptConnection
) -> None:
    with pytest.raises(OutOfResources, match="database: "):
        kept.run(ADD_STUDY, ["1.2.3"], lambda: end_all(server, database))
    assert study_uids(database) == []
    assert kept.run(ADD_STUDY, ["1.2.3"], nothing) == "1.2.3"


LOCK = """
    WITH impatience AS MATERIALIZED (SELECT set_config('lock_timeout', '50ms', true))
    SELECT to_jsonb(revision) FROM impatience, study
    WHERE study_instance_uid = $1 FOR UPDATE OF study
"""


def test_a_lock_that_is_never_given_is_out_of_resources_here_too(
    database: Database, kept: KeptConnection, study_factory: StudyFactory
) -> None:
    uid = study_factory()
    with database.transaction() as holder:
        holder.execute(sa.select(db.study).with_for_update())
        with pytest.raises(OutOfResources, match="lock timeout"):
            kept.run(LOCK, [uid], nothing)
    assert kept.run(LOCK, [uid], nothing) == 1


def test_a_database_that_hangs_is_given_up_on(database: Database, kept: KeptConnection) -> None:
    hung = threading.Event()
    kept.cut_if_hung(0)  # nothing runs
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(kept.run, "SELECT pg_sleep(600)::text::jsonb", [], hung.set)
        assert hung.wait(PATIENCE)
        kept.cut_if_hung(3600)
        with pytest.raises(TimeoutError):
            running.result(0.05)
        kept.cut_if_hung(0)
        with pytest.raises(OutOfResources):
            running.result(PATIENCE)
    assert kept.run("SELECT '1'::jsonb", [], nothing) == 1


def test_nobody_there_and_no_tables_are_told_apart_here_too(
    tmp_path: Path, empty_database_url: str
) -> None:
    for url, error in (
        (f"postgresql+psycopg://user@/name?host={tmp_path}", OutOfResources),
        (empty_database_url, ConfigurationError),
    ):
        opened = Database(url)
        kept = opened.kept_connection()
        with pytest.raises(error):
            kept.run("SELECT register_instances($1::jsonb)", ["[]"], nothing)
        kept.close()
        opened.dispose()


def test_a_process_with_a_thousand_open_files_reaches_its_database(kept: KeptConnection) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"only {hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    with ExitStack() as opened:
        for _ in range(1100):
            opened.enter_context(open(os.devnull))
        assert kept.run("SELECT '1'::jsonb", [], nothing) == 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
