"""The draft as Encapsulated PDF (PS3.3 A.45.1), for viewers that show no structured report."""

from __future__ import annotations

from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import EncapsulatedPDFStorage

from dicom_node.results import objects
from dicom_node.results.header import SeriesKind, code_item, header, sr_document, subject
from dicom_node.results.objects import ResultObject
from dicom_node.results.page import TITLE, page, source_items
from dicom_node.results.record import DraftRecord
from dicom_node.results.text_sr import REPORT

SERIES = SeriesKind(modality="DOC", number=3, title="AI DRAFT")
SOURCE_IMAGE = Code("121324", "DCM", "Source image")  # PS3.16 CID 7060


def encode(record: DraftRecord) -> ResultObject:
    """Return the draft's pages as a Part 10 file; pure."""
    return objects.from_dataset(document(record))


def document(record: DraftRecord) -> Dataset:
    """Return the draft's pages as an Encapsulated PDF, with file meta; pure."""
    of = subject(record)
    ds = header(of, EncapsulatedPDFStorage, SERIES)
    general = sr_document(of)
    for keyword in ("ContentDate", "ContentTime", "VerificationFlag"):
        setattr(ds, keyword, general[keyword].value)
    if "PredecessorDocumentsSequence" in general:  # Type 3 here (PS3.3 table C.24-2)
        ds.PredecessorDocumentsSequence = general.PredecessorDocumentsSequence
    ds.AcquisitionDateTime = of.started_at.strftime("%Y%m%d%H%M%S%z")
    ds.ConversionType = "WSD"
    # The page names no patient, but the study's date, its images and the request: that may do.
    ds.BurnedInAnnotation = "YES"
    ds.DocumentTitle = TITLE
    ds.ConceptNameCodeSequence = [code_item(REPORT)]
    if record.inputs:
        ds.SourceInstanceSequence = source_items(record, SOURCE_IMAGE)
    _encapsulate(ds, page(of))
    return ds


def _encapsulate(ds: Dataset, file: bytes) -> None:
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    ds.EncapsulatedDocumentLength = len(file)
    ds.EncapsulatedDocument = file + b"\0" * (len(file) % 2)
