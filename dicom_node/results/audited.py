"""What an audit message says of a result: which study, whose, which object."""

from __future__ import annotations

import json

from dicom_node.audit import patient
from dicom_node.audit.messages import Content
from dicom_node.drafts import Draft
from dicom_node.results import source
from dicom_node.results.record import DraftRecord


def content(draft: Draft) -> Content:
    """Return what passes with a draft; a message (HL7, FHIR) is of no SOP class."""
    record = DraftRecord.from_json(json.dumps(draft.record))
    return Content(
        study_instance_uid=draft.study_instance_uid,
        patient_id=patient.of_header(source.read(record.source_header)),
        sop_classes={draft.sop_class_uid: 1} if draft.sop_class_uid else {},
    )
