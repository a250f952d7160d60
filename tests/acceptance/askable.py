"""Other people's PACS that can be asked: Debian's Orthanc and DCMTK's dcmqrscp."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context

from dicom_node.config import Peer
from dicom_node.supervisor import dies_with_us
from tests.acceptance.running_node import MODALITY, START_SECONDS

_PACKAGES = {"dcmqrscp": "dcmtk", "Orthanc": "orthanc"}
_TITLES = {"dcmqrscp": "QRSCP", "Orthanc": "ORTHANC"}

# dcmqrscp compares the name that the caller's address resolves to.
_QRSCP = """\
NetworkTCPPort = {port}
MaxPDUSize = 16384
MaxAssociations = 16
HostTable BEGIN
node = ({node}, 127.0.0.1, {node_port})
named = ({node}, localhost, {node_port})
modality = ({modality}, 127.0.0.1, 104)
named2 = ({modality}, localhost, 104)
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
{title} {store} RW (200, 64mb) node, named, modality, named2
AETable END
"""


class Askable:
    """One PACS below a folder."""

    def __init__(self, kind: str, folder: Path, *, port: int, node: str, node_port: int) -> None:
        self._kind, self._folder, self.port = kind, folder, port
        self._node, self._node_port = node, node_port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def title(self) -> str:
        """Its AE title."""
        return _TITLES[self._kind]

    def peer(self, **changes: Any) -> Peer:
        """How a node would have it configured."""
        fields: dict[str, Any] = {
            "name": self._kind.lower(),
            "ae_title": self.title,
            "host": ("127.0.0.1",),
            "port": self.port,
            "roles": ("source", "query"),
        }
        return Peer.model_validate(fields | changes)

    def start(self) -> None:
        """Start and wait until it listens."""
        self._folder.mkdir(parents=True)
        words = [_program(self._kind), *self._arguments()]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                dies_with_us(words, signal.SIGTERM), stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while not _listens(self.port):
            assert self._process.poll() is None, f"{self._kind} ended, see {self._folder}"
            assert time.monotonic() < deadline, f"{self._kind} does not listen, see {self._folder}"
            time.sleep(0.1)

    def _arguments(self) -> list[str]:
        store = self._folder / "store"
        store.mkdir()
        config = self._folder / "config"
        if self._kind == "dcmqrscp":
            config.write_text(
                _QRSCP.format(
                    port=self.port,
                    node=self._node,
                    node_port=self._node_port,
                    modality=MODALITY,
                    title=self.title,
                    store=store,
                )
            )
            return ["-c", str(config)]
        settings = {
            "DicomAet": self.title,
            "DicomPort": self.port,
            "HttpServerEnabled": False,
            "DicomCheckModalityHost": False,
            "StorageDirectory": str(store),
            "IndexDirectory": str(store),
            "Plugins": [],
            "DicomModalities": {
                "node": [self._node, "127.0.0.1", self._node_port],
                "modality": [MODALITY, "127.0.0.1", 104],
            },
        }
        config.write_text(json.dumps(settings))
        return [str(config)]

    def stop(self) -> None:
        """Go away."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(START_SECONDS)

    def load(self, *images: Dataset) -> None:
        """C-STORE these, as a modality does."""
        entity = AE(MODALITY)
        wanted = {(one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in images}
        association = entity.associate(
            "127.0.0.1",
            self.port,
            ae_title=self.title,
            contexts=[build_context(uid, [syntax]) for uid, syntax in sorted(wanted)],
        )
        assert association.is_established
        statuses = [association.send_c_store(one).Status for one in images]
        association.release()
        assert statuses == [0x0000] * len(images)


@contextmanager
def askable(kind: str, folder: Path, **values: Any) -> Iterator[Askable]:
    """A running one that holds nothing yet; ``kind``: Orthanc or dcmqrscp."""
    made = Askable(kind, folder, **values)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _program(kind: str) -> str:
    """The tool's path; without it a test fails in CI and is skipped elsewhere."""
    found = shutil.which(kind, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say(f"not installed: apt-get install {_PACKAGES[kind]}")
    return found
