"""The draft as a FHIR R4 DiagnosticReport.

Its status is ``partial``, "may be incomplete or unverified", and not ``preliminary``, which means
verified early results. The narrative is the presented form; ``conclusion`` stays empty, for what a
model says is not the report's conclusion.
"""

from __future__ import annotations

import base64
import json
import re

from pydicom import Dataset

from dicom_node.results import message, source
from dicom_node.results.header import Subject
from dicom_node.results.objects import ResultObject
from dicom_node.results.record import DraftRecord

Json = dict[str, object]

_DICOM_UID = "urn:dicom:uid"  # the system of UIDs as identifiers (FHIR R4, ImagingStudy)
_IDENTIFIER_TYPE = "http://terminology.hl7.org/CodeSystem/v2-0203"
_SERVICE = "http://terminology.hl7.org/CodeSystem/v2-0074"
_LOINC = "http://loinc.org"

_OID = re.compile(r"[0-2](\.(0|[1-9]\d*))+")
_URI = re.compile(r"(https?://|urn:)\S+")


def encode(record: DraftRecord) -> ResultObject:
    """Return the draft as a DiagnosticReport in JSON, UTF-8; pure."""
    of = message.subject(record)
    ds = message.described(of)
    resource = {name: value for name, value in _report(of, ds).items() if value}
    return message.result(ds, ".json", json.dumps(resource, ensure_ascii=False, indent=1) + "\n")


def resource_id(sop_instance_uid: str) -> str:
    """Return the id that the resource of that (derived) UID has on every server."""
    return str(message.uuid(sop_instance_uid))


def _report(of: Subject, ds: Dataset) -> Json:
    code = message.IMAGING_STUDY
    return {
        "resourceType": "DiagnosticReport",
        "id": resource_id(ds.SOPInstanceUID),
        "identifier": [_uid(ds.SOPInstanceUID)],
        "basedOn": _order(ds),
        "status": "partial",
        "category": [_concept(_SERVICE, "RAD", "Radiology")],
        "code": _concept(_LOINC, code.value, code.meaning) | {"text": ds.SeriesDescription},
        "subject": _patient(ds),
        "effectiveDateTime": _study_time(ds, of.timezone_offset),
        "issued": _instant(of),
        "imagingStudy": [{"type": "ImagingStudy", "identifier": _uid(ds.StudyInstanceUID)}],
        "presentedForm": [_form(of, ds)],
    }


def _form(of: Subject, ds: Dataset) -> Json:
    return {
        "contentType": "text/plain; charset=UTF-8",
        "language": "en-US",
        "data": base64.b64encode(_page(of.record).encode("utf-8")).decode("ascii"),
        "title": ds.SeriesDescription,
        "creation": _instant(of),
    }


def _page(record: DraftRecord) -> str:
    (_, banner), *said = message.sections(record)
    paragraphs = [f"{heading.meaning.upper()}\n{text}" for heading, text in said]
    return "\n\n".join([banner, *paragraphs]) + "\n"


def _patient(ds: Dataset) -> Json:
    """Refer to the patient by number alone: we know no server's ids."""
    number = message.text(ds, "PatientID")
    issuer = message.text(ds, "IssuerOfPatientID")
    if not number:
        return {}
    kind = _concept(_IDENTIFIER_TYPE, "MR", "Medical record number")
    return {
        "type": "Patient",
        "identifier": {"type": kind, **_issued_by(issuer), "value": number},
    }


def _issued_by(issuer: str) -> Json:
    """Say who gave the number: a system must be a URI, any other name is for people."""
    if _OID.fullmatch(issuer):
        return {"system": f"urn:oid:{issuer}"}
    if _URI.fullmatch(issuer):
        return {"system": issuer}
    return {"assigner": {"display": issuer}} if issuer else {}


def _order(ds: Dataset) -> list[Json]:
    accession = message.text(ds, "AccessionNumber")
    kind = _concept(_IDENTIFIER_TYPE, "ACSN", "Accession ID")
    order: Json = {"type": "ServiceRequest", "identifier": {"type": kind, "value": accession}}
    return [order] if accession else []


def _uid(uid: str) -> Json:
    return {"system": _DICOM_UID, "value": f"urn:oid:{uid}"}


def _concept(system: str, code: str, display: str) -> Json:
    return {"coding": [{"system": system, "code": code, "display": display}]}


def _instant(of: Subject) -> str:
    return of.started_at.isoformat(timespec="seconds")


def _study_time(ds: Dataset, offset: str) -> str:
    """Return a dateTime: FHIR wants a zone beside every time, so without one the day must do."""
    date = re.sub(r"(\d{4})(\d\d)(\d\d)", r"\1-\2-\3", source.plain(ds, "StudyDate"))
    time = re.match(r"(\d\d)(\d\d)(\d\d)?", source.plain(ds, "StudyTime"))
    if not (date and time and offset):
        return date
    hour, minute, second = time.groups(default="00")
    return f"{date}T{hour}:{minute}:{second}{offset[:3]}:{offset[3:]}"
