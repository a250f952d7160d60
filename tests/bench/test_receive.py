"""The benchmark's sender and its simplest receiver do what the figures say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pydicom
import pytest

from bench import receive
from bench.receive import Cell

SMALL = Cell(megabytes=0.01, instances=6, associations=2)


def test_every_instance_is_new_and_each_association_has_its_share(tmp_path: Path) -> None:
    groups = receive.make(tmp_path, SMALL, seed=1) + receive.make(tmp_path, SMALL, seed=2)
    assert [len(group) for group in groups] == [3, 3, 3, 3]
    uids = {pydicom.dcmread(path).SOPInstanceUID for path in tmp_path.rglob("*.dcm")}
    assert len(uids) == SMALL.instances  # the second round wrote over the first
    assert all(str(uid).split(".")[-2] == "2" for uid in uids)


@pytest.mark.skipif(not shutil.which("storescp"), reason="storescp (dcmtk) is not installed")
def test_what_is_sent_arrives(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "peer").mkdir()
    groups = receive.make(tmp_path / "files", SMALL, seed=1)
    with receive.storescp(tmp_path / "peer") as port:
        assert receive.send([group[0].parent for group in groups], port) > 0
    assert len(list((tmp_path / "peer" / "files").iterdir())) == SMALL.instances


@pytest.mark.skipif(not shutil.which("storescu"), reason="storescu (dcmtk) is not installed")
def test_a_receiver_that_is_not_there_is_no_figure(tmp_path: Path) -> None:
    (group, _) = receive.make(tmp_path, SMALL, seed=1)
    with pytest.raises(RuntimeError, match="not everything was stored"):
        receive.send([group[0].parent], receive.free_port())


def test_what_the_disk_alone_keeps_is_the_same_files(tmp_path: Path) -> None:
    for name in ("files", "kept"):
        (tmp_path / name).mkdir()
    groups = receive.make(tmp_path / "files", SMALL, seed=1)
    assert receive.keep(groups, tmp_path / "kept") > 0
    sent = sorted(path.read_bytes() for group in groups for path in group)
    assert sorted(path.read_bytes() for path in (tmp_path / "kept").iterdir()) == sent
