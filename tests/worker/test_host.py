"""The model's host: one model per process, many readings, alive as long as it says so."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from dicom_node import heartbeats
from dicom_node.config import Model
from dicom_node.db import Database
from dicom_node.heartbeats import Process
from inference.findings import Image, ModelFailure, ModelUnavailable
from inference.models import Options
from tests.conftest import PATIENCE
from tests.worker.rule_model import NAME, RuleModel
from worker.host import ModelHost, beating

IMAGE = Image(pixels=np.full((8, 8), 100, np.uint8), sop_instance_uid="1.2.3")


def seen(database: Database) -> list[Process]:
    with database.transaction() as connection:
        return heartbeats.seen(connection)


def wait_for_beat(database: Database) -> Process:
    deadline = time.monotonic() + PATIENCE
    while not (found := seen(database)):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found[0]


def test_a_model_that_nobody_installed_is_named(installed: None) -> None:
    with pytest.raises(ModelUnavailable, match="nonesuch.*" + NAME):
        ModelHost(Model(name="nonesuch"))


def test_the_settings_reach_the_model(installed: None) -> None:
    chosen = {"slots": 3, "draft_tokens": 0, "max_new_tokens": 40, "report_seconds": 90}
    host = ModelHost(Model.model_validate({"name": NAME, **chosen}))
    assert cast(RuleModel, host.model).options == Options(**chosen)
    assert host.slots == 3


def test_reports_are_read_at_once_and_counted(host: ModelHost, model: RuleModel) -> None:
    together = threading.Barrier(4, timeout=PATIENCE)  # nobody passes unless all are inside
    counts: list[tuple[object, object]] = []

    def read() -> None:
        together.wait()
        facts = host.facts()
        counts.append((facts["state"], facts["busy"]))
        together.wait()

    model.while_reading = read
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: host.read([IMAGE], None), range(4)))
    assert counts == [("busy", 4)] * 4
    assert (host.facts()["state"], host.facts()["busy"]) == ("idle", 0)


def test_the_host_tells_what_it_holds_and_how_fast_it_is(host: ModelHost, model: RuleModel) -> None:
    before = host.facts()
    assert (before["seconds_per_report"], before["tokens_per_pass"]) == (None, None)
    model.while_reading = lambda: time.sleep(0.1)
    host.read([IMAGE], None)
    facts = host.facts()
    assert (facts["model"], facts["algorithm"], facts["device"]) == (NAME, "Rule 1", "cpu")
    assert (facts["demo"], facts["digest"], facts["state"]) == (False, "rule", "idle")
    assert (facts["slots"], facts["busy"], facts["tokens_per_pass"]) == (1, 0, 12 / 5)
    assert facts["seconds_per_report"] >= 0.1


def test_a_reading_that_fails_is_over(host: ModelHost, model: RuleModel) -> None:
    def fail() -> None:
        raise ModelFailure("device gone")

    model.while_reading = fail
    with pytest.raises(ModelFailure):
        host.read([IMAGE], None)
    facts = host.facts()
    assert (facts["state"], facts["busy"]) == ("idle", 0)
    assert facts["seconds_per_report"] is None


def test_a_worker_beats_until_it_leaves(database: Database, host: ModelHost) -> None:
    with beating(database, "gpu@test", "gpu", host):
        process = wait_for_beat(database)
        assert (process.name, process.role, process.up) == ("gpu@test", "gpu", True)
        assert process.facts["model"] == NAME
    assert seen(database) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]


def test_a_worker_without_a_model_beats_too(database: Database) -> None:
    with beating(database, "net@test", "net", None):
        assert wait_for_beat(database).facts == {"state": "idle"}


def test_a_worker_whose_database_is_away_works_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = Database(f"postgresql+psycopg://user@/name?host={tmp_path}")
    with beating(away, "net@test", "net", None):
        pass
    assert "no heartbeat: database" in caplog.text
    assert "not signed off: database" in caplog.text


def test_a_process_is_named_by_role_machine_and_number() -> None:
    role, _, rest = heartbeats.process_name("gpu").partition("@")
    machine, _, number = rest.rpartition(":")
    assert role == "gpu"
    assert machine
    assert int(number) > 0
