"""``./run demo``: the whole node on this machine, one phantom study straight through, then nothing.

A plain Storage SCP stands in for the PACS, another application entity for the modality; everything
between the two is the real node with its embedded servers, on free ports, below ``data/demo``.
"""

from __future__ import annotations

import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pydicom
from pynetdicom import AE, evt
from pynetdicom.sop_class import BasicTextSRStorage, Verification  # type: ignore[attr-defined]
from rich.console import Console

from dicom_node import config, scu, status
from dicom_node.cli import looking, tables, wiring
from dicom_node.config import Peer, Settings
from dicom_node.db import Database
from dicom_node.embedded import claim
from dicom_node.errors import NodeError, OutOfResources
from dicom_node.results import text_sr
from dicom_node.supervisor import Command, Supervisor
from inference.demo import dicom, phantom, report

FOLDER = Path("data/demo")
MODALITY = "DEMOMODALITY"
PACS = "DEMOPACS"

#: What is shown: seeds the demo model was not trained on, with the findings drawn into them.
SHOWN = (7_100_001, frozenset({"effusion_left", "nodule_right_upper"}))
OTHERS = (
    (7_100_002, frozenset({"pneumothorax_right"})),
    (7_100_003, frozenset({"cardiomegaly", "pacemaker"})),
    (7_100_004, frozenset[str]()),
)
QUERY = "There is a left pleural effusion."

START_SECONDS = 150.0  # importing torch from a cold disk
DRAFT_SECONDS = 90.0

T = TypeVar("T")

talk = Console(stderr=True, highlight=False)


def show() -> None:
    """Run the demonstration.

    Raises
    ------
    NodeError
        Something did not come out as it must.
    """
    home = FOLDER.absolute()
    with claim(home):  # not while another demonstration writes here
        pass
    shutil.rmtree(home)
    home.mkdir(parents=True)
    with _pacs(home / "pacs") as pacs_port, _node(home, pacs_port) as settings:
        database = _wait("the node starts", START_SECONDS, lambda: _healthy(settings))
        study = _send(settings, home / "modality", *SHOWN)
        for seed, labels in OTHERS:
            _send(settings, home / "modality", seed, labels)
        draft = _wait("drafts come back", DRAFT_SECONDS, lambda: _returned(home / "pacs", study))
        _wait("all are delivered", DRAFT_SECONDS, lambda: _all_delivered(database, settings))
        _show_draft(draft)
        _show_search(settings, study)
        _show_status(database, settings)
    print(f"files    {home}: pacs/ (what came back), modality/ (what was sent), log/, instances/")


@contextmanager
def _pacs(folder: Path) -> Iterator[int]:
    """A Storage SCP that writes what it gets: file first, then the answer."""
    folder.mkdir()

    def keep(event: evt.Event) -> int:
        (folder / f"{event.dataset.SOPInstanceUID}.dcm").write_bytes(event.encoded_dataset())
        return 0x0000

    ae = AE(ae_title=PACS)
    ae.add_supported_context(Verification)
    ae.add_supported_context(BasicTextSRStorage)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    assert server is not None  # it is only when block=True
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


@contextmanager
def _node(home: Path, pacs_port: int) -> Iterator[Settings]:
    """The whole node as a user would start it: ``dicom-node run --config ...``."""
    file = home / "dicom-node.toml"
    file.write_text(_TOML.format(data=home, port=_free_port(), pacs_port=pacs_port), "utf-8")
    arguments = (sys.executable, "-m", "dicom_node.cli", "run", "--config", str(file))
    with Supervisor(log_directory=home / "log") as supervisor:
        supervisor.start(Command(name="run", arguments=arguments, stop_seconds=60))
        yield config.load(file, {}, {})


_TOML = f"""\
[node]
port = {{port}}
host = "127.0.0.1"
data = "{{data}}"

[model]
name = "demo"

[study]
ready_seconds = 1
quiet_seconds = 5

[[peers]]
name = "demo-modality"
ae_title = "{MODALITY}"
host = "127.0.0.1"
roles = ["source"]

[[peers]]
name = "demo-pacs"
ae_title = "{PACS}"
host = "127.0.0.1"
port = {{pacs_port}}
roles = ["destination"]
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait(what: str, seconds: float, question: Callable[[], T | None]) -> T:
    """Ask until there is an answer; the spinner shows in a terminal only."""
    deadline = time.monotonic() + seconds
    with talk.status(what):
        while (answer := question()) is None:
            if time.monotonic() > deadline:
                raise OutOfResources(f"waited {seconds:.0f} s in vain: {what}; see {FOLDER}/log")
            time.sleep(0.2)
    return answer


def _healthy(settings: Settings) -> Database | None:
    database = wiring.database_or_none(settings)
    if database is None:
        return None
    return database if status.snapshot(database, settings).healthy else None


def _send(settings: Settings, folder: Path, seed: int, labels: frozenset[str]) -> str:
    """C-STORE one phantom to the node; its Study Instance UID."""
    instance = dicom.to_dx(phantom.render(phantom.scene(seed, labels)))
    folder.mkdir(exist_ok=True)
    file = folder / f"{instance.SOPInstanceUID}.dcm"
    instance.save_as(file, enforce_file_format=True)
    node = Peer(
        name="node",
        ae_title=settings.node.ae_title,
        host=("127.0.0.1",),
        port=settings.node.port,
        roles=("destination",),
    )
    (outcome,) = scu.send_files([file], node, MODALITY)
    if outcome.failure:
        raise NodeError(f"the node did not take the phantom: {outcome.failure}")
    print(f"sent     phantom {seed} ({', '.join(sorted(labels)) or 'normal'}) by C-STORE")
    return str(instance.StudyInstanceUID)


def _returned(folder: Path, study: str) -> pydicom.Dataset | None:
    """The SR of that study among what the PACS got."""
    for file in folder.glob("*.dcm"):
        try:
            found = pydicom.dcmread(file)
        except (OSError, EOFError):  # being written
            continue
        if found.get("StudyInstanceUID") == study:
            return found
    return None


def _all_delivered(database: Database, settings: Settings) -> bool | None:
    states = status.snapshot(database, settings).deliveries
    return True if states == {"delivered": len(OTHERS) + 1} else None


def _show_draft(draft: pydicom.Dataset) -> None:
    print(f"\n{text_sr.text(draft)}\n")
    named = report.parse(_findings(draft))
    if named != SHOWN[1]:
        raise NodeError(f"the draft names {sorted(named)}, the phantom shows {sorted(SHOWN[1])}")
    print(f"checked  the draft names what was drawn: {', '.join(sorted(named))}\n")


def _findings(draft: pydicom.Dataset) -> str:
    """What the items named (121071, DCM, "Finding") say: PS3.16 TID 2002."""
    return " ".join(
        str(item.TextValue)
        for section in draft.ContentSequence
        for item in section.get("ContentSequence", ())
        if item.ConceptNameCodeSequence[0].CodeValue == "121071"
    )


def _show_search(settings: Settings, study: str) -> None:
    print(f'search   "{QUERY}" among {len(OTHERS) + 1} studies')
    query = looking.Query(text=QUERY, image=None, study=None, kind=None, limit=1)
    hits = looking.find(settings, query)
    tables.show_hits(hits)
    if [hit.study_instance_uid for hit in hits] != [study]:
        raise NodeError("the search did not find the study with the effusion first")
    print()


def _show_status(database: Database, settings: Settings) -> None:
    snapshot = status.snapshot(database, settings)
    tables.show_status(snapshot)
    if not snapshot.healthy:
        raise NodeError("the node is not healthy")
    print()
