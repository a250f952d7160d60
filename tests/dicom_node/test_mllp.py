from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import hl7
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dicom_node.config import Peer
from dicom_node.errors import PeerError, PeerRefused, Unreadable, trace
from dicom_node.mllp import MllpPeer
from dicom_node.scu import Reference, Timeouts

IMPATIENT = Timeouts(connect=2, answer=0.5, network=0.5)
PATIENCE = 10.0  #: seconds; far above the time-outs here
MESSAGE = (
    b"MSH|^~\\&|DICOMNODE||||20240311102030+0100||ORU^R01^ORU_R01|CONTROL1|P|2.5\r"
    b"PID|1||SECRET-ID||Verysecret^Name\r"
)
REFERENCE = Reference(study_instance_uid="1", series_instance_uid="", sop_instance_uid="2.25.1")

Behaviour = Callable[[socket.socket], None]


def acknowledgement(code: str = "AA", control_id: str = "CONTROL1") -> bytes:
    text = (
        f"MSH|^~\\&|RIS||DICOMNODE||20240311||ACK^R01^ACK|9|P|2.5\rMSA|{code}|{control_id}|SECRET\r"
    )
    return b"\x0b" + text.encode() + b"\x1c\r"


def says(*parts: bytes, pause: float = 0) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        for part in parts:
            time.sleep(pause)
            connection.sendall(part)

    return behave


@dataclass
class Receiver:
    """A receiver of one message per connection, which then does what a test wants."""

    behave: Behaviour = field(default_factory=lambda: says(acknowledgement()))
    port: int = 0
    frames: list[bytes] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def peer(self, **changes: object) -> Peer:
        fields: dict[str, object] = {
            "name": "ris",
            "protocol": "hl7",
            "host": ("127.0.0.1",),
            "port": self.port,
            "roles": ("destination",),
        }
        return Peer.model_validate(fields | changes)

    def client(self, **changes: object) -> MllpPeer:
        return MllpPeer(self.peer(**changes), "DICOMNODE", IMPATIENT)

    def serve(self, server: socket.socket) -> None:
        while not self.over.is_set():
            with suppress(OSError), server.accept()[0] as connection:
                connection.settimeout(PATIENCE)
                self.take(connection)

    def take(self, connection: socket.socket) -> None:
        frame = b""
        while not frame.endswith(b"\x1c\r"):
            received = connection.recv(4096)
            if not received:
                return
            frame += received
        self.frames.append(frame)
        self.behave(connection)


@contextmanager
def serving(receiver: Receiver) -> Iterator[Receiver]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        receiver.port = server.getsockname()[1]
        thread = threading.Thread(target=receiver.serve, args=[server], daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.over.set()
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", receiver.port), 1).close()
            thread.join(PATIENCE)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with serving(Receiver()) as running:
        yield running


@pytest.fixture
def message(tmp_path: Path) -> Path:
    file = tmp_path / "draft.hl7"
    file.write_bytes(MESSAGE)
    return file


def failure(client: MllpPeer, file: Path) -> PeerError:
    with pytest.raises(PeerError) as caught:
        client.send(file)
    told = f"{caught.value} {caught.value.__cause__} {caught.value.__context__}"
    assert not any(word in told.upper() for word in ("SECRET", "CONTROL1"))
    return caught.value


def refused_for_good(error: PeerError) -> bool:
    return isinstance(error, PeerRefused) and not error.retry


# --- what is sent --------------------------------------------------------------------------------


def test_the_message_goes_out_framed_byte_for_byte(receiver: Receiver, message: Path) -> None:
    assert receiver.client().send(message) == 0
    assert receiver.frames == [b"\x0b" + MESSAGE + b"\x1c\r"]


def test_sending_again_sends_the_same_bytes(receiver: Receiver, message: Path) -> None:
    client = receiver.client(ae_title="RIS")
    for _ in range(10):
        client.send(message)
    assert len(receiver.frames) == 10
    assert len(set(receiver.frames)) == 1


@pytest.mark.parametrize(
    ("ae_title", "application", "facility"),
    [("RIS", "RIS", ""), ("HL7RCV|DCM4CHEE", "HL7RCV", "DCM4CHEE"), ("", "", "")],
)
def test_the_receiver_is_named_as_configured(
    receiver: Receiver, message: Path, ae_title: str, application: str, facility: str
) -> None:
    receiver.client(**({"ae_title": ae_title} if ae_title else {})).send(message)
    sent = receiver.frames[0].strip(b"\x0b\x1c\r")
    msh = hl7.parse(sent).segment("MSH")
    assert [str(msh(n)) for n in (3, 5, 6, 10)] == [
        *("DICOMNODE", application, facility, "CONTROL1")
    ]
    assert sent.partition(b"\r")[2] == MESSAGE.strip(b"\r").partition(b"\r")[2]


def test_a_long_message_arrives_whole(receiver: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "long.hl7"
    file.write_bytes(MESSAGE + b"OBX|1|TX|||" + b"x" * 1_000_000 + b"\r")
    receiver.client().send(file)
    assert len(receiver.frames[0]) > 1_000_000


# --- what comes back -----------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["AA", "CA"])
def test_an_accepted_message_is_stored(receiver: Receiver, message: Path, code: str) -> None:
    receiver.behave = says(acknowledgement(code))
    assert receiver.client().send(message) == 0


@pytest.mark.parametrize("code", ["AR", "CR"])
def test_a_rejected_message_is_refused_for_good(
    receiver: Receiver, message: Path, code: str
) -> None:
    receiver.behave = says(acknowledgement(code))
    error = failure(receiver.client(), message)
    assert refused_for_good(error)
    assert code in str(error)
    assert "ris (127.0.0.1:" in str(error)


@pytest.mark.parametrize("code", ["AE", "CE"])
def test_an_error_is_worth_another_try(receiver: Receiver, message: Path, code: str) -> None:
    receiver.behave = says(acknowledgement(code))
    error = failure(receiver.client(), message)
    assert error.retry
    assert code in str(error)


def test_a_split_answer_is_put_together(receiver: Receiver, message: Path) -> None:
    whole = acknowledgement()
    receiver.behave = says(whole[:1], whole[1:30], whole[30:-2], whole[-2:], pause=0.02)
    assert receiver.client().send(message) == 0


def test_an_answer_without_its_last_byte_is_enough(receiver: Receiver, message: Path) -> None:
    receiver.behave = says(acknowledgement()[:-1])
    assert receiver.client().send(message) == 0


def test_line_feeds_between_segments_are_forgiven(receiver: Receiver, message: Path) -> None:
    receiver.behave = says(acknowledgement().replace(b"\rMSA", b"\nMSA"))
    assert receiver.client().send(message) == 0


BAD: dict[str, tuple[Behaviour, str]] = {
    "another message's": (says(acknowledgement("AA", "CONTROL2")), "acknowledged another message"),
    "a rejection of another's": (says(acknowledgement("AR", "CONTROL2")), "another message"),
    "an unknown code": (says(acknowledgement("OK")), "no acknowledgement"),
    "no MSA": (says(b"\x0bMSH|^~\\&|RIS\r\x1c\r"), "no acknowledgement"),
    "garbage": (says(b"\x0bSECRET\x1c\r"), "no acknowledgement"),
    "an empty frame": (says(b"\x0b\x1c\r"), "no acknowledgement"),
    "no frame": (says(acknowledgement()[1:]), "no acknowledgement"),
    "nothing, then the end": (lambda connection: None, "closed the connection"),
    "half, then the end": (says(acknowledgement()[:40]), "closed the connection"),
    "silence": (says(b"", acknowledgement(), pause=1), "did not answer in time"),
    "byte by byte": (says(*[b"x"] * 20, pause=0.1), "did not answer in time"),
    "no end of it": (says(b"\x0b" + b"x" * 100_000), "more than 65536 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_answer_that_is_none_is_worth_another_try(
    receiver: Receiver, message: Path, name: str
) -> None:
    receiver.behave, why = BAD[name]
    error = failure(receiver.client(), message)
    assert not refused_for_good(error)
    assert why in str(error)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(answer=st.binary(max_size=200) | st.text("MSHA|^~\\&\r1", max_size=40).map(str.encode))
def test_no_answer_whatever_is_taken_for_yes(
    receiver: Receiver, message: Path, answer: bytes
) -> None:
    receiver.behave = says(b"\x0b" + answer + b"\x1c\r")
    assert failure(receiver.client(), message).retry


# --- reaching it ---------------------------------------------------------------------------------


def test_a_receiver_that_listens_is_there(receiver: Receiver) -> None:
    receiver.client().verify()
    assert receiver.frames == []


def test_nobody_there_is_said_with_name_and_port(receiver: Receiver, message: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    client = receiver.client(port=port)
    with pytest.raises(PeerError, match=rf"ris \(127.0.0.1:{port}\) can't be reached: .*refused"):
        client.verify()
    assert failure(client, message).retry


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 300])
def test_a_host_that_is_none_is_a_peer_s_failure(receiver: Receiver, host: str) -> None:
    with pytest.raises(PeerError, match="can't be reached"):
        receiver.client(host=host).verify()


def test_the_acknowledgement_is_proof(receiver: Receiver) -> None:
    assert receiver.client().prove(REFERENCE) is True
    assert receiver.frames == []


# --- what can't be sent --------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"PID|1||SECRET\r", b"MSH|^~\\&|A\r", b"\x00" * 200])
def test_a_file_that_is_no_message_is_not_sent(
    receiver: Receiver, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "x.hl7"
    file.write_bytes(content)
    with pytest.raises(Unreadable, match=r"^x\.hl7: not an HL7 message$"):
        receiver.client().send(file)
    assert receiver.frames == []


def test_a_file_that_is_gone_is_said(receiver: Receiver, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"gone\.hl7: No such file"):
        receiver.client().send(tmp_path / "gone.hl7")


def test_nothing_of_message_or_answer_reaches_a_log(
    receiver: Receiver, message: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.behave = says(b"\x0bMSH|^~\\&|SECRET\rMSA|\\SECRET\\|\\X\\SECRET\r\x1c\r")
    error = failure(receiver.client(), message)
    assert "SECRET" not in caplog.text + trace(error)
