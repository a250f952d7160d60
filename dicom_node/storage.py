"""The bytes: Part 10 files on disk, written whole or not at all, never decoded.

    data/incoming/                                      being written; swept at start
    data/instances/<study>/<sop instance>.<hash>.dcm    as received, under our own file meta
    data/drafts/<study>/<sop instance>.dcm              what we made (.hl7, .json: messages)
    data/reports/<xx>/<hash>.hl7                        final reports as they came (.csv, .dcm)

Files are written beside their place in the same file system, synced, renamed, and the folders
synced: after a return the file survives a power cut, before it nobody sees a half one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import struct
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple
from uuid import uuid4

from dicom_node.errors import CannotUnderstand, OutOfResources

#: PS3.7 D.3.3.2: names who wrote the file and who speaks on the network. UUID-derived (PS3.5 B.2)
#: and without a version, so that a new release does not change the bytes of a re-sent object.
IMPLEMENTATION_CLASS_UID = "2.25.52918799225017122386099352312751159349"
IMPLEMENTATION_VERSION_NAME = "DICOM-NODE"  # PS3.7 D.3.3.2.4: at most 16 characters

_VERSION_NAME = IMPLEMENTATION_VERSION_NAME.encode("ascii")  # of even length
_PREAMBLE = bytes(128) + b"DICM"  # PS3.10 7.1
_UID = re.compile(r"(?=.*[0-9])[0-9.]{1,64}", re.ASCII)
_EARLY = 256 * 1024  # bytes
_THEN = 2 * 1024 * 1024  # bytes
_HEAD = 16 * 1024  # bytes
#: Files that are made before they are needed.
SPARE = 8
_YOUNG = 10.0  # seconds
_FILE_MODE = 0o640  # patient data: nothing for others
_FOLDER_MODE = 0o750


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose study an instance says it is, in keys that can be compared and not read."""

    patient_id_key: str = ""  #: :func:`identity_key` of PatientID
    patient_issuer_key: str = ""  #: of IssuerOfPatientID
    accession_key: str = ""  #: of AccessionNumber
    accession_issuer_key: str = ""  #: of IssuerOfAccessionNumberSequence's one item
    study_date: str = ""  #: YYYYMMDD; empty: none, or none that can be read


def identity_key(value: str) -> str:
    """Hex SHA-256 of an identifier without surrounding spaces; "" where there is none."""
    stripped = value.strip(" \0")
    return hashlib.sha256(stripped.encode("utf-8", "replace")).hexdigest() if stripped else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredInstance:
    """One instance that is durably on disk, and where it came from."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    path: str  #: relative to the data folder
    sha256: str  #: hex, of the whole file at ``path``
    size: int  #: bytes of the whole file
    calling_ae_title: str
    address: str  #: IP address of the sender
    patient_key: str
    #: hex SHA-256 of IssuerOfPatientID|PatientID, "" without a PatientID: says "same patient"
    #: without keeping the id
    identity: Identity = field(default_factory=Identity)


class Kept(NamedTuple):
    """Where a file went."""

    path: str  #: relative to the data folder
    sha256: str  #: hex, of the whole file
    size: int  #: bytes


class Storage:
    """The node's files under one data folder. Safe for many threads and processes.

    Raises
    ------
    OutOfResources
        The folders can't be made.
    """

    def __init__(self, data: Path) -> None:
        self._data = data
        self._incoming = data / "incoming"
        self._spare: deque[tuple[str, int]] = deque()
        with _disk_errors("data folder"):
            for name in ("incoming", "instances", "drafts", "reports"):
                (data / name).mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            for folder in (data, data.absolute().parent):
                _sync_folder(folder)
        self.sweep()

    def receive(
        self, *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str
    ) -> Incoming:
        """Begin to keep a data set exactly as it comes, under file meta of our own.

        Raises
        ------
        CannotUnderstand
            A UID is none (PS3.5 9.1).
        OutOfResources
            The disk is full, away or read-only.
        """
        instance = checked_uid(sop_instance_uid, "SOPInstanceUID")
        checked_uid(sop_class_uid, "SOPClassUID")
        meta = _PREAMBLE + _file_meta(sop_class_uid, instance, transfer_syntax_uid)
        try:
            name, descriptor = self._spare.pop()
        except IndexError:
            with _disk_errors("incoming"):
                name, descriptor = _new_file(self._incoming)
        return Incoming(self._data, name, descriptor, instance, meta)

    def prepare(self) -> None:
        """Make a file for a data set that may come; for a moment when nobody waits.

        Making one costs as much as writing half a megabyte (ext4).
        """
        if len(self._spare) < SPARE:
            with suppress(OSError):  # it will be told when it is needed
                self._spare.append(_new_file(self._incoming))

    def close(self) -> None:
        """Delete what was prepared and not needed."""
        while self._spare:
            name, descriptor = self._spare.pop()
            with suppress(OSError):
                os.unlink(name)
            os.close(descriptor)

    def sync_folders(self, paths: Iterable[str]) -> None:
        """Make the names of files durable that :meth:`Incoming.settle` has put there.

        Always the study's folder and the one above: the folder may have been made a moment ago
        by another thread or process, which has not synced its entry yet.

        Raises
        ------
        OutOfResources
            The disk is away.
        """
        with _disk_errors("instances"):
            for folder in {os.path.dirname(path) for path in paths}:
                _sync_folder(f"{self._data}/{folder}")
            _sync_folder(f"{self._data}/instances")

    def keep_draft(
        self, *, study_instance_uid: str, sop_instance_uid: str, file: bytes, suffix: str = ".dcm"
    ) -> Kept:
        """Keep one result that we made: a Part 10 file, or a message with a suffix of its own.

        Raises
        ------
        CannotUnderstand
            A UID is none (PS3.5 9.1).
        OutOfResources
            The disk is full, away or read-only.
        """
        study = checked_uid(study_instance_uid, "StudyInstanceUID")
        instance = checked_uid(sop_instance_uid, "SOPInstanceUID")
        return self._keep(f"drafts/{study}/{instance}{suffix}", _sha256(file), file)

    def keep_report(self, file: bytes, suffix: str) -> Kept:
        """Keep a final report exactly as it came; the same bytes are one file.

        Raises
        ------
        OutOfResources
            The disk is full, away or read-only.
        """
        digest = _sha256(file)
        return self._keep(f"reports/{digest[:2]}/{digest}{suffix}", digest, file)

    def path(self, relative: str) -> Path:
        """The absolute place of a kept file."""
        return (self._data / relative).absolute()

    def free_bytes(self) -> int:
        """How many bytes we may still write.

        Raises
        ------
        OutOfResources
            The data folder is away.
        """
        with _disk_errors("data folder"):
            return shutil.disk_usage(self._data).free

    def _keep(self, path: str, digest: str, *parts: bytes) -> Kept:
        target = self._data / path
        with _disk_errors(path):
            target.parent.mkdir(mode=_FOLDER_MODE, exist_ok=True)
            self._write(target, parts)
            # Always both: the folder may have been made a moment ago by another thread, which has
            # not synced its entry in the parent yet.
            _sync_folder(target.parent)
            _sync_folder(target.parent.parent)
        return Kept(path, digest, sum(map(len, parts)))

    def _write(self, target: Path, parts: tuple[bytes, ...]) -> None:
        name, descriptor = _new_file(self._incoming)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(descriptor)
                os.replace(name, target)
        except OSError:
            with suppress(OSError):  # a disk that fails to write may fail to delete: swept later
                os.unlink(name)
            raise

    def sweep(self) -> None:
        """Delete what a kill -9 left half written; what is being written is locked.

        Raises
        ------
        OutOfResources
            The disk is away.
        """
        with _disk_errors("incoming"):
            for left in self._incoming.iterdir():
                _delete_unless_written(left)


class Incoming:
    """One data set on its way to the disk; end it with :meth:`settle` or :meth:`drop`.

    The same data set gives the same file, so a repeated send changes nothing; other bytes under
    the same SOP Instance UID get a file of their own.
    """

    def __init__(
        self, data: Path, name: str, descriptor: int, sop_instance_uid: str, meta: bytes
    ) -> None:
        self._data = data
        self._name, self._descriptor = name, descriptor
        self._sop_instance_uid = sop_instance_uid
        self._meta = len(meta)
        self._digest = hashlib.sha256()
        self._size = self._flushed = 0
        self._early = _EARLY
        self._target = ""
        self.head = b""  #: of the data set, as far as its first piece goes
        try:
            self._append(meta)
        except OutOfResources:
            self.drop()
            raise

    def write(self, piece: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises
        ------
        OutOfResources
            The disk is full, away or read-only.
        """
        if not self.head:
            self.head = bytes(piece[:_HEAD])
        self._append(piece)
        if self._size - self._flushed >= self._early:
            self._begin_to_sync()

    def _append(self, piece: bytes | memoryview) -> None:
        self._digest.update(piece)
        written = _write(self._descriptor, piece)
        while written < len(piece):
            written += _write(self._descriptor, piece[written:])
        self._size += written

    def _begin_to_sync(self) -> None:
        """Let the disk begin with what is here, so that the sync in the end is short."""
        length = self._size - self._flushed
        os.posix_fadvise(self._descriptor, self._flushed, length, os.POSIX_FADV_DONTNEED)
        self._flushed = self._size
        self._early = _THEN

    @contextmanager
    def data_set(self) -> Iterator[BinaryIO]:
        """What was written so far, from its first element on."""
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(self._meta)
            yield file

    def place(self, study_instance_uid: str) -> Kept:
        """All bytes were written: where the file will be. :meth:`settle` puts it there.

        Raises
        ------
        CannotUnderstand
            The UID is none (PS3.5 9.1).
        """
        study = checked_uid(study_instance_uid, "StudyInstanceUID")
        digest = self._digest.hexdigest()
        path = f"instances/{study}/{self._sop_instance_uid}.{digest[:16]}.dcm"
        self._target = f"{self._data}/{path}"
        return Kept(path, digest, self._size)

    def settle(self) -> None:
        """Put the file in its place, synced; :meth:`Storage.sync_folders` is still to be called.

        Raises
        ------
        OutOfResources
            The disk is full, away or read-only.
        """
        with _disk_errors("instances"):
            os.fsync(self._descriptor)
            with suppress(FileExistsError):
                os.mkdir(os.path.dirname(self._target), _FOLDER_MODE)
            os.replace(self._name, self._target)
        self._close()

    def drop(self) -> None:
        """Forget it; after :meth:`settle` nothing happens."""
        if self._descriptor >= 0:
            with suppress(OSError):  # a disk that fails to write may fail to delete: swept later
                os.unlink(self._name)
            self._close()

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1


def checked_uid(value: str, keyword: str) -> str:
    """``value``, if it is fit to be (part of) a file name.

    PS3.5 9.1: digits and dots, at most 64. Leading zeros and empty components are seen in the
    field and harmless here; a value of dots only would be a path.

    Raises
    ------
    CannotUnderstand
        It is not; names the keyword, never the value (which may be anything, a name too).
    """
    if not _UID.fullmatch(value):
        raise CannotUnderstand(f"{keyword} is not a UID (PS3.5 9.1)")
    return value


def _file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """PS3.10 7.1, nothing that depends on sender or time: same data set, same bytes.

    Packed by hand, for it is done for each object; pydicom's is what the tests compare it with.
    """
    elements = b"".join(
        (
            b"\x02\0\x01\0OB\0\0\x02\0\0\0\0\x01",  # File Meta Information Version
            _uid_element(0x0002, sop_class_uid),
            _uid_element(0x0003, sop_instance_uid),
            _uid_element(0x0010, transfer_syntax_uid),
            _uid_element(0x0012, IMPLEMENTATION_CLASS_UID),
            b"\x02\0\x13\0SH" + struct.pack("<H", len(_VERSION_NAME)) + _VERSION_NAME,
        )
    )
    return b"\x02\0\0\0UL\x04\0" + struct.pack("<L", len(elements)) + elements


def _uid_element(element: int, uid: str) -> bytes:
    value = uid.encode("ascii") + b"\0" * (len(uid) % 2)  # PS3.5 9.1
    return struct.pack("<HH2sH", 0x0002, element, b"UI", len(value)) + value


def _sha256(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


@contextmanager
def _disk_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ENOSPC, EDQUOT, EACCES, EROFS, EIO ...: all may pass
        raise OutOfResources(f"{what}: {error.strerror}") from error


def _write(descriptor: int, piece: bytes | memoryview) -> int:
    try:
        return os.write(descriptor, piece)
    except OSError as error:
        raise OutOfResources(f"incoming: {error.strerror}") from error


def _new_file(folder: Path) -> tuple[str, int]:
    """Make a file, locked as long as it is open: name and descriptor. The kernel drops the lock
    with the process."""
    name = f"{folder}/{uuid4().hex}"
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return name, descriptor


def _delete_unless_written(file: Path) -> None:
    with suppress(FileNotFoundError):  # it has found its place just now
        if time.time() - file.stat().st_mtime < _YOUNG:  # perhaps made and not locked yet
            return
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.unlink()
        except BlockingIOError:
            return
        finally:
            os.close(descriptor)


def _sync_folder(folder: Path | str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
