"""Carry a recipe out: read, merge, pack and write one tensor after the other.

The folder appears under its name when everything in it is on the disc, and not before: a run that
is killed leaves at most a hidden ``.NAME.part``, which the next run clears.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from inference.findings import ModelUnavailable
from inference.weights import nf4
from inference.weights.artefact import (
    FORMAT,
    MANIFEST,
    TENSORS,
    FileRecord,
    Manifest,
    Scheme,
    Writer,
    digest,
)
from inference.weights.recipe import Part, Recipe

#: What is being done now, and the share of all work that is done, 0 to 1.
Progress = Callable[[str, float], None]

_BYTE = 1 / 30  # of the time that packing a weight takes, to hash a byte: measured on one core


def prepare(
    recipe: Recipe,
    output: Path,
    *,
    quantisation: Scheme = "nf4",
    progress: Progress = lambda step, share: None,
) -> Manifest:
    """Write the prepared folder ``output``, which must not exist yet.

    "nf4": the packed parts in 4 bits (from their float16 values), all else float16. "none": all in
    float32, for proofs and comparison. Memory: one open shard and a few copies of one tensor.

    Raises:
        ModelUnavailable: the folder exists, the disc is full, a published tensor is unusable, or
            this bitsandbytes can't pack.
    """
    versions = _versions(quantisation)
    if quantisation == "nf4":
        nf4.check_shapes({part.name: part.shape for part in recipe.parts if part.packed})
    work = _Work(recipe, progress)
    with _staged(output) as folder:
        sources = {name: _hashed(name, path, work) for name, path in recipe.sources.items()}
        written = _write(recipe.parts, folder / TENSORS, quantisation, work)
        for name, path in recipe.files.items():
            shutil.copyfile(path, folder / name)
        files = {name: FileRecord.of(folder / name) for name in (TENSORS, *recipe.files)}
        config = dict(recipe.config)
        manifest = Manifest(
            format=FORMAT,
            model=recipe.model,
            scheme=quantisation,
            digest=digest(config, files),
            made=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions,
            licence=recipe.licence,
            config=config,
            files=files,
            sources=sources,
            header=written.header,
            tensors=written.hashes,
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


class _Work:
    """How much is done, in weights written."""

    def __init__(self, recipe: Recipe, progress: Progress) -> None:
        hashed = sum(path.stat().st_size for path in recipe.sources.values())
        self._all = hashed * _BYTE + sum(prod(part.shape) for part in recipe.parts)
        self._done = 0.0
        self._progress = progress

    def done(self, step: str, amount: float) -> None:
        self._done += amount
        self._progress(step, self._done / self._all)


def _versions(scheme: Scheme) -> dict[str, str]:
    versions = {name: version(name) for name in ("dicom-node", "torch")}
    return versions | ({"bitsandbytes": nf4.check_bitsandbytes()} if scheme == "nf4" else {})


def _hashed(name: str, path: Path, work: _Work) -> FileRecord:
    record = FileRecord.of(path)
    work.done(f"hashing {name}", record.bytes * _BYTE)
    return record


# --- tensors ----------------------------------------------------------------------------------


def _write(parts: Sequence[Part], path: Path, scheme: Scheme, work: _Work) -> Writer:
    names = len(parts) * (1 + len(nf4.STATE))
    longest = max(len(part.name) for part in parts) + max(map(len, nf4.STATE))
    with Writer(path, names, longest) as writer:
        for part in parts:
            for name, tensor in _stored(part, scheme):
                writer.add(name, tensor)
            work.done(part.name, prod(part.shape))
    return writer


def _stored(part: Part, scheme: Scheme) -> Iterator[tuple[str, Tensor]]:
    """What is written of a part, by name."""
    dtype = torch.float32 if scheme == "none" else torch.float16
    published = part.read()
    if not published.is_floating_point() or published.shape != part.shape:
        raise ValueError(f"{part.name} is {published.dtype} {published.shape}, not {part.shape}")
    tensor = published.to(dtype)
    if not torch.isfinite(tensor).all():
        raise ModelUnavailable(f"{part.name} is not finite as {dtype}: download its files again")
    if part.packed and scheme == "nf4":
        for ending, piece in nf4.pack(tensor).items():
            yield part.name + ending, piece
    else:
        yield part.name, tensor


# --- the folder -------------------------------------------------------------------------------


@contextmanager
def _staged(output: Path) -> Iterator[Path]:
    """A folder that becomes ``output`` if the block ends well, and else goes."""
    if output.exists():
        raise ModelUnavailable(f"{output} exists: remove it or choose another folder")
    part = output.with_name(f".{output.name}.part")
    with _disc_errors(output), _claimed(part):
        try:
            yield part
            for path in (*part.iterdir(), part):
                _sync(path)
            part.rename(output)
            _sync(output.parent)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


@contextmanager
def _claimed(part: Path) -> Iterator[None]:
    """An empty folder of one's own, for as long as the block runs; left-overs are removed."""
    part.mkdir(parents=True, exist_ok=True)
    handle = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in part.iterdir():
            path.unlink()
        yield
    except BlockingIOError as error:
        raise ModelUnavailable(f"another run is writing {part}: wait for it") from error
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disc."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _disc_errors(output: Path) -> Iterator[None]:
    """Map what the file system raises."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = ": free some room or choose another folder" if full else ""
        what = error.filename or output
        raise ModelUnavailable(f"{what} can't be written: {error.strerror}{fix}") from error
