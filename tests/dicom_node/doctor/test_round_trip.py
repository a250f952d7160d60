"""Store and prove: the marked object goes where a draft goes, and says what becomes of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from pydicom.uid import EnhancedSRStorage

from dicom_node import commitments
from dicom_node.commitments import Item, Report
from dicom_node.config import Jobs, Peer, Settings
from dicom_node.db import Database
from dicom_node.doctor.checks import Fault, Finding, NotTried
from dicom_node.doctor.round_trip import Call, RoundTrip
from tests.commitment_pacs import CommitmentPacs
from tests.pacs import Pacs
from worker import records


def trip(peer: Peer, database: Database | None = None, *, store: bool = True) -> RoundTrip:
    return RoundTrip(
        Call(
            settings=Settings(),
            database=database,
            peer=peer,
            classes=records.classes,
            store=store,
            patience=2,
        )
    )


def test_nothing_is_stored_unasked(peer_scp: Pacs) -> None:
    with pytest.raises(NotTried, match="--store"):
        trip(peer_scp.peer(), store=False).store()
    assert peer_scp.stores == 0


def test_a_shadow_gets_nothing(peer_scp: Pacs) -> None:
    with pytest.raises(NotTried, match="shadow"):
        trip(peer_scp.peer(mode="shadow")).store()
    assert peer_scp.stores == 0


def test_it_is_stored_as_a_class_that_the_peer_takes() -> None:
    pacs = Pacs(takes=[EnhancedSRStorage])
    try:
        found = trip(pacs.peer()).store([EnhancedSRStorage])
    finally:
        pacs.stop()
    assert found == Finding(text="stored with status 0x0000; delete patient DICOM-NODE-TEST there")
    assert len(pacs.received) == 1


def test_a_peer_without_text_srs_is_not_sent_it(peer_scp: Pacs) -> None:
    with pytest.raises(NotTried, match="it takes no text SR"):
        trip(peer_scp.peer()).store(["1.2.3"])


def test_a_warning_is_a_note(peer_scp: Pacs) -> None:
    peer_scp.answers = [0xB000]
    found = trip(peer_scp.peer()).store()
    assert "0xB000" in found.text
    assert found.fix == "the peer's log says what it changed"


def test_a_refusal_is_a_fault_by_its_status(peer_scp: Pacs) -> None:
    peer_scp.answers = [0xA700]
    with pytest.raises(Fault, match="0xA700") as caught:
        trip(peer_scp.peer()).store()
    assert "it is full" in caught.value.fix


def test_a_peer_whose_success_counts_needs_no_proof(peer_scp: Pacs) -> None:
    with pytest.raises(NotTried, match='proof = "none"'):
        trip(peer_scp.peer()).prove()


def test_without_an_object_nothing_is_proven(peer_scp: Pacs) -> None:
    with pytest.raises(NotTried, match="to be stored first"):
        trip(peer_scp.peer(proof="find")).prove()


def test_what_is_listed_is_proven_even_if_it_takes_a_while(peer_scp: Pacs) -> None:
    made = trip(peer_scp.peer(proof="find"))
    made.store()
    peer_scp.lists = False
    timer = threading.Timer(0.6, setattr, [peer_scp, "lists", True])
    timer.start()
    assert made.prove().text.startswith("it lists the test object")
    timer.join()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # pynetdicom's
def test_a_peer_that_can_t_be_asked_is_a_fault(peer_scp: Pacs) -> None:
    made = trip(peer_scp.peer(proof="find"))
    made.store()
    peer_scp.stop()
    with pytest.raises(Fault) as caught:
        made.prove()
    assert caught.value.fix == "at the peer: let DICOMNODE query"


# -- storage commitment ----------------------------------------------------------------------------


@pytest.fixture
def committing() -> Iterator[CommitmentPacs]:
    pacs = CommitmentPacs()
    try:
        yield pacs
    finally:
        pacs.stop()


def test_a_report_on_the_same_association_is_the_proof(
    committing: CommitmentPacs, database: Database
) -> None:
    for known in (None, database):
        made = trip(committing.peer(), known)
        made.store()
        assert made.prove().text.startswith("it commits to the test object")
    assert committing.answers == [0x0000, 0x0000]


def test_a_report_that_the_running_node_took_is_the_proof(
    committing: CommitmentPacs, database: Database
) -> None:
    committing.where = "never"
    made = trip(committing.peer(), database)
    made.store()

    def take() -> None:
        (request,) = committing.requests
        (item,) = request.ReferencedSOPSequence
        kept = Item(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID)
        report = Report(transaction_uid=request.TransactionUID, committed=(kept,))
        with database.transaction() as connection:
            commitments.take(connection, report, ["pacs"], Jobs().back_off)

    timer = threading.Timer(0.5, take)
    committing.while_asked = timer.start
    assert made.prove().text.startswith("it commits to the test object")
    timer.join()


def test_a_report_that_it_is_not_kept_is_a_fault(committing: CommitmentPacs) -> None:
    committing.reason = 0x0110
    made = trip(committing.peer())
    made.store()
    with pytest.raises(Fault, match="does not commit to the object: 0x0110 processing failure"):
        made.prove()


def test_silence_is_a_note_that_says_whom_it_must_call(
    committing: CommitmentPacs, database: Database
) -> None:
    committing.where = "never"
    made = trip(committing.peer(), database)
    made.store()
    found = made.prove()
    assert found.text.startswith("it took the request and did not report within 2 s")
    assert "to DICOMNODE, port 11112, on this machine" in found.fix


def test_a_request_that_is_refused_is_a_fault(committing: CommitmentPacs) -> None:
    committing.status = 0x0110
    made = trip(committing.peer())
    made.store()
    with pytest.raises(Fault, match="answered N-ACTION with 0x0110") as caught:
        made.prove()
    assert caught.value.fix.endswith('peer pacs: proof = "find"')
