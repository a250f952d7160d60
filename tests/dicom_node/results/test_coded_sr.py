from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom
import pydicom
import pytest
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForProcessing,
    EnhancedSRStorage,
    SecondaryCaptureImageStorage,
)

from dicom_node.errors import ConfigurationError
from dicom_node.results import coded_sr
from dicom_node.results.header import code_item
from dicom_node.results.record import DraftRecord, LabelledFinding
from tests.dicom_node.results.acceptance import Case, case, check
from tests.dicom_node.results.acceptance_coded import POINTS, below, evaluations, groups
from tests.dicom_node.results.samples import (
    CHARSET_FILES,
    CLASSIFIED,
    FRONTAL,
    LABELER,
    LABELS,
    ODD,
    charset_header,
    chosen,
    header,
    record,
    reference,
    second_record,
)
from tests.dicom_node.results.test_text_sr import MUTATIONS as TEXT_MUTATIONS

# What pydicom says on reading our misspelt source.
pytestmark = pytest.mark.filterwarnings("ignore:Incorrect value for Specific Character Set")

SOP_CLASSES = [Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage]
Make = Callable[..., DraftRecord]


def extracted(make: Make = record, image: Dataset | None = None, **changes: object) -> DraftRecord:
    """Return a record whose labels a labeler read in the draft."""
    values: dict[str, object] = {"kind": "coded_sr", "labels": LABELS, "labeler": LABELER}
    return make(image, **{**values, **changes})


def classified(make: Make = record, image: Dataset | None = None, **changes: object) -> DraftRecord:
    """Return a record whose labels the model gave, each with its certainty."""
    values: dict[str, object] = {"labels": CLASSIFIED, "labeler": None}
    return extracted(make, image, **{**values, **changes})


def judged(of: DraftRecord, image: Dataset) -> Case:
    stored = DraftRecord.from_json(of.to_json())
    return case(coded_sr.encode(of).file, coded_sr.encode(stored).file, of, image)


# --- good documents ------------------------------------------------------------------------------


@pytest.mark.parametrize("sop_class", ["", *SOP_CLASSES], ids=["default", "3D", "plain", "E"])
@pytest.mark.parametrize("make", [record, second_record], ids=["first", "second"])
@pytest.mark.parametrize("labelled", [extracted, classified], ids=["labeler", "classifier"])
def test_a_document_passes_every_acceptance_point(
    labelled: Callable[..., DraftRecord], make: Make, sop_class: str
) -> None:
    of = labelled(make, header(), sop_class_uid=sop_class)
    assert check(judged(of, header()), POINTS) == []


@pytest.mark.parametrize("name", ODD)
def test_an_odd_source_still_gives_a_good_document(name: str) -> None:
    of = classified(image=ODD[name]())
    assert check(judged(of, ODD[name]()), POINTS) == []


@pytest.mark.parametrize("file", CHARSET_FILES, ids=lambda f: Path(f).stem)
def test_every_character_set_comes_back_byte_by_byte(file: str) -> None:
    of = extracted(image=charset_header(file))
    assert check(judged(of, charset_header(file)), POINTS) == []


def test_a_demo_model_is_named_in_title_and_groups() -> None:
    demo = replace(record().algorithm, name="DEMO MODEL (phantoms only)", demo=True)
    judgement = judged(classified(algorithm=demo), header())
    assert check(judgement, POINTS) == []
    names = [below(group, "111001")[0].TextValue for group in groups(judgement)]
    assert set(names) == {"DEMO MODEL (phantoms only)"}


def test_a_labeler_with_letters_that_the_source_s_set_lacks_moves_the_document_to_utf8() -> None:
    of = extracted(labeler=replace(LABELER, manufacturer="山田"))
    judgement = judged(of, header())
    assert judgement.ds.SpecificCharacterSet == "ISO_IR 192"
    assert check(judgement, POINTS) == []


def test_a_whole_number_is_written_as_it_comes_back_from_the_stored_record() -> None:
    sure = LabelledFinding(label="Edema", presence="present", certainty=91)
    assert check(judged(classified(labels=(sure,)), header()), POINTS) == []


def test_a_draft_of_which_no_label_can_be_said_is_not_called_normal() -> None:
    judgement = judged(extracted(labels=()), header())
    assert check(judgement, POINTS) == []
    (group,) = groups(judgement)
    assert evaluations(group) == []
    assert below(group, "112039")[0].TextValue == (
        "AI DRAFT, NOT FOR DIAGNOSIS: labels extracted from the draft text by "
        "dicom-node rule labeler; none, which is not a normal chest"
    )


def test_no_finding_is_not_encoded() -> None:
    normal = LabelledFinding(label="No Finding", presence="present", certainty=99.0)
    judgement = judged(classified(labels=(normal,)), header())
    assert check(judgement, POINTS) == []
    assert [evaluations(group) for group in groups(judgement)] == [[]]


def test_a_label_without_a_code_is_refused_by_name() -> None:
    other = LabelledFinding(label="Lung Cancer", presence="absent")
    with pytest.raises(ConfigurationError, match="the label Lung Cancer has no code"):
        coded_sr.encode(classified(labels=(other,)))


@pytest.mark.parametrize(
    ("sop_class", "modality"),
    [
        pytest.param(ComputedRadiographyImageStorage, ["CR"], id="CR"),
        pytest.param(DigitalXRayImageStorageForProcessing, ["DX"], id="DX"),
        # TID 1602 is optional, and CID 29 has no word for it.
        pytest.param(SecondaryCaptureImageStorage, [], id="Secondary Capture"),
    ],
)
def test_the_library_tells_a_modality_where_the_sop_class_does(
    sop_class: str, modality: list[str]
) -> None:
    used = reference(FRONTAL, sop_class=sop_class)
    judgement = judged(extracted(inputs=(chosen(used),), evidence=(used,)), header())
    assert check(judgement, POINTS) == []
    (image,) = _at(judgement, "111028 126200").ContentSequence
    told = [item.ConceptCodeSequence[0].CodeValue for item in image.get("ContentSequence", [])]
    assert told == modality


def test_a_group_is_tracked_alike_in_every_sop_class() -> None:
    documents = [coded_sr.document(classified(sop_class_uid=uid)) for uid in SOP_CLASSES]
    assert len({str(ds.SOPInstanceUID) for ds in documents}) == 3
    told = [{item.UID for item in _all(ds, "112040")} for ds in documents]
    assert told[0] == told[1] == told[2]


def test_another_labeler_makes_another_document_and_other_groups() -> None:
    one, other = (
        coded_sr.document(extracted(labeler=replace(LABELER, version=version)))
        for version in ("1", "2")
    )
    assert one.SOPInstanceUID != other.SOPInstanceUID
    assert one.SeriesInstanceUID != other.SeriesInstanceUID
    assert not {i.UID for i in _all(one, "112040")} & {i.UID for i in _all(other, "112040")}


# --- another reader ------------------------------------------------------------------------------


@pytest.mark.parametrize("sop_class", SOP_CLASSES, ids=["3D", "plain", "Enhanced"])
def test_highdicom_reads_labels_presence_and_certainty_back(sop_class: str) -> None:
    of = classified(second_record, sop_class_uid=sop_class)
    content: Any = highdicom.sr.srread(BytesIO(coded_sr.encode(of).file)).content
    first, *others = content.get_image_measurement_groups()
    read = {e.name.meaning: e.value.meaning for e in first.get_qualitative_evaluations()}
    assert len(read) == 13
    assert (read["Cardiomegaly"], read["Pneumothorax"]) == ("Present", "Absent")
    assert read["Pneumonia"] == "Undetermined"
    assert first.finding_type is None
    assert len(first.source_images) == 2
    assert {group.finding_type.meaning: group.get_measurements()[0].value for group in others} == {
        "Atelectasis": 90.5,
        "Cardiomegaly": 89.5,
        "Fracture of bone": 88.5,
        "Lung lesion": 87.5,
        "Support device": 86.5,
    }
    sites = [[site.value.meaning for site in group.finding_sites] for group in others]
    assert sites == [["Lung"], ["Heart"], [], ["Lung"], []]


# --- bad documents: each point must notice its own mistake ---------------------------------------


def _all(item: Dataset, name: str) -> list[Dataset]:
    """Return all items of that concept name below ``item``."""
    found = []
    for child in item.get("ContentSequence") or ():
        found += [child] if child.ConceptNameCodeSequence[0].CodeValue == name else []
        found += _all(child, name)
    return found


def _at(of: Case, path: str) -> Dataset:
    """Return the item at a path of concept names; ``NAME:1`` is the second of that name."""
    item = of.ds
    for step in path.split():
        name, _, index = step.partition(":")
        item = below(item, name)[int(index or 0)]
    return item


def _change(path: str, keyword: str, value: object) -> Callable[[Case], None]:
    """Set an attribute of the item there; None deletes it."""

    def mutate(of: Case) -> None:
        if value is None:
            delattr(_at(of, path), keyword)
        else:
            setattr(_at(of, path), keyword, value)

    return mutate


def _recode(path: str, keyword: str, *code: str) -> Callable[[Case], None]:
    return lambda of: setattr(_at(of, path), keyword, [code_item(Code(*code))])


def _drop(path: str, name: str) -> Callable[[Case], None]:
    def mutate(of: Case) -> None:
        parent = _at(of, path)
        gone = below(parent, name)[-1]
        parent.ContentSequence = [item for item in parent.ContentSequence if item is not gone]

    return mutate


def _add(path: str, origin: str) -> Callable[[Case], None]:
    """Append a copy of the item at ``origin`` to the one at ``path``."""
    return lambda of: _at(of, path).ContentSequence.append(deepcopy(_at(of, origin)))


def _refer(path: str, keyword: str, value: str) -> Callable[[Case], None]:
    return lambda of: setattr(_at(of, path).ReferencedSOPSequence[0], keyword, value)


def _measured(keyword: str, value: object) -> Callable[[Case], None]:
    return lambda of: setattr(_at(of, NUMBER).MeasuredValueSequence[0], keyword, value)


def _template(path: str, identifier: str) -> Callable[[Case], None]:
    def mutate(of: Case) -> None:
        _at(of, path).ContentTemplateSequence[0].TemplateIdentifier = identifier

    return mutate


def _scheme_without(keyword: str) -> Callable[[Case], None]:
    return lambda of: delattr(of.ds.CodingSchemeIdentificationSequence[0], keyword)


def _same_tracking(of: Case) -> None:
    _at(of, f"{SECOND} 112040").UID = _at(of, f"{FIRST} 112040").UID


NAME, VALUE = "ConceptNameCodeSequence", "ConceptCodeSequence"
LIBRARY = "111028 126200"
FIRST, SECOND = "126010 125007", "126010 125007:1"
ATELECTASIS, CONSOLIDATION, EFFUSION = f"{FIRST} 46621007", f"{FIRST} 95436008", f"{FIRST} 60046008"
NUMBER = f"{SECOND} 111012"
TRACKING = f"{FIRST} 112039"

#: Of test_text_sr's: those that spoil the header or the context, which every SR has.
SHARED = ("FILE", "HDR", "ID", "EQ", "FLAG", "EV", "REQ", "PRE", "CS-1", "UID", "IDEM", "CTX")
ELSEWHERE = ("HDR-1", "EV-6", "EV-7", "EV-9")  # done below: the text SR has these in a section

MUTATIONS: list[tuple[str, Callable[[Case], object]]] = [
    *((p, m) for p, m in TEXT_MUTATIONS if p.startswith(SHARED) and p not in ELSEWHERE),
    ("HDR-1", lambda of: setattr(of.ds, "SOPClassUID", EnhancedSRStorage)),
    ("EV-6", _refer(f"{LIBRARY} 260753009", "ReferencedSOPClassUID", "")),
    ("EV-7", _refer(f"{LIBRARY} 260753009", "ReferencedSOPInstanceUID", "1.2.3.4.5")),
    ("EV-9", _refer(f"{FIRST} 121112", "ReferencedSOPInstanceUID", "1.2.3.4.5")),
    ("CS-2", _change("121013", "TextValue", "?")),
    ("TREE-1", _change(ATELECTASIS, "RelationshipType", "")),
    ("TREE-2", _change(ATELECTASIS, NAME, None)),
    ("TREE-3", _change(ATELECTASIS, "ValueType", "")),
    ("TREE-4", _change(ATELECTASIS, "ValueType", "SCOORD")),
    ("TREE-5", _change(ATELECTASIS, "RelationshipType", "HAS PROPERTIES")),
    ("TREE-6", _change(ATELECTASIS, "ReferencedContentItemIdentifier", [1, 1])),
    ("TREE-7", _change(TRACKING, "TextValue", " ")),
    ("TREE-8", _change(ATELECTASIS, VALUE, None)),
    ("TREE-9", _change(f"{FIRST} 112040", "UID", "")),
    ("TREE-10", _change(f"{FIRST} 121112", "ReferencedSOPSequence", None)),
    ("TREE-10", _change(FIRST, "ContinuityOfContent", None)),
    ("TREE-10", _change(NUMBER, "MeasuredValueSequence", [])),
    ("CODE-1", _recode("121058", VALUE, "P5-0", "SRT", "Chest")),
    ("CODE-2", _recode("121058", VALUE, "a-code-that-is-too-long", "LN", "Chest")),
    ("CODE-3", _recode("121058", VALUE, "XR1", "99OTHER", "Chest")),
    ("CODE-3", lambda of: delattr(of.ds, "CodingSchemeIdentificationSequence")),
    ("CODE-3", _scheme_without("CodingSchemeUID")),
    ("CODE-3", _scheme_without("CodingSchemeResponsibleOrganization")),
    ("CODE-4", _recode("121058", NAME, "121058", "DCM", "x")),
    ("COD-1", _recode("", NAME, "18748-4", "LN", "Diagnostic Imaging Report")),
    ("COD-2", _template("", "2000")),
    ("COD-2", _template(SECOND, "1411")),
    ("COD-3", lambda of: setattr(of.ds, "SOPClassUID", BasicTextSRStorage)),
    *(
        ("COD-4", _change(path, "ContinuityOfContent", "CONTINUOUS"))
        for path in ("", "111028", LIBRARY, "126010", FIRST, SECOND)
    ),
    ("COD-5", _recode("121058", VALUE, "363679005", "SCT", "Imaging procedure")),
    ("COD-5", _drop("", "121058")),
    ("COD-6", _drop(LIBRARY, "260753009")),
    ("COD-6", _drop("", "111028")),
    ("COD-6", _add(LIBRARY, f"{LIBRARY} 260753009")),
    ("COD-7", _recode("126010", NAME, "C0034375", "UMLS", "Qualitative Evaluations")),
    ("COD-7", _add("126010", "111028")),
    ("COD-7", _add("", "126010")),
    ("COD-8", _same_tracking),
    ("COD-8", _drop(SECOND, "112040")),
    ("COD-8", _drop(SECOND, "112039")),
    ("COD-8", _change(TRACKING, "TextValue", "classifier output")),
    ("COD-8", _change(TRACKING, "TextValue", "AI DRAFT, NOT FOR DIAGNOSIS: radiologist")),
    ("COD-9", _change(f"{FIRST} 111001", "TextValue", "another model")),
    ("COD-9", _change(f"{SECOND} 111003", "TextValue", "2.0")),
    ("COD-9", _change(f"{SECOND} 111002", "TextValue", "none")),
    ("COD-9", _drop(SECOND, "111001")),
    ("COD-10", _drop(FIRST, "121112")),
    ("COD-10", _drop(SECOND, "121112")),
    ("COD-10", _refer(f"{SECOND} 121112", "ReferencedSOPInstanceUID", "1.2.3.4.5")),
    ("COD-11", _recode(CONSOLIDATION, VALUE, "52101004", "SCT", "Present")),
    ("COD-11", _recode(EFFUSION, VALUE, "272519000", "SCT", "Absent")),
    ("COD-11", _recode(CONSOLIDATION, NAME, "233604007", "SCT", "Pneumonia")),
    ("COD-11", _drop(FIRST, "95436008")),
    ("COD-11", _add(FIRST, ATELECTASIS)),
    ("COD-11", _add(SECOND, ATELECTASIS)),
    ("COD-11", _recode(f"{FIRST} 363698007", VALUE, "39607008", "SCT", "Lung")),
    ("COD-12", _measured("NumericValue", "12")),
    ("COD-12", _measured("MeasurementUnitsCodeSequence", [code_item(Code("1", "UCUM", "no"))])),
    ("COD-12", _recode(NUMBER, NAME, "111013", "DCM", "Certainty of impression")),
    ("COD-12", _recode(f"{SECOND} 363698007", VALUE, "80891009", "SCT", "Heart")),
    ("COD-12", _recode(f"{SECOND} 121071", VALUE, "8186001", "SCT", "Cardiomegaly")),
    ("COD-12", _drop(SECOND, "111012")),
    ("COD-12", _drop("126010", "125007")),
    ("COD-12", _add("126010", SECOND)),
    ("COD-12", _add(FIRST, NUMBER)),
    ("COD-13", _add(FIRST, f"{SECOND} 121071")),
    ("COD-13", _recode(f"{SECOND} 121071", VALUE, "36118008", "SCT", "Pneumothorax")),
    ("COD-13", _recode(f"{SECOND} 121071", VALUE, "60046008", "SCT", "Pleural effusion")),
]


@cache
def _good() -> tuple[bytes, DraftRecord]:
    of = classified(second_record, header())
    return coded_sr.encode(of).file, of


@pytest.mark.parametrize(("point", "mutate"), MUTATIONS, ids=[name for name, _ in MUTATIONS])
def test_each_point_notices_its_mistake(point: str, mutate: Callable[[Case], object]) -> None:
    data, of = _good()
    good = case(data, data, of, header())
    with pydicom.config.disable_value_validation():  # some mistakes are ones that pydicom knows
        mutate(good)
    assert point in check(good, POINTS)


def test_every_point_has_a_mistake_that_it_notices() -> None:
    assert {name for name, _ in MUTATIONS} == set(POINTS)


def test_a_label_that_claims_another_origin_is_noticed() -> None:
    of = extracted(record, header())
    good = judged(of, header())
    told = str(_at(good, TRACKING).TextValue)
    _at(good, TRACKING).TextValue = told.replace("extracted from the draft text by", "of")
    assert "COD-8" in check(good, POINTS)
