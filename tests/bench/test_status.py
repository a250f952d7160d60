"""The benchmark of `status` asks a database that is as it says."""

from __future__ import annotations

import json
import subprocess
import sys

from bench import status


def test_status_sees_the_studies_that_were_made(fresh_database_url: str) -> None:
    status.fill(fresh_database_url, 3)
    ours, floor = status.measured(fresh_database_url, 1)
    assert ours > 0 < floor
    command = [sys.executable, "-m", "dicom_node.cli", "status", "--json"]
    environment = {"DICOM_NODE_DATABASE__URL": fresh_database_url, "PATH": ""}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    shown = json.loads(said.stdout)
    assert shown["studies"] == {"complete": 3}
    assert shown["deliveries"] == {"delivered": 3}
