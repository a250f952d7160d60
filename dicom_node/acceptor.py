"""One association that a peer asks for, from its request to its release (PS3.8 9.2, acceptor).

One thread reads, keeps and answers; it waits only in the kernel. What may be proposed and what
becomes of a data set is the business of a :class:`Service`. pynetdicom encodes and decodes the
PDUs of association control and negotiates contexts; P-DATA, where the bytes are, is read here.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor

from dicom_node import dimse
from dicom_node.associations import Reason, Refused
from dicom_node.dimse import Command, Fragment
from dicom_node.errors import NodeError, trace
from dicom_node.malformed import MALFORMED
from dicom_node.storage import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.upper_layer import (
    RELEASE_RP,
    Abort,
    Closed,
    Connection,
    PduType,
    TimedOut,
    invalid_pdu,
    out_of_place,
)

logger = logging.getLogger(__name__)

#: Bytes; PS3.8 D.1. A chest X-ray is about 100 PDUs; larger ones bring nothing (measured).
MAXIMUM_PDU_SIZE = 128 * 1024
#: Bytes of an A-ASSOCIATE-RQ: 128 contexts with 40 transfer syntaxes each are 170 KiB.
MAXIMUM_ASSOCIATE_SIZE = 1024 * 1024
#: Items and sub-items of an A-ASSOCIATE-RQ, which bounds the work of parsing one.
MAXIMUM_ITEMS = 16 * 1024

_REMEMBERED = 64 * 1024  # bytes of a request
_APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"  # PS3.7 A.2.1
_FIXED = struct.Struct(">H2x16s16s32x")  # PS3.8 9.3.2: version, called and calling AE title
_ITEM = struct.Struct(">BxH")
_CONTEXT_NAME, _PRESENTATION_CONTEXT, _ABSTRACT_SYNTAX, _USER_INFORMATION = 0x10, 0x20, 0x30, 0x50
#: Where the sub-items begin in an item that has some.
_SUB_ITEMS = {_PRESENTATION_CONTEXT: 4, _USER_INFORMATION: 0}


class Context(NamedTuple):
    """An accepted presentation context."""

    abstract_syntax: UID
    transfer_syntax: UID


class Association(Protocol):
    """An admitted association's place; used as a context, which gives the place back."""

    def receive(self, command: Command, context: Context) -> Receiving:
        """A request begins whose data set is still to come; may raise :class:`Abort`."""
        ...

    def prepare(self) -> None:
        """An answer was sent, and the peer thinks of its next request."""
        ...

    def answer(self, command: Command, context: Context) -> int:
        """The status of a request without a data set (PS3.7 C); may raise :class:`Abort`."""
        ...


class Receiving(Protocol):
    """A data set that arrives."""

    def write(self, piece: memoryview) -> None:
        """Take the next bytes; must not raise: what fails is told by :meth:`finish`."""
        ...

    def finish(self) -> int:
        """All bytes were written: the DIMSE status."""
        ...

    def drop(self) -> None:
        """The rest never came."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Who asks, read from the fixed part of an A-ASSOCIATE-RQ; nothing of it is trusted."""

    calling_ae_title: str
    called_ae_title: str
    address: str
    tls: bool
    local: bool  #: over the port that only this machine can reach
    abstract_syntaxes: tuple[str, ...]
    is_dicom: bool  #: the application context is DICOM's


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why an association is turned away (PS3.8 9.3.4)."""

    reason: Reason
    result: int = 1  #: 1 permanent, 2 transient
    source: int = 1  #: 1 service-user, 2 service-provider (ACSE), 3 (presentation)
    diagnostic: int


#: PS3.8 9.3.4: protocol version not supported (ACSE), ...
_OTHER_VERSION = Rejection(reason=Reason.NOT_DICOM, source=2, diagnostic=2)
#: ... application context name not supported.
_NOT_DICOM = Rejection(reason=Reason.NOT_DICOM, diagnostic=2)


class Service(Protocol):
    """Who decides and who keeps."""

    def admit(self, request: Request) -> AbstractContextManager[Association] | Rejection:
        """Let the caller in, or say why not."""
        ...

    @staticmethod
    def supported(abstract_syntax: UID) -> PresentationContext | None:
        """What is supported of an abstract syntax; always the same."""
        ...

    def refused(self, refused: Refused) -> None:
        """Somebody was turned away."""
        ...


def serve(connection: Connection, service: Service) -> None:
    """Serve one connection until it ends; a border: nothing is raised."""
    try:
        _Acceptor(connection, service).run()
    except Exception as error:
        logger.error("association of %s: our bug\n%s", connection.address, trace(error))
    finally:
        connection.close()


class _Acceptor:
    """The states of PS3.8 9.2 that an acceptor goes through, as a straight program."""

    def __init__(self, connection: Connection, service: Service) -> None:
        self._connection = connection
        self._service = service
        self._contexts: Mapping[int, Context] = {}

    def run(self) -> None:
        try:
            body = self._associate_request()
            request = _request(body, self._connection)
        except Closed:
            return
        except Abort as abort:
            self._turn_away(abort)
            return
        admitted = _foreign(body, request) or self._service.admit(request)
        if isinstance(admitted, Rejection):
            self._reject(request, admitted)
            return
        with admitted as association:
            self._serve(body, association)

    # -- Sta2: awaiting the request ----------------------------------------------------------------

    def _associate_request(self) -> bytes:
        pdu_type, length = self._connection.pdu(self._connection.deadlines.associate, whole=True)
        if pdu_type == PduType.ABORT:
            raise Closed("aborted by the peer")
        if pdu_type != PduType.ASSOCIATE_RQ:
            raise out_of_place(pdu_type)
        if length > MAXIMUM_ASSOCIATE_SIZE:
            raise TooLong(f"A-ASSOCIATE-RQ of {length} bytes")
        return b"".join(bytes(piece) for piece in self._connection.pieces(length))

    def _turn_away(self, abort: Abort) -> None:
        """PS3.8 9.2.2: A-ABORT with source service-user (AA-1); after ARTIM just the end (AA-2)."""
        reason = _REASONS.get(type(abort), Reason.NOT_DICOM)
        if reason is not Reason.TIMEOUT:
            self._abort(Abort(str(abort), source=0))
        self._service.refused(
            Refused(
                calling_ae_title="",
                called_ae_title="",
                address=self._connection.address,
                reason=reason,
                tls=self._connection.tls,
            )
        )

    def _reject(self, request: Request, rejection: Rejection) -> None:
        primitive = A_ASSOCIATE()
        primitive.result = rejection.result
        primitive.result_source = rejection.source
        primitive.diagnostic = rejection.diagnostic
        try:
            self._send_and_linger(A_ASSOCIATE_RJ(primitive).encode())
        finally:
            self._service.refused(
                Refused(
                    calling_ae_title=request.calling_ae_title,
                    called_ae_title=request.called_ae_title,
                    address=request.address,
                    contexts=request.abstract_syntaxes,
                    reason=rejection.reason,
                    tls=request.tls,
                )
            )

    # -- Sta3, Sta6: negotiated, then data ---------------------------------------------------------

    def _serve(self, body: bytes, association: Association) -> None:
        try:
            self._negotiate(body)
            with _Messages(self._connection, association, self._contexts) as messages:
                while self._one_pdu(messages):
                    pass
        except Closed as closed:
            logger.info("association of %s ended: %s", self._connection.address, closed)
        except Abort as abort:
            self._abort(abort)

    def _negotiate(self, body: bytes) -> None:
        negotiated = _negotiated if len(body) <= _REMEMBERED else _negotiated.__wrapped__
        accept, self._contexts = negotiated(body, self._service.supported)
        self._connection.established = True
        self._connection.send(accept)

    def _one_pdu(self, messages: _Messages) -> bool:
        """Handle the next PDU; False: the association is over."""
        pdu_type, length = self._connection.pdu(self._connection.deadlines.idle)
        if pdu_type == PduType.P_DATA_TF:
            if length > MAXIMUM_PDU_SIZE:
                raise TooLong(f"P-DATA-TF of {length} bytes, agreed were {MAXIMUM_PDU_SIZE}")
            messages.take(length)
            return True
        if pdu_type == PduType.RELEASE_RQ:
            self._send_and_linger(RELEASE_RP)
            return False
        if pdu_type == PduType.ABORT:
            logger.info("association of %s: aborted by the peer", self._connection.address)
            return False
        raise out_of_place(pdu_type)

    # -- Sta13: awaiting the close -----------------------------------------------------------------

    def _abort(self, abort: Abort) -> None:
        logger.warning("association of %s aborted: %s", self._connection.address, abort)
        self._send_and_linger(abort.pdu)

    def _send_and_linger(self, pdu: bytes) -> None:
        try:
            self._connection.send(pdu)
        except Closed:
            return
        self._connection.linger()


class _Messages:
    """DIMSE messages put together from fragments (PS3.7 6.3, PS3.8 E) and answered one by one."""

    def __init__(
        self,
        connection: Connection,
        association: Association,
        contexts: Mapping[int, Context],
    ) -> None:
        self._connection = connection
        self._association = association
        self._contexts = contexts
        self._encoded = b""  # of a command that is not whole yet
        self._command: Command | None = None  # whose data set is still coming, ...
        self._receiving: Receiving | None = None  # ... into this

    def __enter__(self) -> _Messages:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._receiving is not None:
            self._receiving.drop()

    def take(self, length: int) -> None:
        """Read one P-DATA-TF PDU of that length."""
        for fragment in dimse.fragments(self._connection, length):
            if fragment.is_command:
                self._take_command(fragment)
            else:
                self._take_data(fragment)

    def _take_command(self, fragment: Fragment) -> None:
        if self._command is not None:
            raise Abort("a command inside a data set", source=0)
        if len(self._encoded) + fragment.length > dimse.MAXIMUM_COMMAND:
            raise Abort("command set is too long", source=0)
        self._encoded += bytes(self._connection.take(fragment.length))
        if fragment.is_last:
            encoded, self._encoded = self._encoded, b""
            self._begin(dimse.parse_command(fragment.context_id, encoded))

    def _begin(self, command: Command) -> None:
        context = self._contexts.get(command.context_id)
        if context is None:
            raise Abort("a message in a context that was not accepted", source=0)
        if command.command_field == dimse.C_CANCEL_RQ:
            return  # nothing here takes long enough to be cancelled (PS3.7 9.3.2.3)
        if command.has_data_set:
            self._command = command
            self._receiving = self._association.receive(command, context)
        else:
            self._respond(command, self._association.answer(command, context))

    def _take_data(self, fragment: Fragment) -> None:
        command, receiving = self._command, self._receiving
        if command is None or receiving is None or fragment.context_id != command.context_id:
            raise Abort("a data set without its command", source=0)
        for piece in self._connection.pieces(fragment.length):
            receiving.write(piece)
        if fragment.is_last:
            self._command = self._receiving = None
            self._respond(command, receiving.finish())

    def _respond(self, command: Command, status: int) -> None:
        self._connection.send(dimse.response(command, status))
        self._association.prepare()


class TooLong(Abort):
    """A PDU is longer than it may be; nothing of it was read."""

    code = "association.pdu-too-long"


_REASONS: dict[type[NodeError], Reason] = {
    TimedOut: Reason.TIMEOUT,
    TooLong: Reason.PDU_TOO_LONG,
}


def _request(body: bytes, connection: Connection) -> Request:
    """The fixed part and the abstract syntaxes, before anything costly is done for the caller."""
    if len(body) < _FIXED.size:
        raise invalid_pdu("A-ASSOCIATE-RQ is cut off")
    _, called, calling = _FIXED.unpack_from(body)
    items = [*_bounded(_walk(body))]
    names = [value for kind, value in items if kind == _CONTEXT_NAME]
    return Request(
        calling_ae_title=_text(calling),
        called_ae_title=_text(called),
        address=connection.address,
        tls=connection.tls,
        local=connection.local,
        abstract_syntaxes=tuple(_text(value) for kind, value in items if kind == _ABSTRACT_SYNTAX),
        is_dicom=[_text(name) for name in names] == [_APPLICATION_CONTEXT],
    )


def _foreign(body: bytes, request: Request) -> Rejection | None:
    """Another protocol version, of which bit 0 is tested (PS3.8 9.3.2), or another protocol."""
    version, _, _ = _FIXED.unpack_from(body)
    if not version & 1:
        return _OTHER_VERSION
    return None if request.is_dicom else _NOT_DICOM


def _text(encoded: bytes) -> str:
    return encoded.decode("ascii", "replace").strip(" \0")


def _bounded(items: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    for number, item in enumerate(items):
        if number == MAXIMUM_ITEMS:
            raise invalid_pdu("A-ASSOCIATE-RQ with too many items")
        yield item


def _walk(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Every item, each followed by its sub-items."""
    for kind, begin, end in _items(body, _FIXED.size, len(body)):
        yield kind, body[begin:end]
        if kind in _SUB_ITEMS:
            for sub_kind, sub_begin, sub_end in _items(body, begin + _SUB_ITEMS[kind], end):
                yield sub_kind, body[sub_begin:sub_end]


def _items(body: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Type, begin and end of each item in that part (PS3.8 9.3.2)."""
    while begin < end:
        if end - begin < _ITEM.size:
            raise invalid_pdu("A-ASSOCIATE-RQ: an item is cut off")
        kind, length = _ITEM.unpack_from(body, begin)
        begin += _ITEM.size
        if begin + length > end:
            raise invalid_pdu("A-ASSOCIATE-RQ: an item is longer than what it is in")
        yield kind, begin, begin + length
        begin += length


@lru_cache(maxsize=64)
def _negotiated(
    body: bytes, supported: Callable[[UID], PresentationContext | None]
) -> tuple[bytes, Mapping[int, Context]]:
    """The A-ASSOCIATE-AC PDU, and the accepted contexts by their ids.

    Decoding and negotiating 128 contexts takes 30 ms, and a sender asks for the same ones each
    time: so the last answers are remembered.
    """
    asked = _decoded(body)
    proposed = asked.presentation_context_definition_list
    ours = [supported(uid) for uid in {UID(str(cx.abstract_syntax)) for cx in proposed}]
    results, roles = negotiate_as_acceptor(proposed, [cx for cx in ours if cx], _roles(asked))
    answer = A_ASSOCIATE()
    answer.application_context_name = UID(_APPLICATION_CONTEXT)
    answer.calling_ae_title = asked.calling_ae_title
    answer.called_ae_title = asked.called_ae_title
    answer.result, answer.result_source = 0, 1
    answer.presentation_context_definition_results_list = results
    answer.user_information = [*_user_information(), *roles]
    contexts = {
        int(cx.context_id or 0): Context(UID(str(cx.abstract_syntax)), cx.transfer_syntax[0])
        for cx in results
        if cx.result == 0
    }
    return A_ASSOCIATE_AC(answer).encode(), contexts


def _decoded(body: bytes) -> A_ASSOCIATE:
    header = struct.pack(">BxL", PduType.ASSOCIATE_RQ, len(body))
    try:
        pdu = A_ASSOCIATE_RQ()
        pdu.decode(header + body)
        primitive = pdu.to_primitive()
        assert primitive.presentation_context_definition_list is not None
        for proposed in primitive.presentation_context_definition_list:
            assert proposed.abstract_syntax  # PS3.8 9.3.2.2
            assert proposed.transfer_syntax
    except (*MALFORMED, AssertionError):
        raise invalid_pdu("A-ASSOCIATE-RQ is malformed") from None
    return primitive


def _roles(asked: A_ASSOCIATE) -> dict[UID, tuple[bool | None, bool | None]]:
    return {
        UID(str(item.sop_class_uid)): (item.scu_role, item.scp_role)
        for item in asked.user_information
        if isinstance(item, SCP_SCU_RoleSelectionNegotiation)
    }


def _user_information() -> list[
    MaximumLengthNotification
    | ImplementationClassUIDNotification
    | ImplementationVersionNameNotification
]:
    """What we say of ourselves (PS3.7 D.3.3.1, D.3.3.2); no asynchronous operations (D.3.3.3)."""
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    version = ImplementationVersionNameNotification()
    length.maximum_length_received = MAXIMUM_PDU_SIZE
    implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    return [length, implementation, version]
