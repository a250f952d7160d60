"""The model's host: one model per process, one reading at a time, alive as long as it says so."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dicom_node import heartbeats
from dicom_node.config import Model
from dicom_node.db import Database
from dicom_node.heartbeats import Process
from inference.findings import Image, ModelFailure, ModelUnavailable
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


def test_the_device_is_used_by_one_thread_at_a_time(host: ModelHost, model: RuleModel) -> None:
    inside = 0
    most = 0

    def read() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.05)
        inside -= 1

    model.while_reading = read
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: host.read([IMAGE], None), range(4)))
    assert most == 1
    assert len(model.seen) == 4


def test_the_host_tells_what_it_holds_and_how_fast_it_is(host: ModelHost, model: RuleModel) -> None:
    assert host.facts()["seconds_per_report"] is None
    model.while_reading = lambda: time.sleep(0.1)
    host.read([IMAGE], None)
    facts = host.facts()
    assert (facts["model"], facts["algorithm"], facts["device"]) == (NAME, "Rule 1", "cpu")
    assert (facts["demo"], facts["digest"], facts["state"]) == (False, "rule", "idle")
    assert 0.1 <= facts["seconds_per_report"] < 5


def test_a_host_that_reads_is_busy(host: ModelHost, model: RuleModel) -> None:
    states: list[object] = []
    model.while_reading = lambda: states.append(host.facts()["state"])
    host.read([IMAGE], None)
    assert states == ["busy"]


def test_a_reading_that_fails_frees_the_device(host: ModelHost, model: RuleModel) -> None:
    def fail() -> None:
        raise ModelFailure("device gone")

    model.while_reading = fail
    with pytest.raises(ModelFailure):
        host.read([IMAGE], None)
    assert host.facts()["state"] == "idle"
    assert host.facts()["seconds_per_report"] is None


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
