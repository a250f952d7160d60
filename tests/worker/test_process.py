"""A worker process: it reads as many studies at once as its model has slots."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node import config, heartbeats
from dicom_node.config import Delivery, Model, Service, Settings
from dicom_node.db import Database
from dicom_node.embedded import Valkey
from dicom_node.supervisor import Command, Supervisor
from tests.conftest import PATIENCE
from tests.worker.conftest import ELSEWHERE, install, open_node
from tests.worker.meeting import MeetingModel
from tests.worker.rule_model import RuleModel
from tests.worker.study import Study
from tests.worker.test_pipeline import read
from worker import process, tasks
from worker.app import ANALYSE, waker
from worker.host import ModelHost

ROOT = Path(__file__).parents[2]
SLOTS = 3


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    """Keeps the processes of a test, and stops them with it."""
    with Supervisor(log_directory=tmp_path / "log") as kept:
        yield kept


@pytest.fixture
def own_database(fresh_database_url: str) -> Iterator[Database]:
    """A database that another process can open too."""
    opened = Database(fresh_database_url)
    yield opened
    opened.dispose()


def worker(study: Study, database_url: str, broker_url: str, site: Path) -> Command:
    """The worker of the study's node, as an administrator starts it."""
    settings = study.node.settings.model_copy(
        update={
            "model": Model(name="meeting", slots=SLOTS),
            "database": Service(url=database_url),
            "broker": Service(url=broker_url),
        }
    )
    paths = {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    return Command(
        name="work-gpu",
        arguments=(sys.executable, "-m", "dicom_node.cli", "work", "--queues", "gpu"),
        environment=config.environment(settings) | paths,
    )


def wait_for_drafts(studies: list[Study]) -> None:
    deadline = time.monotonic() + 2 * PATIENCE
    while {study.job.state for study in studies} != {"drafted"}:
        assert time.monotonic() < deadline, [study.job for study in studies]
        time.sleep(0.1)


def test_a_worker_reads_as_many_studies_at_once_as_its_model_has_slots(
    supervisor: Supervisor, own_database: Database, fresh_database_url: str, tmp_path: Path
) -> None:
    node = open_node(own_database, tmp_path / "data")
    studies = [Study(node=node, uid=f"2.25.77{seed}") for seed in range(SLOTS)]
    for seed, study in enumerate(studies):
        study.receive(seed)
    valkey = Valkey(tmp_path / "data")
    supervisor.start(valkey, timeout=PATIENCE)
    wake = waker(valkey.url)
    for study in studies:
        assert wake(ANALYSE, study.queue())
    install(tmp_path / "site", "meeting", MeetingModel)
    supervisor.start(worker(studies[0], fresh_database_url, valkey.url, tmp_path / "site"))
    wait_for_drafts(studies)
    with own_database.transaction() as connection:
        (seen,) = heartbeats.seen(connection)
    assert seen.facts["slots"] == SLOTS


def test_a_model_is_reminded_of_what_it_wrote_itself(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    study.receive()
    read(study, host)
    (draft,) = study.account.drafts
    process.remind(host, study.node.database)
    assert model.learnt == [draft.text]


def test_a_model_is_not_reminded_of_what_other_weights_wrote(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    study.receive()
    read(study, host)
    other = ModelHost(study.node.settings.model)
    learning = RuleModel("other weights")
    other.model = learning
    process.remind(other, study.node.database)
    assert learning.learnt == []


def test_destinations_that_hang_leave_threads_for_the_others() -> None:
    peers = [ELSEWHERE.model_copy(update={"name": str(number)}) for number in range(3)]
    source = ELSEWHERE.model_copy(update={"name": "source", "roles": ("source",)})
    settings = Settings(peers=(*peers, source), delivery=Delivery(at_once=5))
    assert process._senders(settings) == 15 + tasks.OTHERS
