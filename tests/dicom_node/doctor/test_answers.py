"""What a peer's answers mean: each has words for people, and one line that mends it."""

from __future__ import annotations

import pytest

from dicom_node.config import Peer, Settings
from dicom_node.doctor import answers
from dicom_node.doctor.checks import Fault
from dicom_node.doctor.negotiation import Answer, Kind

PACS = Peer(name="pacs", ae_title="PACS", host=("10.0.0.5",), roles=("destination",))
OURS = "AE title DICOMNODE at 10.0.0.1"


def fault(kind: Kind, *codes: int, by_tls: bool = False) -> Fault:
    answer = Answer(kind=kind, codes=codes)
    return answers.no_association(answer, Settings(), PACS, our_address="10.0.0.1", by_tls=by_tls)


@pytest.mark.parametrize(
    ("codes", "text", "fix"),
    [
        (
            (1, 1, 3),
            "does not know our calling AE title DICOMNODE",
            f"at the peer: register {OURS}",
        ),
        ((1, 1, 7), "PACS is not its AE title", "peer pacs: ae_title = "),
        ((1, 1, 1), "rejected the association for good without a reason", OURS),
        ((1, 1, 2), "application context name not supported", "peer pacs: port = "),
        ((1, 2, 2), "protocol version not supported", "peer pacs: port = "),
        ((2, 3, 1), "for now: it is full, temporary congestion", "at the peer: allow more"),
        ((2, 3, 2), "for now: it is full, local limit exceeded", "at the peer: allow more"),
        ((9, 9, 9), "with result 9", OURS),
    ],
)
def test_each_rejection_says_who_refused_whom_and_why(
    codes: tuple[int, ...], text: str, fix: str
) -> None:
    found = fault(Kind.REJECTED, *codes)
    assert text in str(found)
    assert "/".join(map(str, codes)) in str(found)
    assert fix in found.fix


@pytest.mark.parametrize(
    ("kind", "codes", "text"),
    [
        (Kind.ABORTED, (2, 1), "aborted the association by its upper layer, reason 1"),
        (Kind.ABORTED, (0, 0), "aborted the association by its application, reason 0"),
        (Kind.CLOSED, (), "closed the connection without an answer"),
        (Kind.SILENT, (), "does not answer our association request"),
    ],
)
def test_what_a_peer_does_not_explain_leads_to_its_log_with_what_it_must_know(
    kind: Kind, codes: tuple[int, ...], text: str
) -> None:
    found = fault(kind, *codes)
    assert text in str(found)
    assert found.fix.startswith("the peer's log says why")
    assert OURS in found.fix


def test_a_server_that_listens_by_tls_is_named_whatever_it_answered() -> None:
    for found in (fault(Kind.TLS), fault(Kind.CLOSED, by_tls=True)):
        assert str(found) == "port 104 speaks TLS, and we call it without"


@pytest.mark.parametrize(
    ("status", "fix"),
    [
        (0xA700, "it is full"),
        (0xA702, "it is full"),
        (0xA900, "accept this SOP class from DICOMNODE"),
        (0x0122, "accept this SOP class from DICOMNODE"),
        (0x0124, "allow DICOMNODE to store"),
        (0xC123, "what it does not understand"),
        (0x0110, "the peer's log says why"),
        (None, "the peer's log says why"),
    ],
)
def test_each_status_of_a_store_has_its_fix(status: int | None, fix: str) -> None:
    assert fix in answers.not_stored("it answered", status, Settings()).fix
