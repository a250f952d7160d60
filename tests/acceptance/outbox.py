"""Drafts on their way to real PACS: the sender's own tasks under a tick, without model or broker.

A PACS is one of DCMTK's programs: ``storescp``, which can be told to misbehave, and ``dcmqrscp``,
which stores and answers queries.
"""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import sqlalchemy as sa
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian

from dicom_node import config, db, deliveries, status
from dicom_node.config import Jobs, Node, Peer, Settings
from dicom_node.db import Database
from dicom_node.deliveries import Delivery
from dicom_node.priorities import ROUTINE
from dicom_node.storage import Storage
from tests.acceptance.destination import collect
from tests.acceptance.running_node import wait_for
from tests.conftest import DraftFactory
from worker import pipeline, process, tasks

TICK = 0.1  # seconds
QRSCP = """\
NetworkTCPPort = {port}
MaxPDUSize = 131072
MaxAssociations = 16
HostTable BEGIN
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
PACS {store} RW (500, 1024mb) ANY
AETable END
"""


def peer(name: str, port: int, *, proof: str = "find") -> Peer:
    """A PACS on loopback, as a node has it configured."""
    values = {"name": name, "ae_title": "PACS", "host": "127.0.0.1", "port": port, "proof": proof}
    return Peer.model_validate({**values, "roles": ["destination"]})


def text_sr(study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str) -> bytes:
    """A draft's file; nobody reads it here."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = BasicTextSRStorage, sop_instance_uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study_instance_uid, series_instance_uid
    ds.PatientID, ds.PatientName, ds.Modality = "P1", "Phantom", "SR"
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.StudyID = "20261123", "120000", "A1", "1"
    ds.SeriesNumber, ds.InstanceNumber = 1, 1
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@dataclass
class Outbox:
    """A node that only sends."""

    database: Database
    data: Path
    draft_factory: DraftFactory
    peers: Sequence[Peer]
    at_once: int = 1

    @property
    def settings(self) -> Settings:
        """Short waits, so that a test need not be long."""
        jobs = Jobs(first_retry_seconds=0.2, longest_retry_seconds=1, sweep_seconds=2)
        return Settings(
            node=Node(data=self.data),
            jobs=jobs,
            delivery=config.Delivery(at_once=self.at_once),
            peers=tuple(self.peers),
        )

    def put(self, count: int, priority: int = ROUTINE) -> list[str]:
        """So many drafts for every peer; their SOP Instance UIDs."""
        return [self._put(priority) for _ in range(count)]

    def _put(self, priority: int) -> str:
        draft = self.draft_factory()
        series, uid = draft.series_instance_uid, draft.sop_instance_uid
        kept = Storage(self.data).keep_draft(
            study_instance_uid=draft.study_instance_uid,
            sop_instance_uid=uid,
            file=text_sr(draft.study_instance_uid, series, uid),
        )
        with self.database.transaction() as connection:
            written = {"path": kept.path, "sha256": kept.sha256}
            connection.execute(
                sa.update(db.draft).where(db.draft.c.sop_instance_uid == uid).values(written)
            )
            uids = draft.study_instance_uid, uid
            deliveries.create(connection, *uids, self.peers, priority)
        return uid

    @contextmanager
    def sending(self, told: Sequence[int] = ()) -> Iterator[None]:
        """The tick nudges and the sender's threads send, until the end of the block.

        ``told``: of these deliveries the sender was told before.
        """
        node = pipeline.open_node(self.settings, self.database)
        context = tasks.Context(node=node, name="net@test", host=None)
        stop = threading.Event()

        def tick(pool: ThreadPoolExecutor) -> None:
            while not stop.wait(TICK):
                for delivery_id in self._due():
                    pool.submit(tasks.deliver, context, delivery_id)

        with ThreadPoolExecutor(process._senders(self.settings)) as pool:
            for delivery_id in told:
                pool.submit(tasks.deliver, context, delivery_id)
            ticking = threading.Thread(target=tick, args=[pool])
            ticking.start()
            try:
                yield
            finally:
                stop.set()
                ticking.join()
                pool.shutdown(cancel_futures=True)
                collect()

    def _due(self) -> list[int]:
        every = timedelta(seconds=self.settings.jobs.sweep_seconds)
        at_once = self.settings.delivery.at_once
        with self.database.transaction() as connection:
            return deliveries.nudge(connection, every=every, at_once=at_once)

    def pass_days(self, days: float) -> None:
        """All that waits has waited so much longer."""
        age = timedelta(days=days)
        with self.database.transaction() as connection:
            connection.execute(
                sa.update(db.delivery).values(created_at=db.delivery.c.created_at - age)
            )

    def of(self, name: str) -> list[Delivery]:
        """The deliveries to one peer."""
        with self.database.transaction() as connection:
            return deliveries.newest(connection, state=None, peer=name, limit=10_000)

    def states(self, name: str) -> set[str]:
        """What states they are in."""
        return {one.state for one in self.of(name)}

    def wait_delivered(self, name: str, seconds: float) -> None:
        """Until all of them are proven."""
        wait_for(
            f"{name} has all",
            seconds,
            lambda: self.states(name) == {"delivered"} or None,
        )

    def alarms(self) -> dict[str, list[str]]:
        """The texts of `status` by code."""
        texts: dict[str, list[str]] = {}
        for one in status.snapshot(self.database, self.settings).problems:
            texts.setdefault(one.code, []).append(one.text)
        return texts


@contextmanager
def storescp(folder: Path, port: int, *words: str) -> Iterator[None]:
    """DCMTK's Storage SCP, told to misbehave."""
    folder.mkdir()
    command = ["storescp", "--output-directory", str(folder), "--aetitle", "PACS", *words]
    with _program(folder, port, [*command, str(port)]):
        yield


@contextmanager
def dcmqrscp(folder: Path, port: int) -> Iterator[None]:
    """DCMTK's PACS; of two processes of it that store at once one may answer 0xC000."""
    store = folder / "store"
    store.mkdir(parents=True)
    settings = folder / "dcmqrscp.cfg"
    settings.write_text(QRSCP.format(port=port, store=store), "utf-8")
    with _program(folder, port, ["dcmqrscp", "--config", str(settings)]):
        yield


def held(folder: Path) -> set[str]:
    """The SOP Instance UIDs of what :func:`dcmqrscp` stored."""
    files = (file for file in (folder / "store").iterdir() if file.name != "index.dat")
    return {str(dcmread(file).SOPInstanceUID) for file in files}


@contextmanager
def hanging() -> Iterator[int]:
    """A PACS that takes connections and never says a word; its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield int(listener.getsockname()[1])


@contextmanager
def _program(folder: Path, port: int, command: list[str]) -> Iterator[None]:
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        wait_for(f"{command[0]} listens, see {folder}/log", 30, lambda: _answers(port) or None)
        yield
    finally:
        running.terminate()
        running.wait(30)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
