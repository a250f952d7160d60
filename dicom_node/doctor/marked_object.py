"""A test object that nobody takes for a patient's: what ``doctor PEER --store`` puts into a PACS.

There is no way in DICOM to take it out again, so it is always the same one: its UIDs are derived
from our AE title and its content never changes. A hundred tests leave one object behind.
"""

from __future__ import annotations

import json
from uuid import UUID, uuid5

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
)

from dicom_node.storage import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

#: Classes that it can be had in: one tree is legal in all (PS3.3 A.35.1 to A.35.3).
CLASSES: tuple[str, ...] = (BasicTextSRStorage, EnhancedSRStorage, ComprehensiveSRStorage)

PATIENT_ID = "DICOM-NODE-TEST"
DESCRIPTION = "TEST OBJECT - DELETE"

_NAMESPACE = UUID("0c0c5c7e-8f0e-4a6b-9c55-3f1f4c1f8f0d")  # random, ours; never to be changed
_DATE, _TIME = "20000101", "000000"  # a fixed one, so that the bytes are the same each time


def made(ae_title: str, sop_class_uid: str) -> Dataset:
    """The object of a node with this AE title in one of :data:`CLASSES`; pure."""
    ds = Dataset()
    _patient_and_study(ds, ae_title)
    ds.Modality = "SR"
    ds.SeriesInstanceUID = _derived("series", ae_title, sop_class_uid)
    ds.SeriesNumber = 1
    ds.SeriesDescription = DESCRIPTION
    ds.ReferencedPerformedProcedureStepSequence = []
    ds.Manufacturer = "dicom-node project"
    ds.SOPClassUID = sop_class_uid
    ds.SOPInstanceUID = _derived("instance", ae_title, sop_class_uid)
    _document(ds, ae_title)
    ds.file_meta = _file_meta(ds)
    return ds


def _patient_and_study(ds: Dataset, ae_title: str) -> None:
    ds.PatientName = "DICOM-NODE^TEST"
    ds.PatientID = PATIENT_ID
    ds.PatientBirthDate = ds.PatientSex = ""
    ds.QualityControlSubject = "YES"  # PS3.3 C.7.1.1: no patient
    ds.StudyInstanceUID = _derived("study", ae_title)
    ds.StudyDate, ds.StudyTime = _DATE, _TIME
    ds.StudyID = "TEST"
    ds.StudyDescription = DESCRIPTION
    ds.AccessionNumber = ds.ReferringPhysicianName = ""


def _document(ds: Dataset, ae_title: str) -> None:
    """PS3.3 C.17.2 and C.17.3: a report of one sentence."""
    ds.InstanceNumber = 1
    ds.ContentDate, ds.ContentTime = _DATE, _TIME
    ds.CompletionFlag, ds.VerificationFlag = "PARTIAL", "UNVERIFIED"
    ds.PerformedProcedureCodeSequence = []
    ds.ValueType = "CONTAINER"
    ds.ConceptNameCodeSequence = [_code("18748-4", "LN", "Diagnostic Imaging Report")]
    ds.ContinuityOfContent = "SEPARATE"
    sentence = Dataset()
    sentence.RelationshipType = "CONTAINS"
    sentence.ValueType = "TEXT"
    sentence.ConceptNameCodeSequence = [_code("121106", "DCM", "Comment")]
    sentence.TextValue = (
        f"Test object of the dicom-node with the AE title {ae_title}. It concerns no patient and"
        " may be deleted."
    )
    ds.ContentSequence = [sentence]


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _derived(*name: str) -> UID:
    """PS3.5 B.2."""
    return UID(f"2.25.{uuid5(_NAMESPACE, json.dumps(name)).int}")


def _file_meta(ds: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta
