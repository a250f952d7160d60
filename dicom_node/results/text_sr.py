"""The draft as a text SR: PS3.16 TID 2000, Basic Diagnostic Imaging Report.

The same tree is legal in Basic Text, Enhanced and Comprehensive SR (PS3.3 A.35.1 to A.35.3).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from highdicom.sr import (
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    ImageContentItem,
    TextContentItem,
)
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import BasicTextSRStorage

from dicom_node.results import context, objects
from dicom_node.results.header import (
    SeriesKind,
    Subject,
    code_item,
    declare_private_schemes,
    description,
    header,
    printable,
    short_name,
    sr_document,
    subject,
)
from dicom_node.results.objects import ResultObject
from dicom_node.results.record import DraftRecord, Refusal

SERIES = SeriesKind(modality="SR", number=1, title="AI DRAFT")

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

# The headings' codes before CID 7001 took LOINC's: retired, for viewers that know only them.
_LEGACY_HEADINGS = {
    SUMMARY: Code("121111", "DCM", "Summary"),
    REQUEST: Code("121062", "DCM", "Request"),
    FINDINGS: Code("121070", "DCM", "Findings"),
    IMPRESSIONS: Code("121072", "DCM", "Impressions"),
    PROCEDURES: Code("121064", "DCM", "Current Procedure Descriptions"),
}


def encode(record: DraftRecord) -> ResultObject:
    """Return the draft as a Part 10 file; pure."""
    return objects.from_dataset(document(record))


def document(record: DraftRecord) -> Dataset:
    """Return the draft as an SR document, with file meta; pure.

    The record's ``sop_class_uid`` may ask for Enhanced or Comprehensive SR, for peers that want
    one of those; each gives a SOP Instance UID of its own. A record with a refusal gives the
    status SR: the same document without findings, which says why there is no draft.
    """
    of = subject(record)
    ds = header(of, record.sop_class_uid or BasicTextSRStorage, SERIES)
    ds.update(sr_document(of))
    ds.update(_tree(of))
    declare_private_schemes(ds, of)
    return ds


def text(ds: Dataset) -> str:
    """Return one of our documents as a radiologist reads it: banner, request, findings, origin."""
    sections = [item for item in ds.ContentSequence if item.ValueType == "CONTAINER"]
    return "\n\n".join(_plain_section(section) for section in sections) + "\n"


def _plain_section(section: Dataset) -> str:
    texts = [str(item.TextValue) for item in section.ContentSequence if "TextValue" in item]
    name = section.ConceptNameCodeSequence[0]
    summaries = (SUMMARY.value, _LEGACY_HEADINGS[SUMMARY].value)
    heading = [] if name.CodeValue in summaries else [str(name.CodeMeaning).upper()]
    return "\n".join([*heading, *texts])


def _tree(of: Subject) -> Dataset:
    record = of.record
    root = ContainerContentItem(REPORT, is_content_continuous=False, template_id="2000")
    narrative = [(FINDING, paragraph) for paragraph in paragraphs(record.findings)]
    impression = [(IMPRESSION, paragraph) for paragraph in paragraphs(record.impression or "")]
    sections = [
        _section(SUMMARY, [(SUMMARY, banner(record))]),
        _section(REQUEST, [(REQUEST, text) for text in request(record)]),
        # CONTINUOUS: OHIF does not wrap a "Finding" in a SEPARATE container.
        _inferred(_section(FINDINGS, narrative, continuous=True), record),
        _section(IMPRESSIONS, impression, continuous=True),
        _section(PROCEDURES, [(PROCEDURE, provenance(of))]),
    ]
    filled = [section for section in sections if len(section.ContentSequence)]
    root.ContentSequence = ContentSequence([*_context(of), *filled])
    _set_headings(root, legacy=record.legacy_heading_codes)
    return root


def _context(of: Subject) -> list[ContentItem]:
    procedure = context.source_procedure(of.source)
    return [
        *([context.procedure_reported(procedure)] if procedure else []),
        context.language(),
        *context.observer(of.record.node),
    ]


def _inferred(section: ContentItem, record: DraftRecord) -> ContentItem:
    """Name the images below each text, never beside it: OHIF prints an error for those."""
    for item in section.ContentSequence:
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


def _set_headings(root: Dataset, *, legacy: bool) -> None:
    if not legacy:
        return
    retired = {code.value: code_item(old) for code, old in _LEGACY_HEADINGS.items()}
    for item in (*root.ContentSequence, *(c for s in root.ContentSequence for c in _below(s))):
        value = item.ConceptNameCodeSequence[0].CodeValue
        if value in retired:
            item.ConceptNameCodeSequence = [retired[value]]


def _below(item: Dataset) -> Sequence[Dataset]:
    return item.get("ContentSequence") or ()


def banner(record: DraftRecord) -> str:
    """Return what every reader must see first: a draft by a machine, or none at all and why."""
    if record.refusal:
        return (
            f"AI-GENERATED DRAFT NOT PRODUCED - NOT FOR DIAGNOSIS: {_reason(record.refusal)}. "
            "A radiologist must read this study as usual."
        )
    return (
        "AI-GENERATED DRAFT - NOT FOR DIAGNOSIS. Unverified output of "
        f"{short_name(record.algorithm, 64)}. "
        "A radiologist must review, correct and sign before any use."
    )


def _reason(refusal: Refusal) -> str:
    return f"{refusal.code} ({printable(refusal.text)})"


def request(record: DraftRecord) -> Sequence[str]:
    """Return the indication that the model was given, and then where it was found."""
    given = _clean(record.history or "").strip()
    source = f"Request from: {_clean(record.history_source)}" if record.history_source else ""
    return [text for text in (given, source) if given and text]


def provenance(of: Subject) -> str:
    """Return who made the draft, when, with what and from which images."""
    record = of.record
    node, algorithm = record.node, record.algorithm
    images = [image.reference.sop_instance_uid for image in record.inputs]
    model = f"{short_name(algorithm, 64)} {algorithm.version}"
    start = of.started_at.isoformat(timespec="seconds")
    sentences = [
        f"Generated {start} by {node.model_name} {node.version}",
        f"Model {model}; {description(algorithm, digits=12)}",
        f"Input image(s): {', '.join(images) or 'none'}",
    ]
    if images:
        rules = dict.fromkeys(image.rule for image in record.inputs)
        sentences.append(f"Chosen by: {', '.join(rules)}")
    if record.labeler:
        sentences.append(f"Labels by {record.labeler.name} {record.labeler.version}")
    return _clean(". ".join([*sentences, *record.warnings]) + ".")


def paragraphs(narrative: str) -> Sequence[str]:
    """Return the paragraphs of a text, without control characters but CR, LF and TAB."""
    parts = (part.strip() for part in re.split(r"\n\s*\n", _clean(narrative)))
    return [part for part in parts if part]


def _clean(narrative: str) -> str:
    """Drop control characters but CR, LF and TAB; nothing else is touched (PS3.5 6.1.3)."""
    return "".join(c for c in narrative if c in "\r\n\t" or unicodedata.category(c) != "Cc")
