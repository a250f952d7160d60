"""How fast objects are received: our SCP beside Debian's Orthanc and DCMTK's storescp.

    python -m bench.receive [--rounds 3] [--scale 1.0] [--json]

The same instances go to each in turn by DCMTK's storescu (TCP_NODELAY=1, PDU of 131072), over one
association and over four at once. Ours answers 0x0000 when the file is synced and its row is
committed in Postgres; Orthanc writes file and SQLite row as Debian configures it; storescp writes a
file and syncs nothing. The last line is the disk alone: the same files written, synced and named.
Orthanc and DCMTK are needed: on Debian `apt-get install orthanc dcmtk`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian
from rich.console import Console
from rich.progress import Progress

from dicom_node import db
from dicom_node.embedded import Postgres, Valkey
from dicom_node.supervisor import Supervisor, dies_with_us

AE_TITLE = "RECEIVER"
ALONE = "write + fsync"
#: Where the instances to send are: on the receivers' disk ext4 would look for each new file's inode
#: among those of the deleted ones (seen: a fifth of our processor time).
_MEMORY = Path("/dev/shm")
START_SECONDS = 60.0
STUDY = "2.25.31415926535897932384626433832795"

_ORTHANC = {
    "Name": "bench",
    "DicomAet": AE_TITLE,
    "DicomCheckCalledAet": False,
    "DicomAlwaysAllowStore": True,
    "HttpServerEnabled": False,
    "Plugins": [],
}
_NODE = """\
[node]
ae_title = "{title}"
host = "127.0.0.1"
port = {port}
data = "{data}"

[study]
quiet_seconds = 3600
ready_seconds = 3600

[[peers]]
name = "bench"
ae_title = "STORESCU"
host = "127.0.0.1"
roles = ["source"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One setting."""

    megabytes: float
    instances: int
    associations: int

    @property
    def name(self) -> str:
        """As the table calls it."""
        return f"{self.megabytes:g} MB x {self.instances}, {self.associations} associations"


def cells(scale: float) -> list[Cell]:
    """The four settings; ``scale`` below 1 sends fewer instances, to see that it works."""
    sizes = ((0.5, 800), (10.0, 40))
    return [
        Cell(megabytes=size, instances=max(4, round(count * scale)), associations=associations)
        for size, count in sizes
        for associations in (1, 4)
    ]


# -- receivers -------------------------------------------------------------------------------------


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def ours(folder: Path) -> Iterator[int]:
    """``dicom-node serve`` over an embedded Postgres and broker; its port."""
    port, config = free_port(), folder / "dicom-node.toml"
    config.write_text(_NODE.format(title=AE_TITLE, port=port, data=folder / "data"), "utf-8")
    (folder / "data").mkdir()
    with Supervisor(log_directory=folder) as supervisor:
        postgres, valkey = Postgres(folder / "data"), Valkey(folder / "data")
        supervisor.start(postgres)
        supervisor.start(valkey)
        db.upgrade(postgres.url)
        command = [sys.executable, "-m", "dicom_node.cli", "serve", "--config", str(config)]
        urls = {
            "DICOM_NODE_DATABASE__URL": postgres.url,
            "DICOM_NODE_BROKER__URL": valkey.url,
        }
        with process(command, folder, port, urls):
            yield port


@contextmanager
def orthanc(folder: Path) -> Iterator[int]:
    """Debian's Orthanc with its own index; its port."""
    port, config = free_port(), folder / "orthanc.json"
    settings = {**_ORTHANC, "DicomPort": port, "StorageDirectory": str(folder / "storage")}
    config.write_text(json.dumps(settings), "utf-8")
    program = shutil.which("Orthanc", path=f"{os.environ['PATH']}:/usr/sbin")
    with process([program or "Orthanc", str(config)], folder, port):
        yield port


@contextmanager
def storescp(folder: Path) -> Iterator[int]:
    """DCMTK's storescp, a process per association; its port."""
    port, files = free_port(), folder / "files"
    files.mkdir()
    command = ["storescp", "--fork", "-pdu", "131072", "-od", str(files), str(port)]
    with process(command, folder, port):
        yield port


@contextmanager
def process(
    command: list[str], folder: Path, port: int, environment: dict[str, str] | None = None
) -> Iterator[None]:
    """A receiver that listens; ended afterwards.

    Raises:
        RuntimeError: it does not come up.
    """
    with (folder / "receiver.log").open("ab") as log:
        started = subprocess.Popen(
            dies_with_us(command, signal.SIGTERM),
            stdout=log,
            stderr=log,
            env={**os.environ, "TCP_NODELAY": "1", **(environment or {})},
        )
    try:
        wait_for_port(started, port)
        yield
    finally:
        started.terminate()
        with suppress(subprocess.TimeoutExpired):
            started.wait(30)
        started.kill()


def wait_for_port(started: subprocess.Popen[bytes], port: int) -> None:
    """Until somebody listens there."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and started.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"{started.args!r} does not listen on {port}")


RECEIVERS: dict[str, Callable[[Path], AbstractContextManager[int]]] = {
    "dicom-node": ours,
    "Orthanc": orthanc,
    "storescp": storescp,
}


# -- instances and senders -------------------------------------------------------------------------


def make(folder: Path, cell: Cell, seed: int) -> list[list[Path]]:
    """Write new instances of noise, a folder's worth for each association."""
    side = round((cell.megabytes * 2**20 / 2) ** 0.5)
    noise = np.random.default_rng(seed).integers(0, 4096, side * side, dtype=np.uint16)
    ds = _image(side, noise.tobytes())
    groups: list[list[Path]] = [[] for _ in range(cell.associations)]
    for number in range(cell.instances):
        group = number % cell.associations
        ds.SOPInstanceUID = f"{STUDY}.{seed}.{number}"
        ds.SeriesInstanceUID = f"{STUDY}.{seed}.0.{group}"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        path = folder / f"{group}" / f"{number}.dcm"
        path.parent.mkdir(exist_ok=True)
        dcmwrite(path, ds, enforce_file_format=True)
        groups[group].append(path)
    return groups


def _image(side: int, pixels: bytes) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = ComputedRadiographyImageStorage
    ds.StudyInstanceUID = STUDY
    ds.PatientID, ds.PatientName, ds.Modality = "BENCH", "Bench", "CR"
    ds.Rows = ds.Columns = side
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = pixels
    return ds


def send(folders: list[Path], port: int) -> float:
    """Send each folder over an association of its own, all at once; wall seconds.

    Raises:
        RuntimeError: an object was not stored.
    """
    environment = {**os.environ, "TCP_NODELAY": "1"}
    command = ["storescu", "-pdu", "131072", "-aec", AE_TITLE, "127.0.0.1", str(port), "+sd"]
    began = time.monotonic()
    senders = [
        subprocess.Popen([*command, str(one)], env=environment, stderr=subprocess.PIPE)
        for one in folders
    ]
    errors = [one.communicate()[1] for one in senders]
    seconds = time.monotonic() - began
    if any(one.returncode for one in senders) or any(b"E:" in one for one in errors):
        raise RuntimeError(f"not everything was stored: {errors[0][-500:]!r}")
    return seconds


def keep(groups: list[list[Path]], folder: Path) -> float:
    """Only write, sync and name the same files, a thread for each group; wall seconds.

    What nobody who keeps the rule can beat: no network, no digest, no row.
    """
    contents = [[path.read_bytes() for path in group] for group in groups]
    began = time.monotonic()
    with ThreadPoolExecutor(len(contents)) as threads:
        for ended in [threads.submit(_kept, content, folder) for content in contents]:
            ended.result()
    return time.monotonic() - began


def _kept(contents: list[bytes], folder: Path) -> None:
    for content in contents:
        descriptor, name = tempfile.mkstemp(dir=folder)
        os.write(descriptor, content)
        os.fsync(descriptor)
        os.replace(name, f"{name}.dcm")
        os.close(descriptor)
        directory = os.open(folder, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)


# -- the benchmark ---------------------------------------------------------------------------------


def measured(rounds: int, scale: float, done: Callable[[], None]) -> dict[str, dict[str, float]]:
    """Medians of instances a second: cell -> receiver -> rate. Receivers take turns."""
    rates: dict[str, dict[str, list[float]]] = {}
    seed = 0
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        floor = Path(home) / "floor"
        floor.mkdir()
        ports: dict[str, int] = {}
        for name, receiver in RECEIVERS.items():
            folder = Path(home) / name
            folder.mkdir()
            ports[name] = stack.enter_context(receiver(folder))
        for _ in range(rounds):
            for cell in cells(scale):
                seed += 1
                with tempfile.TemporaryDirectory(
                    dir=_MEMORY if _MEMORY.is_dir() else home
                ) as files:
                    groups = make(Path(files), cell, seed)
                    for name, port in ports.items():
                        seconds = send([group[0].parent for group in groups], port)
                        of_cell = rates.setdefault(cell.name, {})
                        of_cell.setdefault(name, []).append(cell.instances / seconds)
                        done()
                    alone = keep(groups, floor)
                    of_cell.setdefault(ALONE, []).append(cell.instances / alone)
    return {
        cell: {name: statistics.median(every) for name, every in of_cell.items()}
        for cell, of_cell in rates.items()
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="fewer instances: a trial")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    steps = arguments.rounds * len(cells(arguments.scale)) * len(RECEIVERS)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("sending", total=steps)
        rates = measured(arguments.rounds, arguments.scale, lambda: progress.advance(bar))
    if arguments.json:
        print(json.dumps(rates, indent=2))
        return
    for cell, of_cell in rates.items():
        print(cell)
        for name, rate in of_cell.items():
            print(
                f"  {name:13} {rate:8.1f} instances/s   ours {of_cell['dicom-node'] / rate:.2f} x"
            )


if __name__ == "__main__":
    main()
