from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fhir.resources.R4B.diagnosticreport import DiagnosticReport
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dicom_node.results import fhir, objects
from dicom_node.results.record import DraftRecord
from tests.dicom_node.results.samples import (
    ALGORITHM,
    ODD,
    STUDY,
    bare_header,
    header,
    record,
    second_record,
)

# What pydicom says on reading our misspelt source.
pytestmark = pytest.mark.filterwarnings("ignore:Incorrect value for Specific Character Set")


def resource(of: DraftRecord) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(fhir.encode(replace(of, kind="fhir")).file)
    return made


def judged(of: DraftRecord) -> DiagnosticReport:
    return DiagnosticReport.model_validate_json(fhir.encode(replace(of, kind="fhir")).file)


def page(of: DraftRecord) -> str:
    return base64.b64decode(resource(of)["presentedForm"][0]["data"]).decode("utf-8")


def patient(of: DraftRecord) -> dict[str, Any]:
    identifier: dict[str, Any] = resource(of)["subject"]["identifier"]
    return identifier


@pytest.mark.parametrize("make", [record, second_record], ids=["first", "second"])
def test_the_resource_is_a_diagnostic_report(make: Callable[[], DraftRecord]) -> None:
    report = judged(make())
    assert report.status == "partial"
    assert report.category[0].coding[0].code == "RAD"
    assert report.code.coding[0].system == "http://loinc.org"
    assert report.code.coding[0].code == "18748-4"


@pytest.mark.parametrize("name", ODD)
def test_an_odd_source_gives_a_good_resource(name: str) -> None:
    of = record(ODD[name]())
    assert judged(of).status == "partial"
    assert of.findings in page(of)


@pytest.mark.parametrize("field", ["status", "code"])
def test_the_judge_notices_what_is_missing(field: str) -> None:
    broken = resource(record())
    del broken[field]
    with pytest.raises(ValidationError):
        DiagnosticReport.model_validate(broken)


def test_nothing_is_empty_and_nothing_is_an_extension() -> None:
    def values(of: Any) -> list[Any]:
        inside = of.values() if isinstance(of, dict) else of if isinstance(of, list) else ()
        return [of, *(value for one in inside for value in values(one))]

    for of in (record(), second_record(), record(bare_header())):
        assert all(value not in ("", [], {}, None) for value in values(resource(of)))
        assert "xtension" not in json.dumps(resource(of))


def test_the_draft_has_no_conclusion() -> None:
    of = second_record()
    assert not {"conclusion", "conclusionCode", "result"} & set(resource(of))


def test_the_page_says_first_that_it_is_a_draft() -> None:
    assert page(second_record()) == (
        "AI-GENERATED DRAFT - NOT FOR DIAGNOSIS. Unverified output of LLaVA-Rad. "
        "A radiologist must review, correct and sign before any use.\n\n"
        "FINDINGS\nThere is no focal consolidation.\n\nThe heart is mildly enlarged.\n\n"
        "IMPRESSIONS\nMild cardiomegaly.\n"
    )
    assert resource(record())["presentedForm"][0]["contentType"] == "text/plain; charset=UTF-8"


def test_the_title_says_that_it_is_a_draft_and_which() -> None:
    title = "AI DRAFT - NOT FOR DIAGNOSIS (LLaVA-Rad) v2"
    made = resource(second_record())
    assert made["code"]["text"] == made["presentedForm"][0]["title"] == title


def test_a_demo_model_is_named_in_title_and_page() -> None:
    demo = record(algorithm=replace(ALGORITHM, name="DEMO MODEL (phantoms only)", demo=True))
    assert "DEMO MODEL" in resource(demo)["code"]["text"]
    assert "DEMO MODEL" in page(demo).splitlines()[0]


@given(st.text(st.characters(codec="utf-8")).filter(lambda t: any(c.isalpha() for c in t)))
def test_the_findings_are_verbatim(findings: str) -> None:
    assert page(record(findings=findings)).endswith(f"\n\nFINDINGS\n{findings}\n")


def test_patient_study_and_order_are_named_by_identifier_alone() -> None:
    made = resource(record())
    assert set(made["subject"]) == {"type", "identifier"}
    assert made["imagingStudy"] == [
        {
            "type": "ImagingStudy",
            "identifier": {"system": "urn:dicom:uid", "value": f"urn:oid:{STUDY}"},
        }
    ]
    assert made["basedOn"][0]["identifier"]["value"] == "ACC1"


@pytest.mark.parametrize(
    ("issuer", "said"),
    [
        ("GENHOSP", {"assigner": {"display": "GENHOSP"}}),
        ("1.2.826.0.1", {"system": "urn:oid:1.2.826.0.1"}),
        ("https://example.org/mrn", {"system": "https://example.org/mrn"}),
        ("urn:oid:1.2.3", {"system": "urn:oid:1.2.3"}),
        ("", {}),
    ],
)
def test_an_issuer_is_a_system_only_if_it_is_a_uri(issuer: str, said: dict[str, Any]) -> None:
    identifier = patient(record(header(IssuerOfPatientID=issuer)))
    assert identifier["value"] == "MRN0012345"
    assert {key: identifier[key] for key in said} == said
    assert {"system", "assigner"} & set(identifier) == set(said)


def test_a_number_is_not_rewritten() -> None:
    assert patient(record(header(PatientID="A\\B  1/2")))["value"] == "A\\B  1/2"


def test_a_patient_without_a_number_is_not_named() -> None:
    made = resource(record(header(PatientID="", AccessionNumber="")))
    assert not {"subject", "basedOn"} & set(made)


@pytest.mark.parametrize(
    ("date", "time", "offset", "wanted"),
    [
        ("20240311", "101203.123456", "+0100", "2024-03-11T10:12:03+01:00"),
        ("20240311", "1012", "-0330", "2024-03-11T10:12:00-03:30"),
        ("20240311", "10", "+0100", "2024-03-11"),
        ("20240311", "101203", None, "2024-03-11"),
        ("20240311", "", "+0100", "2024-03-11"),
        ("2024.03.11", "10:12:03", "+0100", "2024-03-11T10:12:03+01:00"),
        ("", "101203", "+0100", None),
    ],
)
def test_a_time_needs_a_zone(date: str, time: str, offset: str | None, wanted: str | None) -> None:
    of = record(header(StudyDate=date, StudyTime=time), timezone_offset=offset)
    assert resource(of).get("effectiveDateTime") == wanted
    judged(of)


def test_it_is_issued_when_the_analysis_started() -> None:
    assert resource(record())["issued"] == "2024-03-11T10:20:30+01:00"
    assert resource(record(timezone_offset=None))["issued"] == "2024-03-11T09:20:30+00:00"


def test_equal_records_give_equal_bytes() -> None:
    of = second_record(kind="fhir")
    assert fhir.encode(of) == fhir.encode(DraftRecord.from_json(of.to_json()))


def test_another_text_is_another_resource() -> None:
    first, other = resource(record())["id"], resource(record(findings="Other."))["id"]
    assert first != other
    assert re.fullmatch(r"[A-Za-z0-9\-.]{1,64}", first)


def test_the_id_is_found_again_from_the_uid() -> None:
    made = objects.encode(record(kind="fhir"))
    assert json.loads(made.file)["id"] == fhir.resource_id(made.sop_instance_uid)
    assert made.suffix == ".json"
    assert (made.series_instance_uid, made.sop_class_uid) == ("", "")
