from __future__ import annotations

import logging
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pydicom
import pytest
from pydicom.uid import (
    JPEG2000,
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AllStoragePresentationContexts, build_context

from dicom_node import listener
from dicom_node.acceptor import Request
from dicom_node.associations import Reason, Refused
from dicom_node.commitment_information import PUSH_MODEL
from dicom_node.config import Peer
from dicom_node.errors import ConfigurationError, OutOfResources
from dicom_node.scp import TRANSFER_SYNTAXES, rejection_of
from dicom_node.storage import Identity, StoredInstance, identity_key
from dicom_node.upper_layer import Deadlines
from tests.dicom_node.network import (
    CONTEXT,
    DIGITAL_X_RAY,
    SOURCE,
    VERIFICATION,
    Running,
    associate,
    association,
    encoded,
    header,
    rejection,
    running,
    send_raw,
    settings,
)

REQUEST = Request(
    calling_ae_title="MODALITY",
    called_ae_title="DICOMNODE",
    address="127.0.0.1",
    tls=False,
    local=False,
    abstract_syntaxes=(DIGITAL_X_RAY,),
    is_dicom=True,
)
AFFECTED = {"sop_class_uid": DIGITAL_X_RAY, "sop_instance_uid": "1.2.3.4"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One listener for many tests: stopping takes pynetdicom half a second."""
    with running(tmp_path_factory.mktemp("node"), SOURCE) as started:
        yield started


@pytest.fixture
def node(shared: Running) -> Running:
    """The listener, as empty as a new one."""
    shared.registered.clear()
    shared.refused.clear()
    for file in shared.files:
        file.unlink()
    return shared


def store(
    node: Running,
    data_set: bytes | None,
    transfer_syntax: UID = ExplicitVRLittleEndian,
    **affected: str,
) -> int | None:
    with association(node.port, (DIGITAL_X_RAY, transfer_syntax)) as opened:
        return send_raw(opened, data_set, **(AFFECTED | affected))


# --- what is kept ---------------------------------------------------------------------------


@pytest.mark.parametrize("transfer_syntax", TRANSFER_SYNTAXES, ids=lambda uid: uid.keyword)
def test_every_transfer_syntax_is_kept_byte_for_byte(node: Running, transfer_syntax: UID) -> None:
    data_set = encoded(header(), transfer_syntax)
    assert store(node, data_set, transfer_syntax) == 0x0000
    (instance,) = node.registered
    file = node.storage.path(instance.path)
    assert file.read_bytes().endswith(data_set)
    assert instance.transfer_syntax_uid == transfer_syntax
    read = pydicom.dcmread(file)
    assert read.file_meta.TransferSyntaxUID == transfer_syntax
    assert read.PatientID == "SECRET-ID"


def test_what_is_registered_says_what_came_from_where(node: Running) -> None:
    assert store(node, encoded(header(IssuerOfPatientID="HOSPITAL"))) == 0x0000
    (instance,) = node.registered
    assert instance == StoredInstance(
        study_instance_uid="1.2.3",
        series_instance_uid="1.2.3.1",
        sop_instance_uid="1.2.3.4",
        sop_class_uid=DIGITAL_X_RAY,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        path=instance.path,
        sha256=instance.sha256,
        size=instance.size,
        calling_ae_title="MODALITY",
        address="127.0.0.1",
        # sha256 of "HOSPITAL|SECRET-ID"
        patient_key="eafac5a63c80ef6581dfd563921214f99ee21b08fe5af56ce714617b18adeba5",
        identity=Identity(
            patient_id_key=identity_key("SECRET-ID"), patient_issuer_key=identity_key("HOSPITAL")
        ),
    )
    assert (node.data / instance.path).stat().st_size == instance.size


def test_the_row_is_written_after_the_file(tmp_path: Path) -> None:
    seen: list[bool] = []

    def register(instance: StoredInstance) -> None:
        seen.append((tmp_path / instance.path).is_file())

    with running(tmp_path, SOURCE, register=register) as node:
        assert store(node, encoded(header())) == 0x0000
    assert seen == [True]


def test_the_same_bytes_twice_are_one_file_and_two_successes(node: Running) -> None:
    assert store(node, encoded(header())) == 0x0000
    assert store(node, encoded(header())) == 0x0000
    first, second = node.registered
    assert first == second
    assert len(node.files) == 1


def test_other_bytes_under_the_same_uid_do_not_overwrite(node: Running) -> None:
    assert store(node, encoded(header())) == 0x0000
    assert store(node, encoded(header(PatientSex="F"))) == 0x0000
    assert len(node.files) == 2


def test_many_objects_come_over_one_association(node: Running) -> None:
    with association(node.port) as opened:
        for number in range(20):
            uid = f"1.2.3.{number}"
            data_set = encoded(header(SOPInstanceUID=uid))
            assert send_raw(opened, data_set, **AFFECTED | {"sop_instance_uid": uid}) == 0x0000
    assert len(node.files) == 20


def test_senders_are_served_side_by_side(node: Running) -> None:
    statuses: list[int | None] = []

    def sender(number: int) -> None:
        uid = f"1.2.3.{number}"
        data_set = encoded(header(SOPInstanceUID=uid))
        statuses.append(store(node, data_set, sop_instance_uid=uid))

    threads = [threading.Thread(target=sender, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0x0000] * 8
    assert len(node.files) == 8


# --- what is negotiated ---------------------------------------------------------------------


@pytest.mark.parametrize("part", [slice(0, 128), slice(128, None)], ids=["first 128", "rest"])
def test_every_storage_class_is_accepted(node: Running, part: slice) -> None:
    classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts[part]]
    with association(node.port, *((uid, JPEG2000) for uid in classes)) as opened:
        assert [context.abstract_syntax for context in opened.accepted_contexts] == classes


@pytest.mark.parametrize(
    "sop_class_uid",
    [
        pytest.param("1.3.46.670589.11.0.0.12.2", id="private"),
        pytest.param("1.2.840.10008.5.1.4.1.1.6", id="retired ultrasound"),
        pytest.param("1.2.840.10008.5.1.4.1.1.9999", id="newer than our library"),
    ],
)
def test_a_storage_class_we_never_heard_of_is_kept_too(node: Running, sop_class_uid: str) -> None:
    data_set = encoded(header(SOPClassUID=sop_class_uid))
    with association(node.port, (sop_class_uid, ImplicitVRLittleEndian), CONTEXT) as opened:
        context_id = opened.accepted_contexts[1].context_id
        affected = AFFECTED | {"sop_class_uid": sop_class_uid}
        assert send_raw(opened, data_set, context_id=context_id or 0, **affected) == 0x0000
    assert node.registered[0].sop_class_uid == sop_class_uid


@pytest.mark.parametrize(
    ("sop_class_uid", "transfer_syntax"),
    [
        pytest.param("1.2.840.10008.5.1.4.1.2.2.1", ExplicitVRLittleEndian, id="C-FIND"),
        pytest.param("1.2.840.10008.5.1.4.31", ExplicitVRLittleEndian, id="worklist"),
        pytest.param("1.2.840.10008.1.3.10", ExplicitVRLittleEndian, id="DICOMDIR"),
        pytest.param(DIGITAL_X_RAY, MPEG2MPML, id="video"),
        pytest.param(DIGITAL_X_RAY, "1.2.3.4.5", id="private transfer syntax"),
    ],
)
def test_what_we_cannot_serve_is_not_accepted(
    node: Running, sop_class_uid: str, transfer_syntax: str
) -> None:
    asked = (sop_class_uid, transfer_syntax)
    with association(node.port, asked, (VERIFICATION, ImplicitVRLittleEndian)) as opened:
        assert [context.abstract_syntax for context in opened.rejected_contexts] == [sop_class_uid]
        assert opened.send_c_echo().Status == 0x0000


def test_of_several_syntaxes_none_is_chosen_that_makes_the_sender_lose_bits(node: Running) -> None:
    offered = build_context(DIGITAL_X_RAY, [JPEG2000, ImplicitVRLittleEndian])
    opened = associate(node.port, offered)
    chosen = opened.accepted_contexts[0].transfer_syntax
    opened.release()
    assert chosen == [ImplicitVRLittleEndian]


# --- who may call ---------------------------------------------------------------------------

STORE_ONLY = Peer(name="archive", ae_title="ARCHIVE", host=("127.0.0.1",), roles=("destination",))
ELSEWHERE = Peer(name="far", ae_title="FAR", host=("192.0.2.7",), roles=("source",))


@pytest.mark.parametrize(
    ("calling", "called", "diagnostic", "reason"),
    [
        pytest.param("MODALITY", "OTHER", 7, Reason.WRONG_CALLED_TITLE, id="called"),
        pytest.param("STRANGER", "DICOMNODE", 3, Reason.UNKNOWN_TITLE, id="who"),
        pytest.param("FAR", "DICOMNODE", 3, Reason.WRONG_ADDRESS, id="address"),
        pytest.param("ARCHIVE", "DICOMNODE", 3, Reason.UNKNOWN_TITLE, id="role"),
    ],
)
def test_a_wrong_caller_is_rejected_and_reported(
    tmp_path: Path, calling: str, called: str, diagnostic: int, reason: Reason
) -> None:
    with running(tmp_path, SOURCE, STORE_ONLY, ELSEWHERE) as node:
        asked = associate(node.port, calling=calling, called=called)
        # PS3.8 9.3.4: permanent, by the service-user, with this diagnostic
        assert rejection(asked) == (1, 1, diagnostic)
    (refused,) = node.refused
    assert (refused.calling_ae_title, refused.called_ae_title) == (calling, called)
    assert (refused.address, refused.reason) == ("127.0.0.1", reason)
    assert refused.contexts == (DIGITAL_X_RAY,)


def test_without_peers_nobody_may_even_echo(tmp_path: Path) -> None:
    with running(tmp_path) as node:
        asked = (VERIFICATION, ImplicitVRLittleEndian)
        assert rejection(associate(node.port, asked, calling="DICOMNODE"))
    assert [one.calling_ae_title for one in node.refused] == ["DICOMNODE"]


@pytest.mark.parametrize(
    ("host", "address", "admitted"),
    [
        ("10.0.0.5", "10.0.0.5", True),
        ("10.0.0.5", "10.0.0.6", False),
        ("10.0.0.0/24", "10.0.0.6", True),
        ("10.0.0.0/24", "10.0.1.6", False),
        ("2001:db8::/32", "2001:db8::1", True),
        ("localhost", "127.0.0.1", True),
        ("localhost", "10.0.0.1", False),
        ("no-such-host.invalid", "10.0.0.1", False),
        ("x" * 70, "10.0.0.1", False),
    ],
)
def test_an_address_must_be_one_of_the_peers(host: str, address: str, admitted: bool) -> None:
    peer = Peer(name="p", ae_title="PEER", host=("192.0.2.1", host), roles=("source",))
    asked = replace(REQUEST, calling_ae_title="PEER", address=address)
    assert (rejection_of(settings(peer), asked) is None) is admitted


def test_of_two_peers_with_one_title_either_address_will_do() -> None:
    twins = [
        Peer(name=host, ae_title="TWIN", host=(host,), roles=("source",))
        for host in ("10.0.0.1", "10.0.0.2")
    ]
    for address in ("10.0.0.1", "10.0.0.2"):
        asked = replace(REQUEST, calling_ae_title="TWIN", address=address)
        assert rejection_of(settings(*twins), asked) is None


def test_a_peer_may_ask_under_the_title_it_answers_queries_with() -> None:
    pacs = SOURCE.model_copy(update={"query_ae_title": "QUERY"})
    asked = replace(REQUEST, calling_ae_title="QUERY")
    assert rejection_of(settings(pacs), asked) is None


@pytest.mark.parametrize(("proof", "admitted"), [("commitment", True), ("find", False)])
def test_a_destination_may_call_where_it_has_to_report(
    proof: Literal["commitment", "find"], admitted: bool
) -> None:
    pacs = SOURCE.model_copy(update={"roles": ("destination",), "proof": proof})
    assert (rejection_of(settings(pacs), REQUEST) is None) is admitted


def test_a_full_disk_is_no_obstacle_to_a_report_on_commitment(node: Running) -> None:
    node.watermarks.full()
    try:
        with association(node.port, (PUSH_MODEL, ExplicitVRLittleEndian)):
            pass
    finally:
        node.watermarks.look()


def test_a_peer_that_must_come_by_tls_is_turned_away_without() -> None:
    peer = SOURCE.model_copy(update={"tls": True})
    refused = rejection_of(settings().model_copy(update={"peers": (peer,)}), REQUEST)
    assert refused is not None
    assert refused.reason is Reason.TLS_REQUIRED
    by_tls = replace(REQUEST, tls=True)
    assert rejection_of(settings().model_copy(update={"peers": (peer,)}), by_tls) is None


def test_a_rejection_stands_though_reporting_it_fails(
    node: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(one: Refused) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(node.scp, "refused", refused)
    assert rejection(associate(node.port, calling="STRANGER"))
    deadline = time.monotonic() + 10
    while "ZeroDivisionError" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({"associations": 1}, Reason.LIMIT),
        ({"associations_per_address": 1}, Reason.LIMIT_PER_ADDRESS),
    ],
    ids=["in total", "of one address"],
)
def test_one_association_too_many_is_rejected_for_now_and_reported(
    tmp_path: Path, bounds: dict[str, int], reason: Reason
) -> None:
    with running(tmp_path, SOURCE, **bounds) as node, association(node.port) as first:
        assert rejection(associate(node.port)) == (2, 3, 2)  # PS3.8 9.3.4
        assert send_raw(first, encoded(header()), **AFFECTED) == 0x0000
        with association(node.port, (VERIFICATION, ImplicitVRLittleEndian)) as asked:
            assert asked.send_c_echo().Status == 0x0000  # we are busy, and alive
    assert [one.reason for one in node.refused] == [reason]


def test_a_place_is_free_again_when_its_association_ends(tmp_path: Path) -> None:
    with running(tmp_path, SOURCE, associations=1) as node:
        for _ in range(3):
            with association(node.port) as opened:
                assert opened.is_established


def test_a_full_disk_turns_senders_away_for_now_and_still_echoes(node: Running) -> None:
    node.watermarks.full()
    try:
        assert rejection(associate(node.port)) == (2, 3, 2)  # PS3.8 9.3.4
        with association(node.port, (VERIFICATION, ImplicitVRLittleEndian)) as asked:
            assert asked.send_c_echo().Status == 0x0000
    finally:
        node.watermarks.look()
    assert [one.reason for one in node.refused] == [Reason.DISK_FULL]
    assert store(node, encoded(header())) == 0x0000


def test_a_disk_that_becomes_full_is_answered_A700_within_the_association(node: Running) -> None:
    with association(node.port) as opened:
        node.watermarks.full()
        try:
            assert send_raw(opened, encoded(header()), **AFFECTED) == 0xA700
        finally:
            node.watermarks.look()
        assert node.files == []
        assert send_raw(opened, encoded(header()), **AFFECTED) == 0x0000


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        pytest.param({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, 0xA900, id="other SOP class"),
        pytest.param({"SOPClassUID": None}, 0xA900, id="no SOP class"),
        pytest.param({"SOPInstanceUID": "1.2.3.5"}, 0xA900, id="other instance"),
        pytest.param({"SOPInstanceUID": None}, 0xA900, id="no instance"),
        pytest.param({"StudyInstanceUID": None}, 0xC000, id="no study"),
        pytest.param({"StudyInstanceUID": ""}, 0xC000, id="empty study"),
        pytest.param({"SeriesInstanceUID": None}, 0xC000, id="no series"),
        pytest.param({"StudyInstanceUID": "../../../tmp/x"}, 0xC000, id="study is a path"),
        pytest.param({"SeriesInstanceUID": "1.2/3"}, 0xC000, id="series is a path"),
        pytest.param({"StudyInstanceUID": ["1.2", "1.3"]}, 0xC000, id="two studies"),
        pytest.param({"StudyInstanceUID": "1." + "2" * 80}, 0xC000, id="study too long"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI", "ignore:The value length")
def test_a_data_set_that_cannot_be_filed_is_refused_and_not_kept(
    node: Running, changes: dict[str, object], status: int
) -> None:
    assert store(node, encoded(header(**changes))) == status
    assert node.files == []
    assert node.registered == []


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_path_as_sop_instance_uid_is_refused(node: Running) -> None:
    with association(node.port) as opened:
        data_set = encoded(header()).replace(b"1.2.3.4\0", b"../../x\0")
        affected = AFFECTED | {"sop_instance_uid": "../../x"}
        assert send_raw(opened, data_set, **affected) == 0xC000
    assert node.files == []


@pytest.mark.parametrize(
    "data_set", [b"\0", b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n", bytes(1000)], ids=repr
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_no_data_set_is_refused(node: Running, data_set: bytes) -> None:
    assert store(node, data_set) in (0xA900, 0xC000)
    assert store(node, data_set, DeflatedExplicitVRLittleEndian) in (0xA900, 0xC000)
    assert node.files == []


@pytest.mark.parametrize("missing", ["sop_class_uid", "sop_instance_uid", "data_set"])
def test_a_command_without_a_mandatory_part_is_aborted_not_left_unanswered(
    node: Running, missing: str
) -> None:
    started = time.monotonic()
    parts = {"data_set": encoded(header()), missing: None}
    assert store(node, **parts) is None
    assert time.monotonic() - started < 5
    assert store(node, encoded(header())) == 0x0000


def test_a_full_disk_is_answered_A700_and_the_next_object_may_fit(
    node: Running, file_size_limit: int
) -> None:
    large = encoded(header(TextValue="x" * file_size_limit))
    assert store(node, large) == 0xA700
    assert node.files == []
    assert node.registered == []
    assert store(node, encoded(header())) == 0x0000


@pytest.fixture
def file_size_limit() -> Iterator[int]:
    """No file of this process may grow beyond 4 MiB: the kernel refuses the write.

    pytest's own output is such a file too, where it is redirected: it stays far below.
    """
    limit = 4 * 2**20
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_database_that_is_away_is_answered_A700(tmp_path: Path) -> None:
    def away(instance: StoredInstance) -> None:
        raise OutOfResources("database away")

    with running(tmp_path, SOURCE, register=away) as node:
        assert store(node, encoded(header())) == 0xA700


def test_our_own_bug_is_answered_0110_with_the_traceback_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def buggy(instance: StoredInstance) -> None:
        raise ZeroDivisionError

    with running(tmp_path, SOURCE, register=buggy) as node:
        assert store(node, encoded(header())) == 0x0110
        with association(node.port) as opened:  # and we live
            assert opened.is_established
    assert "ZeroDivisionError" in caplog.text


def test_no_patient_data_reaches_a_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "dicom_node")
    caplog.set_level(logging.INFO, "pynetdicom")
    caplog.set_level(logging.DEBUG, "pydicom")
    faults: list[Exception] = [OutOfResources("away"), ZeroDivisionError()]

    def register(instance: StoredInstance) -> None:
        if faults:
            raise faults.pop()

    with running(tmp_path, SOURCE, register=register) as node:
        for dataset in (header(), header(), header(), header(StudyInstanceUID=None)):
            store(node, encoded(dataset))
        store(node, encoded(header(StudyInstanceUID=None, SOPInstanceUID=None)))
        store(node, encoded(header())[:70])
    assert "0xA700" in caplog.text
    assert "0xC000" in caplog.text
    for secret in ("Verysecret", "SECRET-ID", "19010203"):
        assert secret not in caplog.text


# --- hostile connections --------------------------------------------------------------------

IMPATIENT = Deadlines(handshake=0.5, associate=0.5, idle=0.5, pdu=0.5, close=0.5)


def test_a_peer_that_stops_in_the_middle_of_a_pdu_is_cut_off(tmp_path: Path) -> None:
    with running(tmp_path, SOURCE, deadlines=IMPATIENT) as node:
        with socket.create_connection(("127.0.0.1", node.port), timeout=10) as caller:
            caller.sendall(struct.pack(">BBL", 1, 0, 200) + bytes(20))  # 180 bytes are owed
            assert caller.recv(1) == b""  # PS3.8 9.2.3, AA-2: ARTIM has run out
        assert store(node, encoded(header())) == 0x0000
    assert [one.reason for one in node.refused] == [Reason.TIMEOUT]


def test_what_does_not_speak_dicom_is_cut_off(node: Running) -> None:
    with socket.create_connection(("127.0.0.1", node.port), timeout=10) as caller:
        caller.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with suppress(ConnectionError):
            while caller.recv(100):  # PS3.8 9.2: an A-ABORT, then the end
                pass
    assert store(node, encoded(header())) == 0x0000
    assert [one.reason for one in node.refused] == [Reason.NOT_DICOM]


def test_a_taken_port_is_a_wrong_setting(node: Running, tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match=r"node\.port"),
        running(tmp_path, SOURCE, port=node.port),
    ):
        pass


def test_stopping_ends_running_associations_and_frees_the_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "STOP_GRACE", 0.2)
    with running(tmp_path, SOURCE) as node:
        port = node.port
        opened = associate(port)
    opened.join(5)
    assert opened.is_aborted
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset, both will do
        socket.create_connection(("127.0.0.1", port), timeout=2)
