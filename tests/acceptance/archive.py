"""Debian's Orthanc as an archive that is reached by DICOMweb only; it may go down and come back."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from dicom_node.config import Peer
from dicom_node.supervisor import dies_with_us
from tests.acceptance.running_node import START_SECONDS, wait_for
from tests.ports import free_port

_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
_SECONDS = 60  # for one answer

LOGIN = {"username": "node", "password": "geheim"}


class Archive:
    """Orthanc below a folder; a guarded one lets in the login :data:`LOGIN` only.

    By http: with https Debian's 1.10.1 dies of the first request.
    """

    def __init__(self, folder: Path, *, guarded: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        settings = {
            "DicomServerEnabled": False,
            "HttpPort": self._port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": guarded,
            "RegisteredUsers": {LOGIN["username"]: LOGIN["password"]},
            "OverwriteInstances": False,
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [str(_PLUGIN)],
        }
        self._config = folder / "orthanc.json"
        self._config.write_text(json.dumps(settings), "utf-8")

    def start(self) -> None:
        """Start, or come back with all that was stored."""
        words = [_program(), str(self._config)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                dies_with_us(words, signal.SIGTERM), stdout=log, stderr=log
            )
        wait_for(f"Orthanc answers, see {self._folder}", START_SECONDS, self._answers)

    def stop(self) -> None:
        """Go away."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(START_SECONDS)
            self._process = None

    def peer(self, **changes: object) -> Peer:
        """How a node would have it configured."""
        fields = {"name": "archive", "protocol": "dicomweb", "url": self.url, "proof": "find"}
        return Peer.model_validate(fields | {"roles": ("destination",)} | changes)

    @property
    def url(self) -> str:
        """The base of its DICOMweb."""
        return f"http://127.0.0.1:{self._port}/dicom-web"

    def instances(self) -> list[str]:
        """The SOP Instance UIDs of all that it holds."""
        held = json.loads(self._get("/instances?expand"))
        return sorted(one["MainDicomTags"]["SOPInstanceUID"] for one in held)

    def file(self, sop_instance_uid: str) -> bytes:
        """The bytes that it keeps."""
        held = json.loads(self._get("/instances?expand"))
        (found,) = [
            one["ID"] for one in held if one["MainDicomTags"]["SOPInstanceUID"] == sop_instance_uid
        ]
        return self._get(f"/instances/{found}/file")

    def _answers(self) -> bool | None:
        try:
            return bool(self._get("/system"))
        except OSError:
            return None

    def _get(self, path: str) -> bytes:
        login = b64encode(":".join(LOGIN.values()).encode()).decode()
        with closing(
            http.client.HTTPConnection("127.0.0.1", self._port, timeout=_SECONDS)
        ) as connection:
            connection.request("GET", path, headers={"Authorization": f"Basic {login}"})
            answer = connection.getresponse()
            content = answer.read()
        assert answer.status == 200, f"GET {path}: {content!r}"
        return content


@contextmanager
def archive(folder: Path, *, guarded: bool = False) -> Iterator[Archive]:
    """An archive that holds nothing yet."""
    made = Archive(folder, guarded=guarded)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def _program() -> str:
    """Orthanc's path; without it or its plug-in a test fails in CI and is skipped elsewhere."""
    found = shutil.which("Orthanc", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None or not _PLUGIN.exists():
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say("not installed: apt-get install orthanc orthanc-dicomweb")
    return found
