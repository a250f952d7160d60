"""The header that every result object carries, and the general part of every SR document.

Built with pydicom alone: highdicom 0.28 raises on a source without patient or study attributes,
with sex U, with a time like 10:12:03, and on the usual Japanese and Korean character sets.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_node.results import source, uids
from dicom_node.results.record import DEMO, TIMEZONE_OFFSET, DraftRecord, Reference
from dicom_node.storage import IMPLEMENTATION_CLASS_UID
from inference.findings import Algorithm

ACQUISITION_EQUIPMENT = Code("109101", "DCM", "Acquisition Equipment")  # PS3.16 CID 7005
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")
REPLACED_REPORT = Code("121360", "DCM", "Replaced report")  # PS3.16 CID 7009

OWN_SCHEME = "99DCMNODE"  # codes of ours where no public one was verified
_OWN_SCHEME_UID = "2.25.98954760446453203537689516120900792297"  # random; never to be changed

# PS3.5 6.2, in characters.
_LO = 64
_ST = 1024

_DASHES_AND_QUOTES = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033", '"'),
        "\u2026": "...",
        "\u00a0": " ",
    }
)

_ORDER = (  # PS3.3 C.17.2, Type 2 attributes of a Referenced Request Sequence item
    "AccessionNumber",
    "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest",
    "RequestedProcedureID",
    "RequestedProcedureDescription",
    "RequestedProcedureCodeSequence",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesKind:
    """What a kind of result object calls its series."""

    modality: str
    number: int  #: above the site's series number base
    title: str  #: AI DRAFT, AI FINDINGS


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A record and its source's header, in one character set that can write both."""

    record: DraftRecord
    source: Dataset

    @property
    def timezone_offset(self) -> str:
        """Return &ZZXX, the source's or else the site's, or an empty string (PS3.3 C.12.1)."""
        offset = source.plain(self.source, "TimezoneOffsetFromUTC")
        return offset if TIMEZONE_OFFSET.fullmatch(offset) else self.record.timezone_offset or ""

    @property
    def started_at(self) -> datetime:
        """Return when the analysis started, in the zone that the object's dates and times have."""
        offset = self.timezone_offset
        if not offset:
            return self.record.started_at
        minutes = int(offset[1:3]) * 60 + int(offset[3:])
        zone = timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))
        return self.record.started_at.astimezone(zone)


def subject(record: DraftRecord) -> Subject:
    """Settle on a character set: the source's if it can write all we say, otherwise UTF-8.

    Dashes and quotes of the narrative become ASCII where only they are in the way.
    """
    header = source.read(record.source_header)
    terms = source.character_set(header)
    for candidate in (record, _folded(record)):
        if all(source.encodes(terms, text) for text in _said(candidate)):
            return Subject(record=candidate, source=header)
    source.to_utf8(header)
    return Subject(record=record, source=header)


def header(of: Subject, sop_class_uid: str, series: SeriesKind) -> Dataset:
    """Return patient, study, series, equipment and SOP common modules, with file meta.

    Parameters
    ----------
    of
        Record and source; the record's ``kind`` is part of the UIDs.
    sop_class_uid
        SOP class of the object.
    series
        Modality, number and title of its series.
    """
    ds = source.dataset_like(of.source)
    terms = source.character_set(of.source)
    if terms:
        ds.SpecificCharacterSet = terms
    _patient_and_study(ds, of)
    _series(ds, of, sop_class_uid, series)
    _equipment(ds, of)
    ds.SOPClassUID = sop_class_uid
    ds.SOPInstanceUID = uids.sop_instance_uid(of.record, sop_class_uid)
    ds.InstanceNumber = 1
    ds.file_meta = _file_meta(ds, of.record)
    return ds


def sr_document(of: Subject) -> Dataset:
    """Return the SR Document General module (PS3.3 C.17.2): a draft that nobody has verified."""
    ds = source.dataset_like(of.source)
    ds.ContentDate, ds.ContentTime = _date_and_time(of.started_at)
    # PRELIMINARY and UNVERIFIED do not say that something is missing: no impression, one view.
    ds.CompletionFlag = "PARTIAL"
    ds.CompletionFlagDescription = "AI draft for radiologist review; not verified"
    ds.VerificationFlag = "UNVERIFIED"
    ds.PreliminaryFlag = "PRELIMINARY"
    ds.ReferencedPerformedProcedureStepSequence = []
    source.fill(ds, "PerformedProcedureCodeSequence", of.source, origin="ProcedureCodeSequence")
    ds.AuthorObserverSequence = [_author(of)]
    _evidence(ds, of.record)
    requests = source.items(of.source, "RequestAttributesSequence")
    if requests:
        ds.ReferencedRequestSequence = [_request(of, item) for item in requests]
    if of.record.predecessor:
        ds.PredecessorDocumentsSequence = _by_study([of.record.predecessor], REPLACED_REPORT)
    return ds


def declare_private_schemes(ds: Dataset, of: Subject) -> None:
    """Name the private coding schemes that the document's codes use (PS3.3 C.12.1.1.7)."""
    used = {designator for designator in source.scheme_designators(ds) if _is_private(designator)}
    known = {
        source.plain(item, "CodingSchemeDesignator"): item
        for item in source.items(of.source, "CodingSchemeIdentificationSequence")
    }
    if used:
        ds.CodingSchemeIdentificationSequence = [
            known.get(designator) or _scheme(designator, of.record) for designator in sorted(used)
        ]


def code_item(code: Code) -> Dataset:
    """Return the code as an item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code[:3]
    return item


def short_name(algorithm: Algorithm, limit: int) -> str:
    """Return the model's name in at most ``limit`` characters; a demo model's still says so."""
    name = printable(algorithm.name)
    if len(name) <= limit:
        return name
    if DEMO not in name:
        return name[:limit].rstrip()
    return f"{DEMO} {' '.join(name.replace(DEMO, ' ').split())}"[:limit].rstrip()


def description(algorithm: Algorithm, *, digits: int = 64) -> str:
    """Return the parameters and ``digits`` hexadecimal digits of the weights' hash, one line."""
    # Sorted, for a database that keeps JSON does not keep its order.
    parameters = [f"{key}={value}" for key, value in sorted(algorithm.parameters.items())]
    return printable("; ".join([*parameters, f"weights=sha256:{algorithm.digest[:digits]}"]))


def printable(text: str) -> str:
    """Return ``text`` as one line, without the backslash that separates values (PS3.5 6.4)."""
    spaced = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)
    return " ".join(spaced.replace("\\", "/").split())


def _said(record: DraftRecord) -> Iterator[str]:
    yield record.findings
    yield record.refusal.text if record.refusal else ""
    yield record.impression or ""
    yield record.history or ""
    yield record.institution_name or ""
    for one in _algorithms(record):
        yield f"{one.manufacturer} {one.name} {one.version} {description(one)}"
    yield " ".join([record.history_source or "", *record.warnings])
    yield " ".join(image.rule for image in record.inputs)


def _algorithms(record: DraftRecord) -> list[Algorithm]:
    return [record.algorithm, *filter(None, [record.labeler])]


def _folded(record: DraftRecord) -> DraftRecord:
    fold = _DASHES_AND_QUOTES
    return replace(
        record,
        findings=record.findings.translate(fold),
        impression=record.impression and record.impression.translate(fold),
        history=record.history and record.history.translate(fold),
    )


def _patient_and_study(ds: Dataset, of: Subject) -> None:
    header = of.source
    for keyword in source.IDENTITY:
        source.fill(ds, keyword, header)
    for keyword in source.IF_PRESENT:
        if keyword in header:
            source.fill(ds, keyword, header)
    removed = source.plain(header, "PatientIdentityRemoved") == "YES"
    methods = ("DeidentificationMethod", "DeidentificationMethodCodeSequence")
    if removed and not any(source.has(header, keyword) for keyword in methods):
        ds.DeidentificationMethod = "not stated by the source"  # Type 1C (PS3.3 C.7.1.1)
    _checked(ds, header)
    ds.StudyInstanceUID = of.record.study_instance_uid


def _checked(ds: Dataset, header: Dataset) -> None:
    """Copy what is no identity only where it is legal; Type 2 attributes are empty otherwise."""
    ds.PatientBirthDate = _date(source.plain(header, "PatientBirthDate"))
    ds.StudyDate = _date(source.plain(header, "StudyDate"))
    ds.StudyTime = _time(source.plain(header, "StudyTime"))
    sex = source.plain(header, "PatientSex")
    ds.PatientSex = sex if sex in ("M", "F", "O") else ""  # PS3.3 C.7.1.1, Enumerated Values
    birth_time = _time(source.plain(header, "PatientBirthTime"))
    if birth_time:
        ds.PatientBirthTime = birth_time
    age = source.plain(header, "PatientAge")
    if re.fullmatch(r"\d{3}[DWMY]", age):  # PS3.5 6.2, AS
        ds.PatientAge = age


def _series(ds: Dataset, of: Subject, sop_class_uid: str, series: SeriesKind) -> None:
    date, time = _date_and_time(of.started_at)
    ds.Modality = series.modality
    ds.SeriesInstanceUID = uids.series_instance_uid(of.record, sop_class_uid)
    ds.SeriesNumber = of.record.series_number_base + series.number
    ds.SeriesDate, ds.SeriesTime = date, time
    ds.InstanceCreationDate, ds.InstanceCreationTime = date, time
    ds.SeriesDescription = _series_description(of.record, series)
    ds.ContentQualification = of.record.content_qualification
    if of.timezone_offset:
        ds.TimezoneOffsetFromUTC = of.timezone_offset


def _series_description(record: DraftRecord, series: SeriesKind) -> str:
    before = f"{series.title} - NOT FOR DIAGNOSIS ("
    after = ")" if record.version == 1 else f") v{record.version}"
    return before + short_name(record.algorithm, _LO - len(before) - len(after)) + after


def _equipment(ds: Dataset, of: Subject) -> None:
    node = of.record.node
    ds.Manufacturer = node.manufacturer
    ds.ManufacturerModelName = node.model_name
    ds.SoftwareVersions = node.version
    ds.DeviceSerialNumber = node.installation_id
    _institution(ds, of)
    processing = [_processing(of, algorithm) for algorithm in _algorithms(of.record)]
    ds.ContributingEquipmentSequence = [*processing, _acquisition(of)]


def _institution(ds: Dataset, of: Subject) -> None:
    if _fits(of.source, "InstitutionName"):
        source.fill(ds, "InstitutionName", of.source)
    else:
        ds.InstitutionName = printable(of.record.institution_name or "")[:_LO]


def _fits(header: Dataset, keyword: str) -> bool:
    return source.has(header, keyword) and len(header.get_item(keyword).value) <= _LO


def _processing(of: Subject, algorithm: Algorithm) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code_item(PROCESSING_EQUIPMENT)]
    item.Manufacturer = printable(algorithm.manufacturer)[:_LO] or "unknown"
    item.ManufacturerModelName = short_name(algorithm, _LO)
    item.SoftwareVersions = printable(algorithm.version)[:_LO]
    item.DeviceUID = uids.device_uid(algorithm)
    item.ContributionDateTime = of.started_at.strftime("%Y%m%d%H%M%S%z")
    item.ContributionDescription = description(algorithm)[:_ST]
    return item


def _acquisition(of: Subject) -> Dataset:
    item = source.dataset_like(of.source)
    item.PurposeOfReferenceCodeSequence = [code_item(ACQUISITION_EQUIPMENT)]
    for keyword in source.EQUIPMENT:
        if _fits(of.source, keyword):
            source.fill(item, keyword, of.source)
    if "Manufacturer" not in item:
        item.Manufacturer = "unknown"  # Type 1 here (PS3.3 C.12.1), but Type 2 in an image
    return item


def _author(of: Subject) -> Dataset:
    """PS3.3 table C.17-3b, Identified Person or Device Macro: the node itself."""
    node = of.record.node
    item = source.dataset_like(of.source)
    item.ObserverType = "DEV"
    item.Manufacturer = node.manufacturer
    item.ManufacturerModelName = node.model_name
    item.DeviceUID = uids.node_uid(node.installation_id)
    item.StationName = node.ae_title
    item.InstitutionCodeSequence = []
    _institution(item, of)
    return item


def _evidence(ds: Dataset, record: DraftRecord) -> None:
    study = record.study_instance_uid
    ours = [image for image in record.evidence if image.study_instance_uid == study]
    others = [image for image in record.evidence if image.study_instance_uid != study]
    ds.CurrentRequestedProcedureEvidenceSequence = _by_study(ours)
    if others:
        ds.PertinentOtherEvidenceSequence = _by_study(others)


def _by_study(references: Iterable[Reference], purpose: Code | None = None) -> list[Dataset]:
    """Return the items of a Hierarchical SOP Instance Reference Macro (PS3.3 table C.17-3)."""
    tree: dict[str, dict[str, list[Dataset]]] = {}
    for reference in dict.fromkeys(references):
        series = tree.setdefault(reference.study_instance_uid, {})
        instance = _instance(reference, purpose)
        series.setdefault(reference.series_instance_uid, []).append(instance)
    return [_study_item(study, series) for study, series in tree.items()]


def _study_item(study_instance_uid: str, series: dict[str, list[Dataset]]) -> Dataset:
    item = Dataset()
    item.StudyInstanceUID = study_instance_uid
    item.ReferencedSeriesSequence = [_series_item(*entry) for entry in series.items()]
    return item


def _series_item(series_instance_uid: str, instances: list[Dataset]) -> Dataset:
    item = Dataset()
    item.SeriesInstanceUID = series_instance_uid
    item.ReferencedSOPSequence = instances
    return item


def _instance(reference: Reference, purpose: Code | None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = reference.sop_class_uid
    item.ReferencedSOPInstanceUID = reference.sop_instance_uid
    if purpose:
        item.PurposeOfReferenceCodeSequence = [code_item(purpose)]
    return item


def _request(of: Subject, attributes: Dataset) -> Dataset:
    item = source.dataset_like(of.source)
    item.StudyInstanceUID = of.record.study_instance_uid
    item.ReferencedStudySequence = []
    for keyword in _ORDER:
        source.fill(item, keyword, attributes)
    source.fill(item, "AccessionNumber", attributes, of.source)
    return item


def _scheme(designator: str, record: DraftRecord) -> Dataset:
    item = Dataset()
    item.CodingSchemeDesignator = designator
    if designator == OWN_SCHEME:
        item.CodingSchemeUID = _OWN_SCHEME_UID
        item.CodingSchemeName = "dicom-node chest labels"
        item.CodingSchemeVersion = "1"
        item.CodingSchemeResponsibleOrganization = record.node.manufacturer
    else:
        item.CodingSchemeName = "Private scheme of the source images"
    return item


def _is_private(designator: str) -> bool:
    return designator.startswith("99") or designator == "L"  # PS3.3 8.2


def _file_meta(ds: Dataset, record: DraftRecord) -> FileMetaDataset:
    """PS3.10 7.1."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = f"DCMNODE_{record.node.version}"[:16]  # SH
    return meta


def _date_and_time(at: datetime) -> tuple[str, str]:
    return at.strftime("%Y%m%d"), at.strftime("%H%M%S")


def _date(text: str) -> str:
    """Return a DA value; the ACR-NEMA and ISO spellings are rewritten, all else is dropped."""
    match = re.fullmatch(r"(\d{4})([.-]?)(\d\d)\2(\d\d)", text)
    digits = "".join(match.group(1, 3, 4)) if match else ""
    try:
        datetime.strptime(digits, "%Y%m%d")
    except ValueError:
        return ""
    return digits


def _time(text: str) -> str:
    """Return a TM value; colons are dropped, and so is what still isn't one (PS3.5 6.2)."""
    legal = r"([01]\d|2[0-3])([0-5]\d(([0-5]\d|60)(\.\d{1,6})?)?)?"
    digits = text.replace(":", "")
    return digits if re.fullmatch(legal, digits) else ""
