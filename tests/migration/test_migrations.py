"""The migrations add up to the tables that the code declares."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from dicom_node import associations, db
from dicom_node.associations import Reason, Refused


def differences(url: str) -> list[object]:
    """What alembic would still change to make the database what the code declares."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, db.metadata))


def tables(url: str) -> list[str]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return sorted(sa.inspect(connection).get_table_names())


def test_an_upgraded_database_is_what_the_code_declares(fresh_database_url: str) -> None:
    assert differences(fresh_database_url) == []


def test_the_comparison_would_see_a_column_that_nobody_migrated(fresh_database_url: str) -> None:
    engine = sa.create_engine(fresh_database_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE job DROP COLUMN reason"))
    (difference,) = differences(fresh_database_url)
    assert isinstance(difference, tuple)
    assert difference[0] == "add_column"


def test_down_to_nothing_and_up_again_ends_at_the_same_tables(fresh_database_url: str) -> None:
    before = tables(fresh_database_url)
    command.downgrade(db._alembic(fresh_database_url), "base")
    assert tables(fresh_database_url) == ["alembic_version"]
    db.upgrade(fresh_database_url)
    assert tables(fresh_database_url) == before
    assert differences(fresh_database_url) == []


def test_going_back_before_the_reports_keeps_the_studies(fresh_database_url: str) -> None:
    engine = sa.create_engine(fresh_database_url, poolclass=sa.NullPool)
    columns = [column.name for column in db.report.columns]
    texts = {name: "" for name in columns if isinstance(db.report.c[name].type, sa.Text)}
    texts |= {"study_instance_uid": "1.2.3", "state": "matched"}
    with engine.begin() as connection:
        named = {"study_instance_uid": "1.2.3", "state": "complete", "revision": 1}
        connection.execute(sa.insert(db.study).values(**named, patient_key="", accession_key="a"))
        values = {**texts, "part": 0, "sections": {}, "predecessors": []}
        report_id = connection.scalar(sa.insert(db.report).values(values).returning(db.report.c.id))
        vector = {"report_id": report_id, "kind": "report", "digest": "d", "vector": [1.0]}
        connection.execute(sa.insert(db.embedding).values(**vector, study_instance_uid="1.2.3"))
    command.downgrade(db._alembic(fresh_database_url), "0002")
    db.upgrade(fresh_database_url)
    with engine.connect() as connection:
        study = connection.execute(sa.select(db.study)).mappings().one()
        assert connection.execute(sa.select(db.report)).all() == []
        assert connection.execute(sa.select(db.embedding)).all() == []
    assert (study["study_instance_uid"], study["accession_key"]) == ("1.2.3", None)


def test_nodes_that_start_together_migrate_once(empty_database_url: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        # alembic's context is global to a process: two nodes are two processes.
        outcomes = list(pool.map(_upgrade_in_a_process, [empty_database_url] * 2))
    assert outcomes == ["", ""]
    assert differences(empty_database_url) == []
    engine = sa.create_engine(empty_database_url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        assert len(connection.execute(sa.select(db.installation)).all()) == 1


def _upgrade_in_a_process(url: str) -> str:
    """What it complained about."""
    program = "import sys; from dicom_node import db; db.upgrade(sys.argv[1])"
    command_line = [sys.executable, "-c", program, url]
    return subprocess.run(command_line, capture_output=True, text=True, check=False).stderr


def test_going_back_before_the_contexts_of_refusals_starts_their_list_anew(
    fresh_database_url: str,
) -> None:
    call = Refused(
        calling_ae_title="A", called_ae_title="B", address="::1", reason=Reason.UNKNOWN_TITLE
    )
    calls = {call: 1, dataclasses.replace(call, tls=True): 1}
    engine = sa.create_engine(fresh_database_url, poolclass=sa.NullPool)
    for _ in range(2):
        with engine.begin() as connection:
            associations.refused_many(connection, calls)
            assert [one.count for one in associations.latest(connection)] == [1, 1]
        command.downgrade(db._alembic(fresh_database_url), "0005")
        db.upgrade(fresh_database_url)
