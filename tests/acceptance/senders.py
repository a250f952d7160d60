"""Other people's senders, each taught to call as our modality: DCMTK, GDCM and Orthanc.

A sender may write a data set anew: all of DCMTK (Orthanc too) writes sequences with their lengths,
and nobody keeps a deflated stream. ``same_data_set`` says whether the same was sent all the same.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from dicom_node.config import Peer
from tests.acceptance.running_node import MODALITY, START_SECONDS, wait_for
from tests.ports import free_port

PACKAGES = {  # Debian's
    **dict.fromkeys(("storescu", "dcmsend", "dcmconv", "dcmdjpeg"), "dcmtk"),
    **dict.fromkeys(("storescp", "dcmqrscp"), "dcmtk"),
    **dict.fromkeys(("gdcmscu", "gdcmconv"), "libgdcm-tools"),
    "Orthanc": "orthanc",
}

#: What storescu must be told to propose; dcmsend proposes what a compressed file is written in.
_PROPOSALS = {
    ImplicitVRLittleEndian: "-xi",
    ExplicitVRLittleEndian: "-xe",
    ExplicitVRBigEndian: "-xb",
    DeflatedExplicitVRLittleEndian: "-xd",
    RLELossless: "-xr",
    JPEGBaseline8Bit: "-xy",
    JPEGExtended12Bit: "-xx",
    JPEGLosslessSV1: "-xs",
    JPEGLSLossless: "-xt",
    JPEGLSNearLossless: "-xu",
    JPEG2000Lossless: "-xv",
    JPEG2000: "-xw",
}
_SECONDS = 60  # for one object


class Sender(Protocol):
    """Sends one file in the transfer syntax that it is written in."""

    def __call__(self, file: Path, transfer_syntax: UID) -> None:
        """Send it; whether it arrived is seen at the node."""


def require(*tools: str) -> None:
    """Fail in CI, and skip elsewhere, where one of ``PACKAGES`` is not installed."""
    missing = {PACKAGES[tool] for tool in tools if not _program(tool)}
    if missing:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say(f"not installed: apt-get install {' '.join(sorted(missing))}")


def run(*command: str | Path) -> None:
    """Run a tool to its end; it must succeed."""
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def same_data_set(stored: bytes, file: bytes, transfer_syntax: UID) -> bool:
    """Byte for byte; a deflated one once it is inflated (PS3.5 A.5)."""
    if transfer_syntax == DeflatedExplicitVRLittleEndian:
        return _inflated(stored) == _inflated(file)
    return stored == file


def _inflated(data_set: bytes) -> bytes:
    return zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(data_set)


def _program(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin")


@dataclass(frozen=True, slots=True)
class Dcmtk:
    """storescu, and dcmsend for what storescu can't propose (JPEG Lossless, process 14)."""

    node: Peer

    def __call__(self, file: Path, transfer_syntax: UID) -> None:
        """Send one file."""
        option = _PROPOSALS.get(transfer_syntax)
        tool = ("storescu", "-R", option) if option else ("dcmsend", "--decompress-never")
        node = self.node
        titles = ("-aet", MODALITY, "-aec", node.ae_title)
        run(*tool, *titles, node.address, str(node.port), file)


@dataclass(frozen=True, slots=True)
class Gdcm:
    """gdcmscu."""

    node: Peer

    def __call__(self, file: Path, transfer_syntax: UID) -> None:
        """Send one file; the exit code says nothing.

        gdcmscu 3.0.21 ends by an uncaught exception once it has stored, with DCMTK's storescp too.
        """
        node = self.node
        command = ["gdcmscu", "--store", "--aetitle", MODALITY, "--call", node.ae_title]
        command += ["-i", str(file), node.address, str(node.port)]
        subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)


@dataclass(frozen=True, slots=True)
class Orthanc:
    """Takes a file over REST and sends what it then holds."""

    port: int  #: of REST

    def __call__(self, file: Path, transfer_syntax: UID) -> None:
        """Send one file."""
        instance = self._ask("POST", "/instances", file.read_bytes())["ID"]
        order = {"Resources": [instance], "Synchronous": True}
        self._ask("POST", "/modalities/node/store", json.dumps(order).encode())

    def answers(self) -> bool | None:
        """``None`` until it does."""
        try:
            return bool(self._ask("GET", "/system"))
        except OSError:
            return None

    def _ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_SECONDS)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            said: dict[str, Any] = json.loads(answer.read())
        finally:
            connection.close()
        assert answer.status == 200, f"{method} {path}: {said}"
        return said


@contextmanager
def orthanc(folder: Path, node: Peer) -> Iterator[Orthanc]:
    """Debian's Orthanc, holding nothing, under our modality's title."""
    started = Orthanc(free_port())
    settings = {
        "Name": "sender",
        "DicomAet": MODALITY,
        "DicomServerEnabled": False,
        "HttpPort": started.port,
        "AuthenticationEnabled": False,  # it listens on loopback only
        "RemoteAccessAllowed": False,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [],
        "DicomModalities": {"node": [node.ae_title, node.address, node.port]},
    }
    config = folder / "orthanc.json"
    config.write_text(json.dumps(settings), "utf-8")
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            [_program("Orthanc") or "Orthanc", config], stdout=log, stderr=log
        )
    try:
        wait_for(f"Orthanc answers, see {folder}", START_SECONDS, started.answers)
        yield started
    finally:
        process.terminate()
        process.wait(START_SECONDS)


@contextmanager
def sender(name: str, folder: Path, node: Peer) -> Iterator[Sender]:
    """The sender of that name, calling that node."""
    if name == "Orthanc":
        require("Orthanc")
        with orthanc(folder, node) as started:
            yield started
    elif name == "GDCM":
        require("gdcmscu")
        yield Gdcm(node)
    else:
        require("storescu", "dcmsend")
        yield Dcmtk(node)


NAMES: Sequence[str] = ("DCMTK", "GDCM", "Orthanc")
