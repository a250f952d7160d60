from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import C_STORE

from dicom_node import scu
from dicom_node.config import Peer
from dicom_node.errors import (
    ConfigurationError,
    NotSupported,
    PeerError,
    PeerRefused,
    Unreadable,
)
from dicom_node.scp import TRANSFER_SYNTAXES
from dicom_node.scu import (
    DicomPeer,
    Outcome,
    Reference,
    Timeouts,
    echo,
    files_under,
    needed_context,
    parse_target,
    send_files,
)
from dicom_node.storage import Storage
from tests.dicom_node.network import DIGITAL_X_RAY, VERIFICATION, encoded, header, keep_instance

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
IMPATIENT = Timeouts(connect=2, associate=0.5, answer=0.5, network=0.5)
PATIENCE = 10.0  #: seconds; far above the time-outs here, far below pynetdicom's own


@dataclass
class Pacs:
    """A true Storage SCP that notes what it got, and misbehaves on demand."""

    port: int = 0
    store: Callable[[evt.Event], int] = lambda event: 0x0000
    find: Callable[[evt.Event], Iterator[tuple[int, Dataset | None]]] = lambda event: iter(())
    received: list[tuple[str, str, bytes]] = field(default_factory=list)
    associations: int = 0
    on_data: Callable[[evt.Event], None] = lambda event: None
    over: threading.Event = field(default_factory=threading.Event)

    def on_store(self, event: evt.Event) -> int:
        syntax = event.context.transfer_syntax
        request = event.request
        self.received.append((request.AffectedSOPInstanceUID, syntax, event.encoded_dataset(False)))
        return self.store(event)

    def on_find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        yield from self.find(event)

    def on_accepted(self, event: evt.Event) -> None:
        self.associations += 1

    def peer(self, **changes: object) -> Peer:
        fields: dict[str, object] = {
            "name": "pacs",
            "ae_title": "PACS",
            "host": ("127.0.0.1",),
            "port": self.port,
            "roles": ("destination",),
        }
        return Peer.model_validate(fields | changes)


@contextmanager
def serving(pacs: Pacs, entity: AE) -> Iterator[Pacs]:
    handlers: list[evt.EventHandlerType] = [
        (evt.EVT_C_STORE, lambda event: pacs.on_store(event)),
        (evt.EVT_C_FIND, lambda event: pacs.on_find(event)),
        (evt.EVT_ACCEPTED, lambda event: pacs.on_accepted(event)),
        (evt.EVT_DATA_RECV, lambda event: pacs.on_data(event)),
    ]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    pacs.port = server.server_address[1]
    try:
        yield pacs
    finally:
        pacs.over.set()
        entity.shutdown()


@pytest.fixture(scope="module")
def shared() -> Iterator[Pacs]:
    entity = AE("PACS")
    entity.require_called_aet = True
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(str(context.abstract_syntax), [*TRANSFER_SYNTAXES])
    entity.add_supported_context(VERIFICATION)
    entity.add_supported_context(STUDY_ROOT_FIND)
    with serving(Pacs(), entity) as pacs:
        yield pacs


@pytest.fixture
def pacs(shared: Pacs) -> Iterator[Pacs]:
    """The PACS with no memory and good manners."""
    shared.over.clear()
    yield shared
    shared.over.set()
    fresh = Pacs(port=shared.port, over=shared.over)
    for name in fresh.__dataclass_fields__:
        setattr(shared, name, getattr(fresh, name))


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes Part 10 files as the node itself does."""
    storage = Storage(tmp_path / "data")

    def make(
        uid: str = "1.2.3.4",
        sop_class: str = DIGITAL_X_RAY,
        syntax: UID = ExplicitVRLittleEndian,
        size: int = 0,
    ) -> Path:
        dataset = header(SOPInstanceUID=uid, SOPClassUID=sop_class)
        if size:
            dataset.add_new("PixelData", "OW", bytes(size))
        kept = keep_instance(
            storage,
            study_instance_uid="1.2.3",
            sop_instance_uid=uid,
            sop_class_uid=sop_class,
            transfer_syntax_uid=syntax,
            data_set=encoded(dataset, syntax),
        )
        return storage.path(kept.path)

    return make


MakeFile = Callable[..., Path]


def destination(pacs: Pacs, timeouts: Timeouts | None = None, **changes: object) -> DicomPeer:
    return DicomPeer(pacs.peer(**changes), "DICOMNODE", timeouts)


# --- one object -----------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES, ids=lambda uid: uid.keyword)
def test_an_object_goes_in_its_own_transfer_syntax_byte_for_byte(
    pacs: Pacs, make_file: MakeFile, syntax: UID
) -> None:
    file = make_file(syntax=syntax)
    assert destination(pacs).send(file) == 0x0000
    ((uid, used, data_set),) = pacs.received
    assert (uid, used) == ("1.2.3.4", syntax)
    assert file.read_bytes().endswith(data_set)
    assert file.read_bytes()[-len(data_set) - 10 :].startswith(b"DICOM-NODE")  # and nothing less


@pytest.mark.parametrize("status", [0x0000, 0x0111, 0xB000, 0xB006, 0xB007])
def test_what_counts_as_stored_is_returned(pacs: Pacs, make_file: MakeFile, status: int) -> None:
    pacs.store = lambda event: status
    assert destination(pacs).send(make_file()) == status


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (0xA700, PeerError),
        (0xA701, PeerError),
        (0x0213, PeerError),
        (0xFE00, PeerError),
        (0xA900, PeerRefused),
        (0xA9FF, PeerRefused),
        (0xC000, PeerRefused),
        (0xCFFF, PeerRefused),
        (0x0110, PeerRefused),
        (0x0122, NotSupported),
        (0x0124, PeerRefused),
    ],
)
def test_a_refusal_says_whether_to_try_again(
    pacs: Pacs, make_file: MakeFile, status: int, error: type[PeerError]
) -> None:
    pacs.store = lambda event: status
    with pytest.raises(PeerError, match=f"pacs .* answered C-STORE with 0x{status:04X}") as refusal:
        destination(pacs).send(make_file())
    assert type(refusal.value) is error
    assert refusal.value.status == status


def abort(event: evt.Event) -> int:
    event.assoc.abort()
    return 0x0000


def close(event: evt.Event) -> int:
    event.assoc.dul.socket.close()
    return 0x0000


def answer_without_status(event: evt.Event) -> int:
    answer = C_STORE()
    answer.MessageIDBeingRespondedTo = event.request.MessageID
    event.assoc.dimse.send_msg(answer, event.context.context_id)
    deadline = time.monotonic() + PATIENCE
    while not event.assoc.acse.is_aborted() and time.monotonic() < deadline:
        time.sleep(0.01)
    event.assoc.is_established = False  # no second answer into the aborted association
    return 0x0000


@pytest.mark.parametrize("misdeed", [abort, close, answer_without_status])
def test_a_peer_that_breaks_off_is_no_success(
    pacs: Pacs, make_file: MakeFile, misdeed: Callable[[evt.Event], int]
) -> None:
    pacs.store = misdeed
    with pytest.raises(PeerError, match="aborted the association, closed") as failure:
        destination(pacs).send(make_file())
    assert type(failure.value) is PeerError
    assert failure.value.status is None


def test_a_peer_that_never_answers_is_given_up(pacs: Pacs, make_file: MakeFile) -> None:
    pacs.store = lambda event: int(pacs.over.wait(PATIENCE))
    started = time.monotonic()
    with pytest.raises(PeerError, match=r"did not answer within 0\.5 s"):
        destination(pacs, IMPATIENT).send(make_file())
    assert time.monotonic() - started < PATIENCE


def test_a_peer_that_stops_reading_is_given_up(pacs: Pacs, make_file: MakeFile) -> None:
    def stop_reading(event: evt.Event) -> None:
        if event.data[0] == 4:  # P-DATA-TF
            pacs.over.wait(PATIENCE)

    pacs.on_data = stop_reading
    started = time.monotonic()
    with pytest.raises(PeerError):
        destination(pacs, IMPATIENT).send(make_file(size=32 << 20))
    assert time.monotonic() - started < PATIENCE / 2


def test_a_peer_that_answers_no_association_request_is_given_up(make_file: MakeFile) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pacs = Pacs(port=silent.getsockname()[1])
        with pytest.raises(PeerError, match="did not answer the request"):
            destination(pacs, IMPATIENT).send(make_file())


# pynetdicom drops a socket that did not connect without closing it
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_nobody_there(make_file: MakeFile) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]  # free again after this block
    with pytest.raises(PeerError, match="can't be reached") as failure:
        destination(Pacs(port=port)).send(make_file())
    assert failure.value.retry


def test_a_host_that_does_not_resolve(make_file: MakeFile) -> None:
    with pytest.raises(PeerError, match="can't be reached"):
        destination(Pacs(port=104), host=("no-such-host.invalid",)).send(make_file())


def test_a_rejection_says_who_and_why(pacs: Pacs, make_file: MakeFile) -> None:
    with pytest.raises(PeerError, match=r"pacs .* rejected .* permanently: its called AE title is"):
        destination(pacs, ae_title="OTHER").send(make_file())


def test_a_class_the_peer_does_not_take_is_named(pacs: Pacs, make_file: MakeFile) -> None:
    with pytest.raises(NotSupported, match=r"accepts none of 1 presentation contexts, first 1"):
        destination(pacs).send(make_file(sop_class="1.2.9"))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"a text file of some length" * 20, id="text"),
        pytest.param(bytes(128) + b"DICM", id="nothing after the prefix"),
        pytest.param(bytes(128) + b"DICM" + b"\x02\x00\x10\x00UI\xff\x00", id="cut"),
        pytest.param(bytes(128) + b"DICM" + b"\xff" * 100, id="noise"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_no_part_10_file_is_unreadable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(Unreadable, match="file: "):
        needed_context(tmp_path / "file")


def test_a_file_that_is_not_there_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="No such file"):
        needed_context(tmp_path / "none")


# --- C-ECHO and proof -----------------------------------------------------------------------


def test_an_echo_is_answered(pacs: Pacs) -> None:
    echo(pacs.peer(), "DICOMNODE")
    destination(pacs).verify()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_an_echo_that_is_not_answered_fails() -> None:
    with pytest.raises(PeerError, match="can't be reached"):
        echo(parse_target("PACS@127.0.0.1:1"), "DICOMNODE")


REFERENCE = Reference(
    study_instance_uid="1.2.3", series_instance_uid="1.2.3.1", sop_instance_uid="1.2.3.4"
)


def test_without_an_agreed_proof_the_status_was_proof_enough(pacs: Pacs) -> None:
    assert destination(pacs, proof="none").prove(REFERENCE)
    assert pacs.associations == 0


def test_commitment_proves_nothing_yet(pacs: Pacs) -> None:
    assert not destination(pacs, proof="commitment").prove(REFERENCE)


def listing(*uids: str, last: int = 0x0000) -> Callable[[evt.Event], Iterator[object]]:
    def find(event: evt.Event) -> Iterator[object]:
        asked = event.identifier
        assert asked.QueryRetrieveLevel == "IMAGE"
        assert (asked.StudyInstanceUID, asked.SeriesInstanceUID) == ("1.2.3", "1.2.3.1")
        for uid in uids:
            yield 0xFF00, header(SOPInstanceUID=uid)
        yield last, None

    return find


@pytest.mark.parametrize(
    ("listed", "proven"),
    [((), False), (("1.2.3.4",), True), (("9.9", "1.2.3.4", "9.8"), True), (("9.9",), False)],
)
def test_what_the_peer_lists_is_proven(
    pacs: Pacs, listed: tuple[str, ...], proven: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    pacs.find = listing(*listed)  # type: ignore[assignment]
    assert destination(pacs, proof="find").prove(REFERENCE) is proven
    assert "Verysecret" not in caplog.text


@pytest.mark.parametrize("listed", [(), ("1.2.3.4",)])
def test_a_failed_query_proves_nothing_either_way(pacs: Pacs, listed: tuple[str, ...]) -> None:
    pacs.find = listing(*listed, last=0xA700)  # type: ignore[assignment]
    with pytest.raises(PeerError, match="answered C-FIND with 0xA700"):
        destination(pacs, proof="find").prove(REFERENCE)


# --- many files -----------------------------------------------------------------------------


def send(pacs: Pacs, files: list[Path], **changes: object) -> list[Outcome]:
    return send_files(files, pacs.peer(**changes), "DICOMNODE", timeouts=Timeouts(answer=PATIENCE))


def test_many_files_go_over_one_association(pacs: Pacs, make_file: MakeFile) -> None:
    syntaxes = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    files = [make_file(uid=f"1.2.{n}", syntax=syntaxes[n % 2]) for n in range(10)]
    told: list[Outcome] = []
    outcomes = send_files(files, pacs.peer(), "DICOMNODE", told.append)
    assert outcomes == told == [Outcome(path=file, status=0, failure=None) for file in files]
    assert pacs.associations == 1
    assert [uid for uid, _, _ in pacs.received] == [f"1.2.{n}" for n in range(10)]


def test_more_contexts_than_fit_one_association_take_two(pacs: Pacs, make_file: MakeFile) -> None:
    classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts[:130]]
    files = [make_file(uid=f"1.2.{n}", sop_class=uid) for n, uid in enumerate(classes)]
    assert all(outcome.failure is None for outcome in send(pacs, files))
    assert pacs.associations == 2
    assert len(pacs.received) == 130


def test_one_bad_file_does_not_stop_the_others(
    pacs: Pacs, make_file: MakeFile, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("not DICOM")
    files = [
        make_file(uid="1.2.1"),
        tmp_path / "notes.txt",
        tmp_path / "none.dcm",
        make_file(uid="1.2.2", sop_class="1.2.9"),  # the PACS does not take this class
        make_file(uid="1.2.3"),
    ]
    failures = {outcome.path: outcome.failure for outcome in send(pacs, files)}
    assert list(map(failures.__getitem__, files)) == [
        None,
        "notes.txt: not a DICOM file (PS3.10 7.1)",
        "none.dcm: No such file or directory",
        failures[files[3]],
        None,
    ]
    assert "1.2.9" in (failures[files[3]] or "")


def test_after_a_broken_association_the_rest_goes_over_a_new_one(
    pacs: Pacs, make_file: MakeFile
) -> None:
    pacs.store = lambda event: abort(event) if len(pacs.received) == 2 else 0x0000
    outcomes = send(pacs, [make_file(uid=f"1.2.{n}") for n in range(5)])
    assert [outcome.failure is None for outcome in outcomes] == [True, False, True, True, True]
    assert pacs.associations == 2


def test_a_peer_that_always_breaks_off_ends_the_sending(pacs: Pacs, make_file: MakeFile) -> None:
    pacs.store = abort
    outcomes = send(pacs, [make_file(uid=f"1.2.{n}") for n in range(3)])
    assert all(outcome.failure for outcome in outcomes)
    assert pacs.associations == 3


def test_no_answer_is_lost_to_pynetdicoms_reactor(
    pacs: Pacs, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WideGap(scu._Checkpoint):
        def wait(self, timeout: float | None = None) -> bool:
            opened = super().wait(timeout)
            time.sleep(0.02)
            return opened

    send_message = DIMSEServiceProvider.send_msg

    def send_and_dawdle(dimse: DIMSEServiceProvider, *message: Any) -> None:
        send_message(dimse, *message)
        if dimse.assoc.is_requestor:
            time.sleep(0.04)

    monkeypatch.setattr(scu, "_Checkpoint", WideGap)
    monkeypatch.setattr(DIMSEServiceProvider, "send_msg", send_and_dawdle)
    files = [make_file(uid=f"1.2.{n}") for n in range(10)]
    outcomes = send_files(files, pacs.peer(), "DICOMNODE", timeouts=Timeouts(answer=2))
    assert [outcome.failure for outcome in outcomes] == [None] * 10
    assert pacs.associations == 1


def test_the_peers_status_is_kept_for_each_file(pacs: Pacs, make_file: MakeFile) -> None:
    statuses = iter([0x0000, 0xA700, 0xB000, 0xC000])
    pacs.store = lambda event: next(statuses)
    outcomes = send(pacs, [make_file(uid=f"1.2.{n}") for n in range(4)])
    assert [outcome.status for outcome in outcomes] == [0x0000, 0xA700, 0xB000, 0xC000]
    assert [outcome.failure is None for outcome in outcomes] == [True, False, True, False]


def test_a_peer_that_rejects_us_fails_every_file_with_the_reason(
    pacs: Pacs, make_file: MakeFile
) -> None:
    files = [make_file(uid=f"1.2.{n}") for n in range(3)]
    outcomes = send(pacs, files, ae_title="OTHER")
    assert [outcome.path for outcome in outcomes] == files
    assert all("called AE title" in (outcome.failure or "") for outcome in outcomes)


def test_folders_stand_for_the_files_in_them(tmp_path: Path) -> None:
    for name in ("b/2.dcm", "b/1.dcm", "a.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = files_under([tmp_path / "b", tmp_path / "a.dcm", tmp_path / "none"])
    assert [path.name for path in found] == ["1.dcm", "2.dcm", "a.dcm", "none"]


# --- AE@HOST:PORT ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ae_title", "host", "port"),
    [
        ("PACS@10.0.0.5:104", "PACS", "10.0.0.5", 104),
        ("MY PACS@pacs.example:11112", "MY PACS", "pacs.example", 11112),
        ("PACS@[2001:db8::1]:104", "PACS", "2001:db8::1", 104),
    ],
)
def test_a_target_is_read(text: str, ae_title: str, host: str, port: int) -> None:
    peer = parse_target(text)
    assert (peer.ae_title, peer.address, peer.port) == (ae_title, host, port)
    assert peer.is_destination
    assert not peer.is_source


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PACS",
        "PACS@host",
        "PACS@:104",
        "@host:104",
        "PACS@host:",
        "PACS@host:x",
        "PACS@host:0",
        "PACS@host:65536",
        "A-TITLE-THAT-IS-TOO-LONG@host:104",
        "PA\\CS@host:1",
        "PACS@10.0.0.0/8:104",
        "PACS@2001:db8::1:104",
    ],
)
def test_what_is_no_target_is_a_wrong_setting(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_target(text)


@given(st.text(max_size=40))
def test_any_text_is_a_target_or_a_wrong_setting(text: str) -> None:
    try:
        peer = parse_target(text)
    except ConfigurationError:
        return
    assert text.startswith(f"{peer.ae_title}@")
    assert text.endswith(f":{peer.port}") or text.rpartition(":")[2].lstrip("0") == str(peer.port)
