"""Worklists made up, and real servers that answer with them: DCMTK's wlmscpfs and Orthanc."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt

from dicom_node.config import Peer
from dicom_node.supervisor import dies_with_us
from tests.acceptance.running_node import START_SECONDS, wait_for
from tests.ports import free_port

TITLE = "RIS"
FIND = "1.2.840.10008.5.1.4.31"
_PACKAGES = {"wlmscpfs": "dcmtk", "Orthanc": "orthanc"}  # Debian's
_PLUGIN = Path("/usr/share/orthanc/plugins/libModalityWorklists.so")

_numbers = itertools.count(1)


def entry(**changes: object) -> Dataset:
    """One scheduled chest radiograph of today; a value ``None`` leaves the attribute out."""
    number = next(_numbers)
    step = Dataset()
    step.Modality = changes.pop("Modality", "DX")
    step.ScheduledStationAETitle = "DX1"
    step.ScheduledProcedureStepStartDate = changes.pop("day", f"{date.today():%Y%m%d}")
    step.ScheduledProcedureStepStartTime = "101500"
    step.ScheduledProcedureStepDescription = "Chest PA"
    step.ScheduledProcedureStepID = f"SPS{number}"
    step.ScheduledPerformingPhysicianName = "TECHNICIAN^A"
    values: dict[str, object] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "AccessionNumber": f"A{number}",
        "PatientName": "VERYSECRET^NAME",
        "PatientID": "SECRET-ID",
        "PatientBirthDate": "19010203",
        "PatientSex": "F",
        "StudyInstanceUID": generate_uid(),
        "RequestedProcedureID": f"RP{number}",
        "RequestedProcedureDescription": "XR chest",
        "RequestedProcedurePriority": "ROUTINE",
        "ReasonForTheRequestedProcedure": "Cough and fever",
        **changes,
    }
    made = Dataset()
    for keyword, value in values.items():
        if value is not None:
            setattr(made, keyword, value)
    made.ScheduledProcedureStepSequence = [step]
    return made


def write(folder: Path, *entries: Dataset) -> None:
    """Make the folder hold these entries and no others, as both servers read them."""
    for old in folder.glob("*.wl"):
        old.unlink()
    for number, one in enumerate(entries):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.276.0.7230010.3.1.0.1"  # DCMTK's, of worklist files
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{number}.wl"
        FileDataset(str(path), one, file_meta=meta, preamble=bytes(128)).save_as(
            path, enforce_file_format=True
        )


def peer(port: int, title: str = TITLE) -> Peer:
    """The server as a node has it configured."""
    return Peer(name="ris", ae_title=title, host=("127.0.0.1",), port=port, roles=("worklist",))


class Ris:
    """A worklist SCP in a thread; it answers what it is told to, and remembers the questions."""

    def __init__(self, sop_class: str = FIND) -> None:
        self.entries: list[Dataset] = []
        self.status = 0xFF00
        self.asked: list[Dataset] = []
        entity = AE("RIS")
        entity.add_supported_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        server = entity.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, self._find)]
        )
        assert server is not None
        self.server = server

    @property
    def peer(self) -> Peer:
        """How a node has it configured."""
        return peer(int(self.server.server_address[1]))

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        self.asked.append(event.identifier)
        modality = event.identifier.ScheduledProcedureStepSequence[0].Modality
        for one in self.entries:
            if one.ScheduledProcedureStepSequence[0].Modality == modality:
                yield self.status, one


@contextmanager
def wlmscpfs(folder: Path, *entries: Dataset) -> Iterator[Peer]:
    """DCMTK's worklist server; it keeps each title's entries in a folder of that name."""
    held = folder / TITLE
    held.mkdir()
    (held / "lockfile").touch()
    write(held, *entries)
    port = free_port()
    command = [_program("wlmscpfs"), "-s", "-csk", "-dfr", "-dfp", str(folder), str(port)]
    with _served(command, folder / "wlmscpfs.log", peer(port)) as started:
        yield started


@contextmanager
def orthanc(folder: Path, *entries: Dataset) -> Iterator[Peer]:
    """Debian's Orthanc with its own sample plugin for worklists."""
    held = folder / TITLE
    held.mkdir()
    write(held, *entries)
    port = free_port()
    settings = {
        "DicomAet": TITLE,
        "DicomPort": port,
        "HttpServerEnabled": False,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(_PLUGIN)],
        "Worklists": {"Enable": True, "Database": str(held)},
        "DicomModalities": {"node": ["DICOMNODE", "127.0.0.1", 11112]},
    }
    config = folder / "orthanc.json"
    config.write_text(json.dumps(settings), "utf-8")
    command = [_program("Orthanc"), str(config)]
    with _served(command, folder / "orthanc.log", peer(port)) as started:
        yield started


@contextmanager
def _served(command: list[str], log: Path, server: Peer) -> Iterator[Peer]:
    with log.open("wb") as said:
        process = subprocess.Popen(dies_with_us(command, signal.SIGTERM), stdout=said, stderr=said)
    try:
        wait_for(f"{command[0]} listens, see {log}", START_SECONDS, lambda: _listens(server))
        yield server
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def _program(tool: str) -> str:
    """Its path; without it the test fails in CI and is skipped elsewhere."""
    found = shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say(f"not installed: apt-get install {_PACKAGES[tool]}")
    return found


def _listens(server: Peer) -> bool | None:
    with socket.socket() as asking:
        return True if asking.connect_ex((server.address, server.port)) == 0 else None
