"""The draft as a text SR: PS3.16 TID 2000, Basic Diagnostic Imaging Report.

The same tree is legal in Basic Text, Enhanced and Comprehensive SR (PS3.3 A.35.1 to A.35.3).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from io import BytesIO

from highdicom.sr import (
    CodeContentItem,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    ImageContentItem,
    TextContentItem,
    UIDRefContentItem,
)
from pydicom import Dataset, dcmwrite
from pydicom.sr.coding import Code
from pydicom.uid import BasicTextSRStorage

from dicom_node.results import source, uids
from dicom_node.results.header import (
    SeriesKind,
    Subject,
    declare_private_schemes,
    description,
    header,
    short_name,
    sr_document,
    subject,
)
from dicom_node.results.record import DraftRecord, Node

SERIES = SeriesKind(modality="SR", number=9901, title="AI DRAFT")

# PS3.16 TID 2000, CID 7001 (headings: LOINC, the older DCM ones are retired), CID 7002 (elements).
REPORT = Code("18748-4", "LN", "Diagnostic Imaging Report")
SUMMARY = Code("55112-7", "LN", "Summary")
REQUEST = Code("55115-0", "LN", "Request")
FINDINGS = Code("59776-5", "LN", "Findings")
FINDING = Code("121071", "DCM", "Finding")
IMPRESSIONS = Code("19005-8", "LN", "Impressions")
IMPRESSION = Code("121073", "DCM", "Impression")
PROCEDURES = Code("55111-9", "LN", "Current Procedure Descriptions")
PROCEDURE = Code("121065", "DCM", "Procedure Description")
BEST_ILLUSTRATION = Code("121080", "DCM", "Best illustration of finding")
PROCEDURE_REPORTED = Code("121058", "DCM", "Procedure reported")
# PS3.16 TID 1204, CID 5000.
LANGUAGE = Code("121049", "DCM", "Language of Content Item and Descendants")
ENGLISH = Code("en-US", "RFC5646", "English (United States)")
# PS3.16 TID 1002 and TID 1004.
OBSERVER_TYPE = Code("121005", "DCM", "Observer Type")
DEVICE = Code("121007", "DCM", "Device")
DEVICE_UID = Code("121012", "DCM", "Device Observer UID")
DEVICE_NAME = Code("121013", "DCM", "Device Observer Name")
DEVICE_MANUFACTURER = Code("121014", "DCM", "Device Observer Manufacturer")
DEVICE_MODEL = Code("121015", "DCM", "Device Observer Model Name")
DEVICE_SERIAL = Code("121016", "DCM", "Device Observer Serial Number")

_RETIRED_SCHEMES = ("SRT", "SNM3", "99SDM")  # PS3.16 8.1: SNOMED-RT identifiers


def encode(record: DraftRecord, *, sop_class: str = BasicTextSRStorage) -> Dataset:
    """Return the draft as an SR document, with file meta; pure.

    Parameters
    ----------
    record
        What to say. Equal records give equal bytes (:func:`to_bytes`).
    sop_class
        Basic Text SR, or Enhanced or Comprehensive SR for peers that want one of those; each
        gives a SOP Instance UID of its own.
    """
    of = subject(record)
    ds = header(of, sop_class, SERIES)
    ds.update(sr_document(of))
    ds.update(_tree(of))
    declare_private_schemes(ds, of)
    return ds


def to_bytes(ds: Dataset) -> bytes:
    """Return the document as a Part 10 file."""
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def text(ds: Dataset) -> str:
    """Return one of our documents as a radiologist reads it: banner, request, findings, origin."""
    sections = [item for item in ds.ContentSequence if item.ValueType == "CONTAINER"]
    return "\n\n".join(_plain_section(section) for section in sections) + "\n"


def _plain_section(section: Dataset) -> str:
    texts = [str(item.TextValue) for item in section.ContentSequence if "TextValue" in item]
    name = section.ConceptNameCodeSequence[0]
    heading = [] if name.CodeValue == SUMMARY.value else [str(name.CodeMeaning).upper()]
    return "\n".join([*heading, *texts])


def _tree(of: Subject) -> Dataset:
    record = of.record
    root = ContainerContentItem(REPORT, is_content_continuous=False, template_id="2000")
    children: list[ContentItem] = [*_context(of), _section(SUMMARY, [(SUMMARY, _banner(record))])]
    request = _clean(record.history or "").strip()
    if request:
        children.append(_section(REQUEST, [(REQUEST, request)]))
    children.append(_findings(record))
    impression = [(IMPRESSION, paragraph) for paragraph in _paragraphs(record.impression or "")]
    if impression:
        children.append(_section(IMPRESSIONS, impression, continuous=True))
    children.append(_section(PROCEDURES, [(PROCEDURE, _provenance(of))]))
    root.ContentSequence = ContentSequence(children)
    return root


def _context(of: Subject) -> list[ContentItem]:
    return [
        *_procedure_reported(of.source),
        CodeContentItem(LANGUAGE, ENGLISH, "HAS CONCEPT MOD"),
        *_observer(of.record.node),
    ]


def _observer(node: Node) -> list[ContentItem]:
    """PS3.16 TID 1001 to 1004: a device observed, no person did."""
    names = (
        (DEVICE_NAME, node.ae_title),
        (DEVICE_MANUFACTURER, node.manufacturer),
        (DEVICE_MODEL, node.model_name),
        (DEVICE_SERIAL, node.installation_id),
    )
    uid = uids.node_uid(node.installation_id)
    return [
        CodeContentItem(OBSERVER_TYPE, DEVICE, "HAS OBS CONTEXT"),
        UIDRefContentItem(DEVICE_UID, uid, "HAS OBS CONTEXT"),
        *(TextContentItem(name, value, "HAS OBS CONTEXT") for name, value in names),
    ]


def _procedure_reported(header: Dataset) -> list[ContentItem]:
    """Return the source's first procedure code, if it is a complete and current one."""
    for item in source.items(header, "ProcedureCodeSequence")[:1]:
        value = source.plain(item, "CodeValue")
        scheme = source.plain(item, "CodingSchemeDesignator")
        version = source.plain(item, "CodingSchemeVersion") or None
        meaning = str(item.get("CodeMeaning") or "")
        # PS3.3 8.8: SH and LO; a longer value would be a Long Code Value.
        complete = 0 < len(value) <= 16 and 0 < len(scheme) <= 16 and 0 < len(meaning) <= 64
        writable = source.encodes(source.character_set(header), meaning)
        if complete and writable and scheme not in _RETIRED_SCHEMES:
            code = Code(value, scheme, meaning, version)
            return [CodeContentItem(PROCEDURE_REPORTED, code, "HAS CONCEPT MOD")]
    return []


def _findings(record: DraftRecord) -> ContentItem:
    paragraphs = [(FINDING, paragraph) for paragraph in _paragraphs(record.findings)]
    # CONTINUOUS: OHIF does not wrap a "Finding" in a SEPARATE container.
    section = _section(FINDINGS, paragraphs, continuous=True)
    for item in section.ContentSequence:
        # Below the text and never beside it: OHIF prints an error for an IMAGE in a section.
        item.ContentSequence = [
            ImageContentItem(
                BEST_ILLUSTRATION,
                image.reference.sop_class_uid,
                image.reference.sop_instance_uid,
                relationship_type="INFERRED FROM",
            )
            for image in record.inputs
        ]
    return section


def _section(
    heading: Code, items: Iterable[tuple[Code, str]], *, continuous: bool = False
) -> ContentItem:
    section = ContainerContentItem(heading, continuous, relationship_type="CONTAINS")
    texts = [TextContentItem(name, text, "CONTAINS") for name, text in items]
    section.ContentSequence = ContentSequence(texts)
    return section


def _banner(record: DraftRecord) -> str:
    return (
        "AI-GENERATED DRAFT - NOT FOR DIAGNOSIS. Unverified output of "
        f"{short_name(record.algorithm, 64)}. "
        "A radiologist must review, correct and sign before any use."
    )


def _provenance(of: Subject) -> str:
    record = of.record
    node, algorithm = record.node, record.algorithm
    images = [image.reference.sop_instance_uid for image in record.inputs]
    model = f"{short_name(algorithm, 64)} {algorithm.version}"
    start = of.started_at.isoformat(timespec="seconds")
    sentences = [
        f"Generated {start} by {node.model_name} {node.version}",
        f"Model {model}; {description(algorithm, digits=12)}",
        f"Input image(s): {', '.join(images)}",
        f"Chosen by: {', '.join(dict.fromkeys(image.rule for image in record.inputs))}",
    ]
    if record.history and record.history_source:
        sentences.append(f"Request from: {record.history_source}")
    return _clean(". ".join([*sentences, *record.warnings]) + ".")


def _paragraphs(narrative: str) -> Sequence[str]:
    parts = (part.strip() for part in re.split(r"\n\s*\n", _clean(narrative)))
    return [part for part in parts if part]


def _clean(narrative: str) -> str:
    """Drop control characters but CR, LF and TAB; nothing else is touched (PS3.5 6.1.3)."""
    return "".join(c for c in narrative if c in "\r\n\t" or unicodedata.category(c) != "Cc")
