"""What we ask of another implementation (pynetdicom's), and what we report to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from pynetdicom import AE, evt

from dicom_node import commitment_calls
from dicom_node.commitments import InvalidArgument, Item, Report, Request
from dicom_node.config import Peer
from dicom_node.errors import NodeError, OutOfResources, PeerError, PeerRefused
from dicom_node.scu import DicomPeer, Timeouts
from tests.commitment_pacs import PUSH_MODEL, CommitmentPacs, Requestor
from tests.dicom_node.network import Commitments

# pynetdicom drops sockets unclosed where a connection is refused or cut.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

BASIC_TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"
ONE, OTHER = Item(BASIC_TEXT_SR, "1.2.3"), Item(BASIC_TEXT_SR, "1.2.4")
REQUEST = Request(transaction_uid="2.25.17", references=(ONE,))
LONG = 30.0  # seconds; only a fault reaches them


def called(peer: Peer, **timeouts: float) -> DicomPeer:
    return DicomPeer(peer, "DICOMNODE", Timeouts(**{"answer": 10, "connect": 5, **timeouts}))


Open = Callable[..., CommitmentPacs]


@pytest.fixture
def pacs() -> Iterator[Open]:
    """``pacs(where, commits=)``: one that stops with the test, and has the object."""
    opened: list[CommitmentPacs] = []

    def make(*arguments: object, **options: object) -> CommitmentPacs:
        made = CommitmentPacs(*arguments, **options)  # type: ignore[arg-type]
        made.stored[ONE.sop_instance_uid] = ONE.sop_class_uid
        opened.append(made)
        return made

    yield make
    for one in opened:
        one.stop()


def never() -> bool:
    return False


# -- asking ----------------------------------------------------------------------------------------


def test_a_report_on_the_same_association_is_taken(pacs: Open) -> None:
    answering, books = pacs("here"), Commitments()
    told: list[str] = []
    commitment_calls.request(
        called(answering.peer()),
        REQUEST,
        books,
        never,
        accepted=lambda: told.append("accepted"),
        patience=LONG,
    )
    answering.stop()
    assert books.reports == [Report(transaction_uid="2.25.17", committed=(ONE,))]
    assert answering.answers == [0x0000]
    assert told == ["accepted"]


def test_what_the_peer_does_not_have_is_told_by_name_and_reason(pacs: Open) -> None:
    answering, books = pacs("here"), Commitments()
    both = Request(transaction_uid="2.25.17", references=(ONE, OTHER))
    commitment_calls.request(called(answering.peer()), both, books, never, patience=LONG)
    (report,) = books.reports
    assert (report.committed, report.failed) == ((ONE,), {OTHER: 0x0112})


@pytest.mark.parametrize(
    ("fault", "status"),
    [(InvalidArgument("unknown"), 0x0115), (OutOfResources("database"), 0x0213)],
)
def test_a_report_that_can_not_be_kept_is_not_acknowledged(
    pacs: Open, fault: NodeError, status: int
) -> None:
    answering, books = pacs("here"), Commitments(fault=fault)
    commitment_calls.request(called(answering.peer()), REQUEST, books, never, patience=LONG)
    answering.stop()
    assert answering.answers == [status]


def test_a_report_that_came_elsewhere_ends_the_wait(pacs: Open) -> None:
    silent = pacs("never")
    began = time.monotonic()
    commitment_calls.request(
        called(silent.peer()), REQUEST, Commitments(), lambda: True, patience=LONG
    )
    assert time.monotonic() - began < LONG


def test_the_association_is_released_when_no_report_comes(pacs: Open) -> None:
    silent, books = pacs("never"), Commitments()
    commitment_calls.request(called(silent.peer()), REQUEST, books, never, patience=0.2)
    assert len(silent.requests) == 1
    assert books.reports == []


def test_a_peer_without_storage_commitment_is_named_with_the_remedy(pacs: Open) -> None:
    storing = pacs(commits=False)
    with pytest.raises(PeerRefused) as raised:
        commitment_calls.request(called(storing.peer()), REQUEST, Commitments(), never)
    assert "has no storage commitment: set proof" in str(raised.value)


@pytest.mark.parametrize("status", [0x0118, 0x0122])
def test_a_peer_that_denies_the_class_by_status_is_named_too(pacs: Open, status: int) -> None:
    denying = pacs()
    denying.status = status
    with pytest.raises(PeerRefused) as raised:
        commitment_calls.request(called(denying.peer()), REQUEST, Commitments(), never)
    assert raised.value.status == status


@pytest.mark.parametrize("status", [0x0110, 0x0112, 0x0124, 0x0211, 0x0213, 0xC000])
def test_any_other_failure_may_be_tried_again(pacs: Open, status: int) -> None:
    failing, told = pacs(), list[str]()
    failing.status = status
    with pytest.raises(PeerError) as raised:
        commitment_calls.request(
            called(failing.peer()),
            REQUEST,
            Commitments(),
            never,
            accepted=lambda: told.append("accepted"),
        )
    assert raised.value.retry
    assert f"answered N-ACTION with 0x{status:04X}" in str(raised.value)
    assert told == []


def test_a_peer_that_does_not_answer_is_given_up_on(pacs: Open) -> None:
    slow = pacs()
    slow.while_asked = lambda: time.sleep(2)
    with pytest.raises(PeerError) as raised:
        commitment_calls.request(called(slow.peer(), answer=0.5), REQUEST, Commitments(), never)
    assert "did not answer within 0.5 s" in str(raised.value)


def test_a_peer_that_is_away_is_a_failure_of_now() -> None:
    gone = CommitmentPacs()
    peer = gone.peer()
    gone.stop()
    with pytest.raises(PeerError) as raised:
        commitment_calls.request(called(peer), REQUEST, Commitments(), never)
    assert raised.value.retry


# -- reporting -------------------------------------------------------------------------------------


@pytest.fixture
def requestor() -> Iterator[Requestor]:
    made = Requestor()
    yield made
    made.stop()


def source(port: int) -> Peer:
    return Peer(
        name="modality", ae_title="MODALITY", host=("127.0.0.1",), port=port, roles=("source",)
    )


def test_a_source_is_told_that_all_is_safe(requestor: Requestor) -> None:
    report = Report(transaction_uid="2.25.17", committed=(ONE, OTHER))
    commitment_calls.report(called(source(requestor.port)), report)
    ((event_type, told),) = requestor.reports
    assert (event_type, told.TransactionUID) == (1, "2.25.17")
    assert len(told.ReferencedSOPSequence) == 2
    assert "FailedSOPSequence" not in told


def test_a_source_is_told_what_is_not(requestor: Requestor) -> None:
    report = Report(transaction_uid="2.25.17", committed=(ONE,), failed={OTHER: 0x0119})
    commitment_calls.report(called(source(requestor.port)), report)
    ((event_type, told),) = requestor.reports
    (failed,) = told.FailedSOPSequence
    assert (event_type, failed.ReferencedSOPInstanceUID) == (2, OTHER.sop_instance_uid)
    assert failed.FailureReason == 0x0119


def test_thousands_of_objects_are_one_report(requestor: Requestor) -> None:
    many = tuple(Item(BASIC_TEXT_SR, f"1.2.3.{number}") for number in range(3000))
    report = Report(transaction_uid="2.25.17", committed=many)
    commitment_calls.report(called(source(requestor.port)), report)
    ((_, told),) = requestor.reports
    assert len(told.ReferencedSOPSequence) == 3000


def test_a_source_that_refuses_the_report_is_named(requestor: Requestor) -> None:
    requestor.status = 0x0110
    with pytest.raises(PeerError) as raised:
        commitment_calls.report(
            called(source(requestor.port)), Report(transaction_uid="2.25.17", committed=(ONE,))
        )
    assert "answered N-EVENT-REPORT with 0x0110" in str(raised.value)


def test_a_source_that_says_nothing_of_roles_is_told_all_the_same() -> None:
    events: list[int | None] = []

    def take(event: evt.Event) -> tuple[int, None]:
        events.append(event.event_type)
        return 0x0000, None

    entity = AE("MODALITY")
    entity.add_supported_context(PUSH_MODEL)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, take)]
    )
    assert server is not None
    try:
        peer = source(int(server.server_address[1]))
        commitment_calls.report(called(peer), Report(transaction_uid="2.25.17", committed=(ONE,)))
    finally:
        server.shutdown()
    assert events == [1]
