"""What is registered is durable, and how long its study is waited for then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_node import db, studies
from dicom_node.config import Peer, Settings, Study
from dicom_node.db import Database
from dicom_node.errors import OutOfResources
from dicom_node.registering import Registrar
from dicom_node.storage import Storage
from tests.conftest import StoredInstanceFactory
from tests.dicom_node.network import SOURCE, settings


def nothing() -> None:
    """Settle what is settled."""


@contextmanager
def registrar(database: Database, data: Path, configured: Settings) -> Iterator[Registrar]:
    opened = Registrar(configured, database, Storage(data))
    try:
        yield opened
    finally:
        opened.close()


def test_a_senders_own_quiet_time_is_used(
    database: Database, tmp_path: Path, stored_instance: StoredInstanceFactory
) -> None:
    quiet = Peer(name="q", ae_title="QUIET", host=("10.0.0.1",), roles=("source",), quiet_seconds=7)
    with registrar(database, tmp_path, settings(SOURCE, quiet)) as ours:
        for title, seconds in (("QUIET", 7), ("MODALITY", 60)):
            stored = stored_instance(calling_ae_title=title)
            ours.register(stored, nothing)
            with database.transaction() as connection:
                study = studies.find(connection, stored.study_instance_uid)
            assert study is not None
            assert study.settle_at - study.received_at == timedelta(seconds=seconds)


def test_a_study_is_never_ready_after_it_is_complete(
    database: Database, tmp_path: Path, stored_instance: StoredInstanceFactory
) -> None:
    study = Study(quiet_seconds=1, ready_seconds=30)
    configured = settings(SOURCE).model_copy(update={"study": study})
    with registrar(database, tmp_path, configured) as ours:
        ours.register(stored_instance(), nothing)
    with database.transaction() as connection:
        ready, settle = connection.execute(
            sa.select(db.study.c.ready_at, db.study.c.settle_at)
        ).one()
    assert ready == settle


def test_an_instance_whose_file_finds_no_place_has_no_row(
    database: Database, tmp_path: Path, stored_instance: StoredInstanceFactory
) -> None:
    def full() -> None:
        raise OutOfResources("the disk is full")

    with (
        registrar(database, tmp_path, settings(SOURCE)) as ours,
        pytest.raises(OutOfResources, match="the disk is full"),
    ):
        ours.register(stored_instance(), full)
    with database.transaction() as connection:
        assert connection.execute(sa.select(db.instance)).all() == []
