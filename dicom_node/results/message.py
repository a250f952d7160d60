"""What HL7 and FHIR messages share: who and which study, as the DICOM objects have it, in UTF-8."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from uuid import UUID

from pydicom import Dataset
from pydicom.sr.coding import Code

from dicom_node.results import source, text_sr
from dicom_node.results.header import Subject, header
from dicom_node.results.objects import ResultObject
from dicom_node.results.record import DraftRecord

#: What was done where the source does not say: LOINC's name for any imaging.
IMAGING_STUDY = Code("18748-4", "LN", "Diagnostic imaging study")


def subject(record: DraftRecord) -> Subject:
    """Return the record and its source's header, re-encoded in UTF-8, which writes every text."""
    image = source.read(record.source_header)
    source.to_utf8(image)
    return Subject(record=record, source=image)


def described(of: Subject) -> Dataset:
    """Return the header that a text SR of the same content would have.

    So that identity, dates and title read alike in every result. It has no SOP class, and its SOP
    Instance UID names the message.
    """
    return header(of, "", text_sr.SERIES)


def result(ds: Dataset, suffix: str, message: str) -> ResultObject:
    """Return the message that ``ds`` describes, as it is sent."""
    return ResultObject(
        sop_instance_uid=str(ds.SOPInstanceUID),
        series_instance_uid="",
        sop_class_uid="",
        suffix=suffix,
        file=message.encode("utf-8"),
    )


def text(ds: Dataset, keyword: str) -> str:
    """Return a text value of a header in UTF-8, without padding and control characters."""
    value = ds.get_item(keyword).value if source.has(ds, keyword) else ""
    decoded = value.decode("utf-8") if isinstance(value, bytes) else str(value)
    return "".join(c for c in decoded if unicodedata.category(c) != "Cc").strip(" ")


def procedure(ds: Dataset) -> Code:
    """Return what was done: the source's first procedure code, or that it was imaging."""
    for item in source.items(ds, "ProcedureCodeSequence"):
        values = [text(item, f"{kind}Value") for kind in ("Code", "LongCode", "URNCode")]
        scheme, meaning = text(item, "CodingSchemeDesignator"), text(item, "CodeMeaning")
        return Code("".join(values), scheme, meaning)
    return IMAGING_STUDY


def sections(record: DraftRecord) -> Sequence[tuple[Code, str]]:
    """Return what the message says, under which heading; first that it is a draft.

    The banner goes under Findings too: a receiver that looks only there must not miss it.
    """
    said = [
        (text_sr.FINDINGS, text_sr.banner(record)),
        (text_sr.FINDINGS, record.findings),
        (text_sr.IMPRESSIONS, record.impression or ""),
    ]
    return [(heading, words) for heading, words in said if words.strip()]


def uuid(sop_instance_uid: str) -> UUID:
    """Return the UUID that one of our UIDs was made of (PS3.5 B.2)."""
    return UUID(int=int(sop_instance_uid.removeprefix("2.25.")))
