"""Debian's Orthanc as both sides of storage commitment; it may lose what it said it stored."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dicom_node.supervisor import dies_with_us
from tests.acceptance.running_node import START_SECONDS, wait_for
from tests.ports import free_port

_SECONDS = 60  # for one answer
_MODALITY = "node"  # what it calls the node

#: While the file is there, what comes over DICOM is answered with success and forgotten.
_LOSE = """\
function ReceivedInstanceFilter(dicom, origin)
  local file = io.open("{file}")
  if file == nil then return true end
  file:close()
  return origin["RequestOrigin"] ~= "DicomProtocol"
end
"""


class Orthanc:
    """One below a folder, of the title ORTHANC."""

    title = "ORTHANC"

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._http = free_port()
        self._folder = folder
        self._loses = folder / "loses"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, node_title: str, node_port: int) -> None:
        """Start, knowing the node."""
        script = self._folder / "lose.lua"
        script.write_text(_LOSE.format(file=self._loses), "utf-8")
        settings = {
            "DicomAet": self.title,
            "DicomPort": self.port,
            "HttpPort": self._http,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,  # it listens on loopback only
            "StorageDirectory": str(self._folder / "storage"),
            "IndexDirectory": str(self._folder / "storage"),
            "LuaScripts": [str(script)],
            "Plugins": [],
            "DicomModalities": {_MODALITY: [node_title, "127.0.0.1", node_port]},
        }
        config = self._folder / "orthanc.json"
        config.write_text(json.dumps(settings), "utf-8")
        with (self._folder / "orthanc.log").open("wb") as log:
            self._process = subprocess.Popen(
                dies_with_us([_program(), str(config)], signal.SIGTERM), stdout=log, stderr=log
            )
        wait_for(f"Orthanc answers, see {self._folder}", START_SECONDS, self._answers)

    def stop(self) -> None:
        """Go away."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(START_SECONDS)

    def lose(self, loses: bool) -> None:
        """Answer success and forget; or no more."""
        if loses:
            self._loses.touch()
        else:
            self._loses.unlink()

    def holds(self, sop_instance_uid: str) -> bool:
        """Is the instance really there?"""
        return bool(self._ask("POST", "/tools/lookup", sop_instance_uid.encode()))

    def send(self, file: Path) -> str:
        """Take a file, send it to the node and ask it to commit; the Transaction UID."""
        instance = self._ask("POST", "/instances", file.read_bytes())["ID"]
        order = {"Resources": [instance], "Synchronous": True, "StorageCommitment": True}
        done = self._json(f"/modalities/{_MODALITY}/store", order)
        assert done["FailedInstancesCount"] == 0
        return self._newest_transaction()

    def ask(self, references: Sequence[tuple[str, str]]) -> str:
        """Ask the node to commit to instances of these classes; the Transaction UID."""
        named = [
            {"SOPClassUID": sop_class_uid, "SOPInstanceUID": uid}
            for sop_class_uid, uid in references
        ]
        done = self._json(f"/modalities/{_MODALITY}/storage-commitment", {"DicomInstances": named})
        return str(done["ID"])

    def outcome(self, transaction_uid: str) -> Mapping[str, Any]:
        """What the node has reported, once it has."""

        def reported() -> Mapping[str, Any] | None:
            found: Mapping[str, Any] = self._ask("GET", f"/storage-commitment/{transaction_uid}")
            return None if found["Status"] == "Pending" else found

        return wait_for(f"a report on {transaction_uid}", _SECONDS, reported)

    def _newest_transaction(self) -> str:
        jobs = self._ask("GET", "/jobs?expand")
        asked = [one for one in jobs if "StorageCommitmentTransactionUID" in one["Content"]]
        newest = max(asked, key=lambda one: str(one["CreationTime"]))
        return str(newest["Content"]["StorageCommitmentTransactionUID"])

    def _answers(self) -> bool | None:
        try:
            return bool(self._ask("GET", "/system"))
        except OSError:
            return None

    def _json(self, path: str, body: object) -> Any:
        return self._ask("POST", path, json.dumps(body).encode())

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._http}{path}", data=body, method=method
        )
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return json.loads(answer.read())


@contextmanager
def orthanc(folder: Path) -> Iterator[Orthanc]:
    """One that is not started yet, for its port must be known before the node is."""
    _program()
    made = Orthanc(folder)
    try:
        yield made
    finally:
        made.stop()


def _program() -> str:
    """Orthanc's path; without it a test fails in CI and is skipped elsewhere."""
    found = shutil.which("Orthanc", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say("not installed: apt-get install orthanc")
    return found
