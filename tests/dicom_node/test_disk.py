"""Watermarks: when senders must wait, and when they need not any more."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dicom_node import disk
from dicom_node.config import Disk
from dicom_node.disk import FLOOR_BYTES, ROOM_BYTES, Watermarks
from dicom_node.errors import OutOfResources

MARKS = Disk(high_percent=90, low_percent=80)
BLOCK = 4096


class FakeDisk:
    """A file system of 10 GiB whose filling the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used_percent, self.files_percent = 0.0, 0.0
        self.blocks = 10 * 2**30 // BLOCK
        monkeypatch.setattr(os, "statvfs", self.statvfs)

    def statvfs(self, folder: object) -> os.statvfs_result:
        free = self.blocks - int(self.blocks * self.used_percent / 100)
        files = 1000 - int(1000 * self.files_percent / 100)
        return os.statvfs_result(
            (BLOCK, BLOCK, self.blocks, free, free, 1000, files, files, 0, 255)
        )


@pytest.fixture
def fake_disk(monkeypatch: pytest.MonkeyPatch) -> FakeDisk:
    return FakeDisk(monkeypatch)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 128 MiB with room for 100 files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128m,nr_inodes=100", "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system can't be mounted here (not root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def states(fake_disk: FakeDisk, *percents: float) -> Sequence[disk.State]:
    """The state after each filling, one after the other."""
    marks, found = Watermarks(Path("/"), MARKS), list[disk.State]()
    for fake_disk.used_percent in percents:
        marks.look()
        assert marks.accepting == (marks.state != "full")
        found.append(marks.state)
    return found


def test_it_closes_above_the_high_mark_and_opens_below_the_low_one(fake_disk: FakeDisk) -> None:
    fillings = (79, 85, 89, 91, 89, 81, 79, 85)
    found = ["ok", "low", "low", "full", "full", "full", "ok", "low"]
    assert states(fake_disk, *fillings) == found


def test_a_disk_without_room_for_files_is_full_too(fake_disk: FakeDisk) -> None:
    fake_disk.files_percent = 95
    assert states(fake_disk, 10) == ["full"]


def test_a_file_system_that_does_not_count_files_has_no_lack_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = os.statvfs_result((BLOCK, BLOCK, 2**20, 2**20, 2**20, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda folder: found)
    assert Watermarks(Path("/"), MARKS).state == "ok"


def test_a_small_disk_keeps_some_bytes_free_whatever_part_of_it_they_are(
    fake_disk: FakeDisk,
) -> None:
    fake_disk.blocks = 4 * FLOOR_BYTES // BLOCK
    least_free = [100 * (1 - free / (4 * FLOOR_BYTES)) for free in (FLOOR_BYTES, ROOM_BYTES)]
    floor, room = least_free
    fillings = (room - 1, floor - 1, floor + 1, floor - 1, room - 1)
    assert states(fake_disk, *fillings) == ["ok", "low", "full", "full", "ok"]


def test_a_write_that_found_no_room_closes_at_once_until_the_next_look(
    fake_disk: FakeDisk,
) -> None:
    marks = Watermarks(Path("/"), MARKS)
    marks.full()
    assert (marks.state, marks.accepting) == ("full", False)
    fake_disk.used_percent = 85
    marks.look()
    assert not marks.accepting
    fake_disk.used_percent = 79
    marks.look()
    assert marks.accepting


def test_a_folder_that_is_away_is_full_but_nothing_goes_for_it(tmp_path: Path) -> None:
    marks = Watermarks(tmp_path / "away", MARKS)
    assert (marks.state, marks.usage, marks.pressing) == ("full", None, False)
    (tmp_path / "away").mkdir()
    marks.look()
    assert marks.usage is not None
    assert marks.pressing == (marks.state == "full")


def test_closing_and_opening_are_logged_once(
    fake_disk: FakeDisk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dicom_node.disk")
    states(fake_disk, 50, 95, 96, 85, 50, 40)
    assert caplog.messages == [
        "disk: no more objects are taken: 95.0 % used",
        "disk: objects are taken again: 50.0 % used",
    ]


def test_it_counts_as_df_does(small_disk: Path) -> None:
    (small_disk / "file").write_bytes(bytes(40 * 2**20))
    answer = subprocess.run(
        ["df", "--output=pcent", str(small_disk)], capture_output=True, text=True, check=True
    )
    shown = int(answer.stdout.split()[-1].rstrip("%"))  # df rounds up
    assert shown - 1 <= disk.usage(small_disk).used_percent <= shown


def test_a_real_disk_fills_and_empties(small_disk: Path) -> None:
    marks, found = Watermarks(small_disk, MARKS), list[bool]()
    for size in (0, 70, 0):
        (small_disk / "file").write_bytes(bytes(size * 2**20))
        marks.look()
        found.append(marks.accepting)
    assert found == [True, False, True]


def test_a_real_disk_without_room_for_files_is_full(small_disk: Path) -> None:
    for number in range(95):
        (small_disk / str(number)).touch()
    assert Watermarks(small_disk, MARKS).state == "full"


# -- deleting --------------------------------------------------------------------------------------


def test_files_go_and_what_is_gone_already_is_gone(tmp_path: Path) -> None:
    kept, gone = tmp_path / "kept", tmp_path / "gone"
    kept.touch()
    gone.touch()
    disk.remove([gone, gone, tmp_path / "folder" / "never"])
    assert list(tmp_path.iterdir()) == [kept]


def test_the_folder_is_synced_after_the_file_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, seen = tmp_path / "file", list[bool]()
    file.touch()
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(file.exists()))
    disk.remove([file])
    assert seen == [False]


def test_a_folder_goes_only_when_it_is_empty(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").touch()
    disk.remove_if_empty(folder)
    assert folder.is_dir()
    (folder / "file").unlink()
    disk.remove_if_empty(folder)
    disk.remove_if_empty(folder)
    assert not folder.exists()


def test_what_cannot_be_deleted_is_out_of_resources(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(OutOfResources, match="folder: Is a directory"):
        disk.remove([tmp_path / "folder"])
    with pytest.raises(OutOfResources, match="file: Not a directory"):
        disk.remove_if_empty(tmp_path / "file")
