"""Storage commitment with a real PACS and a second implementation, both ways (issue 6, show 2).

Every draft of the node goes to all its destinations: one study shows several of them at once.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydicom import Dataset
from pydicom.uid import generate_uid

from dicom_node import db, scu
from tests.acceptance import phantoms
from tests.acceptance.committing_orthanc import Orthanc, orthanc
from tests.acceptance.destination import destination
from tests.acceptance.phantoms import Sent
from tests.acceptance.running_node import (
    MODALITY,
    START_SECONDS,
    RunningNode,
    running,
    wait_for,
)
from tests.commitment_pacs import CommitmentPacs, Requestor, action, ask
from tests.dicom_node.network import DIGITAL_X_RAY, associate, association

pytestmark = pytest.mark.timeout(600)

PUSH_MODEL = ("1.2.840.10008.1.20.1", "1.2.840.10008.1.2")
SECONDS = 60.0  # for what takes a few on a loaded machine
LATE, REQUESTOR = "LATE", "REQUESTOR"
AGAIN = 3  # seconds; until a silent peer is asked again

_MORE = f"""\

[delivery]
commitment_seconds = {AGAIN}

[[peers]]
name = "orthanc"
ae_title = "{Orthanc.title}"
host = "127.0.0.1"
port = {{orthanc}}
roles = ["source", "destination"]
proof = "commitment"

[[peers]]
name = "late"
ae_title = "{LATE}"
host = "127.0.0.1"
port = {{late}}
roles = ["destination"]
proof = "commitment"

[[peers]]
name = "requestor"
ae_title = "{REQUESTOR}"
host = "127.0.0.1"
port = {{requestor}}
roles = ["source"]
"""


@pytest.fixture(scope="module")
def late() -> Iterator[CommitmentPacs]:
    """A PACS that takes requests, and reports when the test says so."""
    made = CommitmentPacs("never")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def requestor() -> Iterator[Requestor]:
    """A source that takes reports."""
    made = Requestor()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as made:
        yield made


@pytest.fixture(scope="module")
def node(
    pacs: Orthanc,
    late: CommitmentPacs,
    requestor: Requestor,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningNode]:
    more = _MORE.format(orthanc=pacs.port, late=late.port, requestor=requestor.port)
    home = tmp_path_factory.mktemp("node")
    with (
        destination() as listing,
        running(home, pacs_title="PACS", pacs_port=listing.port, more=more) as started,
    ):
        pacs.start(node_title=started.settings.node.ae_title, node_port=started.settings.node.port)
        late.node = started.peer
        yield started


class Drafted:
    """A study of the node, and what becomes of its draft at each destination."""

    def __init__(self, node: RunningNode, folder: Path, index: int) -> None:
        self._node = node
        (self.sent,) = phantoms.make(folder, index, phantoms.drawn(index))
        (outcome,) = scu.send_files([self.sent.path], node.peer, MODALITY)
        assert outcome.failure is None

    def delivery(self, peer: str) -> dict[str, object]:
        """As ``study --json`` tells it, once there is one."""

        def found() -> dict[str, object] | None:
            told = self._node.study(self.sent.study_instance_uid)
            drafts = told["drafts"] if told else []
            deliveries = [one for draft in drafts for one in draft["deliveries"]]
            return next((one for one in deliveries if one["peer"] == peer), None)

        return wait_for(f"a delivery to {peer}", START_SECONDS, found)

    def wait(self, peer: str, state: str) -> dict[str, object]:
        """Until the delivery is in that state."""

        def there() -> dict[str, object] | None:
            found = self.delivery(peer)
            return found if found["state"] == state else None

        return wait_for(f"delivery to {peer} is {state}", START_SECONDS, there)

    @property
    def draft_uid(self) -> str:
        told = self._node.study(self.sent.study_instance_uid)
        assert told is not None
        (draft,) = told["drafts"]
        return str(draft["sop_instance_uid"])

    @property
    def reasons(self) -> list[str]:
        told = self._node.study(self.sent.study_instance_uid)
        assert told is not None
        return [str(one["reason"]) for one in told["events"]]


Send = Callable[[], Drafted]
_STUDIES = itertools.count(10)


@pytest.fixture
def send(node: RunningNode, late: CommitmentPacs, tmp_path: Path) -> Iterator[Send]:
    """Send a study that the node has not got yet; in the end ``late`` reports on all of it."""
    yield lambda: Drafted(node, tmp_path, next(_STUDIES))
    newest = {one.ReferencedSOPSequence[0].ReferencedSOPInstanceUID: one for one in late.requests}
    for request in newest.values():
        late.call(request, calling=LATE)


# -- the node asks ---------------------------------------------------------------------------------


def test_orthanc_commits_to_a_draft(send: Send, pacs: Orthanc, say: Callable[[str], None]) -> None:
    began = time.monotonic()
    drafted = send()
    found = drafted.wait("orthanc", "delivered")
    say(f"Orthanc committed {time.monotonic() - began:.1f} s after the study was sent")
    assert found["proof"] == "commitment"
    assert pacs.holds(drafted.draft_uid)


def test_what_orthanc_lost_is_sent_again_until_it_commits(
    send: Send, pacs: Orthanc, node: RunningNode
) -> None:
    pacs.lose(True)
    drafted = send()
    told = "orthanc does not commit to it: 0x0112 no such object instance"
    wait_for("Orthanc's failure", SECONDS, lambda: told in drafted.reasons or None)
    assert drafted.delivery("orthanc")["state"] != "delivered"
    assert not pacs.holds(drafted.draft_uid)
    pacs.lose(False)
    assert drafted.wait("orthanc", "delivered")["proof"] == "commitment"
    assert pacs.holds(drafted.draft_uid)


def test_a_report_that_comes_after_kill_9_finds_its_transaction(
    send: Send, late: CommitmentPacs, node: RunningNode, say: Callable[[str], None]
) -> None:
    drafted = send()
    drafted.wait("late", "sent")
    request = requested(late, drafted)
    node.kill("everything")
    wait_for("it listens again", START_SECONDS, lambda: report(late, request))
    assert drafted.wait("late", "delivered")["proof"] == "commitment"
    say("the transaction outlived kill -9 of all processes, its report was taken after it")


@pytest.mark.slow  # tests/worker/test_committing.py has the short form, without processes
def test_a_peer_that_never_reports_is_asked_again_and_never_believed(
    send: Send, late: CommitmentPacs, node: RunningNode, say: Callable[[str], None]
) -> None:
    drafted = send()
    drafted.wait("late", "sent")
    wait_for("a second request", SECONDS, lambda: len(requests(late, drafted)) > 1 or None)
    assert late.stored[drafted.draft_uid]
    assert drafted.delivery("late")["state"] in ("sent", "sending")
    make_overdue(node, drafted)
    found = drafted.wait("late", "failed")
    say(f"the alarm: {found['reason']}")
    assert "has not committed to it for 24 hours: let late send its" in str(found["reason"])
    assert "deliveries" in [one["code"] for one in node.status()["problems"]]
    assert late.call(requested(late, drafted), calling=LATE) == 0x0000  # the very first
    assert drafted.wait("late", "delivered")["proof"] == "commitment"


def test_nobody_else_may_report(send: Send, late: CommitmentPacs, pacs: Orthanc) -> None:
    drafted = send()
    drafted.wait("late", "sent")
    request = requested(late, drafted)
    assert late.call(request, calling=Orthanc.title) == 0x0115
    assert late.call(request, calling="STRANGER") is None
    assert drafted.delivery("late")["state"] in ("sent", "sending")
    assert late.call(request, calling=LATE) == 0x0000
    assert late.call(request, calling=LATE) == 0x0000  # as after an answer that was lost
    drafted.wait("late", "delivered")


def report(late: CommitmentPacs, request: Dataset) -> bool | None:
    """As a PACS does that tries again; ``None``: not taken yet."""
    return True if late.call(request, calling=LATE) == 0x0000 else None


def requests(late: CommitmentPacs, drafted: Drafted) -> list[Dataset]:
    """Those on that draft."""
    return [
        one
        for one in late.requests
        if one.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == drafted.draft_uid
    ]


def requested(late: CommitmentPacs, drafted: Drafted) -> Dataset:
    """The first of them, once it has come."""
    return wait_for("a request", SECONDS, lambda: next(iter(requests(late, drafted)), None))


def make_overdue(node: RunningNode, drafted: Drafted) -> None:
    """As if the draft had waited for longer than [jobs] give_up_hours."""
    with node.database.transaction() as connection:
        connection.execute(
            sa.update(db.delivery)
            .where(db.delivery.c.draft_uid == drafted.draft_uid, db.delivery.c.peer == "late")
            .values(created_at=sa.func.now() - sa.text("interval '25 hours'"))
        )


# -- the node is asked -----------------------------------------------------------------------------


def phantom(folder: Path, index: int) -> Sent:
    (sent,) = phantoms.make(folder, index, phantoms.drawn(index))
    return sent


def test_orthanc_asks_for_what_it_sent(pacs: Orthanc, node: RunningNode, tmp_path: Path) -> None:
    sent = phantom(tmp_path, 1)
    found = pacs.outcome(pacs.send(sent.path))
    assert found["Status"] == "Success"
    assert [one["SOPInstanceUID"] for one in found["Success"]] == [sent.sop_instance_uid]


def test_orthanc_learns_which_instance_is_not_here(
    pacs: Orthanc, node: RunningNode, tmp_path: Path
) -> None:
    sent = phantom(tmp_path, 2)
    pacs.outcome(pacs.send(sent.path))
    unknown = generate_uid()
    references = [(DIGITAL_X_RAY, sent.sop_instance_uid), (DIGITAL_X_RAY, unknown)]
    found = pacs.outcome(pacs.ask(references))
    assert found["Status"] == "Failure"
    assert [one["SOPInstanceUID"] for one in found["Success"]] == [sent.sop_instance_uid]
    (failed,) = found["Failures"]
    assert (failed["SOPInstanceUID"], failed["FailureReason"]) == (unknown, 0x0112)


def test_pynetdicom_learns_of_each_instance_what_became_of_it(
    requestor: Requestor, node: RunningNode, tmp_path: Path
) -> None:
    sent, unknown, transaction = phantom(tmp_path, 3), generate_uid(), generate_uid()
    (outcome,) = scu.send_files([sent.path], node.peer, MODALITY)
    assert outcome.failure is None
    secondary_capture = "1.2.840.10008.5.1.4.1.1.7"
    references = [
        (DIGITAL_X_RAY, sent.sop_instance_uid),
        (DIGITAL_X_RAY, unknown),
        (secondary_capture, sent.sop_instance_uid),
    ]
    for _ in range(2):  # the second is the same one once more
        with association(node.peer.port, PUSH_MODEL, calling=REQUESTOR) as opened:
            assert ask(opened, action(transaction, references)) == 0x0000
    assert requestor.came.wait(SECONDS)
    ((event_type, told),) = [
        one for one in requestor.reports if one[1].TransactionUID == transaction
    ]
    assert event_type == 2
    safe = [one.ReferencedSOPInstanceUID for one in told.ReferencedSOPSequence]
    assert safe == [sent.sop_instance_uid]
    reasons = {one.ReferencedSOPInstanceUID: one.FailureReason for one in told.FailedSOPSequence}
    assert reasons == {unknown: 0x0112, sent.sop_instance_uid: 0x0119}


def test_a_stranger_may_not_ask(node: RunningNode) -> None:
    asking = associate(node.peer.port, PUSH_MODEL, calling="STRANGER")
    assert asking.is_rejected
    with association(node.peer.port, PUSH_MODEL, calling=LATE) as opened:  # a destination only
        assert ask(opened, action(generate_uid(), [(DIGITAL_X_RAY, "1.2.3")])) == 0x0124
