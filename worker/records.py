"""What a draft is made from, gathered into the record that the encoders take."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Literal

import PIL.Image
from pydicom import Dataset
from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
)

from dicom_node import labeler
from dicom_node.config import Results, Settings
from dicom_node.drafts import Draft
from dicom_node.jobs import Job
from dicom_node.results import record, source
from dicom_node.results.record import (
    PAGES,
    DraftRecord,
    Input,
    LabelledFinding,
    Reference,
    Refusal,
)
from dicom_node.studies import Instance
from inference.findings import Algorithm, Findings, GreyImage, Image
from inference.indication import Indication

#: Who reads labels in the text of a draft.
LABELER = Algorithm(
    name=labeler.NAME,
    version=labeler.VERSION,
    manufacturer="dicom-node project",
    digest=labeler.DIGEST,
    parameters={"input": "the draft's text"},
)

#: The longer side; a page shows it some 9 cm high.
THUMBNAIL_PIXELS = 512
THUMBNAIL_QUALITY = 80

_TEXT_SR_CLASSES = {
    "basic": BasicTextSRStorage,
    "enhanced": EnhancedSRStorage,
    "comprehensive": ComprehensiveSRStorage,
}
_CODED_SR_CLASSES = {
    "comprehensive3d": Comprehensive3DSRStorage,
    "comprehensive": ComprehensiveSRStorage,
    "enhanced": EnhancedSRStorage,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The image that a model was given, and why."""

    instance: Instance
    header: Dataset
    rule: str
    image: Image
    indication: Indication | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What every record of a study says, whatever came of the study."""

    settings: Settings
    identity: record.Node
    job: Job
    images: Sequence[Instance]  #: every image that we hold of the study


def of_findings(origin: Origin, chosen: Chosen, findings: Findings) -> DraftRecord:
    """The record of a reading, of no certain kind and version yet."""
    used = Input(
        reference=_reference(chosen.instance), sha256=chosen.image.sha256, rule=chosen.rule
    )
    given = chosen.indication if findings.history is not None else None  # it may take none
    return replace(
        _record(origin, chosen.header, findings.algorithm, findings.text, (used,)),
        impression=findings.impression,
        history=findings.history,
        history_source=given.source if given else None,
        warnings=(*chosen.warnings, *chosen.image.warnings),
        labels=labels(findings),
        labeler=LABELER,
        thumbnail=thumbnail(chosen.image.pixels),
    )


def of_refusal(
    origin: Origin, header: Dataset, algorithm: Algorithm, refusal: Refusal
) -> DraftRecord:
    """The record of a study that the model can't read; ``header`` is any image's of it."""
    return _record(origin, header, algorithm, "", (), refusal)


def _record(
    origin: Origin,
    header: Dataset,
    algorithm: Algorithm,
    findings: str,
    inputs: tuple[Input, ...],
    refusal: Refusal | None = None,
) -> DraftRecord:
    job, node, results = origin.job, origin.settings.node, origin.settings.results
    if job.started_at is None:
        raise ValueError(f"job {job.id} was never claimed")
    return DraftRecord(
        study_instance_uid=job.study_instance_uid,
        source_header=source.source_header(header),
        node=origin.identity,
        algorithm=algorithm,
        # Without an offset in the object, PS3.5 6.2 DA/TM are local time: the machine's zone.
        started_at=job.started_at.astimezone(),
        findings=findings,
        inputs=inputs,
        refusal=refusal,
        evidence=tuple(_reference(instance) for instance in origin.images),
        institution_name=node.institution or None,
        timezone_offset=node.timezone_offset or None,
        content_qualification=results.content_qualification,
        legacy_heading_codes=results.legacy_heading_codes,
        series_number_base=results.series_number_base,
        hl7_status=results.hl7_status,
    )


def kinds(of: DraftRecord, results: Results) -> Sequence[str]:
    """The kinds of result that can be made of it, of those that the site wants."""
    if of.refusal:
        return [kind for kind in results.kinds if kind in ("text_sr", *PAGES)]
    return results.kinds


def as_kind(of: DraftRecord, kind: str, results: Results, before: Draft | None) -> DraftRecord:
    """The record of one kind of result, which replaces ``before``."""
    return replace(
        of,
        kind=kind,
        sop_class_uid=(classes(kind, results) or ("",))[0],
        version=before.version + 1 if before else 1,
        predecessor=reference(before) if before else None,
    )


def classes(kind: str, results: Results) -> tuple[str, ...]:
    """The SOP classes that a kind can be had in, the configured one first; empty: its own only."""
    known, wanted = {
        "text_sr": (_TEXT_SR_CLASSES, results.text_sr_class),
        "coded_sr": (_CODED_SR_CLASSES, results.coded_sr_class),
    }.get(kind, ({}, ""))
    return tuple(sorted(known.values(), key=lambda uid: uid != known[wanted]))


def reference(of: Draft) -> Reference:
    """How another document names this one."""
    return Reference(
        study_instance_uid=of.study_instance_uid,
        series_instance_uid=of.series_instance_uid,
        sop_class_uid=of.sop_class_uid,
        sop_instance_uid=of.sop_instance_uid,
    )


def labels(findings: Findings) -> tuple[LabelledFinding, ...]:
    """What the draft's text says of the chest labels, in the order of CheXpert's list."""
    said = labeler.labels("\n".join(filter(None, [findings.text, findings.impression])))
    return tuple(
        LabelledFinding(label=label.value, presence=_PRESENCE[said[label]])
        for label in labeler.Label
        if label in said
    )


_PRESENCE: dict[labeler.Presence, Literal["present", "absent", "undetermined"]] = {
    labeler.Presence.PRESENT: "present",
    labeler.Presence.ABSENT: "absent",
    labeler.Presence.UNDETERMINED: "undetermined",
}


def thumbnail(pixels: GreyImage) -> str:
    """A small grey JPEG of what the model saw, as base64: for a page, never for reading."""
    image = PIL.Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _reference(instance: Instance) -> Reference:
    return Reference(
        study_instance_uid=instance.study_instance_uid,
        series_instance_uid=instance.series_instance_uid,
        sop_class_uid=instance.sop_class_uid,
        sop_instance_uid=instance.sop_instance_uid,
    )
