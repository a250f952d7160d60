"""The receiving side, ``dicom-node serve``, under load while what it stands on is taken away.

No worker runs: what is asked is what senders are told, and what is there afterwards.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import sqlalchemy as sa
from pydicom.uid import generate_uid
from pynetdicom.association import Association

from dicom_node import db, scu
from dicom_node.config import Peer
from dicom_node.db import Database
from dicom_node.errors import PeerError
from dicom_node.supervisor import dies_with_us
from tests.acceptance import phantoms
from tests.acceptance.running_node import MODALITY, START_SECONDS, wait_for
from tests.dicom_node.network import DIGITAL_X_RAY, associate, encoded, header, rejection, send_raw
from tests.ports import free_port

SENDERS = 4
#: Seconds that a sender waits for an answer; far more than modalities do.
PATIENCE = 180.0
_PAUSE = 0.2  # seconds until a refused sender tries again

_CONFIG = f"""\
[node]
port = {{port}}
host = "127.0.0.1"
data = "{{data}}"

[database]
url = "{{database_url}}"

[broker]
url = "redis://127.0.0.1:{{nobody}}/0"

[study]
quiet_seconds = 3600
ready_seconds = 3600

[[peers]]
name = "modality"
ae_title = "{MODALITY}"
host = "127.0.0.1"
roles = ["source"]
"""


class Receiver:
    """A started ``dicom-node serve``."""

    def __init__(self, data: Path, process: subprocess.Popen[bytes], peer: Peer) -> None:
        self.data = data
        self.peer = peer
        self._process = process

    @property
    def runs(self) -> bool:
        """Is it the process that was started?"""
        return self._process.poll() is None

    def answers(self) -> bool | None:
        """``None`` until C-ECHO does."""
        assert self.runs, "serve has ended"
        try:
            scu.echo(self.peer, MODALITY)
        except PeerError:
            return None
        return True


@contextmanager
def receiver(folder: Path, data: Path, database_url: str) -> Iterator[Receiver]:
    """A receiver that answers; what it logs is in ``folder``."""
    peer = Peer(name="node", ae_title="DICOMNODE", host=("127.0.0.1",), port=free_port())
    file = folder / "dicom-node.toml"
    text = _CONFIG.format(
        port=peer.port,
        nobody=free_port(),
        data=data,
        database_url=database_url,
    )
    file.write_text(text, "utf-8")
    command = [sys.executable, "-m", "dicom_node.cli", "serve", "--config", str(file)]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            dies_with_us(command, signal.SIGTERM), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    started = Receiver(data, process, peer)
    try:
        wait_for(f"serve answers, see {folder}", START_SECONDS, started.answers)
        yield started
    finally:
        process.terminate()
        process.wait(START_SECONDS)


class Load:
    """Senders that go on whatever they are told, each over associations of its own.

    What is refused is sent again, as a modality does.
    """

    def __init__(self, port: int, *, size: int) -> None:
        self.answers: Counter[str] = Counter()  #: what senders saw
        self.acknowledged: dict[str, str] = {}  #: SHA-256 of the data set by SOP Instance UID
        self.longest = 0.0  #: seconds between a request and its answer
        self._port = port
        self._size = size
        self._study = generate_uid()
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._send_all) for _ in range(SENDERS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    @property
    def refusals(self) -> int:
        """How often a sender was told anything but success."""
        return self.answers.total() - self.answers["0x0000"]

    def wait_acknowledged(self, more: int) -> None:
        """Until so many more instances are."""
        goal = len(self.acknowledged) + more
        wait_for(
            f"{more} more acknowledged, {dict(self.answers)}",
            START_SECONDS,
            lambda: len(self.acknowledged) >= goal or None,
        )

    def wait_refused(self, more: int) -> None:
        """Until so many more sendings are."""
        goal = self.refusals + more
        wait_for(
            f"{more} more refused, {dict(self.answers)}",
            START_SECONDS,
            lambda: self.refusals >= goal or None,
        )

    def _send_all(self) -> None:
        waiting = self._instance()
        while not self._ending.is_set():
            asked = associate(self._port, timeout=PATIENCE)
            if not asked.is_established:
                self.answers[_why_not(asked)] += 1
            while asked.is_established and not self._ending.is_set():
                if not self._send(asked, *waiting):
                    break
                waiting = self._instance()
            if asked.is_established:
                asked.release()
            self._ending.wait(_PAUSE)

    def _send(self, association: Association, uid: str, data_set: bytes) -> bool:
        asked = time.monotonic()
        status = send_raw(association, data_set, sop_class_uid=DIGITAL_X_RAY, sop_instance_uid=uid)
        self.longest = max(self.longest, time.monotonic() - asked)
        if status == 0x0000:
            self.acknowledged[uid] = hashlib.sha256(data_set).hexdigest()
        self.answers["abort" if status is None else f"0x{status:04X}"] += 1
        # pynetdicom's reactor goes on a moment later; until then the next answer could become its.
        while association.is_alive() and association._is_paused:
            time.sleep(0.0005)
        return status == 0x0000

    def _instance(self) -> tuple[str, bytes]:
        """A new one of our study: its SOP Instance UID and its data set."""
        uid = generate_uid()
        made = header(
            StudyInstanceUID=self._study, SeriesInstanceUID=self._study, SOPInstanceUID=uid
        )
        made.PixelData = random.randbytes(self._size)
        made["PixelData"].VR = "OW"
        return uid, encoded(made)


def _why_not(asked: Association) -> str:
    rejected = rejection(asked)
    return f"rejected, result {rejected[0]}" if rejected else "no association"


def assert_only_retryable(answers: Mapping[str, int]) -> None:
    """PS3.4 B.2.3: refused, out of resources; PS3.8 9.3.4: rejected-transient."""
    final = [one for one in answers if not one.startswith(("0x0000", "0xA7", "rejected, result 2"))]
    assert not final, answers


def assert_kept(acknowledged: Mapping[str, str], data: Path, database: Database) -> None:
    """Every acknowledged instance has its row and its file, byte for byte."""
    columns = db.instance.c.sop_instance_uid, db.instance.c.path, db.instance.c.sha256
    with database.transaction() as connection:
        found = connection.execute(sa.select(*columns)).all()
    rows = {uid: (path, sha256) for uid, path, sha256 in found}
    assert not acknowledged.keys() - rows.keys()
    for uid, sent in acknowledged.items():
        path, sha256 = rows[uid]
        file = data / path
        assert hashlib.sha256(file.read_bytes()).hexdigest() == sha256
        assert hashlib.sha256(phantoms.data_set_of(file)).hexdigest() == sent


@contextmanager
def suspended(process: psutil.Process) -> Iterator[None]:
    """A process and all below it hang: they hold their connections and say nothing."""
    process.suspend()  # first, so that it has no more children
    family = [process, *process.children(recursive=True)]
    try:
        for one in family:
            one.suspend()
        yield
    finally:
        for one in family:
            one.resume()


@contextmanager
def small_volume(folder: Path, *, megabytes: int) -> Iterator[Path]:
    """A file system of its own, in memory.

    Raises PermissionError where we may not mount.
    """
    folder.mkdir()
    options = f"size={megabytes}m,mode=700"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False
    )
    if done.returncode:
        raise PermissionError(done.stderr.decode(errors="replace").strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], capture_output=True, check=True)


def fill(file: Path, *, leave: int = 0) -> None:
    """Somebody else's file takes what is left of a volume but ``leave`` bytes."""
    space = os.statvfs(file.parent)
    wanted = step = space.f_bavail * space.f_frsize - leave
    with file.open("ab") as ballast:
        while wanted > 0 and step >= space.f_frsize:
            try:
                os.posix_fallocate(ballast.fileno(), os.fstat(ballast.fileno()).st_size, step)
                wanted -= step
            except OSError:  # others write at the same time
                step //= 2
