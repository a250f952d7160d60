"""Tables: what an administrator reads of a worker at one glance."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from dicom_node.cli import tables
from dicom_node.config import Settings
from dicom_node.heartbeats import Process
from dicom_node.status import Status

MODEL = {"model": "demo", "algorithm": "Demo 1", "device": "cpu", "state": "busy"}


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        pytest.param({"state": "idle"}, "gpu@h:1 idle", id="without-model"),
        pytest.param(MODEL, "gpu@h:1 busy: Demo 1 on cpu", id="nothing-known-yet"),
        pytest.param(
            {
                **MODEL,
                "slots": 8,
                "busy": 2,
                "seconds_per_report": 3.21,
                "tokens_per_pass": 2.46,
            },
            "gpu@h:1 busy: Demo 1 on cpu, 2 of 8 slots in use, 3.2 s per report, "
            "2.5 tokens per pass",
            id="at-work",
        ),
    ],
)
def test_a_worker_is_one_line(
    facts: Mapping[str, object], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    now = datetime.now(UTC)
    process = Process(name="gpu@h:1", role="gpu", facts=facts, last_seen=now, up=True)
    tables.show_status(
        Status(
            settings=Settings(),
            database_up=True,
            processes=[process],
            studies={},
            jobs={},
            deliveries={},
            worrying={},
        )
    )
    (worker,) = [row for row in capsys.readouterr().out.splitlines() if row.startswith("worker")]
    assert worker.split(maxsplit=1)[1].strip() == line
