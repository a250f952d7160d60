"""One connection: bytes in any pieces, deadlines that hold, and ends that are told apart."""

from __future__ import annotations

import socket
import struct
import threading
import tracemalloc
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.pdu import A_ABORT_RQ, A_RELEASE_RP

from dicom_node import upper_layer
from dicom_node.upper_layer import (
    RELEASE_RP,
    Abort,
    Closed,
    Connection,
    Deadlines,
    PduType,
    TimedOut,
    invalid_pdu,
    out_of_place,
)
from tests.dicom_node.sockets import HOUR, PATIENCE, SOON, connected, over, pdu, split

TWO_GIB = (1 << 31) - 1


def read(connection: Connection, steps: list[tuple[bool, int]]) -> tuple[int, bytes]:
    """One PDU, by the steps given and the rest as it comes: (as one view, bytes)."""
    pdu_type, left = connection.pdu(PATIENCE)
    body = b""
    for whole, size in (*steps, (False, left)):
        size = min(size, left - len(body))
        if whole:
            body += connection.take(size)
        else:
            body += b"".join(bytes(piece) for piece in connection.pieces(size))
    return pdu_type, body


# -- bytes in --------------------------------------------------------------------------------------

pdus = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=90)), min_size=1, max_size=5)
cuts = st.lists(st.integers(0, 1000), max_size=20)
steps = st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=6)


@given(sent=pdus, cuts=cuts, steps=steps, buffer=st.integers(20, 40))
def test_it_does_not_matter_how_the_bytes_come_nor_how_they_are_taken(
    sent: list[tuple[int, bytes]], cuts: list[int], steps: list[tuple[bool, int]], buffer: int
) -> None:
    content = b"".join(pdu(*one) for one in sent)
    with mock.patch.object(upper_layer, "BUFFER", buffer):
        connection = over(split(content, cuts))
        assert [read(connection, steps) for _ in sent] == sent
        with pytest.raises(Closed):
            connection.pdu(PATIENCE)


def test_a_large_pdu_comes_in_pieces_of_the_buffer_at_most() -> None:
    content = bytes(range(256)) * 4096
    connection = over([pdu(4, content)])
    _, length = connection.pdu(PATIENCE)
    pieces = [bytes(piece) for piece in connection.pieces(length)]
    assert b"".join(pieces) == content
    assert max(map(len, pieces)) <= upper_layer.BUFFER
    assert len(pieces) <= len(content) // upper_layer.BUFFER + 1


def test_a_length_that_is_only_claimed_costs_no_memory() -> None:
    connection = over([struct.pack(">BBL", 4, 0, TWO_GIB), *[bytes(64 << 10)] * 100])
    tracemalloc.start()
    try:
        assert connection.pdu(PATIENCE) == (4, TWO_GIB)
        with pytest.raises(Closed):
            sum(map(len, connection.pieces(TWO_GIB)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * upper_layer.BUFFER


def test_who_never_sends_a_byte_costs_no_buffer() -> None:
    with connected() as (connection, _):
        tracemalloc.start()
        try:
            with pytest.raises(TimedOut):
                connection.pdu(0.01)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < upper_layer.BUFFER / 4


# -- time ------------------------------------------------------------------------------------------


def test_a_peer_that_says_nothing_times_out() -> None:
    with connected() as (connection, _), pytest.raises(TimedOut):
        connection.pdu(0.05)


@pytest.mark.parametrize("sent", [1, 5, 6, 20], ids=lambda sent: f"after {sent} bytes")
def test_a_peer_that_stops_within_a_pdu_times_out(sent: int) -> None:
    with connected(Deadlines(pdu=0.05)) as (connection, theirs):
        theirs.sendall(pdu(4, bytes(100))[:sent])
        with pytest.raises(TimedOut):
            read(connection, [])


def test_a_byte_now_and_then_does_not_put_the_deadline_off() -> None:
    dripping = [bytes([byte]) for byte in pdu(4, bytes(500))]
    connection = over(dripping, Deadlines(pdu=0.1), pause=0.01)
    with pytest.raises(TimedOut):
        read(connection, [])


def test_each_pdu_has_its_own_time() -> None:
    connection = over([pdu(4, bytes(4))] * 20, Deadlines(pdu=0.2), pause=0.02)
    assert [read(connection, []) for _ in range(20)] == [(4, bytes(4))] * 20


def test_what_has_come_already_is_not_too_late() -> None:
    connection = over([pdu(4, b"1") + pdu(4, b"2")])
    read(connection, [])
    assert connection.pdu(0) == (4, 1)
    assert bytes(connection.take(1)) == b"2"


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [0, 1, 6, 20], ids=lambda sent: f"after {sent} bytes")
@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
def test_a_peer_that_goes_is_closed_wherever_it_was(sent: int, reset: bool) -> None:
    with connected() as (connection, theirs):
        theirs.sendall(pdu(4, bytes(100))[:sent])
        if reset:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        with pytest.raises(Closed):
            read(connection, [])


def test_a_silent_peer_is_an_abort_and_one_that_has_gone_is_none() -> None:
    assert issubclass(TimedOut, Abort)
    assert not issubclass(Closed, Abort)


def test_cutting_from_another_thread_ends_a_wait() -> None:
    with connected() as (connection, theirs):
        ended = threading.Event()

        def wait() -> None:
            with pytest.raises(Closed):
                connection.pdu(3600)
            ended.set()

        thread = threading.Thread(target=wait)
        thread.start()
        assert not connection.was_cut
        assert not ended.wait(0.05)
        connection.cut()
        thread.join(PATIENCE)
        assert ended.is_set()
        assert connection.was_cut
        assert theirs.recv(1) == b""


def test_cutting_what_is_closed_already_does_nothing() -> None:
    with connected() as (connection, _):
        connection.close()
        connection.cut()
        with pytest.raises(Closed):
            connection.pdu(1)
        with pytest.raises(Closed):
            connection.send(RELEASE_RP)


# -- bytes out -------------------------------------------------------------------------------------


def test_what_is_sent_arrives_whole() -> None:
    content = pdu(4, bytes(range(256)) * 4000)
    with connected() as (connection, theirs):
        sending = threading.Thread(target=connection.send, args=(content,))
        sending.start()
        received = b""
        while len(received) < len(content):
            received += theirs.recv(100_000)
        sending.join(PATIENCE)
    assert received == content


def test_a_peer_that_takes_nothing_is_given_up() -> None:
    with connected(SOON) as (connection, _), pytest.raises(Closed):
        connection.send(bytes(64 << 20))


def test_a_peer_that_has_gone_takes_nothing() -> None:
    with connected() as (connection, theirs):
        theirs.close()
        with pytest.raises(Closed):
            connection.send(bytes(64 << 20))


def test_the_last_pdu_reaches_a_peer_that_is_still_sending() -> None:
    with connected(Deadlines(close=PATIENCE)) as (connection, theirs):
        theirs.sendall(bytes(100_000))
        ending = threading.Thread(target=last_pdu, args=(connection,))
        ending.start()
        theirs.sendall(bytes(100_000))
        assert received(theirs) == RELEASE_RP  # a close with bytes unread would have reset it
        theirs.close()
        ending.join(PATIENCE)
        assert not ending.is_alive()


def last_pdu(connection: Connection) -> None:
    connection.send(RELEASE_RP)
    connection.linger()
    connection.close()


def received(caller: socket.socket) -> bytes:
    content = b""
    while piece := caller.recv(1000):
        content += piece
    return content


def test_a_peer_that_stays_silent_is_left_after_a_while() -> None:
    with connected(SOON) as (connection, _):
        connection.linger()


def test_a_peer_that_sends_on_and_on_is_left_after_a_while() -> None:
    endless = [bytes(10)] * 100_000
    connection = over(endless, SOON, pause=0.01)
    connection.linger()
    assert connection.pdu(PATIENCE) == (0, 0)  # and more would come


def test_a_peer_that_sends_fast_is_left_before_the_time_is_over() -> None:
    connection = over([bytes(10)] * 100_000, HOUR)
    connection.linger()
    assert connection.pdu(PATIENCE) == (0, 0)


def test_who_was_never_heard_is_lingered_for_in_large_reads() -> None:
    connection = over([bytes(1 << 20)], HOUR)
    connection.linger()
    with pytest.raises(Closed):  # all of it was thrown away
        connection.pdu(PATIENCE)


def test_lingering_where_the_peer_has_gone_does_nothing() -> None:
    with connected() as (connection, theirs):
        theirs.close()
        connection.linger()
        connection.close()
        connection.linger()


# -- what is said ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("abort", "source", "reason"),
    [
        (Abort("x"), 2, 0),
        (Abort("x", source=0), 0, 0),
        (TimedOut("x"), 2, 0),
        (out_of_place(0x47), 2, 1),
        (out_of_place(PduType.RELEASE_RP), 2, 2),
        (invalid_pdu("x"), 2, 6),
    ],
)
def test_an_abort_says_who_and_why(abort: Abort, source: int, reason: int) -> None:
    decoded = A_ABORT_RQ()
    decoded.decode(abort.pdu)
    assert (decoded.source, decoded.reason_diagnostic) == (source, reason)
    assert decoded.encode() == abort.pdu


def test_the_answer_to_a_release_is_pynetdicoms() -> None:
    assert A_RELEASE_RP().encode() == RELEASE_RP
