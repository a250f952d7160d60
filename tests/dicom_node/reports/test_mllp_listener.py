"""The MLLP listener over real sockets: what is acknowledged is durable; strangers are cut off."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import hl7
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.config import Peer
from dicom_node.db import Database
from dicom_node.errors import ConfigurationError, OutOfResources, PeerError, Unreadable
from dicom_node.mllp import MllpPeer
from dicom_node.reports import intake, mllp_listener, store
from dicom_node.reports.mllp_listener import MllpListener, acknowledgement
from dicom_node.storage import Storage
from tests.conftest import PATIENCE, StudyFactory
from tests.dicom_node.reports.documents import STUDY
from tests.dicom_node.reports.made import identity
from tests.dicom_node.reports.test_intake import message

Take = Callable[[bytes], object]


@dataclass
class Running:
    """A listener that runs, and what it was told."""

    listener: MllpListener
    taken: list[bytes] = field(default_factory=list)
    refused: list[tuple[str, str, str]] = field(default_factory=list)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.listener.port), PATIENCE)


@contextmanager
def running(take: Take | None = None, *, may_call: bool = True) -> Iterator[Running]:
    taken: list[bytes] = []
    refused: list[tuple[str, str, str]] = []
    listener = MllpListener(
        ("127.0.0.1", 0),
        take or taken.append,
        lambda address: may_call and address == "127.0.0.1",
        lambda *refusal: refused.append(refusal),
    )
    listener.start()
    try:
        yield Running(listener, taken, refused)
    finally:
        listener.stop()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def framed(block: bytes) -> bytes:
    return b"\x0b" + block + b"\x1c\r"


def answer(connection: socket.socket) -> bytes:
    """One block; empty when the other side closed."""
    received = b""
    while not received.endswith(b"\x1c\r"):
        try:
            more = connection.recv(65536)
        except ConnectionResetError:
            return b""
        if not more:
            return b""
        received += more
    return received[1:-2]


def ask(connection: socket.socket, block: bytes) -> hl7.Message:
    connection.sendall(framed(block))
    return hl7.parse(answer(connection).decode())


def code(reply: hl7.Message) -> str:
    return str(reply.segment("MSA")(1))


def raising(error: Exception) -> Take:
    def take(_: bytes) -> None:
        raise error

    return take


# -- acknowledgements ------------------------------------------------------------------------------


def test_a_message_is_taken_as_it_came_and_acknowledged() -> None:
    with running() as node, node.connect() as connection:
        reply = ask(connection, message())
    assert node.taken == [message()]
    msh, msa = reply.segment("MSH"), reply.segment("MSA")
    assert (code(reply), str(msa(2))) == ("AA", "M1")
    assert (str(msh(3)), str(msh(4)), str(msh(5)), str(msh(6))) == ("", "", "RIS", "HOSP")
    assert (str(msh(9)), str(msh(11)), str(msh(12))) == ("ACK^R01^ACK", "P", "2.5")


@pytest.mark.parametrize("kind", [b"ORM^O01", b"ORM^O01^ORM_O01", b"OMG^O19", b"OMI^O23^OMI_O23"])
def test_orders_are_taken_beside_reports(kind: bytes) -> None:
    block = message().replace(b"ORU^R01^ORU_R01", kind)
    with running() as node, node.connect() as connection:
        reply = ask(connection, block)
    assert node.taken == [block]
    assert code(reply) == "AA"
    assert str(reply.segment("MSH")(9)) == f"ACK^{kind.decode()[4:7]}^ACK"


def test_a_connection_carries_many_messages() -> None:
    with running() as node, node.connect() as connection:
        ids = [
            str(ask(connection, message(control_id=f"M{n}")).segment("MSA")(2)) for n in range(9)
        ]
    assert ids == [f"M{n}" for n in range(9)]
    assert len(node.taken) == 9


def test_a_message_may_come_in_pieces_and_without_the_last_carriage_return() -> None:
    with running() as node, node.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in framed(message())[:-1]:
            connection.sendall(bytes([byte]))
        assert b"MSA|AA|M1" in answer(connection)
        assert b"MSA|AA|M2" in answer_to(connection, b"\r" + framed(message(control_id="M2")))


def answer_to(connection: socket.socket, sent: bytes) -> bytes:
    connection.sendall(sent)
    return answer(connection)


def test_the_answer_comes_after_the_message_is_kept() -> None:
    keeping, kept = threading.Event(), threading.Event()

    def take(_: bytes) -> None:
        keeping.set()
        assert kept.wait(PATIENCE)

    with running(take) as node, node.connect() as connection:
        connection.sendall(framed(message()))
        assert keeping.wait(PATIENCE)
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        kept.set()
        connection.settimeout(PATIENCE)
        assert b"MSA|AA" in answer(connection)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        pytest.param(OutOfResources("database: away"), "send it again", id="database"),
        pytest.param(Unreadable("no OBR"), "can't be read", id="unreadable"),
        pytest.param(KeyError("x"), "internal error", id="bug"),
    ],
)
def test_what_is_not_kept_is_answered_AE_and_the_next_may_be(
    error: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with running(raising(error)) as node, node.connect() as connection:
        reply = ask(connection, message())
        assert code(ask(connection, message())) == "AE"
    assert code(reply) == "AE"
    assert said in str(reply.segment("MSA")(3))
    assert "Verysecret" not in caplog.text
    assert "MRN0012345" not in caplog.text


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(message().replace(b"ORU^R01", b"ADT^A01"), id="another message"),
        pytest.param(message().replace(b"ORU^R01", b"ORU^R30"), id="another trigger"),
        pytest.param(b"GET / HTTP/1.1\r\n", id="no HL7"),
        pytest.param(b"MSH", id="cut off"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_another_kind_of_message_is_rejected_and_not_kept(block: bytes) -> None:
    with running() as node, node.connect() as connection:
        reply = ask(connection, block)
    assert code(reply) == "AR"
    assert node.taken == []


def test_the_senders_own_delimiters_are_used() -> None:
    other = message().replace(b"|", b"#").replace(b"^", b"!")
    with running() as node, node.connect() as connection:
        connection.sendall(framed(other))
        assert b"\rMSA#AA#M1#\r" in answer(connection)
    assert node.taken == [other]


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: b"MSH|^~\\&" + tail))
def test_anything_at_all_gets_an_acknowledgement(block: bytes) -> None:
    reply = acknowledgement(block, "AR", "no")
    assert reply.startswith(b"MSH")
    assert b"AR" in reply


# -- who may speak ---------------------------------------------------------------------------------


def test_a_stranger_is_cut_off_and_reported() -> None:
    with running(may_call=False) as node, node.connect() as connection:
        connection.sendall(framed(message()))
        assert answer(connection) == b""
    assert node.taken == []
    assert node.refused == [("HL7", "127.0.0.1", "no HL7 peer with this address may send")]


def test_one_connection_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mllp_listener, "MAXIMUM_CONNECTIONS", 1)
    with running() as node, node.connect() as first:
        assert code(ask(first, message())) == "AA"
        with node.connect() as second:
            assert answer_to(second, framed(message())) == b""
        assert code(ask(first, message())) == "AA"
    assert [reason for _, _, reason in node.refused] == ["more than 1 connections at a time"]


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n\x1c\r", id="no block"),
        pytest.param(b"\x0b" + b"A" * 3000, id="too large"),
        pytest.param(b"\x0bMSH|^~", id="and then silence"),
    ],
)
def test_what_does_not_speak_mllp_is_cut_off(
    sent: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mllp_listener, "MAXIMUM_SIZE", 1000)
    monkeypatch.setattr(mllp_listener, "IDLE_SECONDS", 0.3)
    with running() as node:
        with node.connect() as connection:
            assert answer_to(connection, sent) == b""
        with node.connect() as connection:
            assert code(ask(connection, message())) == "AA"
    assert "HL7 connection of 127.0.0.1 ended" in caplog.text
    assert len(node.taken) == 1


def test_a_sender_that_leaves_in_the_middle_of_a_message_is_noticed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running() as node:
        with node.connect() as connection:
            connection.sendall(framed(message())[:50])
        wait_until(lambda: "left in the middle of a message" in caplog.text)
        with node.connect() as connection:
            assert code(ask(connection, message())) == "AA"
    assert len(node.taken) == 1


# -- starting and stopping -------------------------------------------------------------------------


def test_a_taken_port_is_a_wrong_setting() -> None:
    with running() as node:
        other = MllpListener(
            ("127.0.0.1", node.listener.port), print, lambda _: True, lambda *_: None
        )
        with pytest.raises(ConfigurationError, match=r"reports\.hl7_port"):
            other.start()
        other.stop()  # never started


def test_before_it_is_started_it_has_no_port() -> None:
    listener = MllpListener(("127.0.0.1", 0), print, lambda _: True, lambda *_: None)
    with pytest.raises(RuntimeError):
        print(listener.port)


def test_stopping_ends_open_connections_and_leaves_no_thread() -> None:
    with running() as node:
        connection = node.connect()
        assert code(ask(connection, message())) == "AA"
    with connection:
        assert answer(connection) == b""
    assert not [one for one in threading.enumerate() if one.name == "mllp"]


def test_a_message_that_is_being_kept_when_we_stop_is_kept_but_not_acknowledged() -> None:
    keeping, kept = threading.Event(), threading.Event()
    done: list[bytes] = []

    def take(block: bytes) -> None:
        keeping.set()
        assert kept.wait(PATIENCE)
        done.append(block)

    with running(take) as node:
        connection = node.connect()
        connection.sendall(framed(message()))
        assert keeping.wait(PATIENCE)
        threading.Timer(0.2, kept.set).start()
    with connection:
        assert answer(connection) == b""
    assert done == [message()]


# -- with the database -----------------------------------------------------------------------------


def test_our_own_sender_gets_a_report_through(
    database: Database, study_factory: StudyFactory, tmp_path: Path
) -> None:
    storage = Storage(tmp_path / "data")
    study_factory(study_instance_uid=STUDY, identity=identity("MRN0012345"))
    file = tmp_path / "report.hl7"
    file.write_bytes(message())
    with running(lambda raw: intake.take_message(database, storage, raw)) as node:
        peer = Peer(
            name="node", protocol="hl7", host=("127.0.0.1",), port=node.listener.port, roles=()
        )
        assert MllpPeer(peer, "US").send(file) == 0
        assert MllpPeer(peer, "US").send(file) == 0  # the first answer was lost, say
    with database.transaction() as connection:
        (kept,) = store.newest(connection, state=None, limit=9)
    assert (kept.state, kept.study_instance_uid) == ("matched", STUDY)


def test_without_a_database_the_sender_is_told_to_come_again(tmp_path: Path) -> None:
    away = Database(f"postgresql+psycopg://user@/name?host={tmp_path}")
    storage = Storage(tmp_path / "data")
    file = tmp_path / "report.hl7"
    file.write_bytes(message())
    with running(lambda raw: intake.take_message(away, storage, raw)) as node:
        peer = Peer(
            name="node", protocol="hl7", host=("127.0.0.1",), port=node.listener.port, roles=()
        )
        with pytest.raises(PeerError) as raised:
            MllpPeer(peer, "US").send(file)
    assert raised.value.retry
