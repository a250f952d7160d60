"""Command sets and fragments: what pynetdicom says is right, and what is not gets an abort."""

from __future__ import annotations

import struct
from contextlib import suppress
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom import dimse_messages as messages
from pynetdicom.dimse_primitives import C_CANCEL, C_ECHO, C_STORE, N_ACTION, N_EVENT_REPORT
from pynetdicom.pdu import P_DATA_TF

from dicom_node import dimse
from dicom_node.dimse import Command, Fragment, fragments, parse_command, response
from dicom_node.upper_layer import Abort
from tests.dicom_node.sockets import PATIENCE, over, pdu, split

DIGITAL_X_RAY = "1.2.840.10008.5.1.4.1.1.1.1"
VERIFICATION = "1.2.840.10008.1.1"
STORE = Command(
    context_id=3,
    command_field=dimse.C_STORE_RQ,
    message_id=7,
    has_data_set=True,
    affected_sop_class_uid=DIGITAL_X_RAY,
    affected_sop_instance_uid="1.2.3",
)

uids = st.from_regex(r"[12](\.(0|[1-9][0-9]{0,8})){1,6}", fullmatch=True)
numbers = st.integers(0, 0xFFFF)
context_ids = st.integers(0, 127).map(lambda number: 2 * number + 1)
stores = st.builds(
    Command,
    context_id=context_ids,
    command_field=st.just(dimse.C_STORE_RQ),
    message_id=numbers,
    has_data_set=st.just(True),
    affected_sop_class_uid=uids,
    affected_sop_instance_uid=uids,
)
echoes = st.builds(
    Command,
    context_id=context_ids,
    command_field=st.just(dimse.C_ECHO_RQ),
    message_id=numbers,
    has_data_set=st.just(False),
    affected_sop_class_uid=st.just(VERIFICATION),
    affected_sop_instance_uid=st.just(""),
)


normalised = st.builds(
    Command,
    context_id=context_ids,
    command_field=st.sampled_from([dimse.N_ACTION_RQ, dimse.N_EVENT_REPORT_RQ]),
    message_id=numbers,
    has_data_set=st.just(True),
    affected_sop_class_uid=uids,
    affected_sop_instance_uid=uids,
    type_id=numbers,
)
REQUESTS = {
    dimse.C_STORE_RQ: messages.C_STORE_RQ,
    dimse.C_ECHO_RQ: messages.C_ECHO_RQ,
    dimse.N_ACTION_RQ: messages.N_ACTION_RQ,
    dimse.N_EVENT_REPORT_RQ: messages.N_EVENT_REPORT_RQ,
}
ANSWERS = {
    dimse.C_STORE_RQ: messages.C_STORE_RSP,
    dimse.C_ECHO_RQ: messages.C_ECHO_RSP,
    dimse.N_ACTION_RQ: messages.N_ACTION_RSP,
    dimse.N_EVENT_REPORT_RQ: messages.N_EVENT_REPORT_RSP,
}
Primitive = C_STORE | C_ECHO | N_ACTION | N_EVENT_REPORT


def as_primitive(command: Command, *, answer: bool = False) -> Primitive:
    """The same in pynetdicom's words."""
    if command.type_id is not None:
        return as_normalised(command, answer=answer)
    primitive: C_STORE | C_ECHO = C_ECHO()
    if command.command_field == dimse.C_STORE_RQ:
        primitive = C_STORE()
        primitive.AffectedSOPInstanceUID = command.affected_sop_instance_uid
        primitive.DataSet = None if answer else BytesIO(b"data set")
        primitive.Priority = 2
    primitive.AffectedSOPClassUID = command.affected_sop_class_uid
    if answer:
        primitive.MessageIDBeingRespondedTo = command.message_id
    else:
        primitive.MessageID = command.message_id
    return primitive


def as_normalised(command: Command, *, answer: bool) -> N_ACTION | N_EVENT_REPORT:
    """What an N-ACTION-RQ calls requested, its answer calls affected."""
    primitive: N_ACTION | N_EVENT_REPORT
    if command.command_field == dimse.N_ACTION_RQ:
        primitive = N_ACTION()
        primitive.ActionTypeID = command.type_id
        primitive.ActionInformation = None if answer else BytesIO(b"data set")
        primitive.RequestedSOPClassUID = None if answer else command.affected_sop_class_uid
        primitive.RequestedSOPInstanceUID = None if answer else command.affected_sop_instance_uid
    else:
        primitive = N_EVENT_REPORT()
        primitive.EventTypeID = command.type_id
        primitive.EventInformation = None if answer else BytesIO(b"data set")
    if answer or isinstance(primitive, N_EVENT_REPORT):
        primitive.AffectedSOPClassUID = command.affected_sop_class_uid
        primitive.AffectedSOPInstanceUID = command.affected_sop_instance_uid
    if answer:
        primitive.MessageIDBeingRespondedTo = command.message_id
    else:
        primitive.MessageID = command.message_id
    return primitive


def values(message: messages.DIMSEMessage, context_id: int, size: int) -> list[bytes]:
    """What pynetdicom sends: control header and fragment of each presentation data value."""
    sent = message.encode_msg(context_id, size)
    return [value for one in sent for _, value in one.presentation_data_value_list]


def command_set(command: Command) -> bytes:
    """The encoded command set of a request."""
    made = REQUESTS[command.command_field]()
    made.primitive_to_message(as_primitive(command))
    sent = values(made, command.context_id, 16384)
    return b"".join(value[1:] for value in sent if value[0] & 1)


# -- requests --------------------------------------------------------------------------------------


@given(command=stores | echoes | normalised)
def test_what_pynetdicom_asks_is_understood(command: Command) -> None:
    assert parse_command(command.context_id, command_set(command)) == command


def test_a_cancel_request_has_no_message_id_of_its_own() -> None:
    primitive = C_CANCEL()
    primitive.MessageIDBeingRespondedTo = 7
    made = messages.C_CANCEL_RQ()
    made.primitive_to_message(primitive)
    (value,) = values(made, 1, 16384)
    parsed = parse_command(1, value[1:])
    assert (parsed.command_field, parsed.has_data_set) == (dimse.C_CANCEL_RQ, False)


@given(command=stores, end=st.integers(0, 200))
def test_a_command_set_that_is_cut_off_is_aborted_or_lacks_its_end_only(
    command: Command, end: int
) -> None:
    encoded = command_set(command)
    try:
        parsed = parse_command(command.context_id, encoded[:end])
    except Abort:
        return
    instance = encoded.index(b"\x00\x00\x00\x10")  # its last element, Affected SOP Instance UID
    assert end in (instance, len(encoded)) or end > len(encoded)
    assert parsed.message_id == command.message_id


@given(noise=st.binary(max_size=200))
def test_noise_is_aborted_and_nothing_else_is_raised(noise: bytes) -> None:
    with suppress(Abort):
        parse_command(1, noise)


def element(number: int, value: bytes, group: int = 0, length: int | None = None) -> bytes:
    return struct.pack("<HHL", group, number, len(value) if length is None else length) + value


FIELD, DATA_SET_TYPE = element(0x0100, b"\1\0"), element(0x0800, b"\1\0")


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(FIELD, id="no data set type"),
        pytest.param(DATA_SET_TYPE, id="no command field"),
        pytest.param(FIELD + DATA_SET_TYPE + b"\0", id="a byte too many"),
        pytest.param(FIELD + DATA_SET_TYPE[:-1], id="a byte too few"),
        pytest.param(element(0x0100, b"\1") + DATA_SET_TYPE, id="a short of one byte"),
        pytest.param(element(0x0100, b"") + DATA_SET_TYPE, id="an empty short"),
        pytest.param(element(0x0100, b"\1\0\0\0") + DATA_SET_TYPE, id="a short of four bytes"),
        pytest.param(
            FIELD + DATA_SET_TYPE + element(0x1000, b"", length=0xFFFFFFFF), id="a length of 4 GiB"
        ),
        pytest.param(FIELD + DATA_SET_TYPE + element(0x0016, b"", group=8), id="another group"),
        pytest.param(FIELD + DATA_SET_TYPE + element(0x0002, b"1.\xb2"), id="a UID not in ASCII"),
    ],
)
def test_a_malformed_command_set_is_aborted(encoded: bytes) -> None:
    with pytest.raises(Abort) as raised:
        parse_command(1, encoded)
    assert raised.value.pdu[-2:] == b"\x00\x00"  # PS3.8 9.3.8: by the service-user


def test_what_nobody_needs_is_passed_over() -> None:
    encoded = element(0, b"lies") + FIELD + element(0x0700, b"x" * 50) + DATA_SET_TYPE
    assert parse_command(1, encoded).command_field == dimse.C_STORE_RQ


# -- answers ---------------------------------------------------------------------------------------


@given(
    command=stores | echoes | normalised,
    status=st.sampled_from([0, 0x0110, 0x0115, 0xA700, 0xA900, 0xC000]),
)
def test_an_answer_is_byte_for_byte_pynetdicoms(command: Command, status: int) -> None:
    made = ANSWERS[command.command_field]()
    primitive = as_primitive(command, answer=True)
    primitive.Status = status
    made.primitive_to_message(primitive)
    (sent,) = made.encode_msg(command.context_id, 16384)
    said = P_DATA_TF()
    said.from_primitive(sent)
    assert response(command, status) == said.encode()


# -- fragments -------------------------------------------------------------------------------------

drawn = st.lists(
    st.builds(
        lambda context_id, control, value: (context_id, control, value),
        context_ids,
        st.integers(0, 3),
        st.binary(max_size=60),
    ),
    min_size=1,
    max_size=5,
)


@given(sent=drawn, cuts=st.lists(st.integers(0, 400), max_size=10))
def test_the_values_of_a_pdu_come_as_pynetdicom_packed_them(
    sent: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    body = b"".join(
        struct.pack(">LBB", len(value) + 2, context_id, control) + value
        for context_id, control, value in sent
    )
    decoded = P_DATA_TF()
    decoded.decode(pdu(4, body))
    told = decoded.to_primitive().presentation_data_value_list
    connection = over(split(pdu(4, body), cuts))
    _, length = connection.pdu(PATIENCE)
    read = [(one, bytes(connection.take(one.length))) for one in fragments(connection, length)]
    assert [(one.context_id, value) for one, value in read] == [
        (context_id, value[1:]) for context_id, value in told
    ]
    assert [(one.is_command, one.is_last) for one, _ in read] == [
        (bool(value[0] & 1), bool(value[0] & 2)) for _, value in told
    ]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\0\0\0\2\1", id="cut in its header"),
        pytest.param(b"\0\0\0\1\1\3", id="shorter than its header"),
        pytest.param(b"\0\0\0\0\1\3", id="of length 0"),
        pytest.param(b"\0\0\0\3\1\3", id="longer than the PDU"),
        pytest.param(b"\xff\xff\xff\xff\1\3", id="of 4 GiB"),
    ],
)
def test_lengths_that_do_not_add_up_are_aborted(body: bytes) -> None:
    connection = over([pdu(4, body)])
    _, length = connection.pdu(PATIENCE)
    with pytest.raises(Abort) as raised:
        list(fragments(connection, length))
    assert raised.value.pdu[-2:] == b"\x02\x06"  # PS3.8 9.3.8: invalid PDU parameter value


def test_an_empty_value_is_one_too() -> None:
    connection = over([pdu(4, b"\0\0\0\2\1\2")])
    _, length = connection.pdu(PATIENCE)
    assert list(fragments(connection, length)) == [Fragment(1, False, True, 0)]
