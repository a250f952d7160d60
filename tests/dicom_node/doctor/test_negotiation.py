"""One association request: each thing that can come back is told apart."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import (
    BasicTextSRStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import build_context
from pynetdicom.pdu import A_ASSOCIATE_AC
from pynetdicom.pdu_primitives import A_ASSOCIATE, MaximumLengthNotification

from dicom_node.doctor import negotiation
from dicom_node.doctor.negotiation import Answer, Kind
from tests.dicom_node.doctor.answering import answering, saying, silent
from tests.pacs import Pacs

REJECTED = bytes.fromhex("0300 00000004 00 01 01 03")  # PS3.8 9.3.4
ABORTED = bytes.fromhex("0700 00000004 0000 02 01")  # PS3.8 9.3.8
ACCEPTED = b"\2\0\0\0\0\x50" + bytes(68) + b"\x99\0\0\4" + bytes(8)  # with an item of no type
UNENDING = bytes.fromhex("0200 7fffffff")
TLS_ALERT = bytes.fromhex("15 0301 0002 0246")
EXPLICIT, IMPLICIT = str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)


def asked(port: int, seconds: float = 20) -> Answer:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        wanted = [BasicTextSRStorage, EnhancedSRStorage]
        return negotiation.ask(connection, "NODE", "PACS", wanted, seconds)


@pytest.mark.parametrize(
    ("answer", "kind", "codes"),
    [
        pytest.param(REJECTED, Kind.REJECTED, (1, 1, 3), id="rejected"),
        pytest.param(ABORTED, Kind.ABORTED, (2, 1), id="aborted"),
        pytest.param(b"", Kind.CLOSED, (), id="closed"),
        pytest.param(REJECTED[:7], Kind.SILENT, (), id="half-a-PDU"),
        pytest.param(TLS_ALERT, Kind.TLS, (), id="TLS"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n", Kind.HTTP, (), id="HTTP"),
        pytest.param(b"220 mail.example ESMTP\r\n", Kind.FOREIGN, (), id="mail"),
        pytest.param(ACCEPTED, Kind.FOREIGN, (), id="malformed"),
        pytest.param(UNENDING, Kind.FOREIGN, (), id="unending"),
    ],
)
def test_what_comes_back_is_told_apart(answer: bytes, kind: Kind, codes: tuple[int, ...]) -> None:
    with answering(saying(answer)) as port:
        found = asked(port, 0.5 if kind is Kind.SILENT else 20)
    assert (found.kind, found.codes) == (kind, codes)


@pytest.mark.parametrize("answer", [silent, lambda connection: None], ids=["silent", "reset"])
def test_a_peer_that_says_nothing_is_not_waited_for_for_ever(
    answer: Callable[[socket.socket], None],
) -> None:
    with answering(answer) as port:
        assert asked(port, 0.3).kind in (Kind.SILENT, Kind.CLOSED)


def test_bytes_that_trickle_are_not_waited_for_beyond_the_limit() -> None:
    def trickle(connection: socket.socket) -> None:
        connection.settimeout(0.1)
        connection.sendall(UNENDING[:2] + bytes.fromhex("00001000"))
        while True:
            connection.sendall(b"\0")
            try:
                if not connection.recv(65536):
                    return
            except TimeoutError:
                continue

    with answering(trickle) as port:
        assert asked(port, 0.5).kind is Kind.SILENT


def test_each_transfer_syntax_is_answered_for_each_class() -> None:
    pacs = Pacs(takes=[BasicTextSRStorage], transfer_syntaxes=[IMPLICIT])
    try:
        found = asked(pacs.port)
    finally:
        pacs.stop()
    assert found.kind is Kind.ACCEPTED
    assert found.accepted == {BasicTextSRStorage: (IMPLICIT,)}
    assert found.refused == {BasicTextSRStorage: 4, EnhancedSRStorage: 3}  # PS3.8 9.3.3.2


def test_a_class_in_both_syntaxes_has_both(peer_scp: Pacs) -> None:
    assert asked(peer_scp.port).accepted == {BasicTextSRStorage: (EXPLICIT, IMPLICIT)}


def accepting() -> bytes:
    """An A-ASSOCIATE-AC as pynetdicom writes it (PS3.8 9.3.3)."""
    accepted = build_context(BasicTextSRStorage, ExplicitVRLittleEndian)
    accepted.context_id, accepted.result = 1, 0
    length = MaximumLengthNotification()
    length.maximum_length_received = 16384
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "NODE", "PACS"
    primitive.presentation_context_definition_results_list = [accepted]
    primitive.user_information = [length]
    primitive.result, primitive.result_source = 0, 1
    pdu = A_ASSOCIATE_AC()
    pdu.from_primitive(primitive)
    encoded: bytes = pdu.encode()
    return encoded


WHOLE = accepting()
HEADER = 6  # bytes: type and length (PS3.8 9.3.1)


def read(answer: bytes) -> Answer:
    return negotiation._accepted(answer[HEADER:], answer[:HEADER], [(BasicTextSRStorage, EXPLICIT)])


def test_an_acceptance_is_read() -> None:
    assert read(WHOLE).accepted == {BasicTextSRStorage: (EXPLICIT,)}


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # a bent UID, told by pydicom
@given(
    st.lists(st.tuples(st.integers(HEADER, len(WHOLE) - 1), st.integers(0, 255)), min_size=1),
    st.integers(0, len(WHOLE)),
)
def test_an_acceptance_that_is_bent_anywhere_is_an_answer_and_no_bug(
    changes: list[tuple[int, int]], cut: int
) -> None:
    bent = bytearray(WHOLE)
    for place, value in changes:
        bent[place] = value
    for answer in (bytes(bent), bytes(bent[:cut])):
        assert read(answer).kind in (Kind.ACCEPTED, Kind.FOREIGN)
