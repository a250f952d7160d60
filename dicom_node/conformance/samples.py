"""Draft records that together show all that our objects may carry, and what each value comes from.

No patient is behind them: the values are words such as SAMPLE A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any, Literal

from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.sr.coding import Code
from pydicom.uid import (
    BasicTextSRStorage,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    EnhancedSRStorage,
)

from dicom_node import __version__, labeler
from dicom_node.config import Settings
from dicom_node.results import source
from dicom_node.results.chest_labels import NO_FINDING
from dicom_node.results.header import code_item
from dicom_node.results.record import (
    DraftRecord,
    Input,
    LabelledFinding,
    Node,
    Reference,
    Refusal,
)
from inference.findings import Algorithm

#: Codes of the sample images; in our objects they stand for "whatever the image has". Those of a
#: private scheme have to be declared (PS3.3 C.12.1.1.7).
IMAGE_CODES = {
    "A": Code("36643-5", "LN", "XR Chest 2 Views"),
    "B": Code("SAMPLE", "99SAMPLEB", "SAMPLE B"),
    "C": Code("SAMPLE", "99SAMPLEC", "SAMPLE C"),
    "D": Code("SAMPLE", "99SAMPLED", "SAMPLE D"),
}

_Presence = Literal["present", "absent", "undetermined"]
_PRESENCES: Mapping[str, _Presence] = {"B": "absent", "C": "undetermined"}
_LABELER = Algorithm(
    name=labeler.NAME,
    version=labeler.VERSION,
    manufacturer="dicom-node project",
    digest=labeler.DIGEST,
)

# C is an image like A, and D one like B, but shown through tables, with codes of its own, and with
# an order that is hardly described.
_ALIKE = {"A": "A", "B": "B", "C": "A", "D": "B"}
# What is not simply text, of two images that differ in every value.
_VALUES: Mapping[str, Mapping[str, Any]] = {
    "A": {
        "SpecificCharacterSet": "ISO_IR 100",
        "PatientBirthDate": "19500101",
        "PatientBirthTime": "0101",
        "PatientSex": "F",
        "PatientAge": "070Y",
        "PatientIdentityRemoved": "YES",
        "StudyDate": "20200101",
        "StudyTime": "0101",
        "TimezoneOffsetFromUTC": "+0100",
        "LongitudinalTemporalInformationModified": "MODIFIED",
        "LongitudinalTemporalEventType": "ENROLLMENT",
        "LongitudinalTemporalOffsetFromEvent": 1.0,
        "Rows": 100,
        "Columns": 200,
        "PhotometricInterpretation": "MONOCHROME1",
        "PixelSpacing": ["0.1", "0.1"],
        "ShutterShape": ["RECTANGULAR", "CIRCULAR", "POLYGONAL"],
        "ShutterLeftVerticalEdge": 1,
        "ShutterRightVerticalEdge": 99,
        "ShutterUpperHorizontalEdge": 1,
        "ShutterLowerHorizontalEdge": 99,
        "CenterOfCircularShutter": [50, 50],
        "RadiusOfCircularShutter": 50,
        "VerticesOfThePolygonalShutter": [1, 1, 1, 99, 99, 99],
        "ShutterPresentationValue": 0,
    },
    "B": {
        "SpecificCharacterSet": "ISO_IR 192",
        "PatientBirthDate": "19600202",
        "PatientBirthTime": "0202",
        "PatientSex": "M",
        "PatientAge": "060Y",
        "PatientIdentityRemoved": "NO",
        "StudyDate": "20210202",
        "StudyTime": "0202",
        "TimezoneOffsetFromUTC": "-0800",
        "LongitudinalTemporalInformationModified": "REMOVED",
        "LongitudinalTemporalEventType": "BASELINE",
        "LongitudinalTemporalOffsetFromEvent": 2.0,
        "Rows": 300,
        "Columns": 400,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelSpacing": ["0.2", "0.1"],
        "ShutterShape": ["POLYGONAL", "CIRCULAR", "RECTANGULAR"],
        "ShutterLeftVerticalEdge": 2,
        "ShutterRightVerticalEdge": 88,
        "ShutterUpperHorizontalEdge": 2,
        "ShutterLowerHorizontalEdge": 88,
        "CenterOfCircularShutter": [40, 40],
        "RadiusOfCircularShutter": 40,
        "VerticesOfThePolygonalShutter": [2, 2, 2, 88, 88, 88],
        "ShutterPresentationValue": 100,
    },
}
_NUMBERS: Mapping[str, Mapping[str, str]] = {
    "A": {
        "RescaleIntercept": "0",
        "RescaleSlope": "1",
        "RescaleType": "US",
        "WindowCenter": "100",
        "WindowWidth": "200",
        "VOILUTFunction": "LINEAR",
    },
    "B": {
        "RescaleIntercept": "1",
        "RescaleSlope": "2",
        "RescaleType": "OD",
        "WindowCenter": "300",
        "WindowWidth": "400",
        "VOILUTFunction": "SIGMOID",
    },
}
_SIZE = ("Rows", "Columns", "PhotometricInterpretation")  # without these it is no image
_ISSUER = ("LocalNamespaceEntityID",)
_ITEMS: Mapping[str, Sequence[str]] = {
    "IssuerOfPatientIDQualifiersSequence": ("UniversalEntityID",),
    "IssuerOfAccessionNumberSequence": _ISSUER,
    "OtherPatientIDsSequence": ("PatientID", "IssuerOfPatientID"),
    "OtherClinicalTrialProtocolIDsSequence": (
        "ClinicalTrialProtocolID",
        "IssuerOfClinicalTrialProtocolID",
    ),
    "ConsentForClinicalTrialUseSequence": ("ClinicalTrialProtocolID",),
    "RequestAttributesSequence": (
        "AccessionNumber",
        "RequestedProcedureID",
        "RequestedProcedureDescription",
        "RequestedProcedureCodeSequence",
        "PlacerOrderNumberImagingServiceRequest",
        "FillerOrderNumberImagingServiceRequest",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Two records that differ in one thing only."""

    source: str  #: what differs: IMAGE, CONFIG, AUTO
    before: DraftRecord
    after: DraftRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Records to encode."""

    records: tuple[DraftRecord, ...]  #: the fullest first
    refused: DraftRecord  #: for the kinds that say that there is no draft
    changes: tuple[Change, ...]


def samples(settings: Settings) -> Samples:
    """Return records as this site would make them; equal settings, equal records."""
    rich = _record(settings, "A")
    bare = _bare(rich)
    sites = _at_site(bare, "A"), _at_site(bare, "B")
    readings = _read_otherwise(rich, "B"), _read_otherwise(rich, "C")
    tabled = _read_otherwise(_record(settings, "C"), "B")
    changes = (
        Change(source="IMAGE", before=rich, after=_of_other_study(rich, "B")),
        Change(source="IMAGE", before=tabled, after=_of_other_study(tabled, "D")),
        Change(source="CONFIG", before=sites[0], after=sites[1]),
        Change(source="AUTO", before=rich, after=readings[0]),
        Change(source="AUTO", before=readings[0], after=readings[1]),
    )
    changed = [record for change in changes for record in (change.before, change.after)]
    records = {id(record): record for record in (rich, bare, *changed)}  # each once
    refusal = Refusal(code="SAMPLE", text="SAMPLE")
    return Samples(
        records=tuple(records.values()),
        refused=replace(bare, findings="", inputs=(), labeler=None, refusal=refusal),
        changes=changes,
    )


def _record(settings: Settings, letter: Literal["A", "C"]) -> DraftRecord:
    node, results = settings.node, settings.results
    return DraftRecord(
        study_instance_uid="1.2.3",
        source_header=source.source_header(_image(letter)),
        node=Node(ae_title=node.ae_title, version=__version__, installation_id="SAMPLE A"),
        algorithm=_algorithm("A"),
        # Early in the day: in a zone to the west it is the day before.
        started_at=datetime(2024, 1, 2, 2, 30, tzinfo=UTC),
        findings="SAMPLE A",
        inputs=(_input("1.2.3"),),
        evidence=(_input("1.2.3").reference, _input("1.2.33").reference),
        impression="SAMPLE A",
        history="SAMPLE A",
        history_source="SAMPLE A",
        timezone_offset=node.timezone_offset or None,
        institution_name=node.institution or None,
        content_qualification=results.content_qualification,
        labels=_labels("present"),
        labeler=_LABELER,
        legacy_heading_codes=results.legacy_heading_codes,
        series_number_base=results.series_number_base,
    )


def _bare(of: DraftRecord) -> DraftRecord:
    """A record of an image that says nothing but how large it is."""
    return replace(
        of,
        source_header=source.source_header(_bare_image()),
        evidence=tuple(image.reference for image in of.inputs),
        impression=None,
        history=None,
        history_source=None,
        institution_name=None,
        timezone_offset=None,
        labels=(),
    )


def _of_other_study(of: DraftRecord, letter: Literal["B", "D"]) -> DraftRecord:
    used, prior = _input("1.2.4"), _input("1.2.44").reference
    before = of.predecessor and replace(of.predecessor, study_instance_uid="1.2.4")
    return replace(
        of,
        study_instance_uid="1.2.4",
        source_header=source.source_header(_image(letter)),
        inputs=(used,),
        evidence=(used.reference, prior),
        predecessor=before,
    )


def _at_site(of: DraftRecord, letter: Literal["A", "B"]) -> DraftRecord:
    """A site whose every setting is another one than the other site's."""
    qualifications: Mapping[str, Literal["RESEARCH", "PRODUCT"]] = {"A": "RESEARCH", "B": "PRODUCT"}
    return replace(
        of,
        node=replace(of.node, ae_title=f"SAMPLE {letter}"),
        timezone_offset={"A": "+0100", "B": "-0800"}[letter],
        institution_name=f"SAMPLE {letter}",
        content_qualification=qualifications[letter],
        series_number_base={"A": 100, "B": 200}[letter],
    )


def _read_otherwise(of: DraftRecord, letter: Literal["B", "C"]) -> DraftRecord:
    """Another reading of the same image: all that is made here is another."""
    later = timedelta(days=1, hours=1, minutes=1) * ("ABC".index(letter))
    return replace(
        of,
        node=replace(of.node, version=f"SAMPLE {letter}", installation_id=f"SAMPLE {letter}"),
        algorithm=_algorithm(letter),
        labeler=replace(_LABELER, version=f"SAMPLE {letter}", digest=letter * 64),
        started_at=of.started_at + later,
        # More than a page, and not in the image's character set.
        findings="\n\n".join([f"SAMPLE {letter} \u03b2 " * 20] * 30),
        impression=f"SAMPLE {letter}",
        history=f"SAMPLE {letter}",
        history_source=f"SAMPLE {letter}",
        labels=_labels(_PRESENCES[letter]),
        version="ABC".index(letter) + 1,
        predecessor=Reference(
            study_instance_uid=of.study_instance_uid,
            series_instance_uid={"B": "2.25.2", "C": "2.25.3"}[letter],
            sop_class_uid={"B": BasicTextSRStorage, "C": EnhancedSRStorage}[letter],
            sop_instance_uid={"B": "2.25.4", "C": "2.25.5"}[letter],
        ),
    )


def _labels(presence: _Presence) -> tuple[LabelledFinding, ...]:
    return tuple(
        LabelledFinding(label=label.value, presence=presence)
        for label in labeler.Label
        if label.value != NO_FINDING
    )


def _algorithm(letter: str) -> Algorithm:
    return Algorithm(
        name=f"SAMPLE {letter}",
        version=f"SAMPLE {letter}",
        manufacturer=f"SAMPLE {letter}",
        digest=letter * 64,
        parameters={"sample": letter},
    )


def _input(study: str) -> Input:
    computed = study.startswith("1.2.3")
    reference = Reference(
        study_instance_uid=study,
        series_instance_uid=f"{study}.1",
        sop_class_uid=ComputedRadiographyImageStorage
        if computed
        else DigitalXRayImageStorageForPresentation,
        sop_instance_uid=f"{study}.1.1",
    )
    return Input(reference=reference, sha256="0" * 64, rule="SAMPLE")


def _image(letter: str) -> Dataset:
    """A header with everything that results look for."""
    ds = Dataset()
    for keyword in (*source.IDENTITY, *source.IF_PRESENT, *source.EQUIPMENT):
        setattr(ds, keyword, _value(keyword, letter))
    ds.RequestAttributesSequence = _value("RequestAttributesSequence", letter)
    alike = _ALIKE[letter]
    for keyword, value in _VALUES[alike].items():
        setattr(ds, keyword, value)
    if letter == alike:
        for keyword, value in _NUMBERS[letter].items():
            setattr(ds, keyword, value)
    else:
        _change(ds, letter)
    return _reread(ds)


def _change(ds: Dataset, letter: str) -> None:
    """Make an image like A or B one like C or D."""
    ds.ModalityLUTSequence = [_lookup_table(letter)]
    ds.VOILUTSequence = [_lookup_table(letter)]
    ds.add_new(source.OVERLAY_TYPES[0], "CS", "G")
    scheme = Dataset()
    scheme.CodingSchemeDesignator = IMAGE_CODES[letter].scheme_designator
    scheme.CodingSchemeName = f"SAMPLE {letter}"
    ds.CodingSchemeIdentificationSequence = [scheme]
    order = Dataset()
    order.ScheduledProcedureStepID = f"SAMPLE {letter}"
    ds.RequestAttributesSequence = [order]
    ds.AccessionNumber = ""


def _bare_image() -> Dataset:
    ds = Dataset()
    for keyword in _SIZE:
        setattr(ds, keyword, _VALUES["A"][keyword])
    return _reread(ds)


def _value(keyword: str, letter: str) -> object:
    if keyword.endswith("CodeSequence"):
        return [code_item(IMAGE_CODES[letter])]
    if dictionary_VR(keyword) != "SQ":
        return _VALUES[_ALIKE[letter]].get(keyword, f"SAMPLE {letter}")
    item = Dataset()
    for inner in _ITEMS[keyword]:
        setattr(item, inner, _value(inner, letter))
    return [item]


def _lookup_table(letter: str) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [2, 0, 16])
    item.ModalityLUTType = "US"
    item.add_new("LUTData", "US", [ord(letter), 65535])
    return item


def _reread(ds: Dataset) -> Dataset:
    """Write and read it: in a file, values are bytes, and that is what results get."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    write_dataset(buffer, ds)
    return read_dataset(BytesIO(buffer.getvalue()), False, True)
