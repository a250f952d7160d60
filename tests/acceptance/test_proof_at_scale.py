"""Many studies, three destinations, one of which comes and goes: each draft proven at each, once.

Three Orthancs: one proves by storage commitment, one by C-FIND, one by STOW-RS and QIDO-RS. The
last is the one that flaps: it goes and comes back at random moments while drafts are on their way.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from dicom_node import config, db, scu
from tests.acceptance import hospital, phantoms
from tests.acceptance.archive import Archive
from tests.acceptance.hospital import Hospital
from tests.acceptance.running_node import MODALITY, RunningNode, wait_for
from tests.ports import free_port

#: Seconds that the flapping PACS is there, and away.
UP, DOWN = (1.0, 6.0), (1.0, 5.0)
PACE = 0.3  # seconds between two studies
#: Seconds for which a study's deliveries may take, beside its turn in the queue.
STUDY_SECONDS = 6.0
PROOFS = {"committing": "commitment", "listing": "find", "flapping": "find"}

pytestmark = pytest.mark.timeout(3600)

_PEERS = """\
[[peers]]
name = "modality"
ae_title = "{modality}"
host = "127.0.0.1"
roles = ["source"]

[[peers]]
name = "committing"
ae_title = "{title}"
host = "127.0.0.1"
port = {committing_port}
proof = "commitment"

[[peers]]
name = "listing"
ae_title = "{title}"
host = "127.0.0.1"
port = {listing_port}
roles = ["destination"]
proof = "find"

[[peers]]
name = "flapping"
protocol = "dicomweb"
url = "{url}"
roles = ["destination"]
proof = "find"
"""


class Flapping(threading.Thread):
    """An archive that goes and comes back until told to stay."""

    def __init__(self, folder: Path) -> None:
        super().__init__(name="flapping", daemon=True)
        self.archive = Archive(folder)
        self._staying = threading.Event()
        self.outages = 0

    def run(self) -> None:
        """Come and go."""
        while not self._staying.is_set():
            self.archive.start()
            self._staying.wait(random.uniform(*UP))
            self.archive.stop()
            self.outages += 1
            self._staying.wait(random.uniform(*DOWN))

    def stay(self) -> None:
        """No more outages."""
        self._staying.set()
        self.join()
        self.archive.start()  # it ends with the thread that started it

    def end(self) -> None:
        """Go for good."""
        self._staying.set()
        if self.is_alive():
            self.join()
        self.archive.stop()


@contextmanager
def _orthanc(folder: Path, node: str) -> Iterator[tuple[Hospital, int]]:
    port = free_port()
    started = Hospital(folder, port=port, node=node, viewer=False)
    try:
        yield started, port
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
    reason = hospital.missing()
    if reason:
        pytest.skip(f"no hospital: {reason}")
    count = 500 if full else 5
    node = RunningNode(tmp_path, pacs_title="unused", pacs_port=1)
    ours = f"{node.settings.node.ae_title}@127.0.0.1:{node.settings.node.port}"
    flapping = Flapping(tmp_path / "flapping")
    with (
        _orthanc(tmp_path / "committing", ours) as (committing, committing_port),
        _orthanc(tmp_path / "listing", ours) as (listing, listing_port),
    ):
        head = node.file.read_text("utf-8").partition("[[peers]]")[0]
        peers = _PEERS.format(
            modality=MODALITY,
            title=hospital.AE_TITLE,
            committing_port=committing_port,
            listing_port=listing_port,
            url=flapping.archive.url,
        )
        node.file.write_text(head + peers, "utf-8")
        node.settings = config.load(node.file, {}, {})
        try:
            node.start()
            node.wait_healthy()
            flapping.start()
            uids = _send(node, tmp_path, count)
            wait_for("all are read", 60 + 5.0 * count, lambda: _drafted(node, count))
            flapping.stay()
            accounts = _all_delivered(node, uids)
            seconds = _seconds_to_proof(node)
            held = flapping.archive.instances()
        except BaseException:
            print(node.logs())
            raise
        finally:
            flapping.end()
            code = node.stop()
        drafts = [draft for account in accounts for draft in account["drafts"]]
        assert len(drafts) == count
        for draft in drafts:
            assert {one["peer"]: one["proof"] for one in draft["deliveries"]} == PROOFS
        expected = {uid: [1] for uid in uids}
        assert _srs(committing) == expected
        assert _srs(listing) == expected
        assert held == sorted(draft["sop_instance_uid"] for draft in drafts)
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


def _all_delivered(node: RunningNode, uids: list[str]) -> list[dict[str, Any]]:
    wait_for(
        "all are delivered",
        120 + STUDY_SECONDS * len(uids),
        lambda: node.status()["deliveries"] == {"delivered": len(PROOFS) * len(uids)} or None,
    )
    found = [node.study(uid) for uid in uids]
    return [one for one in found if one is not None]
