from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import DataElement, Dataset
from pydicom.config import IGNORE
from pydicom.sr.coding import Code
from pydicom.uid import (
    BasicTextSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ExplicitVRBigEndian,
)

from dicom_node.results import text_sr
from dicom_node.results.header import code_item
from dicom_node.results.record import DraftRecord
from tests.dicom_node.results.acceptance import POINTS, Case, case, check, children, section
from tests.dicom_node.results.samples import (
    ALGORITHM,
    CHARSET_FILES,
    ODD,
    SERIES,
    charset_header,
    chosen,
    header,
    record,
    reference,
    second_record,
)

# What pydicom says on reading our misspelt source.
pytestmark = pytest.mark.filterwarnings("ignore:Incorrect value for Specific Character Set")

SHARED = Path(__file__).parents[4] / "shared"
FOLDERS = ("hostile", "other", "cxr/real", "cxr/wrapped")
SOP_CLASSES = [BasicTextSRStorage, EnhancedSRStorage, ComprehensiveSRStorage]


def bytes_of(of: DraftRecord, sop_class: str = BasicTextSRStorage) -> bytes:
    return text_sr.encode(replace(of, sop_class_uid=sop_class)).file


def judged(of: DraftRecord, image: Dataset, sop_class: str = BasicTextSRStorage) -> Case:
    stored = DraftRecord.from_json(of.to_json())
    return case(bytes_of(of, sop_class), bytes_of(stored, sop_class), of, image)


# --- good documents ------------------------------------------------------------------------------


@pytest.mark.parametrize("sop_class", SOP_CLASSES, ids=["Basic Text", "Enhanced", "Comprehensive"])
@pytest.mark.parametrize("make", [record, second_record], ids=["first", "second"])
def test_a_draft_passes_every_acceptance_point(
    make: Callable[[Dataset], DraftRecord], sop_class: str
) -> None:
    assert check(judged(make(header()), header(), sop_class)) == []


@pytest.mark.parametrize("name", ODD)
def test_an_odd_source_still_gives_a_good_draft(name: str) -> None:
    image = ODD[name]()
    assert check(judged(record(image), ODD[name]())) == []


@pytest.mark.parametrize("file", CHARSET_FILES, ids=lambda f: Path(f).stem)
def test_every_character_set_comes_back_byte_by_byte(file: str) -> None:
    assert check(judged(record(charset_header(file)), charset_header(file))) == []


@pytest.mark.parametrize("name", ["ja", "ko", "zh 2022", "ru", "utf-8", "no character set"])
def test_a_draft_that_the_source_s_set_cannot_write_moves_to_utf8(name: str) -> None:
    of = record(ODD[name](), findings="Opacity \u2265 3 cm, Ödem, 咳.")
    judgement = judged(of, ODD[name]())
    assert judgement.ds.SpecificCharacterSet == "ISO_IR 192"
    assert check(judgement) == []


def test_a_history_in_the_source_s_script_keeps_the_source_s_set() -> None:
    of = record(ODD["ja"](), history="咳と熱")
    judgement = judged(of, ODD["ja"]())
    assert list(judgement.ds.SpecificCharacterSet) == ["", "ISO 2022 IR 87"]
    assert check(judgement) == []


def test_a_demo_model_is_named_in_title_and_banner() -> None:
    demo = replace(ALGORITHM, name="DEMO MODEL (phantoms only)", demo=True)
    judgement = judged(record(algorithm=demo), header())
    assert check(judgement) == []
    assert judgement.ds.SeriesDescription == (
        "AI DRAFT - NOT FOR DIAGNOSIS (DEMO MODEL (phantoms only))"
    )
    assert "DEMO MODEL" in text_sr.text(judgement.ds).splitlines()[0]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data at {SHARED}")
def test_every_header_of_the_shared_data_gives_a_good_draft() -> None:
    judged_files = 0
    for file in [f for folder in FOLDERS for f in sorted((SHARED / "data" / folder).glob("*.dcm"))]:
        with warnings.catch_warnings():  # other people's values: pydicom may say what it likes
            warnings.simplefilter("ignore")
            failing = _failing_points(file)
        judged_files += failing is not None
        assert not failing, f"{file.name}: {failing}"
    assert judged_files > 60


def _failing_points(file: Path) -> list[str] | None:
    def image() -> Dataset:
        return pydicom.dcmread(file, stop_before_pixels=True, force=True)

    ds = image()
    uids = [ds.get(k) for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
    if not all(isinstance(uid, pydicom.uid.UID) and uid.is_valid for uid in uids):
        return None
    study, series, instance = map(str, uids)
    used = reference(instance, series, study)
    of = record(ds, study_instance_uid=study, inputs=(chosen(used),), evidence=(used,))
    return check(judged(of, image()))


# --- bad documents: each point must notice its own mistake ---------------------------------------


def _set(keyword: str, value: object) -> Callable[[Case], None]:
    def mutate(of: Case) -> None:
        tag = pydicom.datadict.tag_for_keyword(keyword)
        assert tag is not None
        vr = pydicom.datadict.dictionary_VR(tag)
        of.ds[tag] = DataElement(tag, vr, value, validation_mode=IGNORE)

    return mutate


def _delete(keyword: str) -> Callable[[Case], None]:
    return lambda of: of.ds.__delattr__(keyword)


def _edit(path: str, keyword: str, value: object) -> Callable[[Case], None]:
    """Set an attribute of the first item at a path of sequence keywords; None deletes it."""

    def mutate(of: Case) -> None:
        item = of.ds
        for step in path.split("."):
            item = item[step].value[0]
        _assign(item, keyword, value)

    return mutate


def _assign(item: Dataset, keyword: str, value: object) -> None:
    if value is None:
        delattr(item, keyword)
    else:
        setattr(item, keyword, value)


def _in_section(heading: str, keyword: str, value: object) -> Callable[[Case], None]:
    """Set an attribute of a section's first content item."""
    return lambda of: _assign(section(of, heading).ContentSequence[0], keyword, value)


def _section(heading: str, keyword: str, value: object) -> Callable[[Case], None]:
    return lambda of: _assign(section(of, heading), keyword, value)


def _named(value: str, keyword: str, to: object) -> Callable[[Case], None]:
    """Set an attribute of the root's child of that concept name."""

    def mutate(of: Case) -> None:
        for item in of.ds.ContentSequence:
            if item.ConceptNameCodeSequence[0].CodeValue == value:
                _assign(item, keyword, to)

    return mutate


def _recoded(value: str, *new: str) -> Callable[[Case], None]:
    def mutate(of: Case) -> None:
        _named(value, "ConceptCodeSequence", [code_item(Code(*new))])(of)

    return mutate


def _image_of_first_finding(of: Case) -> Dataset:
    image: Dataset = section(of, "59776-5").ContentSequence[0].ContentSequence[0]
    return image


def _refer(keyword: str, value: str) -> Callable[[Case], None]:
    return lambda of: _assign(_image_of_first_finding(of).ReferencedSOPSequence[0], keyword, value)


def _data(change: Callable[[bytes], bytes]) -> Callable[[Case], None]:
    def mutate(of: Case) -> None:
        of.data = change(of.data)

    return mutate


def _meta(keyword: str, value: str) -> Callable[[Case], None]:
    return lambda of: setattr(of.ds.file_meta, keyword, value)


def _append_root(value_type: str, relationship: str, name: Code) -> Callable[[Case], None]:
    def mutate(of: Case) -> None:
        item = Dataset()
        item.ValueType, item.RelationshipType = value_type, relationship
        item.ConceptNameCodeSequence = [code_item(name)]
        item.TextValue = "x"
        of.ds.ContentSequence.append(item)

    return mutate


def _image_beside_the_text(of: Case) -> None:
    image = _image_of_first_finding(of)
    image.RelationshipType = "CONTAINS"
    section(of, "59776-5").ContentSequence.append(image)


def _reverse_sections(of: Case) -> None:
    of.ds.ContentSequence = list(of.ds.ContentSequence)[::-1]


def _drop_images(of: Case) -> None:
    for item in children(section(of, "59776-5")):
        del item.ContentSequence


def _private(of: Case) -> None:
    of.ds.AuthorObserverSequence[0].private_block(9, "X", create=True).add_new(1, "LO", "y")


def _study_of_another_patient(of: Case) -> None:
    of.image["StudyInstanceUID"] = DataElement(0x0020000D, "UI", b"1.2.3")


EVIDENCE = "CurrentRequestedProcedureEvidenceSequence"
EVIDENCE_SERIES = f"{EVIDENCE}.ReferencedSeriesSequence"
EVIDENCE_SOP = f"{EVIDENCE_SERIES}.ReferencedSOPSequence"
PREDECESSOR = "PredecessorDocumentsSequence"
PREDECESSOR_SERIES = f"{PREDECESSOR}.ReferencedSeriesSequence"
PREDECESSOR_SOP = f"{PREDECESSOR_SERIES}.ReferencedSOPSequence"
REQUEST = "ReferencedRequestSequence"
EQUIPMENT = "ContributingEquipmentSequence"
AUTHOR = "AuthorObserverSequence"


def _same_uid_as_predecessor(keyword: str, path: str) -> Callable[[Case], None]:
    def mutate(of: Case) -> None:
        uid = of.ds[keyword].value
        _edit(path, keyword.replace("SOP", "ReferencedSOP"), uid)(of)

    return mutate


def _twice_in_evidence(of: Case) -> None:
    series = of.ds[EVIDENCE].value[0].ReferencedSeriesSequence[0]
    series.ReferencedSOPSequence.append(series.ReferencedSOPSequence[0])


MUTATIONS: list[tuple[str, Callable[[Case], None]]] = [
    ("FILE-1", _data(lambda data: data[128:])),
    ("FILE-2", _meta("MediaStorageSOPInstanceUID", "2.25.1")),
    ("FILE-3", _meta("TransferSyntaxUID", ExplicitVRBigEndian)),
    ("FILE-4", _meta("ImplementationClassUID", "1.2.826.0.1.3680043.8.498.1")),
    ("FILE-5", _private),
    ("FILE-6", _set("PixelData", b"ab")),
    ("HDR-1", _set("SOPClassUID", "1.2.840.10008.5.1.4.1.1.88.34")),
    ("HDR-2", _set("Modality", "DX")),
    ("HDR-3", _set("SeriesNumber", 1)),
    ("HDR-4", _set("InstanceNumber", 2)),
    ("HDR-5", _set("ContentTime", "235959")),
    ("HDR-5", _set("SeriesDate", "20300101")),
    ("HDR-6", _set("TimezoneOffsetFromUTC", "+0000")),
    ("HDR-7", _set("SeriesDescription", "AI DRAFT (LLaVA-Rad) v2")),
    ("HDR-7", _set("SeriesDescription", "AI DRAFT - NOT FOR DIAGNOSIS (LLaVA-Rad)")),
    ("HDR-8", _set("ContentQualification", "PRODUCT")),
    ("HDR-9", _delete("ReferencedPerformedProcedureStepSequence")),
    ("HDR-9", _set("PerformedProcedureCodeSequence", [])),
    ("ID-1", _delete("PatientBirthDate")),
    ("ID-2", _set("PatientName", b"Doe^Jane")),
    ("ID-2", _set("PatientSex", "")),
    ("ID-3", _study_of_another_patient),
    ("ID-4", _delete("IssuerOfPatientID")),
    ("EQ-1", _set("DeviceSerialNumber", "")),
    ("EQ-2", _edit(AUTHOR, "ObserverType", "PSN")),
    ("EQ-2", _edit(AUTHOR, "InstitutionCodeSequence", None)),
    ("EQ-3", _edit(EQUIPMENT, "ContributionDescription", "")),
    ("EQ-4", lambda of: of.ds[EQUIPMENT].value.pop()),
    ("FLAG-1", _set("CompletionFlag", "COMPLETE")),
    ("FLAG-2", _set("CompletionFlagDescription", "")),
    ("FLAG-3", _set("VerificationFlag", "VERIFIED")),
    ("FLAG-4", _set("PreliminaryFlag", "FINAL")),
    ("FLAG-5", _set("VerifyingObserverSequence", [Dataset()])),
    ("EV-1", _set(EVIDENCE, [])),
    ("EV-2", lambda of: of.ds[EVIDENCE].value[0].ReferencedSeriesSequence.pop()),
    ("EV-3", _twice_in_evidence),
    ("EV-4", _edit(EVIDENCE_SERIES, "SeriesInstanceUID", "1.9")),
    ("EV-5", _delete("PertinentOtherEvidenceSequence")),
    ("EV-6", _refer("ReferencedSOPClassUID", "")),
    ("EV-7", _refer("ReferencedSOPInstanceUID", "1.2.3.4.5")),
    ("EV-8", _edit(EVIDENCE_SOP, "ReferencedSOPClassUID", "1.2.840.10008.5.1.4.1.1.1")),
    ("EV-9", _drop_images),
    ("REQ-1", _delete(REQUEST)),
    ("REQ-2", _edit(REQUEST, "AccessionNumber", "other")),
    ("REQ-3", _edit(REQUEST, "PlacerOrderNumberImagingServiceRequest", None)),
    ("PRE-1", _delete(PREDECESSOR)),
    ("PRE-2", _edit(PREDECESSOR, "StudyInstanceUID", "1.9")),
    ("PRE-3", _edit(PREDECESSOR_SOP, "PurposeOfReferenceCodeSequence", None)),
    ("PRE-4", _same_uid_as_predecessor("SOPInstanceUID", PREDECESSOR_SOP)),
    ("PRE-5", _same_uid_as_predecessor("SeriesInstanceUID", PREDECESSOR_SERIES)),
    ("CS-1", _set("SpecificCharacterSet", b"ISO_IR 144")),
    ("CS-2", _in_section("59776-5", "TextValue", "?")),
    ("UID-1", _set("SeriesInstanceUID", "1.2.3")),
    ("UID-2", _set("SeriesInstanceUID", SERIES)),
    ("IDEM-1", _data(lambda data: data + b"\0")),
    ("DOC-1", lambda of: _assign(of.ds.ConceptNameCodeSequence[0], "CodeValue", "126000")),
    ("DOC-2", _set("ContinuityOfContent", "CONTINUOUS")),
    ("DOC-3", _edit("ContentTemplateSequence", "TemplateIdentifier", "1500")),
    ("DOC-4", _append_root("TEXT", "CONTAINS", text_sr.FINDING)),
    ("DOC-5", _append_root("TEXT", "HAS OBS CONTEXT", Code("111001", "DCM", "Algorithm Name"))),
    ("CTX-1", _recoded("121049", "de", "RFC5646", "German")),
    ("CTX-2", _recoded("121005", "121006", "DCM", "Person")),
    ("CTX-3", _recoded("121005", "121006", "DCM", "Person")),
    ("CTX-4", _named("121012", "UID", "2.25.1")),
    ("CTX-5", _named("121013", "TextValue", "SOMEONE")),
    ("SEC-1", _reverse_sections),
    ("SEC-2", _in_section("55112-7", "TextValue", "Normal chest")),
    ("SEC-3", _reverse_sections),
    ("SEC-4", _section("59776-5", "ConceptNameCodeSequence", [code_item(text_sr.REQUEST)])),
    ("SEC-5", _section("59776-5", "ContinuityOfContent", "SEPARATE")),
    ("SEC-6", _in_section("59776-5", "ConceptNameCodeSequence", [code_item(text_sr.IMPRESSION)])),
    ("SEC-7", _drop_images),
    ("SEC-8", _in_section("59776-5", "TextValue", "No acute disease.")),
    ("SEC-9", _in_section("19005-8", "TextValue", "No acute disease.")),
    ("SEC-9", _in_section("55115-0", "TextValue", "Trauma")),
    ("SEC-10", _in_section("55111-9", "TextValue", "Made by a machine.")),
    ("SEC-11", _in_section("55111-9", "TextValue", "Made by a machine.")),
    ("SEC-12", _image_beside_the_text),
    ("TREE-1", _in_section("59776-5", "RelationshipType", "")),
    ("TREE-2", _in_section("59776-5", "ConceptNameCodeSequence", None)),
    ("TREE-3", _in_section("59776-5", "ValueType", "")),
    ("TREE-4", _in_section("59776-5", "ValueType", "NUM")),
    ("TREE-5", _in_section("59776-5", "RelationshipType", "HAS PROPERTIES")),
    ("TREE-6", _in_section("59776-5", "ReferencedContentItemIdentifier", [1, 1])),
    ("TREE-7", _in_section("59776-5", "TextValue", " ")),
    ("TREE-8", _named("121049", "ConceptCodeSequence", None)),
    ("TREE-9", _named("121012", "UID", "")),
    ("TREE-10", lambda of: _assign(_image_of_first_finding(of), "ReferencedSOPSequence", None)),
    ("TREE-10", _section("55112-7", "ContinuityOfContent", None)),
    ("CODE-1", _recoded("121058", "P5-0", "SRT", "Chest")),
    ("CODE-2", _recoded("121058", "a-code-that-is-too-long", "LN", "Chest")),
    ("CODE-3", _recoded("121058", "XR1", "99OTHER", "Chest")),
    ("CODE-4", _in_section("59776-5", "ConceptNameCodeSequence", None)),
    (
        "CODE-4",
        _named("121058", "ConceptNameCodeSequence", [code_item(Code("121058", "DCM", "x"))]),
    ),
]


@cache
def _good() -> tuple[bytes, DraftRecord]:
    of = second_record(header())
    return bytes_of(of), of


@pytest.mark.parametrize(("point", "mutate"), MUTATIONS, ids=[name for name, _ in MUTATIONS])
def test_each_point_notices_its_mistake(point: str, mutate: Callable[[Case], object]) -> None:
    data, of = _good()
    good = case(data, data, of, header())
    with pydicom.config.disable_value_validation():  # some mistakes are ones that pydicom knows
        mutate(good)
    assert point in check(good)


def test_every_point_has_a_mistake_that_it_notices() -> None:
    assert {name for name, _ in MUTATIONS} == set(POINTS)


# --- text ----------------------------------------------------------------------------------------


def test_the_plain_text_is_what_a_radiologist_reads() -> None:
    ds = pydicom.dcmread(BytesIO(bytes_of(second_record())))
    assert text_sr.text(ds) == (
        "AI-GENERATED DRAFT - NOT FOR DIAGNOSIS. Unverified output of LLaVA-Rad. "
        "A radiologist must review, correct and sign before any use.\n"
        "\n"
        "REQUEST\n"
        "Cough and fever\n"
        "Request from: RequestAttributesSequence\n"
        "\n"
        "FINDINGS\n"
        "There is no focal consolidation.\n"
        "The heart is mildly enlarged.\n"
        "\n"
        "IMPRESSIONS\n"
        "Mild cardiomegaly.\n"
        "\n"
        "CURRENT PROCEDURE DESCRIPTIONS\n"
        "Generated 2024-03-11T10:20:30+01:00 by dicom-node 0.1.0. Model LLaVA-Rad 1.0+nf4; "
        "decoding=greedy; preprocess=mimic-jpg-v1; prompt=findings-v1; quantisation=nf4; "
        "weights=sha256:0123456789ab. Input image(s): 1.2.826.0.1.3680043.10.1561.5.1.1.1, "
        "1.2.826.0.1.3680043.10.1561.5.1.2.1. Chosen by: only frontal.\n"
    )


def test_warnings_about_the_input_are_told() -> None:
    document = text_sr.document(record(warnings=("Burned-in text", "Polarity was inverted")))
    assert "Burned-in text. Polarity was inverted." in text_sr.text(document)


@pytest.mark.parametrize("empty", [None, "", " \n", "\0"])
def test_a_draft_without_request_or_impression_has_no_such_section(empty: str | None) -> None:
    told = text_sr.text(text_sr.document(record(history=empty, impression=empty)))
    assert "REQUEST" not in told
    assert "IMPRESSION" not in told


@settings(deadline=None, max_examples=25)  # the machine may be busy
@given(
    st.text("ab .\n\r\t\0\x1b\x85\\é", min_size=1).filter(lambda t: t.strip("\0\x1b\x85 \n\r\t"))
)
def test_the_narrative_loses_nothing_but_control_characters(findings: str) -> None:
    assert check(judged(record(findings=findings), header())) == []
