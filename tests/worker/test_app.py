"""The queue: a nudge is a small message, and a broker that is away costs only that."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from dicom_node.embedded import Valkey
from dicom_node.supervisor import Supervisor
from tests.conftest import PATIENCE
from worker.app import (
    ANALYSE,
    DELIVER,
    FETCH,
    INDEX,
    QUEUES,
    REPORT_COMMITMENT,
    SEARCH_PRIORS,
    broker_check,
    make_app,
    waker,
)


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    data = tmp_path_factory.mktemp("valkey")
    supervisor = Supervisor(log_directory=data / "log")
    try:
        server = Valkey(data)
        supervisor.start(server, timeout=PATIENCE)
        yield server
    finally:
        supervisor.stop()


@pytest.fixture
def nobody() -> Iterator[str]:
    """The URL of a broker that refuses connections."""
    with socket.socket() as taken:  # bound but not listening
        taken.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{taken.getsockname()[1]}"


def test_a_nudge_is_the_tasks_name_and_the_rows_id_on_the_tasks_queue(valkey: Valkey) -> None:
    wake = waker(valkey.url)
    assert wake(ANALYSE, 42)
    assert wake(DELIVER, 7)
    with redis.Redis(unix_socket_path=str(valkey.socket)) as client:
        for task, queue, row_id in ((ANALYSE, "gpu", 42), (DELIVER, "net", 7)):
            (message,) = client.lrange(queue, 0, -1)
            envelope = json.loads(message)
            assert envelope["headers"]["task"] == task
            assert envelope["content-type"] == "application/json"
            assert "SECRET" not in str(envelope)
            assert envelope["headers"]["argsrepr"] == f"[{row_id}]"


def test_a_broker_that_answers_is_up(valkey: Valkey) -> None:
    answers = broker_check(valkey.url)
    assert answers()
    assert answers()  # and leaves nothing behind that would make the second look fail


def test_a_broker_that_is_away_is_down_at_once(nobody: str) -> None:
    started = time.monotonic()
    assert not broker_check(nobody)()
    assert time.monotonic() - started < 10


def test_a_nudge_to_a_broker_that_is_away_is_logged_and_costs_no_time(
    nobody: str, caplog: pytest.LogCaptureFixture
) -> None:
    wake = waker(nobody)
    started = time.monotonic()
    assert not wake(ANALYSE, 42)
    assert time.monotonic() - started < 2  # the node's tick waits for it
    assert f"broker away, {ANALYSE} 42 waits" in caplog.text


def test_a_nudge_is_sent_again_once_the_broker_is_back(
    tmp_path: Path,
) -> None:
    supervisor = Supervisor(log_directory=tmp_path / "log")
    server = Valkey(tmp_path)
    wake, answers = waker(server.url), broker_check(server.url)
    try:
        supervisor.start(server, timeout=PATIENCE)
        assert wake(ANALYSE, 1)
        supervisor.stop()
        assert not answers()
        assert not wake(ANALYSE, 2)
        supervisor.start(server, timeout=PATIENCE)
        assert answers()
        assert wake(ANALYSE, 3)
        with redis.Redis(unix_socket_path=str(server.socket)) as client:
            left = [json.loads(one)["headers"]["argsrepr"] for one in client.lrange("gpu", 0, -1)]
        assert sorted(left) == ["[1]", "[3]"]  # the second is the sweep's business
    finally:
        supervisor.stop()


def test_messages_are_acknowledged_after_the_work_and_never_hoarded() -> None:
    configuration = make_app("memory://").conf
    assert configuration.task_acks_late
    assert configuration.task_reject_on_worker_lost
    assert configuration.worker_prefetch_multiplier == 1
    assert configuration.task_ignore_result
    assert configuration.accept_content == ["json"]


def test_every_task_has_a_queue() -> None:
    on_gpu, on_net = {ANALYSE, INDEX}, {DELIVER, REPORT_COMMITMENT, FETCH, SEARCH_PRIORS}
    assert {task for task, queue in QUEUES.items() if queue == "gpu"} == on_gpu
    assert {task for task, queue in QUEUES.items() if queue == "net"} == on_net


def test_whoever_only_nudges_does_not_load_torch() -> None:
    program = "import sys, worker.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
