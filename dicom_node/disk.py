"""How full the disk is: watermarks that let senders wait, and files that go for good.

Above the high mark nothing is taken, until it is below the low mark again: what was acknowledged
must find room for its drafts too, and a node that hovers at one mark would take one object and
refuse the next.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dicom_node.config import Disk
from dicom_node.errors import OutOfResources

logger = logging.getLogger(__name__)

#: With less than this free nothing is taken, however small a part of the disk it is.
FLOOR_BYTES = 64 * 2**20
#: And taken again with this much.
ROOM_BYTES = 96 * 2**20

State = Literal["ok", "low", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How full a file system is for us."""

    used_percent: float  #: as ``df`` counts; of bytes or of files, whichever is fuller
    free_bytes: int


def usage(folder: Path) -> Usage:
    """How full the file system under ``folder`` is.

    Raises
    ------
    OutOfResources
        The folder is away.
    """
    try:
        found = os.statvfs(folder)
    except OSError as error:
        raise OutOfResources(f"{folder}: {error.strerror}") from error
    # f_bavail leaves out what only root may still fill; so does df.
    blocks = _percent(found.f_blocks - found.f_bfree, found.f_bavail)
    files = _percent(found.f_files - found.f_ffree, found.f_favail)
    return Usage(used_percent=max(blocks, files), free_bytes=found.f_bavail * found.f_frsize)


def _percent(used: int, available: int) -> float:
    """Of a file system that does not count (btrfs has no number of files) nothing is used."""
    return 100 * used / (used + available) if used + available else 0.0


class Watermarks:
    """Is there room for what comes? Safe for many threads; asking costs nothing.

    Parameters
    ----------
    folder
        Where the node writes.
    marks
        Of the configuration.
    """

    def __init__(self, folder: Path, marks: Disk) -> None:
        self._folder = folder
        self._marks = marks
        self._changing = threading.Lock()
        self._usage: Usage | None = None
        self._state: State = "ok"
        self.look()

    @property
    def state(self) -> State:
        """ok; low: above the low mark; full: nothing is taken."""
        return self._state

    @property
    def accepting(self) -> bool:
        """May objects be taken?"""
        return self._state != "full"

    @property
    def pressing(self) -> bool:
        """Must something go? A disk that can't be looked at is full, but nothing goes for it."""
        return self._state == "full" and self._usage is not None

    @property
    def usage(self) -> Usage | None:
        """As last looked at; ``None``: the folder is away."""
        return self._usage

    def look(self) -> None:
        """Ask the file system: one system call."""
        with self._changing:
            try:
                self._usage = usage(self._folder)
            except OutOfResources as error:
                self._usage = None
                self._become("full", str(error))
            else:
                self._become(self._judged(self._usage), f"{self._usage.used_percent:.1f} % used")

    def full(self) -> None:
        """A write found no room: close at once, until the next look finds some."""
        with self._changing:
            self._become("full", "a write found no room")

    def _judged(self, now: Usage) -> State:
        if now.used_percent > self._marks.high_percent or now.free_bytes < FLOOR_BYTES:
            return "full"
        if now.used_percent < self._marks.low_percent and now.free_bytes >= ROOM_BYTES:
            return "ok"
        return "full" if self._state == "full" else "low"

    def _become(self, state: State, why: str) -> None:
        if (state == "full") != (self._state == "full"):
            said = "no more objects are taken" if state == "full" else "objects are taken again"
            level = logging.WARNING if state == "full" else logging.INFO
            logger.log(level, "disk: %s: %s", said, why)
        self._state = state


def remove(files: Iterable[Path]) -> None:
    """Delete files durably: after a return a power cut does not bring them back.

    What is gone already is gone.

    Raises
    ------
    OutOfResources
        The disk is away or read-only.
    """
    folders = set()
    for file in files:
        folders.add(file.parent)
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise OutOfResources(f"{file.name}: {error.strerror}") from error
    for folder in folders:
        _sync(folder)


def remove_if_empty(folder: Path) -> None:
    """Delete a folder durably, unless something is in it.

    Raises
    ------
    OutOfResources
        The disk is away or read-only.
    """
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
            raise OutOfResources(f"{folder.name}: {error.strerror}") from error
    else:
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return  # with all that was in it
    except OSError as error:
        raise OutOfResources(f"{folder.name}: {error.strerror}") from error
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise OutOfResources(f"{folder.name}: {error.strerror}") from error
    finally:
        os.close(descriptor)
