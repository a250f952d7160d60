"""A real PACS, real chest X-rays and other objects, and the viewer a radiologist would use."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import generate_uid

from tests.acceptance import hospital, raw
from tests.acceptance.hospital import AE_TITLE, Hospital
from tests.acceptance.running_node import MODALITY, RunningNode, running
from tests.ports import free_port

#: Real chest X-rays; ``None``: a frontal that its header calls one, so it gets a draft. The others
#: are refused by the rules of pixel-pipeline.md 2: the NIH objects say nothing of the view.
REAL = {
    "fuji-cr-ap-portable-mono1-10bit-rle-burnedin.dcm": None,
    "fuji-cr-pa-mono1-10bit-440.dcm": None,
    "ge-dx-lateral-mono2-14bit-j2k.dcm": "NOT_FRONTAL",
    "nih-sc-ap-effusion.dcm": "NOT_FRONTAL",
    "nih-sc-bodypart-ribcage.dcm": "NOT_CHEST",
    "nih-sc-pa-nofinding.dcm": "NOT_FRONTAL",
    "philips-cr-pa-mono1-15bit-j2k.dcm": None,
    "rsna-sc-pa-mono1-flag-flipped.dcm": None,
    "rsna-sc-pa-mono2-8bit-jpeg.dcm": None,
}
LATERAL = "ge-dx-lateral-mono2-14bit-j2k.dcm"

#: What is no chest X-ray, where it is more than "not an image of ours".
OTHER = {
    "cr-ankle-ap-mono1.dcm": "NOT_CHEST",
    "dx-veterinary-thorax-dog.dcm": "TOO_SMALL",
}
#: What ``dicom-node send`` can't send: no DICOM file, no storable object, or a file meta that names
#: another instance than the data set does, which the node must not take (PS3.4 B.2.3, 0xA900).
UNSENDABLE = {
    "DICOMDIR": "Media Storage Directory Storage",
    "ecg-waveform-deflated.dcm": "0xA900",
    "rtdose.dcm": "0xA900",
    "rtplan.dcm": "0xA900",
    "rtstruct.dcm": "not a DICOM file",
    "worklist-item.wl": "0xA900",
}
#: Of these, a sender that ignores the file meta can send all but the two that are no composite
#: instance.
NO_INSTANCE = {"DICOMDIR", "worklist-item.wl"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """One real object as the PACS holds it."""

    name: str
    study_instance_uid: str


@pytest.fixture(scope="module")
def pacs_port() -> int:
    """Where the PACS will listen; the node is told before it does."""
    reason = hospital.missing()
    if reason:
        pytest.skip(f"no hospital: {reason}")
    return free_port()


@pytest.fixture(scope="module")
def node(pacs_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node whose destination is the hospital's PACS."""
    home = tmp_path_factory.mktemp("node")
    with running(home, pacs_title=AE_TITLE, pacs_port=pacs_port) as started:
        yield started


@pytest.fixture(scope="module")
def orthanc(
    node: RunningNode, pacs_port: int, full: bool, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hospital]:
    """The PACS, with a viewer in the full form."""
    folder = tmp_path_factory.mktemp("pacs") / "run"
    address = f"{node.peer.ae_title}@127.0.0.1:{node.peer.port}"
    try:
        made = Hospital(folder, port=pacs_port, node=address, viewer=full)
        yield made
    finally:
        subprocess.run(
            [str(hospital.SCRIPTS / "pacs.py"), "--dir", str(folder), "down", "--purge"],
            capture_output=True,
            check=True,
        )


@pytest.fixture(scope="module")
def loaded(
    orthanc: Hospital, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Loaded]:
    """All real chest X-rays in the PACS, sent to the node from there; by file name."""
    files = sorted((shared_data / "cxr" / "real").iterdir())
    assert {file.name for file in files} == set(REAL)
    folder = tmp_path_factory.mktemp("renewed")
    seen: set[str] = set()
    sent: dict[str, Loaded] = {}
    for file in files:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        if header.SOPInstanceUID in seen:
            # Two pairs share their UIDs, and Orthanc keeps the first of each.
            file = _renewed(file, folder)
            header = pydicom.dcmread(file, stop_before_pixels=True)
        seen.add(header.SOPInstanceUID)
        orthanc.run("load", str(file))
        sent[files[len(sent)].name] = Loaded(
            name=file.name, study_instance_uid=str(header.StudyInstanceUID)
        )
    orthanc.send_all()
    return sent


def _renewed(file: Path, folder: Path) -> Path:
    dataset = pydicom.dcmread(file)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(dataset, keyword, generate_uid())
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(folder / file.name)
    return folder / file.name


@pytest.mark.parametrize("name", [name for name, code in REAL.items() if code is None])
def test_a_real_frontal_gets_exactly_one_draft_in_its_own_study(
    name: str, loaded: dict[str, Loaded], orthanc: Hospital, node: RunningNode
) -> None:
    uid = loaded[name].study_instance_uid
    (found,) = node.wait_ended(uid)
    assert [one["state"] for one in found["drafts"][0]["deliveries"]] == ["delivered"], found
    (series,) = orthanc.drafts(uid)
    assert series["instances"] == 1
    assert series["from"] == node.peer.ae_title
    assert series["series"] == found["drafts"][0]["series_instance_uid"]


@pytest.mark.parametrize("name", [name for name, code in REAL.items() if code is not None])
def test_a_real_image_that_is_no_stated_frontal_gets_no_draft(
    name: str, loaded: dict[str, Loaded], orthanc: Hospital, node: RunningNode
) -> None:
    uid = loaded[name].study_instance_uid
    node.wait_ended(uid)
    found = node.json("study", uid)
    assert found["choice"]["refusal"]["code"] == REAL[name]
    assert found["drafts"] == []
    assert orthanc.drafts(uid) == []


def test_independent_validators_find_no_error_in_the_drafts(
    loaded: dict[str, Loaded],
    orthanc: Hospital,
    node: RunningNode,
    full: bool,
    tmp_path: Path,
    say: Callable[[str], None],
) -> None:
    for name, code in REAL.items():
        if code is None:
            (found,) = node.wait_ended(loaded[name].study_instance_uid)
            orthanc.run("get", found["drafts"][0]["series_instance_uid"], "--out", str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 5
    said = orthanc.run("check", str(tmp_path), *(["--template"] if full else []), check=False)
    say(said.strip().replace("\n", "\n    "))
    assert "BAD" not in said
    assert said.count("ok ") == 5


@pytest.mark.slow
def test_the_viewer_shows_the_draft(
    loaded: dict[str, Loaded],
    orthanc: Hospital,
    node: RunningNode,
    tmp_path: Path,
    say: Callable[[str], None],
) -> None:
    uid = loaded["philips-cr-pa-mono1-15bit-j2k.dcm"].study_instance_uid
    series = node.wait_ended(uid)[0]["drafts"][0]["series_instance_uid"]
    picture = tmp_path / "draft.png"
    arguments = ("--study", uid, "--series", series, "--out", str(picture), "--expect", "DRAFT")
    say(orthanc.viewer("shot", *arguments).strip())
    assert picture.stat().st_size > 10_000


@pytest.fixture(scope="module")
def others(node: RunningNode, shared_data: Path) -> dict[str, str]:
    """Everything else, sent with ``dicom-node send``; file name -> Study Instance UID."""
    folder = shared_data / "other"
    sender = node.home / "modality.toml"
    sender.write_text(f'[node]\nae_title = "{MODALITY}"\n', "utf-8")
    target = f"{node.peer.ae_title}@127.0.0.1:{node.peer.port}"
    done = node.cli("send", str(folder), "--to", target, config=sender, check=False)
    failures = dict(_failure(line) for line in done.stderr.splitlines()[:-1])
    assert failures.keys() == UNSENDABLE.keys(), done.stderr
    assert all(UNSENDABLE[name] in why for name, why in failures.items()), failures
    for name in UNSENDABLE.keys() - NO_INSTANCE:
        assert raw.send(folder / name, node.settings.node.port) == 0x0000
    return {
        file.name: raw.claim_of(file).study_instance_uid
        for file in sorted(folder.iterdir())
        if file.name not in NO_INSTANCE
    }


def _failure(line: str) -> tuple[str, str]:
    """File name and reason of a line of ``dicom-node send``."""
    path, _, reason = line.partition(": ")
    return Path(path).name, reason


def test_no_other_object_gets_a_draft_and_each_study_names_why(
    others: dict[str, str], node: RunningNode
) -> None:
    assert len(others) == 24
    together = set(others.values())
    codes = {uid: _refusal(node, uid) for uid in together}
    named = {name: codes[uid] for name, uid in others.items()}
    assert named == {name: OTHER.get(name, "NOT_IMAGE") for name in others}


def _refusal(node: RunningNode, study_instance_uid: str) -> str:
    (found,) = node.wait_ended(study_instance_uid)
    assert found["drafts"] == []
    code: str = found["choice"]["refusal"]["code"]
    return code
