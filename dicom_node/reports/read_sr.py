"""The final report in an SR document of any make: its title and template say nothing reliable.

A tree is walked without recursion and within bounds, for the sender may be anyone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
)

from dicom_node.errors import Unreadable
from dicom_node.malformed import MALFORMED
from dicom_node.reports import sections
from dicom_node.reports.final import OUR_OWN, Claim, FinalReport, Section, Verdict, order_key
from dicom_node.reports.timestamps import day, moment

SOP_CLASSES = (
    BasicTextSRStorage,
    EnhancedSRStorage,
    ComprehensiveSRStorage,
    Comprehensive3DSRStorage,
)
MAX_DEPTH = 64
MAX_ITEMS = 10_000

_OUR_MODEL = "dicom-node"  # Manufacturer's Model Name of what the node sends
_UID = re.compile(r"[0-9.]{1,64}")

_PERSON_OBSERVER = "121008"  # PS3.16 TID 1003, Person Observer Name
_DEVICE_OBSERVER_UID = "121012"  # PS3.16 TID 1004
_ADDENDED_REPORT = "121361"  # PS3.16 CID 7009

# Children by these describe their parent; they are no part of the report's text.
_CONTEXT = ("HAS OBS CONTEXT", "HAS CONCEPT MOD", "HAS ACQ CONTEXT", "SELECTED FROM")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """A content item and where it stands."""

    ds: Dataset
    kind: str  #: Value Type
    name: tuple[str, str, str]  #: value, scheme and meaning of the concept name
    section: Section | None
    depth: int = 0
    parent: int = -1  #: number of the item above
    continuous: bool = False  #: the parent is a container that is read as one running text
    is_text: bool = True  #: no context of something else


def read(ds: Dataset, ours: Callable[[str], bool], node_uid: str) -> FinalReport:
    """Read an SR document; pure.

    Parameters
    ----------
    ds
        The whole document.
    ours
        Does the node know this SOP Instance UID as one of its own objects?
    node_uid
        Device UID of this node.

    Raises
    ------
    Unreadable
        The document is malformed, or deeper or larger than any report.
    """
    uid = _sop_instance_uid(ds)
    is_known = ours(uid)
    try:
        return _read(ds, uid, is_known, node_uid)
    except MALFORMED:
        # "from None": pydicom puts values of elements into its messages.
        raise Unreadable(f"SR {uid} is malformed: it can't be parsed to its end") from None


def _sop_instance_uid(ds: Dataset) -> str:
    try:
        uid = _value(ds, "SOPInstanceUID")
    except MALFORMED:
        uid = ""
    if not _UID.fullmatch(uid):
        raise Unreadable("SR without a valid SOP Instance UID")
    return uid


def _read(ds: Dataset, uid: str, is_known: bool, node_uid: str) -> FinalReport:
    items = list(_items(ds, uid)) if _value(ds, "SOPClassUID") in SOP_CLASSES else []
    texts = sections.gathered(_texts(items))
    person = _person(ds, items)
    claim = _claim(ds)
    is_ours = is_known or _is_ours(ds, items, node_uid)
    reason = OUR_OWN if is_ours else _why_not_final(ds, items, person, texts)
    return FinalReport(
        source="sr",
        source_uid=uid,
        order_key=order_key("study", claim.study_instance_uid),
        verdict="ignored" if reason else _verdict(ds, texts),
        reason=reason,
        claim=claim,
        sections=texts,
        verified_at=_verified_at(ds),
        author_role="radiologist" if person else "",
        predecessors=tuple(dict.fromkeys(_predecessors(ds))),
    )


# -- is it a final report? -------------------------------------------------------------------------


def _is_ours(ds: Dataset, items: Iterable[_Item], node_uid: str) -> bool:
    devices = [_value(author, "DeviceUID") for author in _sequence(ds, "AuthorObserverSequence")]
    devices += [_value(item.ds, "UID") for item in items if item.name[0] == _DEVICE_OBSERVER_UID]
    return _value(ds, "ManufacturerModelName") == _OUR_MODEL or node_uid in devices


def _why_not_final(ds: Dataset, items: list[_Item], person: bool, texts: dict[Section, str]) -> str:
    """Say why it is no final report, or nothing: flags of PS3.3 C.17.2.

    A preliminary document is none even when someone verified it: HL7's status P becomes that in
    dcm4chee, and the newest report is sought among VERIFIED and FINAL ones only (C.17.2, note).
    """
    if not items:
        return "not an SR class that reports come in"
    if _value(ds, "PreliminaryFlag") == "PRELIMINARY":
        return "not final: PRELIMINARY"
    if _value(ds, "VerificationFlag") != "VERIFIED":
        if _value(ds, "CompletionFlag") != "COMPLETE":
            return "not final: UNVERIFIED and not COMPLETE"
        if not person:
            return "not final: UNVERIFIED and no person is named as its observer"
    return "" if texts else "no text"


def _person(ds: Dataset, items: Iterable[_Item]) -> bool:
    """Is a person named who verified, wrote or observed it?"""
    verifying = _sequence(ds, "VerifyingObserverSequence")
    authors = _sequence(ds, "AuthorObserverSequence")
    observers = [item.ds for item in items if item.name[0] == _PERSON_OBSERVER]
    return any(
        (
            any(_value(one, "VerifyingObserverName") for one in verifying),
            any(_value(a, "ObserverType") == "PSN" and _value(a, "PersonName") for a in authors),
            any(_value(one, "PersonName") or _value(one, "TextValue") for one in observers),
        )
    )


def _verdict(ds: Dataset, texts: dict[Section, str]) -> Verdict:
    replaced = _sequence(ds, "PredecessorDocumentsSequence")
    if sections.is_addendum(texts) or any(_is_addended(document) for document in replaced):
        return "addendum"
    return "corrected" if replaced else "final"


def _is_addended(predecessor: Dataset) -> bool:
    purposes = (
        _sequence(reference, "PurposeOfReferenceCodeSequence")
        for reference in (predecessor, *_references(predecessor))
    )
    return any(
        _value(code, "CodeValue") == _ADDENDED_REPORT for codes in purposes for code in codes
    )


def _predecessors(ds: Dataset) -> Iterator[str]:
    for document in _sequence(ds, "PredecessorDocumentsSequence"):
        for reference in _references(document):
            uid = _value(reference, "ReferencedSOPInstanceUID")
            if _UID.fullmatch(uid):
                yield uid


def _references(document: Dataset) -> Iterator[Dataset]:
    for series in _sequence(document, "ReferencedSeriesSequence"):
        yield from _sequence(series, "ReferencedSOPSequence")


def _verified_at(ds: Dataset) -> datetime | None:
    """Return when it was last verified, or else written."""
    zone = _value(ds, "TimezoneOffsetFromUTC")
    verifying = _sequence(ds, "VerifyingObserverSequence")
    moments = [moment(_value(one, "VerificationDateTime"), zone) for one in verifying]
    written = moment(_value(ds, "ContentDate") + _value(ds, "ContentTime"), zone)
    return max(filter(None, moments), default=written)


def _claim(ds: Dataset) -> Claim:
    issuers = _sequence(ds, "IssuerOfAccessionNumberSequence")
    names = [
        _value(issuer, "LocalNamespaceEntityID") or _value(issuer, "UniversalEntityID")
        for issuer in issuers
    ]
    return Claim(
        study_instance_uid=_value(ds, "StudyInstanceUID"),
        accession_number=_value(ds, "AccessionNumber"),
        accession_issuer=names[0] if names else "",
        patient_id=_value(ds, "PatientID"),
        patient_issuer=_value(ds, "IssuerOfPatientID"),
        study_date=day(_value(ds, "StudyDate")),
    )


# -- the tree --------------------------------------------------------------------------------------


def _items(root: Dataset, uid: str) -> Iterator[_Item]:
    """Yield all content items, a parent before its children and these in their order."""
    waiting = [_Item(ds=root, kind=_value(root, "ValueType"), name=("", "", ""), section=None)]
    number = 0
    while waiting:
        item = waiting.pop()
        below = _sequence(item.ds, "ContentSequence")
        if item.depth > MAX_DEPTH or number + len(waiting) + len(below) >= MAX_ITEMS:
            raise Unreadable(
                f"SR {uid}: content tree of more than {MAX_DEPTH} levels or {MAX_ITEMS} items"
            )
        yield item
        waiting.extend(_child(item, number, ds) for ds in reversed(below))
        number += 1


def _child(above: _Item, number: int, ds: Dataset) -> _Item:
    kind, name = _value(ds, "ValueType"), _code(ds)
    is_context = _value(ds, "RelationshipType") in _CONTEXT
    return _Item(
        ds=ds,
        kind=kind,
        name=name,
        section=above.section if is_context else _section(above, kind, name),
        depth=above.depth + 1,
        parent=number,
        continuous=_value(above.ds, "ContinuityOfContent") == "CONTINUOUS",
        is_text=above.is_text and not is_context,
    )


def _section(above: _Item, kind: str, name: tuple[str, str, str]) -> Section | None:
    """Tell an item's section: a heading's holds for all below it, an element's for itself."""
    own = sections.of_code(*name)
    is_element = above.kind == "CONTAINER" and kind != "CONTAINER"
    if above.section == "addendum" or is_element:
        return above.section or own
    return own or above.section


def _texts(items: Iterable[_Item]) -> Iterator[tuple[Section, str]]:
    """Yield the text of each run of items of one section, cut further at headings within it."""
    spoken = ((item, _said(item)) for item in items if item.is_text)
    filled = ((item, said) for item, said in spoken if said)
    for section, run in groupby(filled, key=lambda pair: pair[0].section):
        yield from sections.split(_joined(run), section or "other")


def _joined(run: Iterable[tuple[_Item, str]]) -> str:
    text, before = "", -1
    for item, said in run:
        goes_on = item.continuous and item.parent == before
        text += (" " if goes_on else "\n") + said
        before = item.parent
    return text


def _said(item: _Item) -> str:
    """Return an item as a reader sees it; in running text only values are printed."""
    ds = item.ds
    if item.kind == "TEXT":
        return sections.clean(_value(ds, "TextValue")).strip()
    value = {"CODE": _coded, "NUM": _measured}.get(item.kind, lambda _: "")(ds)
    return value if item.continuous or not value else f"{item.name[2]}: {value}"


def _coded(ds: Dataset) -> str:
    codes = _sequence(ds, "ConceptCodeSequence")
    return _value(codes[0], "CodeMeaning") if codes else ""


def _measured(ds: Dataset) -> str:
    for measured in _sequence(ds, "MeasuredValueSequence")[:1]:
        units = _sequence(measured, "MeasurementUnitsCodeSequence")
        unit = _value(units[0], "CodeValue") if units else ""
        number = _value(measured, "NumericValue")
        return f"{number} {unit}" if unit not in ("", "1") else number  # UCUM 1: no units
    return ""


# -- elements --------------------------------------------------------------------------------------


def _code(ds: Dataset) -> tuple[str, str, str]:
    """Return the concept name's value, scheme and meaning; empty where it has none."""
    for name in _sequence(ds, "ConceptNameCodeSequence")[:1]:
        return (
            _value(name, "CodeValue"),
            _value(name, "CodingSchemeDesignator"),
            _value(name, "CodeMeaning"),
        )
    return ("", "", "")


def _sequence(ds: Dataset, keyword: str) -> list[Dataset]:
    return list(ds.get(keyword) or ())


def _value(ds: Dataset, keyword: str) -> str:
    value = ds.get(keyword)
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, MultiValue | list):
        value = "\\".join(str(one) for one in value)
    return "" if value is None else str(value).strip(" \0")
