"""Whose data it was: the Patient ID of stored bytes, which our tables do not hold.

Read where a message is made, by the tick or a worker, and never on the way of what is received.
"""

from __future__ import annotations

from pathlib import Path

from pydicom import Dataset, dcmread

from dicom_node.malformed import MALFORMED

_PATIENT_ID = "PatientID"


def of_file(path: Path) -> str:
    """The Patient ID in a DICOM file; "" where there is none, or no such file.

    What can't be read keeps no study waiting: the message goes without.
    """
    try:
        return of_header(dcmread(path, stop_before_pixels=True, specific_tags=[_PATIENT_ID]))
    except MALFORMED:
        return ""


def of_header(header: Dataset) -> str:
    """The Patient ID of a data set, decoded as ``filing`` compares it: as UTF-8, else Latin-1.

    The value is taken raw: pydicom's warnings would quote it.
    """
    element = header.get_item(_PATIENT_ID)
    value = element.value if element is not None else None
    if not isinstance(value, bytes):
        return str(value or "").strip(" \0")
    try:
        return value.decode("utf-8").strip(" \0")
    except UnicodeDecodeError:
        return value.decode("latin-1").strip(" \0")
