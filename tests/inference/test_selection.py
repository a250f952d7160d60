"""The choice of the one input image (pixel-pipeline specification, 2.1, 2.3 and 2.4)."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom import uid as uids
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag

from inference import pixels
from inference.findings import UnreadablePixels
from inference.selection import (
    Candidate,
    Choice,
    Fault,
    Refusal,
    SelectionOptions,
    choose,
)

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the developers' data set is not at {SHARED}"
)

CR = uids.ComputedRadiographyImageStorage
DX = uids.DigitalXRayImageStorageForPresentation
RAW = uids.DigitalXRayImageStorageForProcessing
SC = uids.SecondaryCaptureImageStorage


def chest(uid: str = "1.2.3", *, pixel_bytes: int | None = None, **attributes: object) -> Candidate:
    """An adult's frontal chest that passes every rule; ``attributes`` overwrite, None deletes."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uids.ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = CR, uid, "CR"
    ds.BodyPartExamined, ds.ViewPosition, ds.PatientAge = "CHEST", "PA", "054Y"
    ds.Rows = ds.Columns = 512
    ds.SamplesPerPixel, ds.BitsAllocated, ds.PhotometricInterpretation = 1, 16, "MONOCHROME2"
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
        if value is None:
            delattr(ds, keyword)
    enough = 2 * 512 * 512 if pixel_bytes is None else pixel_bytes
    return Candidate(header=ds, pixel_bytes=enough)


def item(**attributes: object) -> Dataset:
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def key_object(title: str, *named: str) -> Candidate:
    """A Key Object Selection Document (PS3.3 A.35.4) that names SOP instances."""
    ds = item(SOPClassUID=uids.KeyObjectSelectionDocumentStorage, SOPInstanceUID="1.2.9")
    ds.ConceptNameCodeSequence = [item(CodeValue=title, CodingSchemeDesignator="DCM")]
    ds.ContentSequence = [
        item(ValueType="IMAGE", ReferencedSOPSequence=[item(ReferencedSOPInstanceUID=uid)])
        for uid in named
    ]
    return Candidate(header=ds, pixel_bytes=None)


def chosen(*candidates: Candidate, options: SelectionOptions | None = None) -> Choice:
    choice = choose(candidates, options)
    assert isinstance(choice, Choice), choice
    return choice


def refused(*candidates: Candidate, options: SelectionOptions | None = None) -> str:
    refusal = choose(candidates, options)
    assert isinstance(refusal, Refusal), refusal
    return refusal.code


# -- 2.1 -------------------------------------------------------------------------------------------


def test_a_frontal_chest_is_chosen() -> None:
    choice = chosen(chest())
    assert choice == Choice(sop_instance_uid="1.2.3", rule="2.2-1/PA+2.3-only", view="PA")


def code_meaning(keyword: str, value: str, meaning: str = "") -> dict[str, object]:
    return {keyword: [item(CodeValue=value, CodeMeaning=meaning)]}


@pytest.mark.parametrize(
    ("code", "attributes"),
    [
        ("NOT_IMAGE", {"pixel_bytes": 0}),
        ("NOT_IMAGE", {"SOPInstanceUID": ""}),
        ("NOT_IMAGE", {"SOPClassUID": uids.CTImageStorage}),
        ("NOT_IMAGE", {"SOPClassUID": ""}),
        ("NOT_IMAGE", {"SOPClassUID": SC, "Modality": "OT"}),
        ("NOT_IMAGE", {"ManufacturerModelName": "dicom-node"}),
        ("FOR_PROCESSING", {"SOPClassUID": RAW}),
        ("FOR_PROCESSING", {"SOPClassUID": DX, "PresentationIntentType": "FOR PROCESSING"}),
        ("MULTIFRAME", {"NumberOfFrames": 2}),
        ("COLOR", {"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL"}),
        ("COLOR", {"PhotometricInterpretation": "PALETTE COLOR"}),
        ("NOT_CHEST", {"BodyPartExamined": "ANKLE"}),
        ("NOT_CHEST", {"BodyPartExamined": "RIBCAGE"}),
        ("NOT_CHEST", {"BodyPartExamined": "ANKLE", "StudyDescription": "CHEST"}),
        ("NOT_CHEST", {"BodyPartExamined": None}),
        ("NOT_CHEST", {"BodyPartExamined": None, "SeriesDescription": "Behandlung, allungato"}),
        ("NOT_CHEST", {"SeriesDescription": "Rippen links"}),
        ("NOT_CHEST", {"BodyPartExamined": None, "StudyDescription": "thoracic spine"}),
        ("NOT_FRONTAL", {"ViewPosition": "LATERAL"}),
        ("NOT_FRONTAL", {"ViewPosition": None}),
        ("NOT_FRONTAL", {"PatientOrientation": ["P", "F"]}),
        ("REJECTED", {"QualityControlImage": "YES"}),
        ("VARIANT", {"SeriesDescription": "Bone Suppressed"}),
        ("VARIANT", {"SeriesDescription": "SOFT_TISSUE"}),
        ("VARIANT", {"ProtocolName": "Chest dual-energy"}),
        ("VARIANT", {"AcquisitionDeviceProcessingDescription": "TUBE/LINE ENHANCED"}),
        ("VARIANT", {"DerivationDescription": "edge"}),
        ("TOO_SMALL", {"Columns": 255}),
        ("TOO_LARGE", {"Rows": 46341, "Columns": 46341}),
        ("UNDECODABLE", {"Rows": 513}),
        ("UNDECODABLE", {"BitsAllocated": None}),
        ("UNDECODABLE", {"PhotometricInterpretation": None}),
        ("AGE", {"PatientAge": "017Y"}),
        ("AGE", {"PatientAge": "011M"}),
        ("AGE", {"PatientAge": None, "PatientBirthDate": "19900302", "StudyDate": "20080301"}),
        ("BURNED_IN", {"SOPClassUID": SC, "BurnedInAnnotation": "YES"}),
    ],
)
def test_each_rule_refuses(code: str, attributes: dict[str, object]) -> None:
    assert refused(chest(**attributes)) == code  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "attributes",
    [
        {"SOPClassUID": DX, "PresentationIntentType": "FOR PRESENTATION"},
        {"SOPClassUID": SC},
        {"NumberOfFrames": 1},
        {"BodyPartExamined": "NON GRID CHEST"},
        {"BodyPartExamined": "PORT CHEST"},
        {"BodyPartExamined": "THORAX"},
        {"StudyDescription": "CHEST AND ABDOMEN"},
        {"BodyPartExamined": None, **code_meaning("AnatomicRegionSequence", "816094009")},
        {"BodyPartExamined": None, **code_meaning("AnatomicRegionSequence", "T-28000")},
        {"BodyPartExamined": None, **code_meaning("ProcedureCodeSequence", "X", "XR CHEST")},
        {"PatientAge": "018Y"},
        {"PatientAge": None},
        {"PatientAge": None, "PatientBirthDate": "19900301", "StudyDate": "20080301"},
        {"PatientAge": None, "PatientBirthDate": "20100101", "StudyDate": "20080301"},
        {"ViewPosition": None, "PatientOrientation": ["L", "F"]},
        {"QualityControlImage": "NO"},
        {"Columns": 256},
        {"StudyDescription": "comparison with prior"},
    ],
)
def test_each_rule_lets_through(attributes: dict[str, object]) -> None:
    assert chosen(chest(**attributes)).sop_instance_uid == "1.2.3"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "word",
    [
        *("Chest", "CXR", "Röntgen-Thorax", "Thoraxaufnahme", "Lungenaufnahme", "longen"),
        *("Radio du poumon", "Tórax PA", "Torace 2 proiezioni", "Raio-X de pulmão", "X-borstkas"),
    ],
)
def test_the_chest_is_known_in_seven_languages(word: str) -> None:
    chosen(chest(BodyPartExamined=None, StudyDescription=word, SpecificCharacterSet="ISO_IR 192"))


def test_a_site_may_speak_another_language() -> None:
    finnish = chest(BodyPartExamined="RINTA")
    assert refused(finnish) == "NOT_CHEST"
    chosen(finnish, options=SelectionOptions(chest_words=("rinta*",)))


def test_burned_in_text_on_a_radiograph_is_recorded_only() -> None:
    assert chosen(chest(BurnedInAnnotation="YES")).warnings == ("BurnedInAnnotation is YES",)


@pytest.mark.parametrize(
    ("options", "attributes", "code"),
    [
        ({"secondary_capture": False}, {"SOPClassUID": SC}, "NOT_IMAGE"),
        ({"minimum_side": 600}, {}, "TOO_SMALL"),
        ({"maximum_pixels": 1000}, {}, "TOO_LARGE"),
        ({"minimum_age": 60}, {}, "AGE"),
    ],
)
def test_a_site_may_be_stricter(
    options: dict[str, object], attributes: dict[str, object], code: str
) -> None:
    site = dataclasses.replace(SelectionOptions(), **options)  # type: ignore[arg-type]
    assert refused(chest(**attributes), options=site) == code  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "attributes", "warning"),
    [
        ({"view_unknown": "accept"}, {"ViewPosition": None}, "view unknown"),
        ({"minimum_age": 0}, {"PatientAge": "001D"}, None),
        ({"for_processing": True}, {"SOPClassUID": RAW}, "detector data (FOR PROCESSING)"),
        ({"variants": True}, {"SeriesDescription": "inverted"}, "computed variant of an image"),
    ],
)
def test_a_site_may_be_laxer(
    options: dict[str, object], attributes: dict[str, object], warning: str | None
) -> None:
    site = dataclasses.replace(SelectionOptions(), **options)  # type: ignore[arg-type]
    choice = chosen(chest(**attributes), options=site)  # type: ignore[arg-type]
    assert choice.warnings == ((warning,) if warning else ())


@pytest.mark.parametrize("title", ["113001", "113037", "113038", "113039"])
def test_a_key_object_takes_an_image_back(title: str) -> None:
    assert refused(chest(), key_object(title, "1.2.3")) == "REJECTED"
    assert chosen(chest(), chest("1.2.4"), key_object(title, "1.2.3")).sop_instance_uid == "1.2.4"


def test_a_key_object_with_another_title_takes_nothing_back() -> None:
    chosen(chest(), key_object("113000", "1.2.3"))  # 113000: Of Interest


# -- last resorts ----------------------------------------------------------------------------------


def test_detector_data_give_way_to_any_image_for_presentation() -> None:
    site = SelectionOptions(for_processing=True)
    raw, lateral = chest(SOPClassUID=RAW), chest("1.2.4", ViewPosition="LL")
    assert refused(raw, lateral, options=site) == "NOT_FRONTAL"


def test_a_variant_gives_way_to_any_other_image() -> None:
    site = SelectionOptions(variants=True)
    variant, plain = chest(SeriesDescription="edge"), chest("1.2.4", ViewPosition="AP")
    assert chosen(variant, plain, options=site).sop_instance_uid == "1.2.4"


def test_three_colour_planes_are_tried_when_nothing_else_is_left() -> None:
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "BitsAllocated": 8}
    planes = chest(SOPClassUID=SC, pixel_bytes=3 * 512 * 512, **colour)  # type: ignore[arg-type]
    assert chosen(planes).sop_instance_uid == "1.2.3"
    assert chosen(planes, chest("1.2.4", ViewPosition="AP")).sop_instance_uid == "1.2.4"


# -- 2.3 -------------------------------------------------------------------------------------------


def test_pa_comes_before_ap_though_it_is_older() -> None:
    pa = chest("1.2.8", AcquisitionDateTime="20240101")
    ap = chest("1.2.4", ViewPosition="AP", AcquisitionDateTime="20240102")
    choice = chosen(ap, pa)
    assert (choice.sop_instance_uid, choice.rule) == ("1.2.8", "2.2-1/PA+2.3-view")
    assert [(r.sop_instance_uid, r.code) for r in choice.others] == [("1.2.4", "NOT_CHOSEN")]


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (
            {"AcquisitionDateTime": "20240101101010.5"},
            {"AcquisitionDateTime": "20240101101011+0100"},
        ),
        (
            {"AcquisitionDate": "20240101", "AcquisitionTime": "0959"},
            {"AcquisitionDate": "20240101", "AcquisitionTime": "100000.1"},
        ),
        (
            {"ContentDate": "20240101", "ContentTime": "100000"},
            {"AcquisitionDate": "20240101", "AcquisitionTime": "100001"},
        ),
        ({}, {"ContentDate": "20240101", "ContentTime": "100000"}),
    ],
)
def test_a_repeat_replaces_a_failed_exposure(
    earlier: dict[str, object], later: dict[str, object]
) -> None:
    choice = chosen(chest("1.2.1", **earlier), chest("1.2.2", **later))  # type: ignore[arg-type]
    assert (choice.sop_instance_uid, choice.rule) == ("1.2.2", "2.2-1/PA+2.3-latest")


def test_more_pixels_win_then_the_lowest_uid() -> None:
    small, large = chest("1.2.1", Rows=500), chest("1.2.2")
    assert chosen(small, large).rule == "2.2-1/PA+2.3-pixels"
    choice = chosen(large, chest("1.2.1"))
    assert (choice.sop_instance_uid, choice.rule) == ("1.2.1", "2.2-1/PA+2.3-uid")


@given(st.permutations(range(5)))
def test_the_order_of_arrival_does_not_matter(order: list[int]) -> None:
    study = [
        chest("1.2.1", ViewPosition="AP"),
        chest("1.2.2", AcquisitionDateTime="20240101"),
        chest("1.2.3"),
        chest("1.2.4", ViewPosition="LL"),
        key_object("113001", "1.2.3"),
    ]
    choice = chosen(*(study[i] for i in order))
    assert (choice.sop_instance_uid, choice.rule) == ("1.2.2", "2.2-1/PA+2.3-view")


def test_a_lateral_is_evidence_only() -> None:
    choice = chosen(chest(), chest("1.2.4", ViewPosition="LL"))
    assert [(r.view, r.code) for r in choice.others] == [("lateral", "NOT_FRONTAL")]


# -- 2.4 -------------------------------------------------------------------------------------------


def test_an_empty_study_has_no_image() -> None:
    assert refused() == "NOT_IMAGE"


def test_the_image_that_came_nearest_gives_the_code() -> None:
    lateral, child = chest("1.2.1", ViewPosition="LL"), chest("1.2.2", PatientAge="009Y")
    refusal = choose([chest("1.2.3", SOPClassUID=uids.CTImageStorage), child, lateral])
    assert isinstance(refusal, Refusal)
    assert refusal.code == "AGE"
    assert [r.code for r in refusal.reasons] == ["NOT_IMAGE", "AGE", "NOT_FRONTAL"]


def test_an_image_whose_pixels_failed_gives_way_to_the_next() -> None:
    study = [chest("1.2.1"), chest("1.2.2", ViewPosition="AP")]
    faults = {"1.2.1": Fault(code="UNDECODABLE", text="decoder error")}
    choice = choose(study, refused=faults)
    assert isinstance(choice, Choice)
    assert choice.sop_instance_uid == "1.2.2"
    assert choice.others[0].code == "UNDECODABLE"
    refusal = choose(study, refused={**faults, "1.2.2": Fault(code="BLANK", text="no contrast")})
    assert isinstance(refusal, Refusal)
    assert {r.code for r in refusal.reasons} == {"UNDECODABLE", "BLANK"}


def test_no_reason_repeats_what_the_header_says() -> None:
    # Seen in the wild: StudyDescription "XR CHEST AP PORTABLE for <patient's name>".
    secret = "MUSTERMANN"
    texts = ("StudyDescription", "SeriesDescription", "BodyPartExamined", "ViewPosition")
    study = [chest(**{keyword: secret}) for keyword in texts]  # type: ignore[arg-type]
    assert secret not in repr(choose([*study[2:], chest("1.2.5", PatientAge="009Y")]))
    assert secret not in repr(choose(study[:2]))


# -- no header may raise ---------------------------------------------------------------------------

READ = (
    *("SOPClassUID", "SOPInstanceUID", "Modality", "ManufacturerModelName", "NumberOfFrames"),
    *("PresentationIntentType", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns"),
    *("BitsAllocated", "BodyPartExamined", "ViewPosition", "ViewCodeSequence", "PatientAge"),
    *("PatientOrientation", "AcquisitionDeviceProcessingDescription", "ProtocolName", "StudyDate"),
    *("SeriesDescription", "StudyDescription", "RequestedProcedureDescription", "ContentTime"),
    *("ProcedureCodeSequence", "AnatomicRegionSequence", "QualityControlImage", "ContentDate"),
    *("BurnedInAnnotation", "PatientBirthDate", "AcquisitionDateTime", "AcquisitionDate"),
    *("AcquisitionTime", "DerivationDescription", "ConceptNameCodeSequence", "ContentSequence"),
    "SpecificCharacterSet",
)
VRS = (
    *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "OB", "OW", "PN"),
    *("SH", "SL", "SQ", "SS", "ST", "TM", "UI", "UL", "UN", "US", "UT", "ZZ"),
)
JUNK = st.one_of(
    st.binary(max_size=24),
    st.text(max_size=12).map(str.encode),
    st.sampled_from([b"", b"\\", b"\\\\", b"99999999", b"1e400", b"nan", b"CHEST\\ANKLE", b"000Y"]),
)


@st.composite
def arbitrary_headers(draw: st.DrawFn) -> Dataset:
    """A readable chest whose attributes were replaced by any bytes of any VR."""
    base = chest(SOPClassUID=draw(st.sampled_from([CR, SC, RAW, "1.2.840.10008.5.1.4.1.1.88.59"])))
    for keyword in draw(st.lists(st.sampled_from(READ), unique=True)):
        tag, value = Tag(keyword), draw(JUNK)
        raw = RawDataElement(
            tag, draw(st.sampled_from(VRS)), len(value), value, 0, False, draw(st.booleans())
        )
        base.header._dict[tag] = raw
    return base.header


@given(st.lists(arbitrary_headers(), max_size=3), st.sampled_from([None, 0, 1, 524288]))
def test_no_header_value_raises(study: list[Dataset], pixel_bytes: int | None) -> None:
    site = SelectionOptions(for_processing=True, variants=True, view_unknown="accept")
    candidates = [Candidate(header=ds, pixel_bytes=pixel_bytes) for ds in study]
    result = choose(candidates, site)
    reasons = result.others if isinstance(result, Choice) else result.reasons
    assert len(reasons) == len(study) - isinstance(result, Choice)


# -- the developers' data set ----------------------------------------------------------------------

NO_PIXELS = "NOT_IMAGE"
#: What every object of four folders must give: rule or code; None: not a Part 10 file, which no
#: sender can store (the service writes the File Meta Information of what it receives).
EXPECTED: dict[str, str | None] = {
    "cxr/real/philips-cr-pa-mono1-15bit-j2k.dcm": "2.2-1/PA+2.3-only",
    "cxr/real/fuji-cr-pa-mono1-10bit-440.dcm": "2.2-1/PA+2.3-only",
    "cxr/real/fuji-cr-ap-portable-mono1-10bit-rle-burnedin.dcm": "2.2-4/AP+2.3-only",
    "cxr/real/ge-dx-lateral-mono2-14bit-j2k.dcm": "NOT_FRONTAL",
    "cxr/real/rsna-sc-pa-mono2-8bit-jpeg.dcm": "2.2-1/PA+2.3-only",
    "cxr/real/rsna-sc-pa-mono1-flag-flipped.dcm": "2.2-1/PA+2.3-only",
    # The view stands in PatientPosition, which is not an attribute of the view.
    "cxr/real/nih-sc-pa-nofinding.dcm": "NOT_FRONTAL",
    "cxr/real/nih-sc-ap-effusion.dcm": "NOT_FRONTAL",
    "cxr/real/nih-sc-bodypart-ribcage.dcm": "NOT_CHEST",
    "cxr/wrapped/wrapped-dx-pa-14bit-j2k-2000px.dcm": "2.2-1/PA+2.3-only",
    "cxr/wrapped/wrapped-cr-ap-mono1-12bit-jpeglossless.dcm": "2.2-1/AP+2.3-only",
    "cxr/wrapped/wrapped-dx-pa-16bit-explicit.dcm": "2.2-1/PA+2.3-only",
    "cxr/wrapped/wrapped-cr-ap-15bit-rle-noview.dcm": "2.2-4/AP+2.3-only",
    "cxr/wrapped/wrapped-dx-pa-10bit-implicit.dcm": "2.2-1/PA+2.3-only",
    "cxr/wrapped/wrapped-dx-pa-12bit-bigendian.dcm": "2.2-1/PA+2.3-only",
    "cxr/wrapped/wrapped-dx-ap-polarity-mislabelled-jpegls.dcm": "2.2-1/AP+2.3-only",
    "cxr/wrapped/wrapped-cr-ap-border-8bit-jpeg.dcm": "2.2-1/AP+2.3-only",
    "cxr/wrapped/wrapped-sc-ap-deflated-8bit.dcm": "2.2-1/AP+2.3-only",
    # A lateral picture: every attribute says PA, so only a check on the pixels can catch it.
    "cxr/wrapped/wrapped-lateral-tagged-pa-a0.dcm": "2.2-1/PA+2.3-only",
    "cxr/wrapped/wrapped-lateral-tagged-pa-a0-frontal.dcm": "2.2-1/PA+2.3-only",
    "other/cr-ankle-ap-mono1.dcm": "NOT_CHEST",
    # A dog: thorax, L\F. Its size refuses it; no rule knows animals.
    "other/dx-veterinary-thorax-dog.dcm": "TOO_SMALL",
    "other/ct-small.dcm": "NOT_IMAGE",
    "other/mr-small.dcm": "NOT_IMAGE",
    "other/mr-enhanced-multiframe.dcm": "NOT_IMAGE",
    "other/us-ybr-jpeg.dcm": "NOT_IMAGE",
    "other/us-multiframe-jpeg.dcm": "NOT_IMAGE",
    "other/xa-j2k.dcm": "NOT_IMAGE",
    "other/seg-liver-1frame.dcm": "NOT_IMAGE",
    "other/sr-basic-text.dcm": NO_PIXELS,
    "other/sr-comprehensive.dcm": NO_PIXELS,
    "other/sr-tid1500.dcm": NO_PIXELS,
    "other/sr-ai-mdai.dcm": NO_PIXELS,
    "other/pr-ai-lunit-cxr.dcm": NO_PIXELS,
    "other/pr-luts.dcm": NO_PIXELS,
    "other/ko-key-images.dcm": NO_PIXELS,
    "other/encapsulated-pdf.dcm": NO_PIXELS,
    "other/sm-tiny.dcm": "NOT_IMAGE",
    "other/ecg-waveform-deflated.dcm": NO_PIXELS,
    "other/rtdose.dcm": "NOT_IMAGE",
    "other/rtplan.dcm": NO_PIXELS,
    "other/rtstruct.dcm": None,
    "other/parametric-map-float.dcm": NO_PIXELS,
    "other/sc-rgb.dcm": "NOT_IMAGE",
    "other/DICOMDIR": NO_PIXELS,
    "other/worklist-item.wl": NO_PIXELS,
    "hostile/no-meta.dcm": None,
    "hostile/no-meta-group-length.dcm": NO_PIXELS,
    "hostile/meta-missing-tsyntax.dcm": "NOT_IMAGE",
    "hostile/explicit-be-no-meta.dcm": None,
    "hostile/explicit-le-no-meta.dcm": None,
    "hostile/bad-vr.dcm": "NOT_IMAGE",
    "hostile/mr-truncated.dcm": "NOT_IMAGE",
    "hostile/rtplan-truncated.dcm": NO_PIXELS,
    "hostile/bad-sequence-un.dcm": "NOT_IMAGE",
    "hostile/un-sequence.dcm": NO_PIXELS,
    "hostile/nested-private-sq.dcm": "NOT_IMAGE",
    "hostile/private-sq.dcm": NO_PIXELS,
    "hostile/empty-charset.dcm": NO_PIXELS,
    "hostile/deflated.dcm": "NOT_IMAGE",
    "hostile/j2k-pixelrep-mismatch.dcm": "NOT_IMAGE",
    "hostile/j2k-too-short.dcm": "NOT_IMAGE",
    "hostile/j2k-embedded-delimiter.dcm": "NOT_IMAGE",
    "hostile/j2k-bits-mismatch.dcm": "NOT_IMAGE",
    "hostile/j2k-jp2-header.dcm": "NOT_IMAGE",
    "hostile/odd-size-big-endian.dcm": "NOT_IMAGE",
    "hostile/sr-empty-number-tags.dcm": NO_PIXELS,
    "hostile/charset-h31.dcm": "NOT_IMAGE",
    "hostile/charset-h32.dcm": "NOT_IMAGE",
    "hostile/charset-korean-cr-chest.dcm": NO_PIXELS,
    "hostile/charset-japanese-cr-chest.dcm": NO_PIXELS,
    "hostile/charset-arabic.dcm": "NOT_IMAGE",
    "hostile/charset-utf8-chinese.dcm": "NOT_IMAGE",
    "hostile/charset-in-sequence.dcm": NO_PIXELS,
    "hostile/rle-32bit-2frame.dcm": "NOT_IMAGE",
    "hostile/seg-j2k.dcm": "NOT_IMAGE",
    "hostile/DICOMDIR-tiny": NO_PIXELS,
    "hostile/oob-monochrome-46341.dcm": "NOT_IMAGE",
    "hostile/oob-monochrome-65535.dcm": "NOT_IMAGE",
    "hostile/unknown-sop-class.dcm": "NOT_IMAGE",
    "hostile/patient-id-collision-1.dcm": NO_PIXELS,
    "hostile/patient-id-collision-2.dcm": NO_PIXELS,
    "hostile/patient-id-collision-3.dcm": NO_PIXELS,
    "hostile/multivalued-window.dcm": "NOT_IMAGE",
    "hostile/issue195.dcm": NO_PIXELS,
    "hostile/deeply-nested-sequence.dcm.gz": None,
    "hostile/cxr-headless-implicit-fuji.dcm": None,
    "hostile/ct-bad-meta.dcm": "NOT_IMAGE",
    "hostile/duplicate-elements.dcm": NO_PIXELS,
    "hostile/at-invalid.dcm": NO_PIXELS,
    "hostile/at-no-value.dcm": NO_PIXELS,
}


def manifest(*groups: str) -> list[dict[str, str]]:
    with (SHARED / "manifest.csv").open(newline="") as table:
        return [row for row in csv.DictReader(table) if row["group"] in groups]


@needs_shared
@pytest.mark.parametrize(("name", "expected"), EXPECTED.items(), ids=EXPECTED)
def test_the_choice_from_one_object(name: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(UnreadablePixels):
            pixels.read_header(SHARED / name)
        return
    result = choose([pixels.read_header(SHARED / name)])
    assert (result.rule if isinstance(result, Choice) else result.code) == expected


@needs_shared
def test_the_table_knows_every_object() -> None:
    rows = manifest("cxr/real", "cxr/wrapped", "other", "hostile")
    assert {row["file"] for row in rows} == set(EXPECTED)


EXCEPTIONS = {
    "cxr/labelled/nih-00017625_000.dcm": "AGE",
    "cxr/labelled/nih-00026911_000.dcm": "AGE",
    "cxr/pairs/pair-63_x-pa.dcm": "TOO_SMALL",
}


@needs_shared
def test_labelled_and_paired_pictures_are_chosen_when_they_are_frontal() -> None:
    rows = manifest("cxr/labelled", "cxr/pairs")
    assert len(rows) == 165
    for row in rows:
        result = choose([pixels.read_header(SHARED / row["file"])])
        found = "chosen" if isinstance(result, Choice) else result.code
        usual = "chosen" if row["true_view"] == "frontal" else "NOT_FRONTAL"
        assert found == EXCEPTIONS.get(row["file"], usual), row["file"]


@needs_shared
def test_a_study_of_many_objects_gives_its_one_frontal_image() -> None:
    others = [name for name, code in EXPECTED.items() if name.startswith("other/") and code]
    lateral = "cxr/real/ge-dx-lateral-mono2-14bit-j2k.dcm"
    frontal = "cxr/real/philips-cr-pa-mono1-15bit-j2k.dcm"
    study = [pixels.read_header(SHARED / name) for name in (*others, lateral, frontal)]
    assert chosen(*study).sop_instance_uid == study[-1].sop_instance_uid
