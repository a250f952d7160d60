"""One association request as it goes over the wire, and exactly what came back.

pynetdicom tells that an association did not come about; here it is told why: who rejected whom
(PS3.8 9.3.4), who aborted (9.3.8), and which transfer syntaxes each SOP class may have (9.3.3.2).
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)

from dicom_node.malformed import MALFORMED
from dicom_node.storage import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.upper_layer import PduType

#: What our objects may be sent in; each is proposed apart, so that each is answered.
TRANSFER_SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)

_APPLICATION_CONTEXT = UID("1.2.840.10008.3.1.1.1")  # PS3.7 A.2.1
_MAXIMUM_PDU = 16382
_HEADER = struct.Struct(">BxL")  # PS3.8 9.3.1
_RELEASE_RQ = struct.pack(">BxLL", PduType.RELEASE_RQ, 4, 0)  # PS3.8 9.3.6
_LONGEST = 1024 * 1024  # bytes; 128 contexts answer in about 5,000
_PARTING = 2.0  # seconds for an answer to our A-RELEASE-RQ
_TLS_RECORDS = (0x15, 0x16)  # RFC 8446 5.1: alert, handshake


class Kind(StrEnum):
    """What came back."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    ABORTED = "aborted"
    CLOSED = "closed"  #: the connection, without an answer
    SILENT = "silent"  #: nothing
    TLS = "tls"  #: a TLS record, to a request without TLS
    HTTP = "http"
    FOREIGN = "foreign"  #: no PDU that answers a request


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back to one association request."""

    kind: Kind
    codes: tuple[int, ...] = ()  #: rejected: result, source, diagnostic; aborted: source, reason
    accepted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  #: syntaxes, by SOP class
    refused: Mapping[str, int] = field(default_factory=dict)  #: result (9.3.3.2), by SOP class


def ask(
    connection: socket.socket, calling: str, called: str, wanted: Sequence[str], seconds: float
) -> Answer:
    """Request an association, and release it if there is one; the connection is used up.

    Parameters
    ----------
    connection
        To the peer, nothing said on it.
    calling, called
        AE titles.
    wanted
        SOP classes, at most 64 (PS3.8 9.3.2.2: context ids are odd and fit a byte).
    seconds
        How long to wait for the whole answer.

    Raises
    ------
    ssl.SSLError
        A verdict on our certificate that comes this late.
    """
    proposals = [(uid, syntax) for uid in wanted for syntax in TRANSFER_SYNTAXES]
    try:
        connection.settimeout(seconds)
        connection.sendall(_request(calling, called, proposals))
        answer = _read(connection, time.monotonic() + seconds, proposals)
    except TimeoutError:
        return Answer(kind=Kind.SILENT)
    except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
        return Answer(kind=Kind.CLOSED)
    if answer.kind is Kind.ACCEPTED:
        _release(connection)
    return answer


def _request(calling: str, called: str, proposals: Sequence[tuple[str, str]]) -> bytes:
    primitive = A_ASSOCIATE()
    primitive.application_context_name = _APPLICATION_CONTEXT
    primitive.calling_ae_title, primitive.called_ae_title = calling, called
    contexts = [build_context(*proposal) for proposal in proposals]
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    primitive.presentation_context_definition_list = contexts
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    version = ImplementationVersionNameNotification()
    length.maximum_length_received = _MAXIMUM_PDU
    implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    primitive.user_information = [length, implementation, version]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    encoded: bytes = pdu.encode()
    return encoded


def _read(
    connection: socket.socket, deadline: float, proposals: Sequence[tuple[str, str]]
) -> Answer:
    header = _take(connection, _HEADER.size, deadline)
    pdu_type, length = _HEADER.unpack(header)
    if header.startswith(b"HTTP/"):
        return Answer(kind=Kind.HTTP)
    if pdu_type in _TLS_RECORDS:
        return Answer(kind=Kind.TLS)
    if pdu_type not in _READERS or not 4 <= length <= _LONGEST:
        return Answer(kind=Kind.FOREIGN)
    return _READERS[pdu_type](_take(connection, length, deadline), header, proposals)


def _take(connection: socket.socket, size: int, deadline: float) -> bytes:
    taken = b""
    while len(taken) < size:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))  # 0: would not wait at all
        received = connection.recv(size - len(taken))
        if not received:
            raise ConnectionError("closed")
        taken += received
    return taken


def _accepted(body: bytes, header: bytes, proposals: Sequence[tuple[str, str]]) -> Answer:
    pdu = A_ASSOCIATE_AC()
    try:
        pdu.decode(header + body)
        results = pdu.to_primitive().presentation_context_definition_results_list
    except (*MALFORMED, AssertionError):  # pynetdicom asserts what it decodes
        return Answer(kind=Kind.FOREIGN)
    codes = {one.context_id: one.result for one in results}
    accepted: dict[str, list[str]] = defaultdict(list)
    refused: dict[str, int] = {}
    for number, (sop_class, syntax) in enumerate(proposals):
        code = codes.get(2 * number + 1)
        if code == 0:
            accepted[sop_class].append(syntax)
        elif code is not None:
            refused[sop_class] = code
    return Answer(
        kind=Kind.ACCEPTED,
        accepted={uid: tuple(syntaxes) for uid, syntaxes in accepted.items()},
        refused=refused,
    )


def _rejected(body: bytes, header: bytes, proposals: Sequence[tuple[str, str]]) -> Answer:
    return Answer(kind=Kind.REJECTED, codes=tuple(body[1:4]))  # PS3.8 9.3.4


def _aborted(body: bytes, header: bytes, proposals: Sequence[tuple[str, str]]) -> Answer:
    return Answer(kind=Kind.ABORTED, codes=tuple(body[2:4]))  # PS3.8 9.3.8


_READERS = {
    PduType.ASSOCIATE_AC: _accepted,
    PduType.ASSOCIATE_RJ: _rejected,
    PduType.ABORT: _aborted,
}


def _release(connection: socket.socket) -> None:
    """PS3.8 7.2; a peer that does not answer it is left all the same."""
    with suppress(OSError):
        connection.settimeout(_PARTING)
        connection.sendall(_RELEASE_RQ)
        connection.recv(_HEADER.size)
