"""The draft's findings as codes: PS3.16 TID 1500, Measurement Report, after IHE AIR.

Headers are ours, for highdicom's SR classes refuse many a source (see header.py); of highdicom
come the content items. Every container is SEPARATE: run together, as highdicom would have it,
Weasis and dcm4chee show them as one unreadable line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    FindingSite,
    ImageContentItem,
    Measurement,
    MeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    SourceImageForMeasurementGroup,
    TrackingIdentifier,
)
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
)

from dicom_node.results import context, objects, uids
from dicom_node.results.chest_labels import CHEST, NO_FINDING, chest_label
from dicom_node.results.header import (
    SeriesKind,
    Subject,
    declare_private_schemes,
    description,
    header,
    printable,
    short_name,
    sr_document,
    subject,
)
from dicom_node.results.objects import ResultObject
from dicom_node.results.record import DraftRecord, Input, LabelledFinding

SERIES = SeriesKind(modality="SR", number=2, title="AI FINDINGS")

# PS3.16 TID 1500, TID 1501, TID 1600 to 1602.
REPORT = Code("126000", "DCM", "Imaging Measurement Report")
MEASUREMENTS = Code("126010", "DCM", "Imaging Measurements")
IMAGE_LIBRARY = Code("111028", "DCM", "Image Library")
IMAGE_LIBRARY_GROUP = Code("126200", "DCM", "Image Library Group")
SOURCE = Code("260753009", "SCT", "Source")
MODALITY = Code("121139", "DCM", "Modality")
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
PERCENT = Code("%", "UCUM", "percent")
# TID 1500 takes CID 100; this is its most general procedure.
IMAGING_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")

PRESENCE: Mapping[str, Code] = {  # PS3.16 CID 240
    "present": Code("52101004", "SCT", "Present"),
    "absent": Code("272519000", "SCT", "Absent"),
    "undetermined": Code("373068000", "SCT", "Undetermined"),
}

_COMPUTED = Code("CR", "DCM", "Computed Radiography")  # PS3.16 CID 29
_DIGITAL = Code("DX", "DCM", "Digital Radiography")
_MODALITIES: Mapping[str, Code] = {
    ComputedRadiographyImageStorage: _COMPUTED,
    DigitalXRayImageStorageForPresentation: _DIGITAL,
    DigitalXRayImageStorageForProcessing: _DIGITAL,
}

# TID 1500 has no place for a banner; Tracking Identifier is what every viewer shows of a group.
_DRAFT = "AI DRAFT, NOT FOR DIAGNOSIS"


def encode(record: DraftRecord) -> ResultObject:
    """Return the record's labels as a Part 10 file; pure.

    Raises
    ------
    ConfigurationError
        A label has no code.
    """
    return objects.from_dataset(document(record))


def document(record: DraftRecord) -> Dataset:
    """Return the record's labels as an SR document, with file meta; pure.

    The record's ``sop_class_uid`` may ask for Comprehensive or Enhanced SR: the tree is legal in
    each (PS3.3 A.35.2.3, A.35.3.3, A.35.13.3). A draft of which no label can be said gives a group
    that names the algorithm and the images, and no finding (PS3.16 TID 1501: all its rows are U).
    """
    of = subject(record)
    ds = header(of, record.sop_class_uid or Comprehensive3DSRStorage, SERIES)
    ds.update(sr_document(of))
    ds.update(_tree(of))
    declare_private_schemes(ds, of)
    return ds


def _tree(of: Subject) -> Dataset:
    root = ContainerContentItem(REPORT, is_content_continuous=False, template_id="1500")
    procedure = context.source_procedure(of.source) or IMAGING_PROCEDURE
    root.ContentSequence = ContentSequence(
        [
            context.language(),
            *context.observer(of.record.node),
            context.procedure_reported(procedure),
            _image_library(of.record.inputs),
            _container(MEASUREMENTS, _groups(of.record)),
        ]
    )
    return root


def _container(name: Code, items: Sequence[ContentItem]) -> ContentItem:
    container = ContainerContentItem(
        name, is_content_continuous=False, relationship_type="CONTAINS"
    )
    container.ContentSequence = ContentSequence(items)
    return container


def _image_library(inputs: Iterable[Input]) -> ContentItem:
    group = _container(IMAGE_LIBRARY_GROUP, [_library_entry(image) for image in inputs])
    return _container(IMAGE_LIBRARY, [group])


def _library_entry(image: Input) -> ContentItem:
    used = image.reference
    entry = ImageContentItem(
        SOURCE, used.sop_class_uid, used.sop_instance_uid, relationship_type="CONTAINS"
    )
    modality = _MODALITIES.get(used.sop_class_uid)
    if modality:  # TID 1602 is optional, but its Modality is not, nor is a word not in CID 29
        entry.ContentSequence = ContentSequence(
            [CodeContentItem(MODALITY, modality, "HAS ACQ CONTEXT")]
        )
    return entry


def _groups(record: DraftRecord) -> list[ContentItem]:
    said = [one for one in record.labels if one.label != NO_FINDING]
    certain = [one for one in said if one.presence == "present" and one.certainty is not None]
    return [_all_labels(record, said), *(_certainty(record, one) for one in certain)]


def _all_labels(record: DraftRecord, said: Iterable[LabelledFinding]) -> ContentItem:
    # Never Finding = label here: who reads that alone would read an absent disease as present.
    evaluations = [
        QualitativeEvaluation(chest_label(one.label).code, PRESENCE[one.presence]) for one in said
    ]
    told = (
        _origin(record) if evaluations else f"{_origin(record)}; none, which is not a normal chest"
    )
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(record, "labels", told),
        finding_sites=[FindingSite(CHEST)],
        algorithm_id=_algorithm(record),
        qualitative_evaluations=evaluations,
        source_images=_source_images(record),
    )
    return _separate(group)


def _certainty(record: DraftRecord, said: LabelledFinding) -> ContentItem:
    label = chest_label(said.label)
    told = f"{label.code.meaning} ({_origin(record)})"
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(record, said.label, told),
        finding_type=label.code,
        finding_sites=[FindingSite(label.site)] if label.site else None,
        algorithm_id=_algorithm(record),
        # A float always: a whole number comes back as one from the stored record.
        measurements=[Measurement(CERTAINTY, float(said.certainty or 0), PERCENT)],
        source_images=_source_images(record),
    )
    return _separate(group)


def _separate(group: MeasurementsAndQualitativeEvaluations) -> ContentItem:
    container: Dataset = group[0]
    container.ContinuityOfContent = "SEPARATE"
    return ContainerContentItem.from_dataset(container, copy=False)


def _tracking(record: DraftRecord, name: str, told: str) -> TrackingIdentifier:
    return TrackingIdentifier(uids.tracking_uid(record, name), f"{_DRAFT}: {told}")


def _origin(record: DraftRecord) -> str:
    """Labels that were read in the draft are no evidence beside it, and have to say so."""
    if record.labeler is None:
        return "classifier output"
    return f"labels extracted from the draft text by {short_name(record.labeler, 64)}"


def _algorithm(record: DraftRecord) -> AlgorithmIdentification:
    """PS3.16 TID 4019, by the names that Contributing Equipment has."""
    algorithm = record.labeler or record.algorithm
    return AlgorithmIdentification(
        name=short_name(algorithm, 64),
        version=printable(algorithm.version),
        parameters=[description(algorithm, digits=12)],
    )


def _source_images(record: DraftRecord) -> list[SourceImageForMeasurementGroup]:
    used = [image.reference for image in record.inputs]
    return [SourceImageForMeasurementGroup(one.sop_class_uid, one.sop_instance_uid) for one in used]
