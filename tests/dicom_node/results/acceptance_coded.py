"""The acceptance points of a coded findings SR: COD-1 to COD-13, and those of every SR.

Codes and sites are written down a second time here, from the specification and not from our module.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydicom import Dataset
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage

from tests.dicom_node.results.acceptance import (
    EVERY_SR,
    Case,
    Point,
    children,
    code,
    codes_mean_what_the_standard_says,
    descendants,
    equipment,
    named,
    pair,
    tree,
    values_are_complete,
)

Coded = tuple[str, str, str]

LUNG = ("39607008", "SCT", "Lung")
PLEURA = ("3120008", "SCT", "Pleural structure")
LABELS: dict[str, tuple[Coded, Coded | None]] = {  # label -> code, finding site
    "Atelectasis": (("46621007", "SCT", "Atelectasis"), LUNG),
    "Cardiomegaly": (("8186001", "SCT", "Cardiomegaly"), ("80891009", "SCT", "Heart")),
    "Consolidation": (("95436008", "SCT", "Lung consolidation"), LUNG),
    "Edema": (("19242006", "SCT", "Pulmonary edema"), LUNG),
    "Pleural Effusion": (("60046008", "SCT", "Pleural effusion"), PLEURA),
    "Pneumothorax": (("36118008", "SCT", "Pneumothorax"), PLEURA),
    "Pneumonia": (("233604007", "SCT", "Pneumonia"), LUNG),
    "Fracture": (("125605004", "SCT", "Fracture of bone"), None),
    "Lung Opacity": (("112001", "DCM", "Opacity"), LUNG),
    "Lung Lesion": (("LL", "99DCMNODE", "Lung lesion"), LUNG),
    "Enlarged Cardiomediastinum": (
        ("ECM", "99DCMNODE", "Enlarged cardiomediastinum"),
        ("72410000", "SCT", "Mediastinum"),
    ),
    "Pleural Other": (("PO", "99DCMNODE", "Other pleural abnormality"), PLEURA),
    "Support Devices": (("SD", "99DCMNODE", "Support device"), None),
}
PRESENCE: dict[str, Coded] = {
    "present": ("52101004", "SCT", "Present"),
    "absent": ("272519000", "SCT", "Absent"),
    "undetermined": ("373068000", "SCT", "Undetermined"),
}
CHEST = ("816094009", "SCT", "Chest")
CERTAINTY = ("111012", "DCM", "Certainty of Finding")
PERCENT = ("%", "UCUM", "percent")
FINDING, SITE = "121071", "363698007"
SCHEME = (
    *("CodingSchemeDesignator", "CodingSchemeUID", "CodingSchemeName", "CodingSchemeVersion"),
    "CodingSchemeResponsibleOrganization",
)
# PS3.3 tables A.35.2-2, A.35.3-2, A.35.13-2, as far as TID 1500 needs them: what all three allow.
TYPES = {"TEXT", "CODE", "NUM", "UIDREF", "IMAGE", "CONTAINER"}
ALLOWED = {
    ("CONTAINER", "CONTAINS"): TYPES,
    ("CONTAINER", "HAS OBS CONTEXT"): {"TEXT", "CODE", "NUM", "UIDREF"},
    ("CONTAINER", "HAS CONCEPT MOD"): {"TEXT", "CODE"},
    ("IMAGE", "HAS ACQ CONTEXT"): {"TEXT", "CODE", "NUM", "UIDREF"},
}


# --- reading -------------------------------------------------------------------------------------


def below(item: Dataset, value: str, relationship: str = "") -> list[Dataset]:
    return [child for child in children(item, relationship) if code(child)[0] == value]


def only(item: Dataset, value: str, relationship: str = "CONTAINS") -> Dataset:
    (child,) = below(item, value, relationship)
    return child


def groups(of: Case) -> list[Dataset]:
    return below(only(of.ds, "126010"), "125007", "CONTAINS")


def values(item: Dataset, name: str, relationship: str) -> list[Coded]:
    return [code(child, "ConceptCodeSequence") for child in below(item, name, relationship)]


def evaluations(group: Dataset) -> list[tuple[Coded, Coded]]:
    """Return (finding, presence) of the group's qualitative evaluations."""
    return [
        (code(item), code(item, "ConceptCodeSequence"))
        for item in children(group, "CONTAINS")
        if item.ValueType == "CODE" and code(item)[0] != FINDING
    ]


def containers(of: Case) -> Iterator[Dataset]:
    yield of.ds
    yield from (item for item in tree(of) if item.ValueType == "CONTAINER")


def expected(of: Case) -> list[tuple[Coded, Coded]]:
    return [
        (LABELS[one.label][0], PRESENCE[one.presence])
        for one in of.record.labels
        if one.label != "No Finding"
    ]


# --- the longer points ---------------------------------------------------------------------------


def description_warns(of: Case) -> bool:
    text, version = str(of.ds.SeriesDescription), of.record.version
    return (
        text.startswith("AI FINDINGS - NOT FOR DIAGNOSIS (")
        and len(text) <= 64
        and text.endswith(")" if version == 1 else f") v{version}")
        and ("DEMO MODEL" in text) == of.record.algorithm.demo
    )


def procedure_is_the_source_s_or_any(of: Case) -> bool:
    (found,) = values(of.ds, "121058", "HAS CONCEPT MOD")
    source = [i for i in of.image.get("ProcedureCodeSequence") or [] if "CodeValue" in i]
    current = [i for i in source[:1] if i.CodingSchemeDesignator not in ("SRT", "SNM3", "99SDM")]
    wanted = [(str(i.CodeValue), str(i.CodingSchemeDesignator)) for i in current]
    return found[:2] == (wanted or [("363679005", "SCT")])[0]


def library_has_every_input(of: Case) -> bool:
    group = only(only(of.ds, "111028"), "126200")
    used = [i.reference for i in of.record.inputs]
    return {i.ValueType for i in children(group)} == {"IMAGE"} and [
        pair(i) for i in children(group)
    ] == [(i.sop_class_uid, i.sop_instance_uid) for i in used]


def groups_are_tracked(of: Case) -> bool:
    texts = [str(only(g, "112039", "HAS OBS CONTEXT").TextValue) for g in groups(of)]
    uids = [str(only(g, "112040", "HAS OBS CONTEXT").UID) for g in groups(of)]
    labeler = of.record.labeler
    origin = f"extracted from the draft text by {labeler.name}" if labeler else "classifier output"
    return (
        len(set(uids)) == len(uids)
        and all(re.fullmatch(r"2\.25\.[1-9]\d{0,38}", uid) for uid in uids)
        and all("DRAFT" in t and "NOT FOR DIAGNOSIS" in t and origin in t for t in texts)
    )


def algorithm_is_named(of: Case) -> bool:
    who = of.record.labeler or of.record.algorithm
    declared = [str(item.ManufacturerModelName) for item in equipment(of, "109102")]

    def holds(group: Dataset) -> bool:
        name, version, told = (
            str(only(group, value, "HAS CONCEPT MOD").TextValue)
            for value in ("111001", "111003", "111002")
        )
        return (
            name in declared
            and name.startswith(who.name[:10])
            and version == who.version
            and who.digest[:12] in told
            and all(value in told for value in who.parameters.values())
        )

    return all(holds(group) for group in groups(of))


def groups_name_their_images(of: Case) -> bool:
    used = [i.reference for i in of.record.inputs]
    wanted = [(i.sop_class_uid, i.sop_instance_uid) for i in used]
    return all([pair(i) for i in below(g, "121112", "CONTAINS")] == wanted for g in groups(of))


def labels_are_the_record_s(of: Case) -> bool:
    first, *others = groups(of)
    return (
        evaluations(first) == expected(of)
        and values(first, SITE, "HAS CONCEPT MOD") == [CHEST]
        and not any(evaluations(other) for other in others)
    )


def certainties_are_the_record_s(of: Case) -> bool:
    wanted = [
        one for one in of.record.labels if one.presence == "present" and one.certainty is not None
    ]
    wanted = [one for one in wanted if one.label != "No Finding"]
    pairs = list(zip(groups(of)[1:], wanted, strict=True))
    first = groups(of)[0]
    return not below(first, CERTAINTY[0]) and all(
        _is_certain(group, one.label, one.certainty or 0) for group, one in pairs
    )


def _is_certain(group: Dataset, label: str, certainty: float) -> bool:
    finding, site = LABELS[label]
    number = only(group, CERTAINTY[0])
    (measured,) = number.MeasuredValueSequence
    return (
        values(group, FINDING, "CONTAINS") == [finding]
        and values(group, SITE, "HAS CONCEPT MOD") == ([site] if site else [])
        and code(number) == CERTAINTY
        and code(measured, "MeasurementUnitsCodeSequence") == PERCENT
        and abs(float(measured.NumericValue) - certainty) < 1e-6
        and 0 <= float(measured.NumericValue) <= 100
    )


def no_finding_is_said_that_is_not_there(of: Case) -> bool:
    present = {finding for finding, presence in expected(of) if presence == PRESENCE["present"]}
    first = groups(of)[0]
    said = [v for item in containers(of) for v in values(item, FINDING, "")]
    return not values(first, FINDING, "") and set(said) <= present


def own_scheme_is_described(of: Case) -> bool:
    items = of.ds.get("CodingSchemeIdentificationSequence") or []
    ours = [item for item in items if item.CodingSchemeDesignator == "99DCMNODE"]
    used = any(finding[1] == "99DCMNODE" for finding, _ in expected(of))
    return len(ours) == used and all(item.get(keyword) for item in ours for keyword in SCHEME)


# --- the points ----------------------------------------------------------------------------------

POINTS: dict[str, Point] = {
    **EVERY_SR,
    "HDR-1": lambda c: c.ds.SOPClassUID == (c.record.sop_class_uid or Comprehensive3DSRStorage),
    "HDR-3": lambda c: c.ds.SeriesNumber == 9902,
    "HDR-7": description_warns,
    "TREE-4": lambda c: {i.ValueType for i in tree(c)} <= TYPES,
    "TREE-5": lambda c: all(
        child.ValueType in ALLOWED.get((parent.ValueType, child.RelationshipType), set())
        for parent, child in descendants(c.ds)
    ),
    "TREE-10": lambda c: EVERY_SR["TREE-10"](c) and values_are_complete(c)("NUM"),
    "CODE-3": lambda c: EVERY_SR["CODE-3"](c) and own_scheme_is_described(c),
    "CODE-4": codes_mean_what_the_standard_says,
    "COD-1": lambda c: (
        c.ds.ValueType == "CONTAINER"
        and code(c.ds) == ("126000", "DCM", "Imaging Measurement Report")
    ),
    "COD-2": lambda c: (
        [(t.MappingResource, t.TemplateIdentifier) for t in c.ds.ContentTemplateSequence]
        == [("DCMR", "1500")]
        and all(
            [(t.MappingResource, t.TemplateIdentifier) for t in group.ContentTemplateSequence]
            == [("DCMR", "1501")]
            for group in groups(c)
        )
    ),
    "COD-3": lambda c: (
        c.ds.SOPClassUID in (Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage)
    ),
    "COD-4": lambda c: {i.ContinuityOfContent for i in containers(c)} == {"SEPARATE"},
    "COD-5": procedure_is_the_source_s_or_any,
    "COD-6": library_has_every_input,
    "COD-7": lambda c: (
        [code(i)[0] for i in children(c.ds, "CONTAINS")] == ["111028", "126010"]
        and len(groups(c)) == len(children(named(c, "126010")[0])) >= 1
    ),
    "COD-8": groups_are_tracked,
    "COD-9": algorithm_is_named,
    "COD-10": groups_name_their_images,
    "COD-11": labels_are_the_record_s,
    "COD-12": certainties_are_the_record_s,
    "COD-13": no_finding_is_said_that_is_not_there,
}
