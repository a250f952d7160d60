"""Result objects: what is made of a record, and who makes each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from io import BytesIO

from pydicom import Dataset, dcmwrite

from dicom_node.errors import ConfigurationError
from dicom_node.results.record import DraftRecord

GROUP = "dicom_node.results"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultObject:
    """One object that can be sent: a Part 10 file, or a message of another protocol."""

    sop_instance_uid: str  #: a message's is derived in the same way, and names it alone
    series_instance_uid: str  #: empty in a message
    sop_class_uid: str  #: empty in a message
    suffix: str  #: of the file: .dcm, .hl7, .json
    file: bytes


#: Pure: equal records give equal bytes. The record's ``kind`` is the encoder's name.
Encoder = Callable[[DraftRecord], ResultObject]


def from_dataset(ds: Dataset) -> ResultObject:
    """Return the data set, which has file meta information, as a Part 10 file."""
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return ResultObject(
        sop_instance_uid=str(ds.SOPInstanceUID),
        series_instance_uid=str(ds.SeriesInstanceUID),
        sop_class_uid=str(ds.SOPClassUID),
        suffix=".dcm",
        file=buffer.getvalue(),
    )


@cache
def encoder(kind: str) -> Encoder:
    """Find the function that makes a kind of result (group ``dicom_node.results``).

    Raises
    ------
    ConfigurationError
        No such kind is installed, or it can't be loaded; names it.
    """
    found = entry_points(group=GROUP, name=kind)
    if not found:
        known = ", ".join(sorted(one.name for one in entry_points(group=GROUP)))
        raise ConfigurationError(f"no kind of result is named {kind} (known: {known})")
    try:
        encode: Encoder = next(iter(found)).load()
    except Exception as error:  # foreign code may raise anything
        why = type(error).__name__
        raise ConfigurationError(f"the kind of result {kind} can't be loaded: {why}") from error
    return encode


def encode(record: DraftRecord) -> ResultObject:
    """Make the object that the record's ``kind`` names."""
    return encoder(record.kind)(record)
