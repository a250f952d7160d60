"""The acceptance points of a draft text SR, each a small judgement that shares no code with ours.

``check`` names the points that a document fails. Bracketed names are those of the specification.
What holds of every SR, whatever its template, is in ``EVERY_SR`` too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import cache
from io import BytesIO

import pydicom
from pydicom import Dataset
from pydicom.charset import python_encoding
from pydicom.sr.codedict import Collection
from pydicom.uid import (
    BasicTextSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicom_node.results.record import DraftRecord
from inference.findings import Algorithm

TEXTS = ("PatientName", "PatientID", "AccessionNumber", "ReferringPhysicianName", "StudyID")
CHECKED = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime")
RAW = (
    *TEXTS,
    *CHECKED,
    *("SpecificCharacterSet", "TimezoneOffsetFromUTC"),
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
)
COPIED = (
    "IssuerOfPatientID",
    "StudyDescription",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "LongitudinalTemporalInformationModified",
    "ClinicalTrialSponsorName",
    "ClinicalTrialSubjectID",
)
REQUEST_TYPE_2 = (
    "ReferencedStudySequence",
    "AccessionNumber",
    "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest",
    "RequestedProcedureID",
    "RequestedProcedureDescription",
    "RequestedProcedureCodeSequence",
)
SECTIONS = {  # heading -> (element, continuous)
    "55112-7": ("55112-7", False),
    "55115-0": ("55115-0", False),
    "59776-5": ("121071", True),
    "19005-8": ("121073", True),
    "55111-9": ("121065", False),
}
CONTEXT = {"121005", "121012", "121013", "121014", "121015", "121016"}  # TID 1001 to 1004
# PS3.3 table A.35.1-2: source value type, relationship -> target value types; by value.
ALLOWED = {
    ("CONTAINER", "CONTAINS"): {"TEXT", "CODE", "UIDREF", "IMAGE", "CONTAINER"},
    ("CONTAINER", "HAS OBS CONTEXT"): {"TEXT", "CODE", "UIDREF"},
    ("CONTAINER", "HAS CONCEPT MOD"): {"TEXT", "CODE"},
    ("TEXT", "INFERRED FROM"): {"TEXT", "CODE", "UIDREF", "IMAGE"},
}


@dataclass(slots=True, kw_only=True)
class Case:
    """A document as it came back from a file, and what it was made of."""

    data: bytes
    again: bytes  #: a second encoding of the same record
    ds: Dataset
    record: DraftRecord
    image: Dataset  #: the source's header
    ours: dict[str, bytes] = field(default_factory=dict)  #: values as they are in the file
    theirs: dict[str, bytes] = field(default_factory=dict)  #: and as they are in the source's

    @property
    def zone(self) -> timezone | None:
        offset = self.ds.get("TimezoneOffsetFromUTC")
        if not offset:
            return None
        sign = -1 if offset[0] == "-" else 1
        return timezone(sign * timedelta(hours=int(offset[1:3]), minutes=int(offset[3:])))

    @property
    def started(self) -> datetime:
        at = self.record.started_at
        return at.astimezone(self.zone) if self.zone else at


Point = Callable[[Case], bool]


def case(data: bytes, again: bytes, record: DraftRecord, image: Dataset) -> Case:
    ds = pydicom.dcmread(BytesIO(data))
    return Case(data=data, again=again, ds=ds, record=record, image=image)


def check(of: Case, points: Mapping[str, Point] | None = None) -> list[str]:
    """Return the names of the points that the document fails; a text SR's unless told."""
    of.ours = {keyword: raw(of.ds, keyword) for keyword in RAW}  # before a point decodes them
    of.theirs = {keyword: raw(of.image, keyword) for keyword in RAW}
    with pydicom.config.disable_value_validation():  # what is wrong in the source is not ours
        return [name for name, holds in (points or POINTS).items() if not _judge(holds, of)]


def _judge(holds: Point, of: Case) -> bool:
    try:
        return bool(holds(of))
    except (
        AttributeError,
        IndexError,
        KeyError,
        ValueError,
    ):  # what the point speaks of is not there
        return False


# --- reading -------------------------------------------------------------------------------------


def raw(ds: Dataset, keyword: str) -> bytes:
    """Return an attribute's bytes as they are in the file, without padding."""
    elem = ds.get_item(keyword)
    value = None if elem is None else elem.value
    return (value if isinstance(value, bytes) else str(value or "").encode()).rstrip(b" \0")


def plain(values: dict[str, bytes], keyword: str) -> str:
    return values[keyword].decode("ascii", "replace").strip()


def code(item: Dataset, keyword: str = "ConceptNameCodeSequence") -> tuple[str, str, str]:
    coded = item[keyword].value[0]
    return str(coded.CodeValue), str(coded.CodingSchemeDesignator), str(coded.CodeMeaning)


def children(item: Dataset, relationship: str = "") -> list[Dataset]:
    found = item.get("ContentSequence") or []
    return [c for c in found if relationship in ("", c.get("RelationshipType"))]


def descendants(item: Dataset) -> Iterator[tuple[Dataset, Dataset]]:
    """Yield (parent, child) for the whole tree."""
    for child in children(item):
        yield item, child
        yield from descendants(child)


def tree(of: Case) -> list[Dataset]:
    return [child for _, child in descendants(of.ds)]


def named(of: Case, value: str) -> list[Dataset]:
    return [item for item in children(of.ds) if code(item)[0] == value]


def sections(of: Case) -> list[Dataset]:
    return children(of.ds, "CONTAINS")


def section(of: Case, value: str) -> Dataset:
    return [item for item in sections(of) if code(item)[0] == value][0]  # noqa: RUF015 - IndexError


def texts(item: Dataset) -> list[str]:
    return [str(child.TextValue) for child in children(item)]


def images(of: Case) -> list[Dataset]:
    return [item for item in tree(of) if item.ValueType == "IMAGE"]


def pair(item: Dataset) -> tuple[str, str]:
    ref = item.ReferencedSOPSequence[0]
    return str(ref.ReferencedSOPClassUID), str(ref.ReferencedSOPInstanceUID)


def hierarchy(ds: Dataset, keyword: str) -> list[tuple[str, str, str, str]]:
    """Return (study, series, class, instance) of a hierarchical reference macro."""
    return [
        (
            str(study.StudyInstanceUID),
            str(series.SeriesInstanceUID),
            str(ref.ReferencedSOPClassUID),
            str(ref.ReferencedSOPInstanceUID),
        )
        for study in ds.get(keyword) or []
        for series in study.ReferencedSeriesSequence
        for ref in series.ReferencedSOPSequence
    ]


def expected(of: Case, *, ours: bool) -> list[tuple[str, str, str, str]]:
    return [
        (i.study_instance_uid, i.series_instance_uid, i.sop_class_uid, i.sop_instance_uid)
        for i in of.record.evidence
        if (i.study_instance_uid == of.record.study_instance_uid) == ours
    ]


def equipment(of: Case, purpose: str) -> list[Dataset]:
    return [
        item
        for item in of.ds.ContributingEquipmentSequence
        if code(item, "PurposeOfReferenceCodeSequence")[:2] == (purpose, "DCM")
    ]


def datasets(ds: Dataset) -> Iterator[Dataset]:
    """Yield the data set and every item in it, touching no value but sequences."""
    yield ds
    for tag in list(ds.keys()):
        if ds.get_item(tag).VR == "SQ":
            for item in ds[tag].value:
                yield from datasets(item)


def codes(of: Case) -> list[tuple[str, str, str]]:
    """Return every code of the content tree, names and values."""
    found = [code(of.ds)]
    for item in tree(of):
        found.append(code(item))
        if "ConceptCodeSequence" in item:
            found.append(code(item, "ConceptCodeSequence"))
        for measured in item.get("MeasuredValueSequence") or []:
            found.append(code(measured, "MeasurementUnitsCodeSequence"))
    return found


@cache
def meanings(scheme: str) -> dict[str, set[str]]:
    known: dict[str, set[str]] = {}
    for entry in Collection(scheme).concepts.values():
        known.setdefault(entry.value, set()).add(entry.meaning)
    return known


def squeezed(text: str) -> str:
    return " ".join(text.split())


# --- the longer points ---------------------------------------------------------------------------


def times_are_the_start(of: Case) -> bool:
    date, time = of.started.strftime("%Y%m%d"), of.started.strftime("%H%M%S")
    return all(
        bool(of.ds[f"{what}Date"].value == date and of.ds[f"{what}Time"].value == time)
        for what in ("Series", "InstanceCreation", "Content")
    )


def zone_is_the_source_s_or_the_site_s(of: Case) -> bool:
    source = plain(of.theirs, "TimezoneOffsetFromUTC")
    legal = re.fullmatch(r"[+-]\d{4}", source) is not None
    wanted = source if legal else of.record.timezone_offset or ""
    return plain(of.ours, "TimezoneOffsetFromUTC") == wanted


def description_warns(of: Case) -> bool:
    text, version = str(of.ds.SeriesDescription), of.record.version
    return (
        text.startswith("AI DRAFT - NOT FOR DIAGNOSIS (")
        and len(text) <= 64
        and text.endswith(")" if version == 1 else f") v{version}")
        and ("DEMO MODEL" in text) == of.record.algorithm.demo
    )


def texts_are_verbatim(of: Case) -> bool:
    if of.ours["SpecificCharacterSet"] == of.theirs["SpecificCharacterSet"]:
        same = all(of.ours[k] == of.theirs[k] for k in TEXTS)
    else:
        same = all(str(of.ds.get(k) or "") == str(of.image.get(k) or "") for k in TEXTS)
    return same and all(of.ds[k].value in ("", None, _legal(of, k)) for k in CHECKED)


def _legal(of: Case, keyword: str) -> str:
    value = plain(of.theirs, keyword)
    if keyword == "PatientSex":
        return value if value in ("M", "F", "O") else ""
    return re.sub("[:]" if keyword == "StudyTime" else "[.-]", "", value)


def checked_values_are_kept(of: Case) -> bool:
    """A legal value may not be dropped."""
    legal = {
        "PatientBirthDate": r"\d{4}([.-]?)(0[1-9]|1[0-2])\1(0[1-9]|[12]\d)",
        "StudyDate": r"\d{4}([.-]?)(0[1-9]|1[0-2])\1(0[1-9]|[12]\d)",
        "StudyTime": r"([01]\d|2[0-3]):?[0-5]\d:?[0-5]\d(\.\d{1,6})?",
        "PatientSex": "[MFO]",
    }
    return all(
        bool(of.ds[k].value)
        for k, pattern in legal.items()
        if re.fullmatch(pattern, plain(of.theirs, k))
    )


def requests_are_complete(of: Case) -> bool:
    return all(all(k in item for k in REQUEST_TYPE_2) for item in of.ds.ReferencedRequestSequence)


def request_has_the_study_and_its_number(of: Case) -> bool:
    sources = of.image.RequestAttributesSequence
    return all(
        item.StudyInstanceUID == of.record.study_instance_uid
        and str(item.AccessionNumber) == str(src.get("AccessionNumber") or of.image.AccessionNumber)
        for item, src in zip(of.ds.ReferencedRequestSequence, sources, strict=True)
    )


def predecessor_is_named(of: Case) -> bool:
    old = of.record.predecessor
    named = hierarchy(of.ds, "PredecessorDocumentsSequence")
    wanted = old and (
        old.study_instance_uid,
        old.series_instance_uid,
        old.sop_class_uid,
        old.sop_instance_uid,
    )
    return named == ([wanted] if wanted else [])


def predecessor_has_its_purpose(of: Case) -> bool:
    return all(
        code(ref, "PurposeOfReferenceCodeSequence")[:2] == ("121360", "DCM")
        for study in of.ds.get("PredecessorDocumentsSequence", [])
        for series in study.ReferencedSeriesSequence
        for ref in series.ReferencedSOPSequence
    )


def algorithms_are_declared(of: Case) -> bool:
    wanted = [of.record.algorithm, *filter(None, [of.record.labeler])]
    pairs = zip(equipment(of, "109102"), wanted, strict=True)
    return all(_is_declared(of, item, algorithm) for item, algorithm in pairs)


def _is_declared(of: Case, item: Dataset, algorithm: Algorithm) -> bool:
    told = str(item.ContributionDescription)
    return (
        str(item.Manufacturer) != ""
        and algorithm.name.startswith(str(item.ManufacturerModelName)[:10])
        and str(item.SoftwareVersions) == algorithm.version
        and str(item.DeviceUID).startswith("2.25.")
        and datetime.strptime(str(item.ContributionDateTime), "%Y%m%d%H%M%S%z")
        == of.started.replace(microsecond=0)
        and all(value in told for value in algorithm.parameters.values())
        and algorithm.digest in told
    )


def provenance_is_complete(of: Case) -> bool:
    text = " ".join(texts(section(of, "55111-9")))
    uids = [image.reference.sop_instance_uid for image in of.record.inputs]
    makers = [of.ds, *equipment(of, "109102")]
    return (
        all(uid in text for uid in uids)
        and all(f"{one.ManufacturerModelName} {one.SoftwareVersions}" in text for one in makers)
        and of.started.isoformat(timespec="seconds") in text
    )


def provenance_says_how(of: Case) -> bool:
    text = " ".join(texts(section(of, "55111-9")))
    algorithm = of.record.algorithm
    return algorithm.digest[:12] in text and all(
        f"{key}={value}" in text for key, value in algorithm.parameters.items()
    )


def context_is_the_node(of: Case) -> bool:
    node = of.record.node
    values = {code(i)[0]: str(i.get("TextValue")) for i in children(of.ds, "HAS OBS CONTEXT")}
    wanted = {
        "121013": node.ae_title,
        "121014": node.manufacturer,
        "121015": node.model_name,
        "121016": node.installation_id,
    }
    return wanted.items() <= values.items()


def values_are_complete(of: Case) -> Callable[[str], bool]:
    def complete(value_type: str) -> bool:
        checks: dict[str, Callable[[Dataset], bool]] = {
            "TEXT": lambda i: bool(str(i.TextValue).strip()),
            "CODE": lambda i: all(code(i, "ConceptCodeSequence")),
            "UIDREF": lambda i: bool(i.UID),
            "IMAGE": lambda i: len(i.ReferencedSOPSequence) == 1,
            "CONTAINER": lambda i: i.ContinuityOfContent in ("SEPARATE", "CONTINUOUS"),
            "NUM": lambda i: all(code(i.MeasuredValueSequence[0], "MeasurementUnitsCodeSequence")),
        }
        return all(checks[value_type](i) for i in tree(of) if i.ValueType == value_type)

    return complete


def narrative_is_verbatim(of: Case) -> bool:
    said = squeezed(" ".join(texts(section(of, "59776-5"))))
    kept = "".join(c for c in of.record.findings if c in "\r\n\t" or not _is_control(c))
    return said == squeezed(kept)


def _is_control(character: str) -> bool:
    return ord(character) < 32 or 127 <= ord(character) < 160


def impression_is_only_the_model_s(of: Case) -> bool:
    found = [squeezed(" ".join(texts(s))) for s in sections(of) if code(s)[0] == "19005-8"]
    return found == ([squeezed(of.record.impression)] if of.record.impression else [])


def request_is_what_the_model_got(of: Case) -> bool:
    found = [[squeezed(text) for text in texts(s)] for s in sections(of) if code(s)[0] == "55115-0"]
    given, source = of.record.history, of.record.history_source
    told = [squeezed(given or ""), *([f"Request from: {squeezed(source)}"] if source else [])]
    return found == ([told] if given else [])


def private_schemes_are_declared(of: Case) -> bool:
    declared = {
        str(i.CodingSchemeDesignator) for i in of.ds.get("CodingSchemeIdentificationSequence", [])
    }
    used = {scheme for _, scheme, _ in codes(of)}
    return {s for s in used if s.startswith("99") or s == "L"} <= declared


def codes_mean_what_the_standard_says(of: Case) -> bool:
    return all(
        meaning in meanings(scheme)[value]
        for value, scheme, meaning in codes(of)
        if scheme in ("DCM", "LN") and value in meanings(scheme)
    )


def procedure_is_the_source_s(of: Case) -> bool:
    found = [code(i, "ConceptCodeSequence") for i in named(of, "121058")]
    source = of.image.get("ProcedureCodeSequence") or []
    return not found or found == [
        (str(source[0].CodeValue), str(source[0].CodingSchemeDesignator), found[0][2])
    ]


def everything_decodes(of: Case) -> bool:
    """No value of our own was written with a replacement character."""
    said = [str(item.TextValue) for item in tree(of) if item.ValueType == "TEXT"]
    return not any("�" in text or text == "?" for text in said)


def character_set_is_known(of: Case) -> bool:
    """It is the source's, or UTF-8; another only where the source's is none of the Standard's."""
    ours, theirs = (plain(values, "SpecificCharacterSet") for values in (of.ours, of.theirs))
    known = all(term in python_encoding for term in theirs.split("\\"))
    return ours in (theirs, "ISO_IR 192") or not known


def text_was_recoded(of: Case) -> bool:
    """Where the character set is not the source's any more, every byte is of the new one."""
    if of.ours["SpecificCharacterSet"] == of.theirs["SpecificCharacterSet"]:
        return True
    encoding = python_encoding[plain(of.ours, "SpecificCharacterSet")]
    for item in datasets(pydicom.dcmread(BytesIO(of.data))):
        for tag in list(item.keys()):
            elem = item.get_item(tag)
            if elem.VR != "SQ" and isinstance(elem.value, bytes):
                elem.value.decode(encoding)
    return True


# --- the points ----------------------------------------------------------------------------------

POINTS: dict[str, Point] = {
    "FILE-1": lambda c: c.data[:128] == bytes(128) and c.data[128:132] == b"DICM",
    "FILE-2": lambda c: (
        c.ds.file_meta.MediaStorageSOPClassUID == c.ds.SOPClassUID
        and c.ds.file_meta.MediaStorageSOPInstanceUID == c.ds.SOPInstanceUID
    ),
    "FILE-3": lambda c: (
        c.ds.file_meta.TransferSyntaxUID in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    ),
    "FILE-4": lambda c: c.ds.file_meta.ImplementationClassUID.startswith("2.25."),
    "FILE-5": lambda c: not any(t.is_private for d in datasets(c.ds) for t in list(d.keys())),
    "FILE-6": lambda c: "PixelData" not in c.ds,
    "HDR-1": lambda c: (
        c.ds.SOPClassUID in (BasicTextSRStorage, EnhancedSRStorage, ComprehensiveSRStorage)
    ),
    "HDR-2": lambda c: c.ds.Modality == "SR",
    "HDR-3": lambda c: c.ds.SeriesNumber == 9901,
    "HDR-4": lambda c: c.ds.InstanceNumber == 1,
    "HDR-5": times_are_the_start,
    "HDR-6": zone_is_the_source_s_or_the_site_s,
    "HDR-7": description_warns,
    "HDR-8": lambda c: c.ds.ContentQualification == c.record.content_qualification,
    "HDR-9": lambda c: (
        len(c.ds["ReferencedPerformedProcedureStepSequence"].value) == 0
        and len(c.ds["PerformedProcedureCodeSequence"].value)
        == len([i for i in c.image.get("ProcedureCodeSequence") or [] if "CodeValue" in i])
    ),
    "ID-1": lambda c: all(k in c.ds for k in (*TEXTS, *CHECKED)),
    "ID-2": lambda c: texts_are_verbatim(c) and checked_values_are_kept(c),
    "ID-3": lambda c: (
        plain(c.ours, "StudyInstanceUID") == plain(c.theirs, "StudyInstanceUID") != ""
        and c.ds.StudyInstanceUID == c.record.study_instance_uid
    ),
    "ID-4": lambda c: all(
        str(c.ds.get(k) or "") == str(c.image[k].value or "") for k in COPIED if k in c.image
    ),
    "EQ-1": lambda c: all(
        str(c.ds[k].value or "")
        for k in ("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DeviceSerialNumber")
    ),
    "EQ-2": lambda c: (
        [str(a.ObserverType) for a in c.ds.AuthorObserverSequence] == ["DEV"]
        and all(
            k in c.ds.AuthorObserverSequence[0]
            for k in (
                *("Manufacturer", "ManufacturerModelName", "DeviceUID", "StationName"),
                *("InstitutionName", "InstitutionCodeSequence"),
            )
        )
    ),
    "EQ-3": algorithms_are_declared,
    "EQ-4": lambda c: (
        len(equipment(c, "109101")) == 1 and bool(equipment(c, "109101")[0].Manufacturer)
    ),
    "FLAG-1": lambda c: c.ds.CompletionFlag == "PARTIAL",
    "FLAG-2": lambda c: bool(str(c.ds.CompletionFlagDescription).strip()),
    "FLAG-3": lambda c: c.ds.VerificationFlag == "UNVERIFIED",
    "FLAG-4": lambda c: c.ds.PreliminaryFlag == "PRELIMINARY",
    "FLAG-5": lambda c: "VerifyingObserverSequence" not in c.ds,
    "EV-1": lambda c: len(c.ds["CurrentRequestedProcedureEvidenceSequence"].value) == 1,
    "EV-2": lambda c: (
        {e[3] for e in hierarchy(c.ds, "CurrentRequestedProcedureEvidenceSequence")}
        == {e[3] for e in expected(c, ours=True)}
    ),
    "EV-3": lambda c: (
        len(e := hierarchy(c.ds, "CurrentRequestedProcedureEvidenceSequence"))
        == len({i[3] for i in e})
    ),
    "EV-4": lambda c: (
        set(hierarchy(c.ds, "CurrentRequestedProcedureEvidenceSequence"))
        == set(expected(c, ours=True))
    ),
    "EV-5": lambda c: (
        set(hierarchy(c.ds, "PertinentOtherEvidenceSequence")) == set(expected(c, ours=False))
        and {e[0] for e in hierarchy(c.ds, "CurrentRequestedProcedureEvidenceSequence")}
        == {c.ds.StudyInstanceUID}
    ),
    "EV-6": lambda c: all(all(pair(i)) for i in images(c)),
    "EV-7": lambda c: (
        {pair(i)[1] for i in images(c)}
        <= {e[3] for e in hierarchy(c.ds, "CurrentRequestedProcedureEvidenceSequence")}
    ),
    "EV-8": lambda c: (
        {pair(i) for i in images(c)}
        <= {e[2:] for e in hierarchy(c.ds, "CurrentRequestedProcedureEvidenceSequence")}
    ),
    "EV-9": lambda c: (
        {pair(i)[1] for i in images(c)} == {i.reference.sop_instance_uid for i in c.record.inputs}
    ),
    "REQ-1": lambda c: (
        len(c.ds.get("ReferencedRequestSequence") or [])
        == len(c.image.get("RequestAttributesSequence") or [])
    ),
    "REQ-2": lambda c: (
        "ReferencedRequestSequence" not in c.ds or request_has_the_study_and_its_number(c)
    ),
    "REQ-3": lambda c: "ReferencedRequestSequence" not in c.ds or requests_are_complete(c),
    "PRE-1": lambda c: ("PredecessorDocumentsSequence" in c.ds) == (c.record.version > 1),
    "PRE-2": predecessor_is_named,
    "PRE-3": predecessor_has_its_purpose,
    "PRE-4": lambda c: (
        c.ds.SOPInstanceUID not in [e[3] for e in hierarchy(c.ds, "PredecessorDocumentsSequence")]
    ),
    "PRE-5": lambda c: (
        c.ds.SeriesInstanceUID
        not in [e[1] for e in hierarchy(c.ds, "PredecessorDocumentsSequence")]
    ),
    "CS-1": character_set_is_known,
    "CS-2": lambda c: everything_decodes(c) and text_was_recoded(c),
    "UID-1": lambda c: all(
        re.fullmatch(r"2\.25\.[1-9]\d{0,38}", str(uid))
        for uid in (c.ds.SOPInstanceUID, c.ds.SeriesInstanceUID)
    ),
    "UID-2": lambda c: (
        not {c.ds.SOPInstanceUID, c.ds.SeriesInstanceUID}
        & {plain(c.theirs, k) for k in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")}
    ),
    "IDEM-1": lambda c: c.data == c.again,
    "DOC-1": lambda c: (
        c.ds.ValueType == "CONTAINER"
        and code(c.ds) == ("18748-4", "LN", "Diagnostic Imaging Report")
    ),
    "DOC-2": lambda c: c.ds.ContinuityOfContent == "SEPARATE",
    "DOC-3": lambda c: (
        [(t.MappingResource, t.TemplateIdentifier) for t in c.ds.ContentTemplateSequence]
        == [("DCMR", "2000")]
    ),
    "DOC-4": lambda c: {i.ValueType for i in sections(c)} == {"CONTAINER"},
    "DOC-5": lambda c: (
        {code(i)[0] for i in tree(c) if i.RelationshipType == "HAS OBS CONTEXT"} <= CONTEXT
    ),
    "CTX-1": lambda c: (
        [code(i, "ConceptCodeSequence")[:2] for i in named(c, "121049")] == [("en-US", "RFC5646")]
    ),
    "CTX-2": lambda c: (
        [code(i, "ConceptCodeSequence")[:2] for i in named(c, "121005")] == [("121007", "DCM")]
    ),
    "CTX-3": lambda c: (
        not any(i.ValueType == "PNAME" or code(i)[0] in ("121008", "121006") for i in tree(c))
        and not any(
            code(i, "ConceptCodeSequence")[0] == "121006" for i in tree(c) if i.ValueType == "CODE"
        )
    ),
    "CTX-4": lambda c: (
        [i.UID for i in named(c, "121012")] == [c.ds.AuthorObserverSequence[0].DeviceUID]
    ),
    "CTX-5": context_is_the_node,
    "SEC-1": lambda c: code(sections(c)[0])[:2] == ("55112-7", "LN"),
    "SEC-2": lambda c: all(
        word in " ".join(texts(section(c, "55112-7")))
        for word in ("DRAFT", "NOT FOR DIAGNOSIS", "radiologist must review")
    ),
    "SEC-3": lambda c: (
        (found := [code(s)[0] for s in sections(c)]) == [k for k in SECTIONS if k in found]
    ),
    "SEC-4": lambda c: code(section(c, "59776-5")) == ("59776-5", "LN", "Findings"),
    "SEC-5": lambda c: all(
        (s.ContinuityOfContent == "CONTINUOUS") == SECTIONS[code(s)[0]][1] for s in sections(c)
    ),
    "SEC-6": lambda c: all(
        code(i)[0] == SECTIONS[code(s)[0]][0] and i.ValueType == "TEXT"
        for s in sections(c)
        for i in children(s)
    ),
    "SEC-7": lambda c: all(
        len(children(i, "INFERRED FROM")) == len(c.record.inputs)
        for i in children(section(c, "59776-5"))
    ),
    "SEC-8": narrative_is_verbatim,
    "SEC-9": lambda c: impression_is_only_the_model_s(c) and request_is_what_the_model_got(c),
    "SEC-10": provenance_is_complete,
    "SEC-11": provenance_says_how,
    "SEC-12": lambda c: all(
        parent.get("ValueType") == "TEXT" and child.RelationshipType == "INFERRED FROM"
        for parent, child in descendants(c.ds)
        if child.ValueType == "IMAGE"
    ),
    "TREE-1": lambda c: all(i.get("RelationshipType") for i in tree(c)),
    "TREE-2": lambda c: all(all(code(i)) for i in [c.ds, *tree(c)]),
    "TREE-3": lambda c: all(i.get("ValueType") for i in tree(c)),
    "TREE-4": lambda c: (
        {i.ValueType for i in tree(c)} <= {"TEXT", "CODE", "UIDREF", "IMAGE", "CONTAINER"}
    ),
    "TREE-5": lambda c: all(
        child.ValueType in ALLOWED.get((parent.ValueType, child.RelationshipType), set())
        for parent, child in descendants(c.ds)
    ),
    "TREE-6": lambda c: not any("ReferencedContentItemIdentifier" in i for i in tree(c)),
    "TREE-7": lambda c: values_are_complete(c)("TEXT"),
    "TREE-8": lambda c: values_are_complete(c)("CODE"),
    "TREE-9": lambda c: values_are_complete(c)("UIDREF"),
    "TREE-10": lambda c: values_are_complete(c)("IMAGE") and values_are_complete(c)("CONTAINER"),
    "CODE-1": lambda c: not {s for _, s, _ in codes(c)} & {"SRT", "SNM3", "99SDM"},
    "CODE-2": lambda c: all(len(v) <= 16 and len(m) <= 64 for v, _, m in codes(c)),
    "CODE-3": private_schemes_are_declared,
    "CODE-4": lambda c: codes_mean_what_the_standard_says(c) and procedure_is_the_source_s(c),
}

_TEXT_ONLY = ("HDR-1", "HDR-3", "HDR-7", "DOC", "SEC", "TREE-4", "TREE-5", "CODE-4")
#: Points of sr-draft 2 and 3, and what of 4 is said of any content tree.
EVERY_SR = {name: point for name, point in POINTS.items() if not name.startswith(_TEXT_ONLY)}
