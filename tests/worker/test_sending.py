"""What a destination gets that does not take the draft as it is, and what `status` says of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
import sqlalchemy as sa
from pydicom import Dataset
from pydicom.uid import (
    BasicTextSRStorage,
    ComprehensiveSRStorage,
    EncapsulatedPDFStorage,
    EnhancedSRStorage,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from dicom_node import db, status
from dicom_node.account import Account
from dicom_node.config import Results
from dicom_node.db import Database
from dicom_node.errors import PeerError
from tests.pacs import Pacs
from tests.worker.conftest import open_node
from tests.worker.study import Study
from worker import tasks
from worker.host import ModelHost
from worker.tasks import Context

ALL = (
    *(BasicTextSRStorage, EnhancedSRStorage, ComprehensiveSRStorage),
    *(EncapsulatedPDFStorage, SecondaryCaptureImageStorage),
)


class Outbox:
    """A study of a node whose only destination is one PACS."""

    def __init__(
        self, database: Database, data: Path, host: ModelHost, pacs: Pacs, results: Results
    ) -> None:
        node = open_node(database, data, pacs.peer(), results=results)
        self.context = Context(node=node, name="test", host=host)
        self.study = Study(node=node)

    def read(self, **image: object) -> None:
        self.study.receive(**image)  # type: ignore[arg-type]
        tasks.analyse(self.context, self.study.queue())

    def deliver(self) -> None:
        """Send all that is on its way, even what should wait a little."""
        with self.context.database.transaction() as connection:
            connection.execute(sa.update(db.delivery).values(due_at=sa.func.now()))
        for one in self.study.account.deliveries:
            tasks.deliver(self.context, one.id)

    @property
    def account(self) -> Account:
        return self.study.account

    @property
    def said(self) -> status.Status:
        """What `status` says."""
        return status.snapshot(self.context.database, self.context.node.settings)


class Senders:
    """Makes outboxes; their PACS stop with the test."""

    def __init__(self, database: Database, data: Path, host: ModelHost) -> None:
        self._database, self._data, self._host = database, data, host
        self.pacs: list[Pacs] = []

    def __call__(self, pacs: Pacs, **results: object) -> Outbox:
        self.pacs.append(pacs)
        settings = Results.model_validate(results)
        return Outbox(self._database, self._data, self._host, pacs, settings)


@pytest.fixture
def senders(database: Database, tmp_path: Path, host: ModelHost) -> Iterator[Senders]:
    made = Senders(database, tmp_path, host)
    yield made
    for pacs in made.pacs:
        pacs.stop()


def arrived(pacs: Pacs) -> list[Dataset]:
    """What the PACS has, as it was sent."""
    return [pydicom.dcmread(BytesIO(data), force=True) for data in pacs.received.values()]


def codes(problems: object) -> list[str]:
    return [one.code for one in problems]  # type: ignore[attr-defined]


@pytest.mark.parametrize("sop_class", ALL, ids=lambda uid: pydicom.uid.UID(uid).name)
def test_a_peer_gets_the_draft_in_the_one_class_that_it_takes(
    senders: Senders, sop_class: str
) -> None:
    pacs = Pacs(takes=[sop_class])
    outbox = senders(pacs)
    outbox.read()
    outbox.deliver()
    (got,) = arrived(pacs)
    assert got.SOPClassUID == sop_class
    (delivery,) = outbox.account.deliveries
    assert (delivery.state, delivery.sent_uid) == ("delivered", got.SOPInstanceUID)
    (draft,) = outbox.account.drafts
    assert delivery.draft_uid == draft.sop_instance_uid
    changed = sop_class != BasicTextSRStorage
    assert (got.SOPInstanceUID != draft.sop_instance_uid) == changed
    assert ("sent as" in (delivery.reason or "")) is False  # the last word is: delivered
    assert ("fallback" in codes(outbox.said.warnings)) == changed
    assert "unsupported" not in codes(outbox.said.problems)


def test_the_history_says_why_another_class_was_sent(senders: Senders) -> None:
    outbox = senders(Pacs(takes=[EnhancedSRStorage]))
    outbox.read()
    outbox.deliver()
    reasons = [one.reason for one in outbox.account.events if one.reason]
    told = "sent as Enhanced SR Storage: the peer takes no Basic Text SR Storage"
    assert told in reasons
    (warning,) = [one for one in outbox.said.warnings if one.code == "fallback"]
    assert warning.text.startswith("pacs got 1 drafts as Enhanced SR Storage")


def test_a_peer_that_takes_nothing_is_asked_again_and_shown(senders: Senders) -> None:
    pacs = Pacs(takes=[])
    outbox = senders(pacs)
    outbox.read()
    outbox.deliver()
    outbox.deliver()
    (delivery,) = outbox.account.deliveries
    assert (delivery.state, delivery.attempts) == ("due", 2)
    assert delivery.reason is not None
    assert delivery.reason.startswith("peer.unsupported: pacs takes none of: Basic Text SR")
    assert delivery.reason.endswith("Secondary Capture Image Storage")
    (problem,) = [one for one in outbox.said.problems if one.code == "unsupported"]
    assert problem.text == "1 drafts wait: pacs takes no kind of object that we may send"
    assert pacs.received == {}


def test_what_waited_goes_when_the_peer_takes_it(senders: Senders) -> None:
    closed, opened = Pacs(takes=[]), Pacs(takes=ALL)
    outbox = senders(closed)
    outbox.read()
    outbox.deliver()
    again = senders(opened)
    again.deliver()
    (got,) = arrived(opened)
    assert got.SOPClassUID == BasicTextSRStorage
    assert outbox.account.deliveries[0].state == "delivered"
    assert "unsupported" not in codes(again.said.problems)


def test_a_site_may_want_no_page_in_place_of_a_report(senders: Senders) -> None:
    pacs = Pacs(takes=[EncapsulatedPDFStorage, SecondaryCaptureImageStorage])
    outbox = senders(pacs, fallback=[])
    outbox.read()
    outbox.deliver()
    assert outbox.account.deliveries[0].state == "due"
    assert pacs.received == {}


def test_a_peer_that_knows_only_the_default_transfer_syntax_gets_the_draft(
    senders: Senders,
) -> None:
    pacs = Pacs(transfer_syntaxes=[ImplicitVRLittleEndian])
    outbox = senders(pacs)
    outbox.read()
    outbox.deliver()
    (data,) = pacs.received.values()
    got = pydicom.dcmread(BytesIO(data), force=True)  # without file meta: Implicit VR
    assert got.SOPClassUID == BasicTextSRStorage
    kept = outbox.study.node.storage.path(outbox.account.drafts[0].path)
    assert got.to_json_dict() == pydicom.dcmread(kept).to_json_dict()


@pytest.mark.parametrize("takes", [ALL, [EnhancedSRStorage], [EncapsulatedPDFStorage]])
def test_ten_deliveries_send_the_same_bytes(senders: Senders, takes: list[str]) -> None:
    pacs = Pacs(takes=takes)
    outbox = senders(pacs)
    outbox.read()
    sent = set()
    for _ in range(10):
        outbox.deliver()
        sent.add(tuple(pacs.received.items()))
        with outbox.context.database.transaction() as connection:
            connection.execute(sa.update(db.delivery).values(state="due", sent_at=None))
    assert pacs.stores == 10
    assert len(sent) == 1
    assert len(outbox.account.alternatives) == (0 if takes == ALL else len(others(takes)))


def others(takes: list[str]) -> list[str]:
    """The classes that were tried after Basic Text SR, up to the one the peer takes."""
    return list(ALL[1 : ALL.index(takes[0]) + 1])


def test_the_next_version_replaces_what_the_peer_really_has(senders: Senders) -> None:
    pacs = Pacs(takes=[EnhancedSRStorage])
    outbox = senders(pacs)
    outbox.read(view_position="AP")
    outbox.deliver()
    outbox.read(seed=2, view_position="PA")
    outbox.deliver()
    first, second = arrived(pacs)
    study = second.PredecessorDocumentsSequence[0]
    (named,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert named.ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert named.ReferencedSOPClassUID == EnhancedSRStorage
    assert second.SeriesInstanceUID != first.SeriesInstanceUID


def test_every_kind_that_the_site_wants_goes_to_the_peer(senders: Senders) -> None:
    pacs = Pacs(takes=(*ALL, pydicom.uid.Comprehensive3DSRStorage))
    outbox = senders(pacs, coded_sr=True, pdf=True, capture=True)
    outbox.read()
    outbox.deliver()
    kinds = [one.kind for one in outbox.account.drafts]
    assert [one.state for one in outbox.account.deliveries] == ["delivered"] * len(kinds)
    classes = sorted(str(one.SOPClassUID) for one in arrived(pacs))
    assert classes == sorted(one.sop_class_uid for one in outbox.account.drafts)


# -- the peer's circuit ----------------------------------------------------------------------------

EVERYTHING = {"coded_sr": True, "pdf": True, "capture": True}
TAKES = (*ALL, pydicom.uid.Comprehensive3DSRStorage)
BUSY, REFUSED = 0xA700, 0xC000  # PS3.4 Table B.2-1


def wait_is_over(outbox: Outbox) -> None:
    with outbox.context.database.transaction() as connection:
        connection.execute(sa.update(db.circuit).values(open_until=sa.func.now()))


def states(outbox: Outbox) -> list[str]:
    return [one.state for one in outbox.account.deliveries]


def test_a_peer_that_fails_in_a_row_is_left_alone_then_tried_once_then_gets_all(
    senders: Senders,
) -> None:
    pacs = Pacs(takes=TAKES)
    pacs.answers = [BUSY] * 4
    outbox = senders(pacs, **EVERYTHING)
    outbox.read()
    outbox.deliver()
    outbox.deliver()
    assert pacs.stores == 3
    assert sum(one.attempts for one in outbox.account.deliveries) == 3
    (problem,) = [one for one in outbox.said.problems if one.code == "circuit"]
    assert problem.text.startswith("4 drafts wait for pacs, which fails since ")
    assert "peer" not in codes(outbox.said.problems)
    wait_is_over(outbox)
    outbox.deliver()
    assert pacs.stores == 4
    wait_is_over(outbox)
    outbox.deliver()
    assert states(outbox) == ["delivered"] * 4
    assert outbox.said.circuits == []


def test_objects_that_are_refused_for_good_do_not_hold_up_the_others(senders: Senders) -> None:
    pacs = Pacs(takes=TAKES)
    pacs.answers = [REFUSED] * 3
    outbox = senders(pacs, **EVERYTHING)
    outbox.read()
    outbox.deliver()
    assert sorted(states(outbox)) == ["delivered", "failed", "failed", "failed"]
    assert outbox.said.circuits == []


def test_a_peer_that_can_not_be_asked_still_gets_what_it_takes(
    senders: Senders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: object, reference: object) -> bool:
        raise PeerError("pacs can't be reached")

    monkeypatch.setattr("dicom_node.scu.DicomPeer.prove", away)
    pacs = Pacs(takes=TAKES)
    outbox = senders(pacs, **EVERYTHING)
    outbox.read()
    outbox.deliver()
    assert (pacs.stores, states(outbox)) == (4, ["due"] * 4)
    unproven = "the peer answered success, and can't be asked for it: pacs can't be reached"
    assert {one.reason for one in outbox.account.deliveries} == {f"peer.unproven: {unproven}"}
    assert outbox.said.circuits == []
    monkeypatch.undo()
    outbox.deliver()
    assert (pacs.stores, states(outbox)) == (4, ["delivered"] * 4)


def test_when_a_peer_was_away_too_long_all_that_waited_as_long_is_given_up(
    senders: Senders,
) -> None:
    pacs = Pacs(takes=TAKES)
    pacs.answers = [BUSY] * 4
    outbox = senders(pacs, **EVERYTHING)
    outbox.read()
    outbox.deliver()
    with outbox.context.database.transaction() as connection:
        two_days = timedelta(days=2)
        connection.execute(
            sa.update(db.delivery).values(created_at=db.delivery.c.created_at - two_days)
        )
    wait_is_over(outbox)
    outbox.deliver()
    assert (pacs.stores, states(outbox)) == (4, ["failed"] * 4)
    assert all("0xA700" in str(one.reason) for one in outbox.account.deliveries)
    assert "deliveries" in codes(outbox.said.problems)
