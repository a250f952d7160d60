"""Many studies, three destinations, one of which comes and goes: each draft proven at each, once.

Orthanc proves by storage commitment, dcmqrscp by C-FIND, another Orthanc by QIDO-RS. dcmqrscp is
the one that flaps: it is stopped and started at random moments while drafts are on their way to it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest
import sqlalchemy as sa

from dicom_node import config, db, scu
from tests.acceptance import hospital, phantoms
from tests.acceptance.hospital import Hospital
from tests.acceptance.running_node import MODALITY, RunningNode, free_port, wait_for
from tests.conftest import PATIENCE

#: Seconds that the flapping PACS is there, and away.
UP, DOWN = (1.0, 6.0), (1.0, 5.0)
PACE = 0.3  # seconds between two studies
#: Seconds for which a study's deliveries may take, beside its turn in the queue.
STUDY_SECONDS = 6.0
PROOFS = {"archive": "commitment", "flapping": "find", "web": "find"}

pytestmark = pytest.mark.timeout(3600)

_PEERS = """\
[[peers]]
name = "modality"
ae_title = "{modality}"
host = "127.0.0.1"
roles = ["source"]

[[peers]]
name = "archive"
ae_title = "{archive_title}"
host = "127.0.0.1"
port = {archive_port}
proof = "commitment"

[[peers]]
name = "flapping"
ae_title = "FLAPPING"
host = "127.0.0.1"
port = {flapping_port}
roles = ["destination"]
proof = "find"

[[peers]]
name = "web"
protocol = "dicomweb"
url = "http://127.0.0.1:{web_port}/dicom-web"
roles = ["destination"]
proof = "find"
"""

_DCMQRSCP = """\
NetworkTCPPort = {port}
MaxPDUSize = 131072
MaxAssociations = 16
HostTable BEGIN
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
FLAPPING {store} RW (5000, 2048mb) ANY
AETable END
"""


class Flapping(threading.Thread):
    """A PACS that is stopped and started until told to stay."""

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(name="flapping", daemon=True)
        self.store = folder / "flapping"
        self.store.mkdir()
        self._file = folder / "dcmqrscp.cfg"
        self._file.write_text(_DCMQRSCP.format(port=port, store=self.store), "utf-8")
        self._staying = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self.outages = 0

    def run(self) -> None:
        """Come and go."""
        while not self._staying.is_set():
            self._open()
            if self._staying.wait(random.uniform(*UP)):
                return
            self._close()
            self.outages += 1
            self._staying.wait(random.uniform(*DOWN))
        self._open()

    def stay(self) -> None:
        """No more outages."""
        self._staying.set()
        self.join()

    def end(self) -> None:
        """Stop for good."""
        self.stay()
        self._close()

    def stored(self) -> Counter[str]:
        """How many files it has of each SOP Instance UID."""
        files = [file for file in self.store.iterdir() if file.name != "index.dat"]
        return Counter(str(pydicom.dcmread(file).SOPInstanceUID) for file in files)

    def _open(self) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                ["dcmqrscp", "-c", str(self._file)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _close(self) -> None:
        """All at once: it has a process for each association."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(PATIENCE)
            self._process = None


@contextmanager
def _orthanc(folder: Path, node: str) -> Iterator[tuple[Hospital, dict[str, int]]]:
    started = Hospital(folder, port=free_port(), node=node, viewer=False)
    try:
        yield started, json.loads((folder / "state.json").read_text("utf-8"))
    finally:
        started.down()


def _srs(pacs: Hospital) -> dict[str, list[int]]:
    """How many instances each SR series of a study has, by study."""
    return {
        uid: [one["instances"] for one in study["series"] if one["modality"] == "SR"]
        for uid, study in pacs.studies().items()
    }


def _seconds_to_proof(node: RunningNode) -> dict[str, list[float]]:
    """From the draft to its proof, by destination; each delivery proven exactly once."""
    proven, made = db.event.alias(), db.event.alias()
    query = (
        sa.select(proven.c.subject, sa.func.extract("epoch", proven.c.at - made.c.at))
        .join(made, sa.and_(made.c.subject == proven.c.subject, made.c["from"].is_(None)))
        .where(proven.c.to == "delivered", proven.c.subject.like("delivery %"))
    )
    with node.database.transaction() as connection:
        rows = connection.execute(query).all()
    subjects = Counter(subject for subject, _ in rows)
    assert set(subjects.values()) <= {1}, subjects.most_common(3)
    by_peer: dict[str, list[float]] = {}
    for subject, seconds in rows:
        by_peer.setdefault(subject.rsplit(" ", 1)[1], []).append(float(seconds))
    return by_peer


def _figures(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    late = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    return (
        f"median {statistics.median(ordered):.1f} s, 95 % {late:.1f} s, at most {ordered[-1]:.1f} s"
    )


def test_every_draft_is_proven_once_at_each_of_three_destinations(
    full: bool, tmp_path: Path, say: Callable[[str], None]
) -> None:
    reason = hospital.missing() or (None if shutil.which("dcmqrscp") else "no dcmqrscp")
    if reason:
        pytest.skip(f"no hospital: {reason}")
    count = 500 if full else 5
    node = RunningNode(tmp_path, pacs_title="unused", pacs_port=1)
    ours = f"{node.settings.node.ae_title}@127.0.0.1:{node.settings.node.port}"
    flapping_port = free_port()
    with (
        _orthanc(tmp_path / "archive", ours) as (archive, archive_at),
        _orthanc(tmp_path / "web", ours) as (web, web_at),
    ):
        head = node.file.read_text("utf-8").partition("[[peers]]")[0]
        peers = _PEERS.format(
            modality=MODALITY,
            archive_title=hospital.AE_TITLE,
            archive_port=archive_at["dicom"],
            flapping_port=flapping_port,
            web_port=web_at["http"],
        )
        node.file.write_text(head + peers, "utf-8")
        node.settings = config.load(node.file, {}, {})
        flapping = Flapping(tmp_path, flapping_port)
        try:
            node.start()
            node.wait_healthy()
            flapping.start()
            uids = _send(node, tmp_path, count)
            wait_for("all are read", 60 + 5.0 * count, lambda: _drafted(node, count))
            flapping.stay()
            accounts = _all_delivered(node, uids)
            seconds = _seconds_to_proof(node)
        except BaseException:
            print(node.logs())
            raise
        finally:
            flapping.end()
            code = node.stop()
        drafts = {one["study_instance_uid"]: one["drafts"] for one in accounts}
        for uid, made in drafts.items():
            assert len(made) == 1, uid
            found = {one["peer"]: one["proof"] for one in made[0]["deliveries"]}
            assert found == PROOFS, uid
        expected = {uid: [1] for uid in uids}
        assert _srs(archive) == expected
        assert _srs(web) == expected
        assert flapping.stored() == Counter(made[0]["sop_instance_uid"] for made in drafts.values())
    assert code == 0
    assert {peer: len(found) for peer, found in seconds.items()} == dict.fromkeys(PROOFS, count)
    say(f"{count} studies, {flapping.outages} outages of one of three destinations; to the proof:")
    for peer, found in sorted(seconds.items()):
        say(f"{peer} ({PROOFS[peer]}): {_figures(found)}")


def _send(node: RunningNode, folder: Path, count: int) -> list[str]:
    """One phantom after the other; their Study Instance UIDs."""
    (folder / "phantoms").mkdir()
    uids = []
    for index in range(count):
        (sent,) = phantoms.make(folder / "phantoms", index, phantoms.drawn(index))
        (outcome,) = scu.send_files([sent.path], node.peer, MODALITY)
        assert outcome.failure is None, outcome
        uids.append(sent.study_instance_uid)
        time.sleep(PACE)
    return uids


def _drafted(node: RunningNode, count: int) -> bool | None:
    return node.status()["jobs"].get("drafted", 0) >= count or None


def _all_delivered(node: RunningNode, uids: list[str]) -> list[dict[str, object]]:
    wait_for(
        "all are delivered",
        120 + STUDY_SECONDS * len(uids),
        lambda: node.status()["deliveries"] == {"delivered": len(PROOFS) * len(uids)} or None,
    )
    found = [node.study(uid) for uid in uids]
    return [one for one in found if one is not None]
