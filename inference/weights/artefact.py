"""The prepared folder: ``model.safetensors``, ``manifest.json`` and the files copied as they are.

The safetensors file is written as a stream, tensor by tensor, with its header last into room kept
for it, because a 7B model is never in memory as a whole. It is read tensor by tensor as well, by
plain reads (mapped pages would count as the process's memory), and what is read is checked against
the manifest's SHA-256 of that tensor: a changed or truncated file is found at start-up for free.

Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from inference.findings import ModelUnavailable
from inference.weights import nf4

FORMAT = 1  # of the folder; counts up when older ones can't be read any more
TENSORS = "model.safetensors"
MANIFEST = "manifest.json"

Scheme = Literal["nf4", "none"]

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.uint8: "U8"}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}
_LENGTH = struct.Struct("<Q")  # of the header, before it
_ROOM = 192  # bytes of header for one tensor, beside its name
_ALIGNED = 8  # readers want each tensor to begin at a multiple of its element's size
_MOST_HEADER = 100_000_000  # safetensors' own limit

PREPARE = "prepare it again with `dicom-node models prepare`"


class FileRecord(BaseModel):
    """What identifies a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Read a file through."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(sha256=digest, bytes=path.stat().st_size)


class Manifest(BaseModel):
    """What a prepared folder is, and from what it was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    model: str  #: entry-point name
    scheme: Scheme
    digest: str  #: SHA-256 over configuration and files; one vector space per digest
    made: str  #: ISO 8601
    versions: dict[str, str]  #: of the libraries that made it
    licence: str
    config: dict[str, Any]
    files: dict[str, FileRecord]
    sources: dict[str, FileRecord]  #: published files by label
    header: str  #: SHA-256 of the tensor file's header
    tensors: dict[str, str]  #: SHA-256 of each tensor's bytes

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the manifest of a folder.

        Raises:
            ModelUnavailable: there is none, or not one that this version wrote.
        """
        path = folder / MANIFEST
        try:
            manifest = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise ModelUnavailable(
                f"{folder} holds no prepared model ({MANIFEST} is missing): {PREPARE}"
            ) from error
        except (OSError, ValidationError) as error:
            raise ModelUnavailable(f"{path} is damaged or of another version: {PREPARE}") from error
        if manifest.digest != digest(manifest.config, manifest.files):
            raise ModelUnavailable(f"{path} was changed after it was written: {PREPARE}")
        return manifest


def digest(config: Mapping[str, Any], files: Mapping[str, FileRecord]) -> str:
    """SHA-256 (hex) over what decides the model's numbers."""
    hashes = {name: record.sha256 for name, record in files.items()}
    said = json.dumps({"config": config, "files": hashes}, sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


# --- writing ----------------------------------------------------------------------------------


class Writer:
    """A safetensors file, written tensor by tensor."""

    def __init__(self, path: Path, names: int, longest: int) -> None:
        """``names``: tensors at most; ``longest``: characters of the longest name."""
        self._room = -(-(names + 1) * (_ROOM + longest) // _ALIGNED) * _ALIGNED
        self._header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._at = 0
        self._late: dict[str, Tensor] = {}
        self.hashes: dict[str, str] = {}
        self.header = ""
        self._file = path.open("wb")
        self._file.seek(_LENGTH.size + self._room)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            if error is None:
                self._finish()

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor of float32, float16 or uint8.

        One whose size would shift the next off its alignment waits for the end: a few bytes of
        bitsandbytes' state per projection.
        """
        if tensor.nbytes % _ALIGNED:
            self._late[name] = tensor
        else:
            self._write(name, tensor)

    def _write(self, name: str, tensor: Tensor) -> None:
        content = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
        self._file.write(content)
        self.hashes[name] = hashlib.sha256(content).hexdigest()
        end = self._at + content.nbytes
        self._header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self._at, end],
        }
        self._at = end

    def _finish(self) -> None:
        for name, tensor in sorted(self._late.items(), key=lambda item: -item[1].itemsize):
            self._write(name, tensor)
        header = json.dumps(self._header, separators=(",", ":")).encode()
        if len(header) > self._room:
            raise ValueError(f"a header of {len(header)} bytes in room for {self._room}")
        padded = header.ljust(self._room)  # the format allows blanks behind the object
        self._file.seek(0)
        self._file.write(_LENGTH.pack(self._room) + padded)
        self.header = hashlib.sha256(padded).hexdigest()


# --- reading ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  #: bytes from the beginning of the file
    end: int


@dataclass(frozen=True)
class Artefact:
    """A prepared model; reading it checks it."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path, *, model: str) -> Self:
        """Look at a prepared folder; no weight is read yet.

        Raises:
            ModelUnavailable: it is none, or for another model, or a file is missing or truncated,
                or this bitsandbytes can't run it.
        """
        manifest = Manifest.read(folder)
        artefact = cls(folder, manifest)
        if manifest.format != FORMAT:
            raise ModelUnavailable(
                f"{folder} has format {manifest.format}, not {FORMAT}: {PREPARE}"
            )
        if manifest.model != model:
            raise ModelUnavailable(f"{folder} was prepared for {manifest.model}, not {model}")
        artefact._check_sizes()
        artefact._check_bitsandbytes()
        return artefact

    @property
    def config(self) -> Mapping[str, Any]:
        """Sizes and constants, as the recipe gave them."""
        return self.manifest.config

    @property
    def scheme(self) -> Scheme:
        """How projections are stored."""
        return self.manifest.scheme

    @property
    def quantisation(self) -> str:
        """The scheme in words, for reports."""
        return nf4.QUANTISATION if self.scheme == "nf4" else "none"

    @property
    def digest(self) -> str:
        """SHA-256 (hex) that names this model's numbers."""
        return self.manifest.digest

    def file(self, name: str) -> Path:
        """One of the copied files, checked.

        Raises:
            ModelUnavailable: it is not the file that was prepared.
        """
        path = self.folder / name
        with _readable(path):
            found = FileRecord.of(path)
        if found != self.manifest.files[name]:
            raise ModelUnavailable(f"{path} is not the prepared one: {PREPARE}")
        return path

    def verify(self) -> None:
        """Read every file through.

        Raises:
            ModelUnavailable: naming the first that is not as it was prepared.
        """
        for name in self.manifest.files:
            self.file(name)

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """Every tensor of the file.

        Raises:
            ModelUnavailable: the header is not the one that was written.
        """
        path = self.folder / TENSORS
        with _readable(path), path.open("rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            header = file.read(min(length, _MOST_HEADER))
        if hashlib.sha256(header).hexdigest() != self.manifest.header:
            raise ModelUnavailable(f"{path}: its header is not the prepared one: {PREPARE}")
        return {
            name: _entry(said, _LENGTH.size + length)
            for name, said in json.loads(header).items()
            if name != "__metadata__"
        }

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own, checked.

        Raises:
            ModelUnavailable: it is not the tensor that was written.
        """
        entry, path = self.entries[name], self.folder / TENSORS
        content = np.empty(entry.end - entry.start, np.uint8)  # not zeroed, as a bytearray would be
        with _readable(path), path.open("rb") as file:
            file.seek(entry.start)
            file.readinto(content.data)
        if hashlib.sha256(content.data).hexdigest() != self.manifest.tensors[name]:
            raise ModelUnavailable(f"{path}: {name} is not the prepared one: {PREPARE}")
        return torch.from_numpy(content).view(entry.dtype).reshape(entry.shape)

    def _check_sizes(self) -> None:
        for name, record in self.manifest.files.items():
            path = self.folder / name
            if not path.is_file():
                raise ModelUnavailable(f"{path} is missing: {PREPARE}")
            if (size := path.stat().st_size) != record.bytes:
                raise ModelUnavailable(f"{path} has {size} bytes, not {record.bytes}: {PREPARE}")

    def _check_bitsandbytes(self) -> None:
        if self.scheme != "nf4":
            return
        nf4.check_bitsandbytes()
        made = self.manifest.versions["bitsandbytes"]
        if made not in nf4.SUPPORTED:
            raise ModelUnavailable(f"{self.folder} was packed by bitsandbytes {made}: {PREPARE}")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Map what an unreadable file raises."""
    try:
        yield
    except OSError as error:
        raise ModelUnavailable(f"{path} can't be read: {error.strerror}") from error


def _entry(said: Mapping[str, Any], data: int) -> Entry:
    start, end = said["data_offsets"]
    return Entry(_TYPES[said["dtype"]], tuple(said["shape"]), data + start, data + end)
