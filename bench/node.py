"""A whole node for a measurement: ``dicom-node run`` with embedded servers, below a folder."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicom_node import scu
from dicom_node.config import Peer
from dicom_node.supervisor import dies_with_us
from inference.demo import dicom, phantom

MODALITY = "BENCH"
POLL_SECONDS = 1.0
STOP_SECONDS = 90.0

_CONFIG = """\
[node]
port = {port}
host = "127.0.0.1"
data = "{data}"

[model]
name = "llava-rad"
path = "{model}"
device = "cpu"
max_new_tokens = {tokens}

[study]
ready_seconds = 1
quiet_seconds = 3

[[peers]]
name = "bench"
ae_title = "BENCH"
host = "127.0.0.1"
roles = ["source"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node that runs."""

    process: subprocess.Popen[bytes]
    folder: Path
    port: int

    def worker(self) -> dict[str, Any] | None:
        """The gpu worker's line of ``dicom-node status --json``; None while there is none."""
        command = [sys.executable, "-m", "dicom_node.cli", "status", "--json"]
        command += ["--config", str(self.folder / "dicom-node.toml")]
        told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        workers = json.loads(told)["workers"] if told else []
        return next((one for one in workers if one["queue"] == "gpu"), None)

    def wait_for_worker(self, seconds: float, *, reports: bool) -> dict[str, Any]:
        """The same once the model is loaded or, with ``reports``, once it has written one.

        Raises:
            RuntimeError: the node ended, or it took too long.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            worker = self.worker()
            if worker and (worker["seconds_per_report"] or not reports):
                return worker
            time.sleep(POLL_SECONDS)
        raise RuntimeError(f"no {'report' if reports else 'worker'}; the logs said:\n{self.logs()}")

    def send_phantom(self) -> None:
        """C-STORE one study, a phantom's.

        Raises:
            RuntimeError: the node did not take it.
        """
        instance = dicom.to_dx(phantom.render(phantom.scene(1, frozenset({"effusion_left"}))))
        file = self.folder / "phantom.dcm"
        instance.save_as(file, enforce_file_format=True)
        here = Peer(
            name="node",
            ae_title="DICOMNODE",
            host=("127.0.0.1",),
            port=self.port,
            roles=("destination",),
        )
        (outcome,) = scu.send_files([file], here, MODALITY)
        if outcome.failure:
            raise RuntimeError(f"the node did not take the phantom: {outcome.failure}")

    def logs(self) -> str:
        """The last lines of everything it wrote."""
        files = [self.folder / "run.log", *sorted(self.folder.glob("log/*.log"))]
        return "\n".join(f"{file.name}: {file.read_text('utf-8')[-2000:]}" for file in files)


@contextmanager
def running(folder: Path, *, model: Path, tokens: int) -> Iterator[Node]:
    """A node over prepared weights, on a free port; stopped afterwards."""
    folder.mkdir()
    port = _free_port()
    file = folder / "dicom-node.toml"
    file.write_text(_CONFIG.format(port=port, data=folder, model=model, tokens=tokens), "utf-8")
    command = (sys.executable, "-m", "dicom_node.cli", "run", "--config", str(file))
    with (folder / "run.log").open("wb") as log:
        process = subprocess.Popen(dies_with_us(command, signal.SIGTERM), stdout=log, stderr=log)
    try:
        yield Node(process=process, folder=folder, port=port)
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
