"""What a peer's answers mean, and the one line that mends each: for people who run a PACS."""

from __future__ import annotations

from dicom_node.config import Peer, Settings
from dicom_node.doctor.checks import Fault
from dicom_node.doctor.negotiation import Answer, Kind

# PS3.8 9.3.4, Table 9-21: result, then source and diagnostic
_RESULTS = {1: "rejected the association for good", 2: "rejected the association for now"}
_CALLING, _CALLED = (1, 3), (1, 7)
_FULL = {(3, 1): "temporary congestion", (3, 2): "local limit exceeded"}
_OTHER_PROTOCOL = {
    (1, 2): "application context name not supported",
    (2, 2): "protocol version not supported",
}
_ABORTED_BY = {0: "its application", 2: "its upper layer"}  # PS3.8 9.3.8

# PS3.4 B.2.3 and PS3.7 C
_NOT_AUTHORISED = 0x0124
_SOP_CLASS_NOT_SUPPORTED = 0x0122


def no_association(
    answer: Answer, settings: Settings, peer: Peer, *, our_address: str, by_tls: bool
) -> Fault:
    """Why there is no association.

    Parameters
    ----------
    our_address
        What the peer saw us call from.
    by_tls
        Does a TLS server listen there, whom we called without?
    """
    ours = f"AE title {settings.node.ae_title} at {our_address}"
    whose = f"peer {peer.name}"
    if by_tls or answer.kind is Kind.TLS:
        text = f"port {peer.port} speaks TLS, and we call it without"
        return Fault(text, f"{whose}: tls = true (docs/tls.md), or port = the one without TLS")
    if answer.kind is Kind.REJECTED:
        return _rejected(answer, settings, peer, ours)
    if answer.kind in (Kind.HTTP, Kind.FOREIGN):
        what = "a web server" if answer.kind is Kind.HTTP else "something that is no DICOM"
        return Fault(f"{what} answers at port {peer.port}", f"{whose}: port = its DICOM port")
    said = _UNEXPLAINED[answer.kind]
    if answer.kind is Kind.ABORTED:
        source, reason = answer.codes
        said = f"{said} by {_ABORTED_BY.get(source, f'source {source}')}, reason {reason}"
    return Fault(
        f"{said} (PS3.8 9.3)",
        f"the peer's log says why; most often it lets in listed addresses and titles only: {ours}",
    )


_UNEXPLAINED = {
    Kind.ABORTED: "it aborted the association",
    Kind.CLOSED: "it closed the connection without an answer to our association request",
    Kind.SILENT: "it takes the connection and does not answer our association request",
}


def _rejected(answer: Answer, settings: Settings, peer: Peer, ours: str) -> Fault:
    result, *codes = answer.codes
    why = source, diagnostic = codes[0], codes[1]
    said = _RESULTS.get(result, f"rejected the association with result {result}")
    code = f"PS3.8 9.3.4: {result}/{source}/{diagnostic}"
    if why == _CALLING:
        return Fault(
            f"it {said}: it does not know our calling AE title {settings.node.ae_title},"
            f" or not at our address ({code})",
            f"at the peer: register {ours}, port {settings.node.port}",
        )
    if why == _CALLED:
        # dcmqrscp says the same to callers that it does not know for this title.
        return Fault(
            f"it {said}: {peer.ae_title} is not its AE title ({code})",
            f"peer {peer.name}: ae_title = the title it has at port {peer.port}, letter by letter;"
            f" if it is right, register {ours} there",
        )
    if why in _FULL:
        return Fault(
            f"it {said}: it is full, {_FULL[why]} ({code})",
            "at the peer: allow more associations at a time; what waits is sent by itself later",
        )
    if why in _OTHER_PROTOCOL:
        fix = f"peer {peer.name}: port = its DICOM port; this is another service"
        return Fault(f"it {said}: {_OTHER_PROTOCOL[why]} ({code})", fix)
    return Fault(
        f"it {said} without a reason ({code})",
        f"the peer's log says why; most often it must know {ours}",
    )


def not_stored(text: str, status: int | None, settings: Settings) -> Fault:
    """Why the test object was not stored, by the peer's DIMSE status."""
    return Fault(text, _store_fix(status, settings.node.ae_title))


def _store_fix(status: int | None, ours: str) -> str:
    if status is None:
        return "the peer's log says why"
    if status & 0xFF00 == 0xA700:
        return "at the peer: it is full (out of resources); free space, what waits is sent later"
    if status == _NOT_AUTHORISED:
        return f"at the peer: allow {ours} to store"
    if status == _SOP_CLASS_NOT_SUPPORTED or status & 0xFF00 == 0xA900:
        return f"at the peer: accept this SOP class from {ours}"
    if status & 0xF000 == 0xC000:
        return "the peer's log says what it does not understand in the object"
    return "the peer's log says why (PS3.7 C)"
