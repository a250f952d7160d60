"""For all tests: one embedded PostgreSQL per session, an empty database per test, factories."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from dicom_node import db, drafts, jobs, studies
from dicom_node.db import Database
from dicom_node.drafts import Draft
from dicom_node.embedded import Postgres
from dicom_node.storage import StoredInstance
from dicom_node.supervisor import Supervisor
from tests.pacs import Pacs

TEMPLATE = "template_migrated"
PATIENCE = 60.0  #: seconds; far above what a loaded machine needs, so that only a fault reaches it
DIGITAL_X_RAY = "1.2.840.10008.5.1.4.1.1.1.1"
BASIC_TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"

_numbers = itertools.count(1)  # no two objects of a session share a UID

StoredInstanceFactory = Callable[..., StoredInstance]
StudyFactory = Callable[..., str]
JobFactory = Callable[..., int]
DraftFactory = Callable[..., Draft]


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--slow``: the full forms, minutes to an hour."""
    parser.addoption("--slow", action="store_true", help="full forms of the acceptance tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is marked slow runs on demand only."""
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


class Server:
    """The session's PostgreSQL, and the databases in it."""

    def __init__(self, postgres: Postgres) -> None:
        self.url = postgres.url
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            # What is kept here need not survive a power cut.
            self.execute(f"ALTER SYSTEM SET {setting} = off")
        self.execute("SELECT pg_reload_conf()")

    def execute(self, statement: str) -> None:
        """Run one statement outside a transaction."""
        with psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(statement.encode())

    def create(self, *, template: str = "template1") -> str:
        """A new database's URL."""
        name = f"test_{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url_of(name)

    def drop(self, url: str) -> None:
        """Drop a database, whoever is still connected to it."""
        self.execute(f"DROP DATABASE {sa.make_url(url).database} WITH (FORCE)")

    def url_of(self, name: str) -> str:
        """The URL of a database of this server."""
        return sa.make_url(self.url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running PostgreSQL; each worker of pytest-xdist has its own."""
    data = tmp_path_factory.mktemp("postgres")
    supervisor = Supervisor(log_directory=data / "log")
    try:
        postgres = Postgres(data)
        supervisor.start(postgres, timeout=PATIENCE)
        yield Server(postgres)
    finally:
        supervisor.stop()


@pytest.fixture(scope="session")
def template(server: Server) -> str:
    """The name of a database that was migrated once, to be cloned."""
    server.execute(f"CREATE DATABASE {TEMPLATE}")
    db.upgrade(server.url_of(TEMPLATE))
    return TEMPLATE


@pytest.fixture
def empty_database_url(server: Server) -> Iterator[str]:
    """A database without tables."""
    url = server.create()
    yield url
    server.drop(url)


@pytest.fixture
def fresh_database_url(server: Server, template: str) -> Iterator[str]:
    """A database of this test alone, with this version's tables: for tests that change those."""
    url = server.create(template=template)
    yield url
    server.drop(url)


@pytest.fixture(scope="session")
def shared_database(server: Server, template: str) -> Iterator[Database]:
    """One clone for all tests that only write rows."""
    opened = Database(server.create(template=template))
    yield opened
    opened.dispose()


@pytest.fixture
def database(shared_database: Database) -> Database:
    """A database with this version's tables and nothing in them."""
    # 15 ms against 300 ms for a clone per test (measured on two busy cores).
    tables = [table.name for table in db.metadata.sorted_tables if table is not db.installation]
    with shared_database.transaction() as connection:
        connection.execute(sa.text(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY"))
    return shared_database


def make_stored_instance(**overrides: object) -> StoredInstance:
    """An instance as storage would describe it; no file is behind it."""
    number = next(_numbers)
    values: dict[str, object] = {
        "study_instance_uid": f"2.25.1.{number}",
        "series_instance_uid": f"2.25.2.{number}",
        "sop_instance_uid": f"2.25.3.{number}",
        "sop_class_uid": DIGITAL_X_RAY,
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "path": f"instances/{number}.dcm",
        "sha256": f"{number:064x}",
        "size": 1000,
        "calling_ae_title": "MODALITY",
        "address": "127.0.0.1",
        "patient_key": f"{number:064x}",
        **overrides,
    }
    return StoredInstance(**values)  # type: ignore[arg-type]


@pytest.fixture
def stored_instance() -> StoredInstanceFactory:
    """``stored_instance(**overrides)``: see :func:`make_stored_instance`."""
    return make_stored_instance


@pytest.fixture
def study_factory(database: Database) -> StudyFactory:
    """``study_factory(quiet=, ready=, **overrides)``: register one instance; the study's UID."""

    def make(*, quiet: float = 0, ready: float = 0, **overrides: object) -> str:
        stored = make_stored_instance(**overrides)
        with database.transaction() as connection:
            arrival = studies.Arrival(
                stored=stored, quiet=timedelta(seconds=quiet), ready=timedelta(seconds=ready)
            )
            studies.register(connection, [arrival])
        return stored.study_instance_uid

    return make


@pytest.fixture
def job_factory(database: Database, study_factory: StudyFactory) -> JobFactory:
    """``job_factory(study_instance_uid=, revision=, model=)``: a queued job's id."""

    def make(
        *, study_instance_uid: str | None = None, revision: int = 1, model: str = "demo"
    ) -> int:
        uid = study_instance_uid or study_factory()
        with database.transaction() as connection:
            job_id = jobs.create(connection, uid, revision, model)
        assert job_id is not None
        return job_id

    return make


@pytest.fixture
def draft_factory(database: Database, job_factory: JobFactory) -> DraftFactory:
    """``draft_factory(study_instance_uid=, revision=, **overrides)``: keep a draft row."""

    def make(
        *, study_instance_uid: str | None = None, revision: int = 1, **overrides: object
    ) -> Draft:
        number = next(_numbers)
        job_id = job_factory(study_instance_uid=study_instance_uid, revision=revision)
        with database.transaction() as connection:
            uid = connection.scalar(
                sa.select(db.job.c.study_instance_uid).where(db.job.c.id == job_id)
            )
            values: dict[str, object] = {
                "sop_instance_uid": f"2.25.4.{number}",
                "series_instance_uid": f"2.25.5.{number}",
                "sop_class_uid": BASIC_TEXT_SR,
                "study_instance_uid": uid,
                "job_id": job_id,
                "model": "demo",
                "kind": "text_sr",
                "version": 1,
                "text": f"Findings {number}.",
                "inputs": [{"sop_instance_uid": f"2.25.3.{number}", "sha256": "0" * 64}],
                "record": {},
                "path": f"drafts/{number}.dcm",
                "sha256": f"{number:064x}",
                **overrides,
            }
            new = Draft(**values)  # type: ignore[arg-type]
            drafts.keep(connection, new)
        return new

    return make


@pytest.fixture
def peer_scp() -> Iterator[Pacs]:
    """A PACS that stores, lists and remembers, on a free port."""
    pacs = Pacs()
    try:
        yield pacs
    finally:
        pacs.stop()


@pytest.fixture
def repository() -> Path:
    """The top of the working tree."""
    return Path(__file__).parents[1]
