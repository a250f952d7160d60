"""The data sets of storage commitment (PS3.4 J.3): Action and Event Information, both ways.

Pure: bytes of the network in, records out, and back. What is read is checked to the last UID:
nothing of it is trusted.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from io import BytesIO

from pydicom import DataElement, Dataset
from pydicom.config import IGNORE
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from dicom_node.commitments import InvalidArgument, Item, Report, Request
from dicom_node.malformed import MALFORMED

PUSH_MODEL = UID("1.2.840.10008.1.20.1")  # PS3.4 J.3.5
PUSH_MODEL_INSTANCE = UID("1.2.840.10008.1.20.1.1")  # PS3.4 J.3.5
REQUEST_COMMITMENT = 1  # PS3.4 J.3.2, Action Type ID
SUCCESSFUL, FAILURES_EXIST = 1, 2  # PS3.4 J.3.3, Event Type ID

_TRANSACTION_UID = Tag(0x0008, 0x1195)
_REFERENCED_SOP_SEQUENCE = Tag(0x0008, 0x1199)
_FAILED_SOP_SEQUENCE = Tag(0x0008, 0x1198)
_FAILURE_REASON = Tag(0x0008, 0x1197)
_SOP_CLASS_UID, _SOP_INSTANCE_UID = Tag(0x0008, 0x1150), Tag(0x0008, 0x1155)

#: PS3.5 9.1; leading zeros are seen in the field, and harmless here.
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_UID_LENGTH = 64


# -- written ---------------------------------------------------------------------------------------


def action_information(request: Request) -> Dataset:
    """Return what goes with an N-ACTION-RQ (PS3.4 J.3.2.1.1)."""
    made = Dataset()
    made.add(_ui(_TRANSACTION_UID, request.transaction_uid))
    made.ReferencedSOPSequence = [_item(one) for one in request.references]
    return made


def event_information(report: Report) -> tuple[int, Dataset]:
    """Return Event Type ID and what goes with it in an N-EVENT-REPORT-RQ (PS3.4 J.3.3.1.1).

    Without Retrieve AE Title: nothing can be retrieved from us.
    """
    made = Dataset()
    made.add(_ui(_TRANSACTION_UID, report.transaction_uid))
    if report.committed:
        made.ReferencedSOPSequence = [_item(one) for one in report.committed]
    if not report.failed:
        return SUCCESSFUL, made
    made.FailedSOPSequence = [_item(one) for one in report.failed]
    for item, reason in zip(made.FailedSOPSequence, report.failed.values(), strict=True):
        item.FailureReason = reason
    return FAILURES_EXIST, made


def _item(one: Item) -> Dataset:
    made = Dataset()
    made.add(_ui(_SOP_CLASS_UID, one.sop_class_uid))
    made.add(_ui(_SOP_INSTANCE_UID, one.sop_instance_uid))
    return made


def _ui(tag: BaseTag, uid: str) -> DataElement:
    """A UID as somebody gave it to us, right or wrong: he must know it again."""
    return DataElement(tag, "UI", uid, validation_mode=IGNORE)


# -- read ------------------------------------------------------------------------------------------


def read_request(encoded: bytes, transfer_syntax: UID) -> Request:
    """Read the Action Information of a request.

    Raises
    ------
    InvalidArgument
        It is no data set, or lacks what it must have.
    """
    try:
        read = _read(encoded, transfer_syntax)
        references = tuple(_reference(item) for item in _sequence(read, _REFERENCED_SOP_SEQUENCE))
        if not references:
            raise InvalidArgument("no Referenced SOP Sequence, or an empty one")
        return Request(transaction_uid=_uid(read, _TRANSACTION_UID), references=references)
    except MALFORMED as error:
        raise _unreadable(error) from None


def read_report(encoded: bytes, transfer_syntax: UID) -> Report:
    """Read the Event Information of a report, of either type.

    An object that is called both committed and failed has failed.

    Raises
    ------
    InvalidArgument
        It is no data set, or lacks what it must have.
    """
    try:
        read = _read(encoded, transfer_syntax)
        failed = {
            _reference(item): _failure_reason(item)
            for item in _sequence(read, _FAILED_SOP_SEQUENCE)
        }
        named = (_reference(item) for item in _sequence(read, _REFERENCED_SOP_SEQUENCE))
        return Report(
            transaction_uid=_uid(read, _TRANSACTION_UID),
            committed=tuple(one for one in named if one not in failed),
            failed=failed,
        )
    except MALFORMED as error:
        raise _unreadable(error) from None


def _read(encoded: bytes, transfer_syntax: UID) -> Dataset:
    little = transfer_syntax.is_little_endian
    return read_dataset(BytesIO(encoded), transfer_syntax.is_implicit_VR, little)


def _sequence(read: Dataset, tag: BaseTag) -> Iterator[Dataset]:
    if tag in read:
        yield from read[tag].value


def _reference(item: Dataset) -> Item:
    return Item(_uid(item, _SOP_CLASS_UID), _uid(item, _SOP_INSTANCE_UID))


def _uid(of: Dataset, tag: BaseTag) -> str:
    """Taken raw: what pydicom says of a wrong value may quote it."""
    value = of.get_item(tag).value.rstrip(b" \0").decode("ascii")
    if len(value) > _UID_LENGTH or not _UID.fullmatch(value):
        raise InvalidArgument(f"{tag} is not a UID (PS3.5 9.1)")
    return str(value)


def _failure_reason(item: Dataset) -> int:
    (reason,) = struct.unpack("<H", item.get_item(_FAILURE_REASON).value)
    return int(reason)


def _unreadable(error: BaseException) -> InvalidArgument:
    # Without a cause: pydicom puts values of elements into its messages.
    return InvalidArgument(f"data set can't be read: {type(error).__name__}")
