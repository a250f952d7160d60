"""Storage commitment on associations that we ask for (PS3.4 J.3): we request, and we report.

A report on what we requested may come on the same association, or on one that the peer asks for:
``scp`` takes those.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.presentation import PresentationContext

from dicom_node import commitment_information as information
from dicom_node import commitment_service, dimse
from dicom_node.commitment_information import PUSH_MODEL, PUSH_MODEL_INSTANCE
from dicom_node.commitment_service import Books
from dicom_node.commitments import Report, Request
from dicom_node.dimse import Command
from dicom_node.errors import NotSupported, PeerError, PeerRefused
from dicom_node.scu import DicomPeer

#: Seconds that a report is waited for on the association of its request.
PATIENCE = 2.0
_LOOK = 0.1  # seconds between two looks whether it came on another one

_SUCCESS = 0x0000
_CLASS_UNKNOWN = (0x0118, 0x0122)  # PS3.7 C.5.15 no such SOP class, C.5.6 not supported

_NO_COMMITMENT = 'has no storage commitment: set proof = "find" or "none"'


def request(
    peer: DicomPeer,
    asked: Request,
    books: Books,
    answered: Callable[[], bool],
    *,
    accepted: Callable[[], None] = lambda: None,
    patience: float = PATIENCE,
) -> None:
    """Ask a peer to commit (N-ACTION), and wait a moment for its report.

    Parameters
    ----------
    books
        Take a report that comes on this association.
    answered
        Has one come, here or elsewhere? Asked until it is true, or patience ends.
    accepted
        Called when the peer has taken the request.
    patience
        Seconds.

    Raises
    ------
    PeerRefused
        The peer has no storage commitment.
    PeerError
        It did not take the request.
    """
    came, taken = threading.Event(), threading.Event()

    def take(event: evt.Event) -> tuple[int, None]:
        came.set()
        return _answer(event, books), None

    def sent(event: evt.Event) -> None:
        if came.is_set():  # then it is our answer to the report
            taken.set()

    handlers: list[evt.EventHandlerType] = [
        (evt.EVT_N_EVENT_REPORT, take),
        (evt.EVT_PDU_SENT, sent),
    ]
    try:
        with peer.association([_context()], handlers=handlers) as association:
            _request(peer, association, asked)
            accepted()
            # Released before our answer has gone, the association would break under it.
            _wait(association, taken, lambda: answered() and not came.is_set(), patience)
    except NotSupported as error:
        raise PeerRefused(f"{peer.who} {_NO_COMMITMENT}", status=error.status) from error


def report(peer: DicomPeer, told: Report) -> None:
    """Tell a peer what became of its request (N-EVENT-REPORT); we propose to be the SCP.

    A peer that says nothing of roles is told all the same: many take it.

    Raises
    ------
    PeerError
        It did not take the report.
    """
    event_type, event_information = information.event_information(told)
    roles = [build_role(PUSH_MODEL, scp_role=True)]  # PS3.7 D.3.3.4
    with peer.association([_context()], roles=roles) as association:
        started = time.monotonic()
        try:
            answer, _ = association.send_n_event_report(
                event_information, event_type, PUSH_MODEL, PUSH_MODEL_INSTANCE
            )
        except RuntimeError as error:
            raise _gone(peer) from error
        status = peer.status(association, answer, started)
    if status != _SUCCESS:
        raise PeerError(f"{peer.who} answered N-EVENT-REPORT with 0x{status:04X}", status=status)


def _context() -> PresentationContext:
    syntaxes: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
    return build_context(PUSH_MODEL, syntaxes)


def _request(peer: DicomPeer, association: Association, asked: Request) -> None:
    started = time.monotonic()
    try:
        answer, _ = association.send_n_action(
            information.action_information(asked),
            information.REQUEST_COMMITMENT,
            PUSH_MODEL,
            PUSH_MODEL_INSTANCE,
        )
    except RuntimeError as error:
        raise _gone(peer) from error
    status = peer.status(association, answer, started)
    if status in _CLASS_UNKNOWN:
        raise PeerRefused(f"{peer.who} {_NO_COMMITMENT} (0x{status:04X})", status=status)
    if status != _SUCCESS:
        raise PeerError(f"{peer.who} answered N-ACTION with 0x{status:04X}", status=status)


def _gone(peer: DicomPeer) -> PeerError:
    return PeerError(f"{peer.who} ended the association")


def _wait(
    association: Association,
    taken: threading.Event,
    answered: Callable[[], bool],
    patience: float,
) -> None:
    until = time.monotonic() + patience
    while time.monotonic() < until and association.is_established:
        if taken.wait(_LOOK) or answered():
            return


def _answer(event: evt.Event, books: Books) -> int:
    """The border is that of messages over our own port."""
    asked = event.request
    assert isinstance(asked, N_EVENT_REPORT)
    command = Command(
        context_id=event.context.context_id,
        command_field=dimse.N_EVENT_REPORT_RQ,
        message_id=asked.MessageID or 0,
        has_data_set=asked.EventInformation is not None,
        affected_sop_class_uid=str(asked.AffectedSOPClassUID or ""),
        affected_sop_instance_uid=str(asked.AffectedSOPInstanceUID or ""),
        type_id=asked.EventTypeID,
    )
    encoded = asked.EventInformation.getvalue() if asked.EventInformation else b""
    return commitment_service.answer(command, encoded, UID(event.context.transfer_syntax), books)
