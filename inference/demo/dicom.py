"""Phantoms as DICOM: complete "Digital X-Ray Image Storage - For Presentation" objects.

The IOD is PS3.3 A.26. Everything in an object follows from the phantom's seed and the arguments,
UIDs and times too, so that a test or a demo can say beforehand what it will send. The object says
in several places that it shows no patient.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
)

from inference.demo.phantom import Radiograph

Photometric = Literal["MONOCHROME1", "MONOCHROME2"]
ViewPosition = Literal["PA", "AP", "LL"]

#: Acquisition time of a phantom unless another is given.
ACQUIRED = dt.datetime(2026, 1, 5, 10, 0, 0)

_NAMESPACE = uuid.UUID("8d0c3f0e-5a53-5f0e-9a3c-3a1f0b6f5d11")  # of our demo UIDs, made once
_IMPLEMENTATION = UID(f"2.25.{uuid.uuid5(_NAMESPACE, 'implementation').int}")
_STORED_BITS = 12  # of a rendered phantom
_FIELD_OF_VIEW = 400.0  # mm along the shorter side
_CHEST = ("816094009", "SCT", "Chest")  # PS3.16 CID 4009
_PROCEDURE = ("399208008", "SCT", "Plain chest X-ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPatient:
    """An invented identity."""

    patient_id: str
    name: str = "DEMO^PHANTOM"
    birth_date: dt.date = dt.date(1970, 1, 1)
    sex: str = "O"


@dataclass(frozen=True, slots=True)
class _View:
    code: tuple[str, str, str]  #: PS3.16 CID 4010
    patient_orientation: tuple[str, str]  #: PS3.3 C.7.6.1.1.1: of the row, of the column


_VIEWS: Mapping[str, _View] = {
    "PA": _View(("272479007", "SCT", "Postero-anterior"), ("L", "F")),
    "AP": _View(("399348003", "SCT", "Antero-posterior"), ("L", "F")),
    "LL": _View(("399173006", "SCT", "Left lateral"), ("A", "F")),
}


def to_dx(
    radiograph: Radiograph,
    *,
    photometric: Photometric = "MONOCHROME2",
    bits_stored: int = _STORED_BITS,
    transfer_syntax: UID = ExplicitVRLittleEndian,
    patient: DemoPatient | None = None,
    study_instance_uid: str | None = None,
    series_instance_uid: str | None = None,
    sop_instance_uid: str | None = None,
    series_number: int = 1,
    instance_number: int = 1,
    view_position: ViewPosition = "PA",
    acquired: dt.datetime = ACQUIRED,
) -> FileDataset:
    """Wrap a phantom as a DX image, ready to be written or sent.

    Parameters
    ----------
    photometric
        MONOCHROME1 stores the complement, so that both look alike (PS3.3 C.7.6.3.1.2).
    bits_stored
        10 to 16; the 12 bits of a phantom are scaled to them.
    transfer_syntax
        Uncompressed, or any that pydicom has an encoder for (RLE, JPEG-LS, JPEG 2000 lossless).
    patient
        ``None`` invents one per seed.
    study_instance_uid, series_instance_uid, sop_instance_uid
        ``None`` derives a UID under 2.25 (PS3.5 B.2): the study's from seed and findings, the
        series' from study and view, the instance's from its stored pixels and arguments.
    view_position
        What the header claims; a phantom is always a frontal.

    Raises
    ------
    ValueError
        ``bits_stored`` is not in 10 to 16.
    """
    if not 10 <= bits_stored <= 16:
        raise ValueError(f"bits_stored is {bits_stored}, not 10 to 16")
    pixels = _stored_values(radiograph.stored, photometric, bits_stored)
    study = study_instance_uid or _uid("study", radiograph.seed, *sorted(radiograph.masks))
    series = series_instance_uid or _uid("series", study, view_position, series_number)
    content = hashlib.sha256(pixels.tobytes()).hexdigest()
    instance = sop_instance_uid or _uid(
        "instance", series, instance_number, content, photometric, bits_stored, transfer_syntax
    )
    ds = FileDataset("", {}, preamble=b"\0" * 128, file_meta=_file_meta(instance))
    _add_patient(ds, patient or DemoPatient(patient_id=f"PHANTOM-{radiograph.seed}"), acquired)
    _add_study(ds, study, radiograph.seed, acquired)
    _add_series(ds, series, series_number, view_position, acquired)
    _add_equipment(ds)
    _add_image(ds, instance, instance_number, acquired)
    _add_view(ds, view_position)
    _add_grey_scale(ds, photometric, bits_stored)
    _add_pixels(ds, pixels, bits_stored, transfer_syntax)
    return ds


def _uid(*parts: object) -> str:
    """Derive a UID from the parts that make an entity what it is."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, '|'.join(map(str, parts))).int}"


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    """One item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _stored_values(
    stored: npt.NDArray[np.uint16], photometric: Photometric, bits_stored: int
) -> npt.NDArray[np.uint16]:
    """Scale to the wanted depth; take the complement for MONOCHROME1."""
    highest = 2**bits_stored - 1
    scaled = np.rint(stored.astype(np.float64) * (highest / (2**_STORED_BITS - 1)))
    pixels: npt.NDArray[np.uint16] = scaled.astype(np.uint16)
    return np.uint16(highest) - pixels if photometric == "MONOCHROME1" else pixels


def _file_meta(instance: str) -> FileMetaDataset:
    """File meta information (PS3.10 7.1), of a file that is not compressed yet."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = UID(instance)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _IMPLEMENTATION
    return meta


def _add_patient(ds: Dataset, patient: DemoPatient, acquired: dt.datetime) -> None:
    """Patient and Patient Study modules (PS3.3 C.7.1.1, C.7.2.2)."""
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName = patient.name
    ds.PatientID = patient.patient_id
    ds.PatientBirthDate = patient.birth_date.strftime("%Y%m%d")
    ds.PatientSex = patient.sex
    ds.PatientAge = f"{(acquired.date() - patient.birth_date).days // 365.25:03.0f}Y"


def _add_study(ds: Dataset, study: str, seed: int, acquired: dt.datetime) -> None:
    """General Study module (PS3.3 C.7.2.1)."""
    ds.StudyInstanceUID = study
    ds.StudyDate = acquired.strftime("%Y%m%d")
    ds.StudyTime = acquired.strftime("%H%M%S")
    ds.StudyID = f"P{seed}"
    ds.AccessionNumber = f"PH{seed}"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = "CHEST, synthetic phantom"
    ds.ProcedureCodeSequence = [_code(*_PROCEDURE)]


def _add_series(
    ds: Dataset, series: str, number: int, view_position: str, acquired: dt.datetime
) -> None:
    """General Series and DX Series modules (PS3.3 C.7.3.1, C.8.11.1), with the request."""
    ds.Modality = "DX"
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.SeriesInstanceUID = series
    ds.SeriesNumber = number
    ds.SeriesDate = acquired.strftime("%Y%m%d")
    ds.SeriesTime = acquired.strftime("%H%M%S")
    ds.SeriesDescription = f"CHEST {view_position}, synthetic phantom"
    ds.ProtocolName = f"CHEST {view_position}"
    ds.BodyPartExamined = "CHEST"
    request = Dataset()  # PS3.3 Table 10-9
    request.RequestedProcedureID = f"RP{ds.StudyID}"
    request.AccessionNumber = ds.AccessionNumber
    request.StudyInstanceUID = ds.StudyInstanceUID
    request.RequestedProcedureDescription = ds.StudyDescription
    request.RequestedProcedureCodeSequence = [_code(*_PROCEDURE)]
    request.ScheduledProcedureStepID = f"SPS{ds.StudyID}"
    ds.RequestAttributesSequence = [request]


def _add_equipment(ds: Dataset) -> None:
    """General Equipment and DX Detector modules (PS3.3 C.7.5.1, C.8.11.4)."""
    ds.Manufacturer = "DEMO, no real device"
    ds.ManufacturerModelName = "Synthetic phantom"
    ds.InstitutionName = "DEMO"
    ds.StationName = "PHANTOM"
    ds.DeviceSerialNumber = "0"
    ds.SoftwareVersions = "1"
    ds.DetectorType = "DIRECT"


def _add_image(ds: Dataset, instance: str, number: int, acquired: dt.datetime) -> None:
    """General Image, Acquisition Context and SOP Common modules (PS3.3 C.7.6.1, .14, C.12.1)."""
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = instance
    ds.InstanceNumber = number
    ds.InstanceCreationDate = ds.AcquisitionDate = ds.ContentDate = acquired.strftime("%Y%m%d")
    ds.InstanceCreationTime = ds.AcquisitionTime = ds.ContentTime = acquired.strftime("%H%M%S")
    ds.AcquisitionDateTime = acquired.strftime("%Y%m%d%H%M%S")
    ds.ImageType = ["ORIGINAL", "PRIMARY", ""]  # PS3.3 C.8.11.3: value 3 may be empty
    ds.ImageComments = "SYNTHETIC PHANTOM, NOT A PATIENT"
    ds.BurnedInAnnotation = "NO"  # PS3.3 C.7.6.1: a side marker identifies nobody
    ds.LossyImageCompression = "00"
    ds.AcquisitionContextSequence = []


def _add_view(ds: Dataset, view_position: str) -> None:
    """DX Anatomy Imaged and DX Positioning modules (PS3.3 C.8.11.2, C.8.11.5)."""
    view = _VIEWS[view_position]
    ds.AnatomicRegionSequence = [_code(*_CHEST)]
    ds.ImageLaterality = "U"  # PS3.3 C.8.11.2: unpaired
    ds.ViewPosition = view_position
    ds.ViewCodeSequence = [_code(*view.code)]
    ds.ViewCodeSequence[0].ViewModifierCodeSequence = []
    ds.PatientOrientation = list(view.patient_orientation)
    ds.PositionerType = "NONE"


def _add_grey_scale(ds: Dataset, photometric: Photometric, bits_stored: int) -> None:
    """DX Image and VOI LUT modules (PS3.3 C.8.11.3, C.11.2): identity, the full range shown."""
    inverse = photometric == "MONOCHROME1"
    ds.PhotometricInterpretation = photometric
    # PS3.3 C.8.11.3: INVERSE goes with MONOCHROME1, IDENTITY with MONOCHROME2.
    ds.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = 1 if inverse else -1  # dense is low in MONOCHROME1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    # PS3.3 C.11.2.1.2.1: the linear function spans centre - 0.5 +- (width - 1) / 2.
    ds.WindowCenter, ds.WindowWidth = 2 ** (bits_stored - 1), 2**bits_stored


def _add_pixels(
    ds: FileDataset, pixels: npt.NDArray[np.uint16], bits_stored: int, transfer_syntax: UID
) -> None:
    """Image Pixel module (PS3.3 C.7.6.3), in the transfer syntax."""
    spacing = _FIELD_OF_VIEW / min(pixels.shape)
    ds.ImagerPixelSpacing = [f"{spacing:.6f}", f"{spacing:.6f}"]
    ds.SamplesPerPixel = 1
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, bits_stored, bits_stored - 1
    ds.PixelRepresentation = 0
    big_endian = transfer_syntax == ExplicitVRBigEndian
    ds.PixelData = pixels.astype(">u2" if big_endian else "<u2").tobytes()
    ds["PixelData"].VR = "OW"  # PS3.5 8.2
    if transfer_syntax.is_compressed and transfer_syntax.is_encapsulated:
        ds.compress(transfer_syntax, generate_instance_uid=False)
    else:
        ds.file_meta.TransferSyntaxUID = transfer_syntax
