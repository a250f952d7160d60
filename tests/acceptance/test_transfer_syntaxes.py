"""Every transfer syntax from other people's senders: kept byte for byte, decoded as others do.

A phantom is encoded by DCMTK (JPEG 2000, which DCMTK does not know, by GDCM) and sent in the
syntax it is written in. The judge of the pixels is DCMTK's decoder; of JPEG 2000 GDCM's, which is
OpenJPEG as ours is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom import uid as uids
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import UID, generate_uid

from dicom_node import scu
from dicom_node.scp import TRANSFER_SYNTAXES
from inference import decoder
from inference.demo import dicom, phantom
from inference.demo.evaluate import TEST_SEED
from tests.acceptance import phantoms, senders
from tests.acceptance.running_node import MODALITY, RunningNode
from tests.acceptance.senders import Sender
from tests.inference.test_pixels import high_throughput, small

pytestmark = pytest.mark.timeout(1800)

_PIXELS = phantom.scene(TEST_SEED + 20_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Syntax:
    """Who writes a transfer syntax and who reads it, beside us."""

    uid: UID
    encoder: tuple[str, ...]
    decoder: tuple[str, ...]
    #: grey levels: lossy decoders may round their cosine and wavelet transforms differently
    tolerance: int = 0


_TO_NATIVE = ("dcmconv", "+te")
SYNTAXES = {
    one.uid: one
    for one in (
        Syntax(uid=uids.ImplicitVRLittleEndian, encoder=("dcmconv", "+ti"), decoder=_TO_NATIVE),
        Syntax(uid=uids.ExplicitVRLittleEndian, encoder=("dcmconv", "+te"), decoder=_TO_NATIVE),
        Syntax(uid=uids.ExplicitVRBigEndian, encoder=("dcmconv", "+tb"), decoder=_TO_NATIVE),
        Syntax(
            uid=uids.DeflatedExplicitVRLittleEndian,
            encoder=("dcmconv", "+td"),
            decoder=_TO_NATIVE,
        ),
        Syntax(uid=uids.RLELossless, encoder=("dcmcrle",), decoder=("dcmdrle",)),
        Syntax(
            uid=uids.JPEGBaseline8Bit,
            encoder=("dcmcjpeg", "+eb"),
            decoder=("dcmdjpeg",),
            tolerance=1,
        ),
        Syntax(
            uid=uids.JPEGExtended12Bit,
            encoder=("dcmcjpeg", "+ee", "+bt"),
            decoder=("dcmdjpeg",),
            tolerance=1,
        ),
        Syntax(uid=uids.JPEGLossless, encoder=("dcmcjpeg", "+el"), decoder=("dcmdjpeg",)),
        Syntax(uid=uids.JPEGLosslessSV1, encoder=("dcmcjpeg", "+e1"), decoder=("dcmdjpeg",)),
        Syntax(uid=uids.JPEGLSLossless, encoder=("dcmcjpls", "+el"), decoder=("dcmdjpls",)),
        # Near-lossless is an exact code of slightly other values (ISO 14495-1): nothing to round.
        Syntax(uid=uids.JPEGLSNearLossless, encoder=("dcmcjpls", "+en"), decoder=("dcmdjpls",)),
        Syntax(
            uid=uids.JPEG2000Lossless, encoder=("gdcmconv", "--j2k"), decoder=("gdcmconv", "--raw")
        ),
        Syntax(
            uid=uids.JPEG2000,
            encoder=("gdcmconv", "--j2k", "--lossy", "-r", "10"),
            decoder=("gdcmconv", "--raw"),
            tolerance=1,
        ),
    )
}
#: No sender here but our own knows these: DCMTK 3.6.7, GDCM 3.0.21 and Orthanc 1.10.1 do not.
HIGH_THROUGHPUT = (uids.HTJ2KLossless, uids.HTJ2KLosslessRPCL, uids.HTJ2K)

_each = pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=lambda one: one.uid.keyword)

Study = Mapping[UID, Path]
Kept = Mapping[str, dict[str, Any]]


@pytest.fixture(scope="module", params=senders.NAMES)
def sender_name(request: pytest.FixtureRequest) -> str:
    """Who sends."""
    return str(request.param)


@pytest.fixture(scope="module")
def study(sender_name: str, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """One study for each sender: the same picture once in every transfer syntax."""
    senders.require("dcmconv", "gdcmconv")
    return make_study(tmp_path_factory.mktemp("study"), sender_name)


def make_study(folder: Path, name: str) -> Study:
    """Write it; the files by transfer syntax."""
    native, encoded = folder / "native.dcm", folder / "encoded.dcm"
    files = {}
    for syntax in SYNTAXES.values():
        made = dicom.to_dx(
            phantom.render(_PIXELS),
            study_instance_uid=generate_uid(entropy_srcs=["syntaxes", name]),
            sop_instance_uid=generate_uid(entropy_srcs=["syntaxes", name, syntax.uid]),
        )
        made.save_as(native, enforce_file_format=True)
        files[syntax.uid] = folder / f"{syntax.uid}.dcm"
        senders.run(*syntax.encoder, native, encoded)
        # Sequences are written with their lengths, so that DCMTK sends the file as it is.
        senders.run("dcmconv", encoded, files[syntax.uid])
        assert pydicom.dcmread(files[syntax.uid]).file_meta.TransferSyntaxUID == syntax.uid
    return files


@pytest.fixture(scope="module")
def send(
    sender_name: str, node: RunningNode, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sender]:
    """The sender, calling the node."""
    with senders.sender(sender_name, tmp_path_factory.mktemp("sender"), node.peer) as made:
        yield made


@pytest.fixture(scope="module")
def kept(node: RunningNode, study: Study, send: Sender) -> Iterator[Kept]:
    """The rows of what arrived, by SOP Instance UID; left when the node is idle again."""
    for transfer_syntax, file in study.items():
        send(file, transfer_syntax)
    uid = _header(study[uids.ExplicitVRLittleEndian]).StudyInstanceUID
    account = node.study(uid)
    assert account is not None
    yield {one["sop_instance_uid"]: one for one in account["instances"]}
    (ended,) = node.wait_ended(uid)
    assert ended["jobs"][-1]["state"] == "drafted", ended


def test_all_thirteen_transfer_syntaxes_and_nothing_less_are_tried() -> None:
    assert len(SYNTAXES) == 13
    assert {*SYNTAXES, *HIGH_THROUGHPUT} == set(TRANSFER_SYNTAXES)


def test_every_sender_can_send_every_transfer_syntax(
    sender_name: str, study: Study, kept: Kept, say: Callable[[str], None]
) -> None:
    assert kept.keys() == {_header(file).SOPInstanceUID for file in study.values()}
    say(f"{sender_name}: {len(kept)} transfer syntaxes arrived as they were")


@_each
def test_what_others_send_is_kept_byte_for_byte(
    syntax: Syntax, node: RunningNode, study: Study, kept: Kept
) -> None:
    row = kept[_header(study[syntax.uid]).SOPInstanceUID]
    file = node.data / row["path"]
    assert row["transfer_syntax_uid"] == syntax.uid
    assert hashlib.sha256(file.read_bytes()).hexdigest() == row["sha256"]
    stored, sent = phantoms.data_set_of(file), phantoms.data_set_of(study[syntax.uid])
    assert senders.same_data_set(stored, sent, syntax.uid)


@pytest.mark.parametrize("sender_name", ["DCMTK"], indirect=True, scope="module")
@_each
def test_pixels_are_what_the_other_decoder_makes_of_them(
    syntax: Syntax, node: RunningNode, study: Study, kept: Kept, tmp_path: Path
) -> None:
    file = study[syntax.uid]
    judged = tmp_path / "judged.dcm"
    senders.run(*syntax.decoder, file, judged)
    theirs = pydicom.dcmread(judged).pixel_array
    stored = pydicom.dcmread(node.data / kept[_header(file).SOPInstanceUID]["path"])
    ours = decoder.decode(stored, seconds=120)
    assert theirs.any()
    np.testing.assert_allclose(ours.astype(int), theirs, rtol=0, atol=syntax.tolerance)


def test_high_throughput_jpeg_2000_is_kept_and_decoded(node: RunningNode, tmp_path: Path) -> None:
    files = []
    for transfer_syntax in HIGH_THROUGHPUT:
        made = pydicom.dcmread(high_throughput(transfer_syntax)(tmp_path))
        files.append(_as_study(made, f"high throughput {transfer_syntax}", tmp_path))
        stored = _sent_by_us(node, files[-1])
        assert phantoms.data_set_of(stored) == phantoms.data_set_of(files[-1])
        ours = decoder.decode(pydicom.dcmread(stored), seconds=120)
        np.testing.assert_array_equal(ours, small())
    node.wait_ended(*(str(_header(file).StudyInstanceUID) for file in files))


def test_a_damaged_stream_is_kept_and_its_job_refused_as_undecodable(
    node: RunningNode, tmp_path: Path
) -> None:
    made = _phantom()
    made.compress(uids.JPEG2000Lossless, generate_instance_uid=False)
    main_header = get_frame(made.PixelData, 0, number_of_frames=1)[:60]
    _set_stream(made, main_header, uids.JPEG2000Lossless)
    _assert_kept_and_undecodable(node, _as_study(made, "damaged", tmp_path))


def test_what_no_plug_in_of_pydicom_decodes_is_kept_and_its_job_refused_as_undecodable(
    node: RunningNode, shared_data: Path, tmp_path: Path
) -> None:
    odd = pydicom.dcmread(shared_data / "hostile" / "j2k-embedded-delimiter.dcm")
    made = _phantom()
    made.Rows, made.Columns = odd.Rows, odd.Columns
    made.BitsStored, made.HighBit = odd.BitsStored, odd.HighBit
    _set_stream(made, get_frame(odd.PixelData, 0, number_of_frames=1), uids.JPEG2000)
    _assert_kept_and_undecodable(node, _as_study(made, "no plug-in", tmp_path))


def _header(file: Path) -> Dataset:
    return pydicom.dcmread(file, stop_before_pixels=True)


def _phantom() -> pydicom.FileDataset:
    return dicom.to_dx(phantom.render(_PIXELS))


def _set_stream(made: Dataset, stream: bytes, transfer_syntax: UID) -> None:
    made.file_meta.TransferSyntaxUID = transfer_syntax
    made.PixelData = encapsulate([stream])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True


def _as_study(made: Dataset, name: str, folder: Path) -> Path:
    """Write it as a study of its own."""
    made.StudyInstanceUID, made.SeriesInstanceUID, made.SOPInstanceUID = (
        generate_uid(entropy_srcs=["syntaxes", name, level]) for level in "123"
    )
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    file = folder / f"{made.SOPInstanceUID}.dcm"
    made.save_as(file, enforce_file_format=True)
    return file


def _sent_by_us(node: RunningNode, file: Path) -> Path:
    """Send it with our own SCU; where it was stored."""
    (outcome,) = scu.send_files([file], node.peer, MODALITY)
    assert outcome.failure is None
    account = node.study(_header(file).StudyInstanceUID)
    assert account is not None
    (row,) = account["instances"]
    return node.data / str(row["path"])


def _assert_kept_and_undecodable(node: RunningNode, file: Path) -> None:
    stored = _sent_by_us(node, file)
    assert phantoms.data_set_of(stored) == phantoms.data_set_of(file)
    (account,) = node.wait_ended(_header(file).StudyInstanceUID)
    job = account["jobs"][-1]
    assert job["state"] == "refused"
    assert "UNDECODABLE" in job["reason"]
