"""The draft's pages as a Secondary Capture image (PS3.3 A.8.1), for peers that take images only."""

from __future__ import annotations

from threading import Lock

import numpy as np
import pypdfium2
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import SecondaryCaptureImageStorage

from dicom_node.results import objects
from dicom_node.results.header import SeriesKind, header, subject
from dicom_node.results.objects import ResultObject
from dicom_node.results.page import page, source_items
from dicom_node.results.record import DraftRecord

SERIES = SeriesKind(modality="OT", number=4, title="AI DRAFT")
PROCESSED_IMAGE = Code("121322", "DCM", "Source image for image processing operation")  # CID 7202

_PIXELS_PER_POINT = 150 / 72  # 150 dpi
_MOST_ROWS = 65535  # US

_pdfium = Lock()  # the library is not thread-safe


def encode(record: DraftRecord) -> ResultObject:
    """Return the draft's pages, one below the other, as a Part 10 image file; pure."""
    return objects.from_dataset(document(record))


def document(record: DraftRecord) -> Dataset:
    """Return the draft's pages as one 8-bit image, with file meta; pure."""
    of = subject(record)
    ds = header(of, SecondaryCaptureImageStorage, SERIES)
    started = of.started_at
    ds.ContentDate = ds.DateOfSecondaryCapture = started.strftime("%Y%m%d")
    ds.ContentTime = ds.TimeOfSecondaryCapture = started.strftime("%H%M%S")
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.ConversionType = "WSD"
    # The page names no patient, but the study's date, its images and the request: that may do.
    ds.BurnedInAnnotation = "YES"
    ds.BodyPartExamined = "CHEST"
    ds.PatientOrientation = None
    if record.inputs:
        ds.SourceImageSequence = source_items(record, PROCESSED_IMAGE)
    ds.set_pixel_data(rendered(page(of)), "MONOCHROME2", 8, generate_instance_uid=False)
    # All of the range: a viewer that picks a window by itself greys a white page.
    ds.WindowCenter, ds.WindowWidth = 128, 256
    return ds


def rendered(file: bytes) -> NDArray[np.uint8]:
    """Return a PDF's pages, one below the other, at 150 dpi: (rows, columns), 255 is white.

    More pages than an image may have rows for (37 of A4) are drawn smaller.
    """
    with _pdfium:
        document = pypdfium2.PdfDocument(file)
        try:
            points = sum(one.get_height() for one in document)
            scale = min(_PIXELS_PER_POINT, (_MOST_ROWS - len(document)) / points)
            return np.vstack([_picture(one, scale) for one in document])
        finally:
            document.close()


def _picture(one: pypdfium2.PdfPage, scale: float) -> NDArray[np.uint8]:
    bitmap = one.render(scale=scale, grayscale=True)
    picture: NDArray[np.uint8] = bitmap.to_numpy().copy()  # its memory is the bitmap's
    return picture
