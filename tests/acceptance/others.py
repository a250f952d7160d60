"""Other people's SCPs as real processes: DCMTK's storescp and dcmqrscp, Debian's Orthanc."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from dicom_node.supervisor import dies_with_us
from tests.acceptance.running_node import START_SECONDS, wait_for
from tests.ports import free_port

_PACKAGES = {"storescp": "dcmtk", "dcmqrscp": "dcmtk", "Orthanc": "orthanc"}

_QRSCP = """\
NetworkTCPPort = {port}
MaxPDUSize = 16384
MaxAssociations = {associations}
HostTable BEGIN
node = (DICOMNODE, 127.0.0.1, 11112)
named = (DICOMNODE, localhost, 11112)
node2 = (NODE2, 127.0.0.1, 11112)
named2 = (NODE2, localhost, 11112)
far = (FAR, 192.0.2.9, 11112)
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
PACS {store} RW (10, 64mb) node, named, node2, named2, far
AETable END
"""

#: Profiles for storescp that take too little of us.
PROFILES = """\
[[TransferSyntaxes]]
[Jpeg]
TransferSyntax1 = JPEGBaseline
[[PresentationContexts]]
[OneSyntax]
PresentationContext1 = BasicTextSRStorage\\Jpeg
[NoReports]
PresentationContext1 = CTImageStorage\\Jpeg
[[Profiles]]
[OneSyntax]
PresentationContexts = OneSyntax
[NoReports]
PresentationContexts = NoReports
"""


@contextmanager
def storescp(folder: Path, *options: str) -> Iterator[int]:
    """DCMTK's storescp under the title PACS; its port."""
    port = free_port()
    store = folder / "store"
    store.mkdir(parents=True, exist_ok=True)
    words = [_program("storescp"), "-aet", "PACS", "-od", str(store), "--fork", *options]
    with _running([*words, str(port)], folder, port):
        yield port


@contextmanager
def dcmqrscp(folder: Path, *, associations: int = 16) -> Iterator[int]:
    """DCMTK's dcmqrscp under the title PACS; its port.

    It knows DICOMNODE and NODE2 at this machine (by the resolved name, which it compares), and FAR
    elsewhere.
    """
    port = free_port()
    store = folder / "store"
    store.mkdir(parents=True, exist_ok=True)
    config = folder / "dcmqrscp.cfg"
    config.write_text(_QRSCP.format(port=port, store=store, associations=associations), "utf-8")
    with _running([_program("dcmqrscp"), "-c", str(config)], folder, port):
        yield port


@contextmanager
def orthanc(folder: Path, *, port: int = 0, reports_to: int = 0) -> Iterator[int]:
    """Orthanc under the title PACS, which knows the same callers; its port.

    Parameters
    ----------
    port
        Where it listens; 0: on a free one.
    reports_to
        The port where DICOMNODE takes its reports on storage commitment; 0: nobody does.
    """
    port = port or free_port()
    settings = {
        "DicomAet": "PACS",
        "DicomPort": port,
        "DicomCheckCalledAet": True,
        "DicomCheckModalityHost": True,
        "DicomAlwaysAllowEcho": False,
        "DicomAlwaysAllowStore": False,
        "DicomModalities": {
            "node": ["DICOMNODE", "127.0.0.1", reports_to or free_port()],
            "node2": ["NODE2", "127.0.0.1", free_port()],
            "far": ["FAR", "192.0.2.9", 11112],
        },
        "HttpServerEnabled": False,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "orthanc.json"
    config.write_text(json.dumps(settings), "utf-8")
    with _running([_program("Orthanc"), str(config)], folder, port):
        yield port


def _program(tool: str) -> str:
    """Its path; without it the test fails in CI and is skipped elsewhere."""
    found = shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say(f"not installed: apt-get install {_PACKAGES[tool]}")
    return found


@contextmanager
def _running(words: Sequence[str], folder: Path, port: int) -> Iterator[None]:
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(dies_with_us(words, signal.SIGTERM), stdout=log, stderr=log)
    try:
        wait_for(f"it listens, see {folder}/log", START_SECONDS, lambda: _listens(port))
        yield
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def _listens(port: int) -> bool | None:
    with socket.socket() as asking:
        return True if asking.connect_ex(("127.0.0.1", port)) == 0 else None
