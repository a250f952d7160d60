"""The database goes away in the middle of a task: nothing is lost, and nothing is done twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node import db
from dicom_node.db import Database
from dicom_node.embedded import Postgres
from dicom_node.supervisor import Supervisor
from tests.conftest import PATIENCE
from tests.dicom_node.states import expire
from tests.pacs import Pacs
from tests.worker.conftest import open_node
from tests.worker.rule_model import RuleModel
from tests.worker.study import Study
from worker import tasks
from worker.host import ModelHost
from worker.tasks import Context


class Outage:
    """A database server of this test's own, to be stopped and started."""

    def __init__(self, data: Path) -> None:
        self._postgres = Postgres(data)
        self._supervisor = Supervisor(log_directory=data / "log")
        self.start()
        db.upgrade(self._postgres.url)
        self.database = Database(self._postgres.url)

    def start(self) -> None:
        self._supervisor.start(self._postgres, timeout=PATIENCE)

    def stop(self) -> None:
        self._supervisor.stop()


@pytest.fixture
def outage(tmp_path: Path) -> Iterator[Outage]:
    made = Outage(tmp_path / "postgres")
    yield made
    made.database.dispose()
    made.stop()


def test_a_study_goes_its_whole_way_through_two_outages(
    outage: Outage,
    tmp_path: Path,
    host: ModelHost,
    model: RuleModel,
    peer_scp: Pacs,
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = open_node(outage.database, tmp_path / "data", peer_scp.peer())
    context = Context(node=node, name="test", host=host)
    study = Study(node=node)
    study.receive()
    job_id = study.queue()

    model.while_reading = outage.stop
    tasks.analyse(context, job_id)
    assert f"job {job_id} waits: database: " in caplog.text
    tasks.analyse(context, job_id)  # a nudge that comes while it is away
    outage.start()
    assert study.job.state == "running"
    assert study.account.drafts == []

    model.while_reading = lambda: None
    expire(outage.database, db.job, job_id)
    tasks.analyse(context, job_id)
    (draft,) = study.account.drafts
    (delivery,) = study.account.deliveries

    peer_scp.while_storing = outage.stop
    tasks.deliver(context, delivery.id)
    assert f"delivery {delivery.id} waits: database: " in caplog.text
    tasks.deliver(context, delivery.id)
    outage.start()
    assert study.account.deliveries[0].state == "sending"

    peer_scp.while_storing = lambda: None
    expire(outage.database, db.delivery, delivery.id)
    tasks.deliver(context, delivery.id)
    assert study.account.deliveries[0].state == "delivered"
    assert list(peer_scp.received) == [draft.sop_instance_uid]  # sent twice, the same object
    assert peer_scp.stores == 2
