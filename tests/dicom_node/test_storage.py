from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_node import storage as storage_module
from dicom_node.errors import CannotUnderstand, OutOfResources
from dicom_node.storage import Incoming, Kept, Storage, checked_uid, identity_key
from tests.dicom_node.network import keep_instance
from tests.dicom_node.sockets import split

DIGITAL_X_RAY = "1.2.840.10008.5.1.4.1.1.1.1"
# (0008,0018) UI "1.2.3", (0010,0020) LO "X", explicit VR little endian
DATA_SET = b"\x08\x00\x18\x00UI\x06\x001.2.3\0" + b"\x10\x00\x20\x00LO\x02\x00X "

NO_UIDS = [
    pytest.param("", id="empty"),
    pytest.param(".", id="dot"),
    pytest.param("..", id="parent folder"),
    pytest.param("../1.2.3", id="up"),
    pytest.param("1.2/../../3", id="slash"),
    pytest.param("/1.2.3", id="absolute"),
    pytest.param("1.2\\3", id="backslash"),
    pytest.param("1.2.3\0", id="null"),
    pytest.param("1.2.3\n", id="new line"),
    pytest.param("1.2.٣", id="a digit, not ASCII"),
    pytest.param("1.2.a", id="letter"),
    pytest.param("1." + "2" * 63, id="65 characters"),
]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "data")


def keep(storage: Storage, data_set: bytes = DATA_SET, **uids: str) -> Kept:
    return keep_instance(
        storage,
        study_instance_uid=uids.get("study", "1.2.840.1"),
        sop_instance_uid=uids.get("instance", "1.2.3"),
        sop_class_uid=uids.get("sop_class", DIGITAL_X_RAY),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        data_set=data_set,
    )


def files(data: Path) -> list[Path]:
    return sorted(path for path in data.rglob("*") if path.is_file())


def test_a_kept_instance_is_a_part_10_file_with_the_data_set_as_it_came(storage: Storage) -> None:
    kept = keep(storage)
    file = storage.path(kept.path).read_bytes()
    assert file[:132] == bytes(128) + b"DICM"
    assert file.endswith(DATA_SET)
    meta = pydicom.dcmread(storage.path(kept.path)).file_meta
    assert meta.MediaStorageSOPClassUID == DIGITAL_X_RAY
    assert meta.MediaStorageSOPInstanceUID == "1.2.3"
    assert meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert meta.FileMetaInformationGroupLength + 144 == len(file) - len(DATA_SET)


def test_path_digest_and_size_are_those_of_the_whole_file(storage: Storage) -> None:
    kept = keep(storage)
    file = storage.path(kept.path).read_bytes()
    assert kept.sha256 == hashlib.sha256(file).hexdigest()
    assert kept.size == len(file)
    assert kept.path == f"instances/1.2.840.1/1.2.3.{kept.sha256[:16]}.dcm"


def test_the_same_data_set_twice_is_one_file(storage: Storage, tmp_path: Path) -> None:
    assert keep(storage) == keep(storage)
    assert len(files(tmp_path)) == 1


def test_the_same_data_set_gives_the_same_file_on_every_node(tmp_path: Path) -> None:
    assert keep(Storage(tmp_path / "a")) == keep(Storage(tmp_path / "b"))
    # Pinned: a change here makes every re-sent object a new revision of its study.
    digest = "5dbf1bb4e91e0795e4e8694caab6e8f59a183626e65837a75f64069ec28c8712"
    assert keep(Storage(tmp_path / "c")).sha256 == digest


def test_other_bytes_under_the_same_uid_get_a_file_of_their_own(
    storage: Storage, tmp_path: Path
) -> None:
    assert keep(storage).path != keep(storage, DATA_SET + b"\x10\x00\x30\x00DA\x00\x00").path
    assert len(files(tmp_path)) == 2


def test_a_draft_is_kept_as_it_is(storage: Storage) -> None:
    kept = storage.keep_draft(study_instance_uid="1.2", sop_instance_uid="2.25.1", file=b"draft")
    assert kept.path == "drafts/1.2/2.25.1.dcm"
    assert storage.path(kept.path).read_bytes() == b"draft"
    assert (kept.sha256, kept.size) == (hashlib.sha256(b"draft").hexdigest(), 5)


@pytest.mark.parametrize("field", ["study", "instance", "sop_class"])
@pytest.mark.parametrize("value", NO_UIDS)
def test_what_is_no_uid_is_refused_before_it_becomes_a_path(
    storage: Storage, tmp_path: Path, field: str, value: str
) -> None:
    with pytest.raises(CannotUnderstand):
        keep(storage, DATA_SET, **{field: value})
    assert files(tmp_path) == []


@pytest.mark.parametrize("value", NO_UIDS)
def test_a_draft_is_held_to_the_same_rule(storage: Storage, value: str) -> None:
    with pytest.raises(CannotUnderstand):
        storage.keep_draft(study_instance_uid=value, sop_instance_uid="1.2", file=b"")
    with pytest.raises(CannotUnderstand):
        storage.keep_draft(study_instance_uid="1.2", sop_instance_uid=value, file=b"")


@pytest.mark.parametrize("value", ["1.02.3", "1..2", "1.2.", "1." + "2" * 62])
def test_odd_uids_that_are_seen_in_the_field_are_kept(storage: Storage, value: str) -> None:
    kept = keep(storage, instance=value, study=value)
    assert value.encode() in storage.path(kept.path).read_bytes()[: -len(DATA_SET)]


@given(value=st.text(st.sampled_from("0123456789./\\\0\n a٣"), max_size=70) | st.text())
def test_a_checked_uid_is_one_harmless_file_name(value: str) -> None:
    with suppress(CannotUnderstand):
        assert checked_uid(value, "StudyInstanceUID") == value
        assert Path("x", value).resolve().parent == Path("x").resolve()


def test_a_refused_value_is_not_repeated_for_it_may_be_a_name() -> None:
    with pytest.raises(CannotUnderstand) as refusal:
        checked_uid("Doe^Jane", "StudyInstanceUID")
    assert str(refusal.value) == "StudyInstanceUID is not a UID (PS3.5 9.1)"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(data_set=st.binary(max_size=3000))
def test_any_bytes_come_back_as_they_went_in(storage: Storage, data_set: bytes) -> None:
    kept = keep(storage, data_set)
    assert storage.path(kept.path).read_bytes()[-len(data_set) or kept.size :] == data_set


# -- receiving -------------------------------------------------------------------------------------


def begin(storage: Storage) -> Incoming:
    return storage.receive(
        sop_class_uid=DIGITAL_X_RAY,
        sop_instance_uid="1.2.3",
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    data_set=st.binary(min_size=1, max_size=2000),
    cuts=st.lists(st.integers(0, 2000), max_size=8),
    early=st.integers(1, 3000),
    at_once=st.integers(1, 3000),
)
def test_it_does_not_matter_in_which_pieces_a_data_set_comes_nor_how_the_disk_takes_it(
    storage: Storage, data_set: bytes, cuts: list[int], early: int, at_once: int
) -> None:
    write = os.write
    incoming = begin(storage)
    with (
        mock.patch.object(storage_module, "_EARLY", early),
        mock.patch.object(os, "write", lambda file, piece: write(file, piece[:at_once])),
    ):
        for piece in split(data_set, cuts):
            incoming.write(memoryview(piece))
    with incoming.data_set() as file:
        assert file.read() == data_set
    kept = incoming.place("1.2.840.1")
    incoming.settle()
    assert kept == keep(storage, data_set)
    assert storage.path(kept.path).read_bytes().endswith(data_set)


def test_nothing_is_in_its_place_before_it_is_settled(storage: Storage, tmp_path: Path) -> None:
    incoming = begin(storage)
    incoming.write(DATA_SET)
    kept = incoming.place("1.2.840.1")
    assert not storage.path(kept.path).exists()
    incoming.settle()
    assert files(tmp_path) == [storage.path(kept.path)]
    incoming.drop()
    assert files(tmp_path) == [storage.path(kept.path)]


def test_what_is_dropped_leaves_nothing_behind(storage: Storage, tmp_path: Path) -> None:
    incoming = begin(storage)
    incoming.write(DATA_SET)
    for _ in range(2):
        incoming.drop()
    assert files(tmp_path) == []


def test_a_disk_that_takes_not_even_the_first_byte_costs_no_file_handle(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, piece: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "write", full)
    for _ in range(3):
        with pytest.raises(OutOfResources, match="No space left"):
            begin(storage)
    assert os.listdir("/proc/self/fd") == before
    assert files(tmp_path) == []


uids = st.from_regex(r"[12](\.(0|[1-9][0-9]{0,8})){1,6}", fullmatch=True)


@given(sop_class=uids, instance=uids, transfer_syntax=uids)
def test_our_file_meta_is_byte_for_byte_pydicoms(
    sop_class: str, instance: str, transfer_syntax: str
) -> None:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = UID(instance)
    meta.TransferSyntaxUID = UID(transfer_syntax)
    meta.ImplementationClassUID = UID(storage_module.IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = storage_module.IMPLEMENTATION_VERSION_NAME
    written = DicomBytesIO()
    write_file_meta_info(written, meta)
    assert storage_module._file_meta(sop_class, instance, transfer_syntax) == written.getvalue()


def test_patient_data_is_not_for_others(storage: Storage) -> None:
    path = storage.path(keep(storage).path)
    assert path.stat().st_mode & 0o007 == 0
    assert path.parent.stat().st_mode & 0o007 == 0


def test_a_file_is_synced_before_and_its_folders_after_it_gets_its_name(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, os.replace

    def recorded_sync(descriptor: int) -> None:
        steps.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).parent.name)
        sync(descriptor)

    def recorded_replace(source: str, target: Path) -> None:
        steps.append("renamed")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    keep(storage)
    # the file in incoming/, its name, instances/<study>, data/instances
    assert steps == ["incoming", "renamed", "instances", "data"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system can't be mounted here (not root)")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_out_of_resources_and_leaves_nothing_behind(small_disk: Path) -> None:
    storage = Storage(small_disk / "data")
    free = storage.free_bytes()
    with pytest.raises(OutOfResources, match="No space left"):
        keep(storage, bytes(free + 1))
    assert files(small_disk) == []
    assert storage.free_bytes() == pytest.approx(free, abs=8192)  # the study's empty folder stays
    assert keep(storage).size > 0


def test_a_file_beyond_the_process_limit_is_out_of_resources(
    storage: Storage, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OutOfResources, match="File too large"):
            keep(storage, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_every_disk_fault_is_out_of_resources(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fault(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fault)  # no disk here can be made to do this
    with pytest.raises(OutOfResources, match=os.strerror(number)):
        keep(storage)
    assert files(tmp_path) == []


def test_a_data_folder_that_went_away_is_out_of_resources(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(OutOfResources):
        keep(storage)
    with pytest.raises(OutOfResources):
        storage.free_bytes()


def test_a_data_folder_that_cannot_be_made_is_out_of_resources(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutOfResources, match="Not a directory"):
        Storage(tmp_path / "file" / "data")


# -- kill -9 ---------------------------------------------------------------------------------------

# Each says so when it is in the middle, and stops there for ever.
KEEPS_A_DRAFT = """
import os, sys, time
from pathlib import Path
from dicom_node.storage import Storage

storage = Storage(Path(sys.argv[1]))
os.fsync = lambda descriptor: (print("written", flush=True), time.sleep(600))
storage.keep_draft(study_instance_uid="1.2", sop_instance_uid="1.2.3", file=b"half")
"""
RECEIVES = """
import sys, time
from pathlib import Path
from dicom_node.storage import Storage

uids = {"sop_class_uid": "1.2.840.1", "sop_instance_uid": "1.2.3", "transfer_syntax_uid": "1.2"}
incoming = Storage(Path(sys.argv[1])).receive(**uids)
incoming.write(bytes(100_000))
print("written", flush=True)
time.sleep(600)
"""


@pytest.fixture(params=[KEEPS_A_DRAFT, RECEIVES], ids=["a draft", "receiving"])
def writer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of a write."""
    command = [sys.executable, "-c", request.param, str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        yield process
        process.kill()


def half_written(data: Path) -> Path:
    """The one file there is."""
    (file,) = files(data)
    assert file.parent.name == "incoming"
    return file


def grow_old(file: Path) -> None:
    """It was last written longer ago than a file may be made and not locked yet."""
    past = file.stat().st_mtime - storage_module._YOUNG - 1
    os.utime(file, (past, past))


def test_what_a_killed_process_left_half_written_is_swept_once_it_is_old(
    writer: subprocess.Popen[str], tmp_path: Path
) -> None:
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    Storage(tmp_path / "data")
    grow_old(half_written(tmp_path))
    Storage(tmp_path / "data")
    assert files(tmp_path) == []


def test_what_another_process_is_writing_is_never_swept(
    writer: subprocess.Popen[str], tmp_path: Path
) -> None:
    grow_old(half_written(tmp_path))
    storage = Storage(tmp_path / "data")
    half_written(tmp_path)
    keep(storage)  # and does not hinder others
    assert len(files(tmp_path)) == 2


def test_what_we_are_writing_ourselves_is_never_swept(storage: Storage, tmp_path: Path) -> None:
    incoming = begin(storage)
    grow_old(half_written(tmp_path))
    storage.sweep()
    half_written(tmp_path)
    incoming.drop()
    assert files(tmp_path) == []


# -- final reports ---------------------------------------------------------------------------------


def test_a_final_report_is_kept_as_it_came_and_once(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "data")
    first = storage.keep_report(b"MSH|", ".hl7")
    assert storage.keep_report(b"MSH|", ".hl7") == first
    assert storage.path(first.path).read_bytes() == b"MSH|"
    assert first.path == f"reports/{first.sha256[:2]}/{first.sha256}.hl7"
    assert storage.keep_report(b"MSH|2", ".hl7").path != first.path


def test_keys_are_equal_for_equal_identifiers_and_tell_nothing() -> None:
    assert identity_key("") == identity_key("  ") == ""
    assert identity_key("P1") == identity_key(" P1 ") != identity_key("p1")
    assert "P1" not in identity_key("P1")
    assert len(identity_key("P1")) == 64
