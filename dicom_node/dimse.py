"""DIMSE messages over P-DATA, for an acceptor: command sets and the pieces of data sets.

Only what receiving needs, and without building objects for it: a command set is a few elements in
Implicit VR Little Endian (PS3.7 6.3.1), an answer is packed by hand. The tests compare both with
pynetdicom's, which are the specification.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dicom_node.upper_layer import Abort, Connection, invalid_pdu

C_STORE_RQ = 0x0001  # PS3.7 E.1-1
C_ECHO_RQ = 0x0030
C_CANCEL_RQ = 0x0FFF
N_EVENT_REPORT_RQ = 0x0100
N_ACTION_RQ = 0x0130
#: Get, set, create, delete: of SOP classes that we do not have.
OTHER_N_REQUESTS = (0x0110, 0x0120, 0x0140, 0x0150)
_RESPONSE = 0x8000
_NO_DATA_SET = 0x0101  # PS3.7 E.1-1, Command Data Set Type

#: Bytes; the largest command set of any service is below a tenth of it.
MAXIMUM_COMMAND = 16 * 1024

_ELEMENT = struct.Struct("<HHL")
_US_ELEMENT = struct.Struct("<HHLH")
_PDV = struct.Struct(">LBB")  # PS3.8 9.3.5.1, E.2: item length, context id, control header
_P_DATA = struct.Struct(">BxLLBB")
_COMMAND, _LAST = 0b01, 0b10  # PS3.8 E.2

_AFFECTED_SOP_CLASS_UID = 0x0002
_REQUESTED_SOP_CLASS_UID = 0x0003
_COMMAND_FIELD = 0x0100
_MESSAGE_ID = 0x0110
_MESSAGE_ID_BEING_RESPONDED_TO = 0x0120
_COMMAND_DATA_SET_TYPE = 0x0800
_STATUS = 0x0900
_AFFECTED_SOP_INSTANCE_UID = 0x1000
_REQUESTED_SOP_INSTANCE_UID = 0x1001
#: Event Type ID, Action Type ID
_TYPE_ID = {N_EVENT_REPORT_RQ: 0x1002, N_ACTION_RQ: 0x1008}


class Fragment(NamedTuple):
    """One presentation data value; its ``length`` bytes are still to be taken."""

    context_id: int
    is_command: bool
    is_last: bool
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A request's command set (PS3.7 9.3, 10.3).

    What an N-ACTION-RQ calls the requested class and instance is the affected one here, as it is in
    its answer (PS3.7 10.3.4).
    """

    context_id: int
    command_field: int
    message_id: int
    has_data_set: bool
    affected_sop_class_uid: str
    affected_sop_instance_uid: str
    type_id: int | None = None  #: of an N-EVENT-REPORT-RQ or N-ACTION-RQ


def fragments(connection: Connection, length: int) -> Iterator[Fragment]:
    """The values of one P-DATA-TF PDU of that length; each must be taken before the next.

    Raises
    ------
    Abort
        Lengths do not add up.
    """
    if not length:
        raise invalid_pdu("P-DATA-TF PDU without a value")
    while length:
        if length < _PDV.size:
            raise invalid_pdu("presentation data value is cut off")
        item, context_id, control = _PDV.unpack(connection.take(_PDV.size))
        size = item - 2
        length -= _PDV.size + size
        if size < 0 or length < 0:
            raise invalid_pdu("presentation data value is longer than its PDU, or has no header")
        yield Fragment(context_id, bool(control & _COMMAND), bool(control & _LAST), size)


def parse_command(context_id: int, encoded: bytes) -> Command:
    """Read a request's command set.

    Raises
    ------
    Abort
        It is malformed, or lacks what every request has (PS3.7 9.3.1.1).
    """
    elements = _elements(encoded)
    try:
        field = _number(elements[_COMMAND_FIELD])
        is_action = field == N_ACTION_RQ
        sop_class = _REQUESTED_SOP_CLASS_UID if is_action else _AFFECTED_SOP_CLASS_UID
        instance = _REQUESTED_SOP_INSTANCE_UID if is_action else _AFFECTED_SOP_INSTANCE_UID
        type_id = elements.get(_TYPE_ID.get(field, -1))
        return Command(
            context_id=context_id,
            command_field=field,
            message_id=_number(elements.get(_MESSAGE_ID, b"\0\0")),
            has_data_set=_number(elements[_COMMAND_DATA_SET_TYPE]) != _NO_DATA_SET,
            affected_sop_class_uid=_uid(elements.get(sop_class, b"")),
            affected_sop_instance_uid=_uid(elements.get(instance, b"")),
            type_id=None if type_id is None else _number(type_id),
        )
    except (KeyError, struct.error, UnicodeDecodeError):
        raise Abort("command set lacks an element or has a wrong one", source=0) from None


def response(command: Command, status: int) -> bytes:
    """The P-DATA-TF PDU that answers ``command``, without a data set.

    PS3.7 9.3.1.2, 9.3.5.2, 10.3.1.2, 10.3.4.2.
    """
    elements = [
        _text(_AFFECTED_SOP_CLASS_UID, command.affected_sop_class_uid),
        _short(_COMMAND_FIELD, command.command_field | _RESPONSE),
        _short(_MESSAGE_ID_BEING_RESPONDED_TO, command.message_id),
        _short(_COMMAND_DATA_SET_TYPE, _NO_DATA_SET),
        _short(_STATUS, status),
        _text(_AFFECTED_SOP_INSTANCE_UID, command.affected_sop_instance_uid),
    ]
    if command.type_id is not None:
        elements.append(_short(_TYPE_ID[command.command_field], command.type_id))
    body = b"".join(elements)
    group_length = _ELEMENT.pack(0, 0, 4) + struct.pack("<L", len(body))
    value = group_length + body
    header = _P_DATA.pack(4, len(value) + 6, len(value) + 2, command.context_id, _COMMAND | _LAST)
    return header + value


def _elements(encoded: bytes) -> dict[int, bytes]:
    found = {}
    position = 0
    while position < len(encoded):
        try:
            group, element, length = _ELEMENT.unpack_from(encoded, position)
        except struct.error:
            raise Abort("command set is cut off", source=0) from None
        position += _ELEMENT.size + length
        if group != 0 or position > len(encoded):
            raise Abort("command set is malformed", source=0)
        found[element] = encoded[position - length : position]
    return found


def _number(value: bytes) -> int:
    (number,) = struct.unpack("<H", value)
    return int(number)


def _uid(value: bytes) -> str:
    return value.rstrip(b"\0 ").decode("ascii")


def _short(element: int, value: int) -> bytes:
    return _US_ELEMENT.pack(0, element, 2, value)


def _text(element: int, value: str) -> bytes:
    if not value:
        return b""
    encoded = value.encode("ascii")
    padded = encoded + b"\0" * (len(encoded) % 2)  # PS3.5 9.1
    return _ELEMENT.pack(0, element, len(padded)) + padded
