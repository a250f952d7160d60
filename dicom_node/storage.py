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
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info

from dicom_node.errors import CannotUnderstand, OutOfResources

#: PS3.7 D.3.3.2: names who wrote the file and who speaks on the network. UUID-derived (PS3.5 B.2)
#: and without a version, so that a new release does not change the bytes of a re-sent object.
IMPLEMENTATION_CLASS_UID = "2.25.52918799225017122386099352312751159349"
IMPLEMENTATION_VERSION_NAME = "DICOM-NODE"  # PS3.7 D.3.3.2.4: at most 16 characters

_PREAMBLE = bytes(128) + b"DICM"  # PS3.10 7.1
_UID = re.compile(r"(?=.*[0-9])[0-9.]{1,64}", re.ASCII)
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
        with _disk_errors("data folder"):
            for name in ("incoming", "instances", "drafts", "reports"):
                (data / name).mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            for folder in (data, data.absolute().parent):
                _sync_folder(folder)
            self._sweep()

    def keep_instance(
        self,
        *,
        study_instance_uid: str,
        sop_instance_uid: str,
        sop_class_uid: str,
        transfer_syntax_uid: str,
        data_set: bytes,
    ) -> Kept:
        """Keep one received data set exactly as it came, under file meta of our own.

        The same data set gives the same file, so a repeated send changes nothing; other bytes
        under the same SOP Instance UID get a file of their own.

        Raises
        ------
        CannotUnderstand
            A UID is none (PS3.5 9.1).
        OutOfResources
            The disk is full, away or read-only.
        """
        study = checked_uid(study_instance_uid, "StudyInstanceUID")
        instance = checked_uid(sop_instance_uid, "SOPInstanceUID")
        checked_uid(sop_class_uid, "SOPClassUID")
        header = _PREAMBLE + _file_meta(sop_class_uid, instance, transfer_syntax_uid)
        digest = _sha256(header, data_set)
        path = f"instances/{study}/{instance}.{digest[:16]}.dcm"
        return self._keep(path, digest, header, data_set)

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
        with _disk_errors(path), _locked(self._incoming, fcntl.LOCK_SH):
            target.parent.mkdir(mode=_FOLDER_MODE, exist_ok=True)
            self._write(target, parts)
            # Always both: the folder may have been made a moment ago by another thread, which has
            # not synced its entry in the parent yet.
            _sync_folder(target.parent)
            _sync_folder(target.parent.parent)
        return Kept(path, digest, sum(map(len, parts)))

    def _write(self, target: Path, parts: tuple[bytes, ...]) -> None:
        descriptor, name = tempfile.mkstemp(dir=self._incoming)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, _FILE_MODE)
                file.writelines(parts)
                file.flush()
                os.fsync(descriptor)
            os.replace(name, target)
        except OSError:
            with suppress(OSError):  # a disk that fails to write may fail to delete: swept later
                os.unlink(name)
            raise

    def _sweep(self) -> None:
        """Delete what a kill -9 left half written, unless somebody is writing right now."""
        with suppress(BlockingIOError), _locked(self._incoming, fcntl.LOCK_EX | fcntl.LOCK_NB):
            for left in self._incoming.iterdir():
                left.unlink()


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
    """PS3.10 7.1, nothing that depends on sender or time: same data set, same bytes."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    for keyword, value in (
        ("MediaStorageSOPClassUID", sop_class_uid),
        ("MediaStorageSOPInstanceUID", sop_instance_uid),
        ("TransferSyntaxUID", transfer_syntax_uid),
        ("ImplementationClassUID", IMPLEMENTATION_CLASS_UID),
    ):
        # IGNORE: checked_uid is laxer than pydicom on purpose
        meta.add(DataElement(keyword, "UI", value, validation_mode=IGNORE))
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True  # PS3.10 7.1
    write_file_meta_info(buffer, meta)
    return buffer.getvalue()


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


@contextmanager
def _locked(folder: Path, operation: int) -> Iterator[None]:
    """Hold a lock on a folder; the kernel drops it with the process."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
