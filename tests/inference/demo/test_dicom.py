"""Phantoms as DICOM: valid, as the arguments say, the same every time."""

from __future__ import annotations

import datetime as dt
import shutil
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import FileDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from inference import selection
from inference.demo.dicom import DemoPatient, Photometric, ViewPosition, to_dx
from inference.demo.phantom import Radiograph, render, scene

UNCOMPRESSED = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
TRANSFER_SYNTAXES = [
    *UNCOMPRESSED,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
]


@pytest.fixture(scope="module")
def radiograph() -> Radiograph:
    return render(scene(11, frozenset({"effusion_left"})), 256)


def written(ds: FileDataset) -> FileDataset:
    """The object after a way through a file."""
    file = BytesIO()
    pydicom.dcmwrite(file, ds, enforce_file_format=True)
    file.seek(0)
    return pydicom.dcmread(file)


def pixels(ds: FileDataset) -> npt.NDArray[Any]:
    return written(ds).pixel_array


# dicom3tools can't inflate: the deflated object differs from the explicit one in its coding only.
@pytest.mark.parametrize(
    "transfer_syntax",
    [uid for uid in TRANSFER_SYNTAXES if uid != DeflatedExplicitVRLittleEndian],
    ids=lambda uid: uid.name,
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_an_independent_validator_finds_no_error(
    radiograph: Radiograph, tmp_path: Path, transfer_syntax: UID, photometric: Photometric
) -> None:
    ds = to_dx(radiograph, photometric=photometric, transfer_syntax=transfer_syntax)
    assert complaints(ds, tmp_path / "phantom.dcm") == []


@pytest.mark.parametrize("view_position", ["PA", "AP", "LL"])
@pytest.mark.parametrize("bits_stored", [10, 16])
def test_every_view_and_depth_is_valid(
    radiograph: Radiograph, tmp_path: Path, view_position: ViewPosition, bits_stored: int
) -> None:
    ds = to_dx(radiograph, view_position=view_position, bits_stored=bits_stored)
    assert complaints(ds, tmp_path / "phantom.dcm") == []


def complaints(ds: FileDataset, path: Path) -> list[str]:
    """Errors and warnings of dicom3tools."""
    validator = shutil.which("dciodvfy")
    if validator is None:
        pytest.skip("dciodvfy (Debian package dicom3tools) is not installed")
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    run = subprocess.run([validator, path], capture_output=True, text=True, check=False)
    lines = (run.stdout + run.stderr).splitlines()
    assert "DXImageForPresentation" in lines  # it recognised the object
    return [line for line in lines if "Error" in line or "Warning" in line]


@pytest.mark.parametrize("transfer_syntax", TRANSFER_SYNTAXES, ids=lambda uid: uid.name)
@pytest.mark.parametrize("bits_stored", [10, 12, 16])
def test_pixels_survive_every_transfer_syntax(
    radiograph: Radiograph, transfer_syntax: UID, bits_stored: int
) -> None:
    ds = to_dx(radiograph, bits_stored=bits_stored, transfer_syntax=transfer_syntax)
    assert written(ds).file_meta.TransferSyntaxUID == transfer_syntax
    assert np.array_equal(pixels(ds), pixels(to_dx(radiograph, bits_stored=bits_stored)))


def test_twelve_bits_are_the_rendered_values(radiograph: Radiograph) -> None:
    assert np.array_equal(pixels(to_dx(radiograph)), radiograph.stored)


@pytest.mark.parametrize("bits_stored", range(10, 17))
def test_monochrome1_stores_the_complement(radiograph: Radiograph, bits_stored: int) -> None:
    light = to_dx(radiograph, bits_stored=bits_stored)
    dark = to_dx(radiograph, bits_stored=bits_stored, photometric="MONOCHROME1")
    assert np.all(pixels(light).astype(int) + pixels(dark) == 2**bits_stored - 1)
    assert (light.PresentationLUTShape, dark.PresentationLUTShape) == ("IDENTITY", "INVERSE")


@pytest.mark.parametrize("bits_stored", [10, 11, 14, 16])
def test_the_depth_is_used(radiograph: Radiograph, bits_stored: int) -> None:
    ds = to_dx(radiograph, bits_stored=bits_stored)
    assert (ds.BitsStored, ds.HighBit) == (bits_stored, bits_stored - 1)
    expected = radiograph.stored / 4095 * (2**bits_stored - 1)
    assert np.abs(pixels(ds) - expected).max() <= 0.5


@pytest.mark.parametrize("bits_stored", [8, 9, 17])
def test_another_depth_is_refused(radiograph: Radiograph, bits_stored: int) -> None:
    with pytest.raises(ValueError, match=str(bits_stored)):
        to_dx(radiograph, bits_stored=bits_stored)


def test_the_same_arguments_give_the_same_object(radiograph: Radiograph) -> None:
    assert to_dx(radiograph) == to_dx(radiograph)


def test_every_content_has_its_own_instance_uid(radiograph: Radiograph) -> None:
    variants = [
        to_dx(radiograph),
        to_dx(radiograph, photometric="MONOCHROME1"),
        to_dx(radiograph, bits_stored=16),
        to_dx(radiograph, transfer_syntax=RLELossless),
        to_dx(radiograph, instance_number=2),
        to_dx(radiograph, view_position="AP"),
        to_dx(render(scene(11, frozenset({"effusion_left"})), 300)),
        to_dx(render(scene(12, frozenset({"effusion_left"})), 256)),
    ]
    uids = {ds.SOPInstanceUID for ds in variants}
    assert len(uids) == len(variants)
    assert all(uid.is_valid and uid.startswith("2.25.") for uid in uids)


def test_a_study_is_a_seed_with_its_findings(radiograph: Radiograph) -> None:
    first = to_dx(radiograph)
    again = to_dx(radiograph, photometric="MONOCHROME1", view_position="AP")
    other = to_dx(render(scene(11, frozenset()), 256))
    assert first.StudyInstanceUID == again.StudyInstanceUID != other.StudyInstanceUID
    assert first.SeriesInstanceUID != again.SeriesInstanceUID  # another view, another series


def test_given_uids_identity_and_time_are_used(radiograph: Radiograph) -> None:
    patient = DemoPatient(
        patient_id="P-1", name="Müller^Jörg", birth_date=dt.date(1950, 3, 2), sex="M"
    )
    ds = written(
        to_dx(
            radiograph,
            patient=patient,
            study_instance_uid="2.25.1",
            series_instance_uid="2.25.2",
            sop_instance_uid="2.25.3",
            acquired=dt.datetime(2026, 2, 3, 4, 5, 6),
        )
    )
    assert (ds.StudyInstanceUID, ds.SeriesInstanceUID) == ("2.25.1", "2.25.2")
    assert ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID == "2.25.3"
    assert (ds.PatientID, ds.PatientName, ds.PatientSex) == ("P-1", "Müller^Jörg", "M")
    assert (ds.PatientBirthDate, ds.PatientAge) == ("19500302", "075Y")
    assert (ds.StudyDate, ds.AcquisitionDateTime) == ("20260203", "20260203040506")


def test_the_object_says_that_it_shows_no_patient(radiograph: Radiograph) -> None:
    ds = to_dx(radiograph)
    assert ds.SOPClassUID == DigitalXRayImageStorageForPresentation
    assert ds.ImageComments == "SYNTHETIC PHANTOM, NOT A PATIENT"
    assert "phantom" in ds.StudyDescription
    assert ds.Manufacturer.startswith("DEMO")


@pytest.mark.parametrize("view_position", ["PA", "AP"])
def test_the_node_would_choose_it(radiograph: Radiograph, view_position: ViewPosition) -> None:
    ds = to_dx(radiograph, view_position=view_position)
    choice = selection.choose([candidate(ds)])
    assert isinstance(choice, selection.Choice)
    assert choice.sop_instance_uid == ds.SOPInstanceUID
    assert choice.view == view_position
    assert choice.warnings == ()


def test_a_lateral_header_is_not_chosen(radiograph: Radiograph) -> None:
    refusal = selection.choose([candidate(to_dx(radiograph, view_position="LL"))])
    assert isinstance(refusal, selection.Refusal)
    assert refusal.code == "NOT_FRONTAL"


def candidate(ds: FileDataset) -> selection.Candidate:
    return selection.Candidate(header=ds, pixel_bytes=len(ds.PixelData))
