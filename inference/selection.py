"""From the headers of a study to the one image the model may see, or to a reason why not.

Pure: no file is opened. Section numbers are those of the pixel-pipeline specification; they are
also the rule ids that a draft records, e.g. ``2.2-1/PA+2.3-latest``: the view PA came from line 1
of 2.2, and the acquisition time decided between several such images.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Literal

from pydicom import Dataset
from pydicom import uid as uids

from inference import headers
from inference.views import FRONTAL, LATERAL_WORDS, View, view_of

OUR_MODEL_NAME = "dicom-node"  # ManufacturerModelName of everything this product writes

PRESENTATION_CLASSES = (
    uids.ComputedRadiographyImageStorage,
    uids.DigitalXRayImageStorageForPresentation,
)
# PS3.5 A.1, A.2, A.3, A.5: the transfer syntaxes whose pixels are not compressed by themselves.
NATIVE_SYNTAXES = (
    uids.ImplicitVRLittleEndian,
    uids.ExplicitVRLittleEndian,
    uids.ExplicitVRBigEndian,
    uids.DeflatedExplicitVRLittleEndian,
)
#: Key Object titles that take an image back (PS3.16 CID 7011): rejected for quality reasons, for
#: patient safety reasons, incorrect worklist entry, data retention period expired.
REJECTION_TITLES = ("113001", "113037", "113038", "113039")

#: AnatomicRegionSequence (PS3.16 CID 4031): chest (SNOMED CT, older concept, SNOMED RT), lung.
CHEST_REGIONS = ("816094009", "51185008", "T-D3000", "39607008", "T-28000")

# Words as ``headers.mentions`` takes them. One line a language: English, German, French, Spanish,
# Italian, Portuguese, Dutch.
CHEST_WORDS = (
    *("chest", "thorax*", "cxr", "lung", "lungs"),
    *("rontgenthorax*", "lunge", "lungen*", "brustkorb"),
    *("poumon", "poumons", "pulmonaire"),
    *("torax*", "pulmon", "pulmones"),
    *("torace", "polmone", "polmoni"),
    *("pulmao", "pulmoes"),
    *("longen", "longfoto", "borstkas"),
)
#: What may have been taken instead: counts only where no word says chest.
OTHER_REGION_WORDS = (
    *("abdom*", "rib", "ribs", "ribcage", "shoulder*", "spine", "stern*", "clavic*", "pelvis"),
    *("rippe*", "schulter*", "wirbelsaule", "schlussel*", "becken*"),
    *("cote", "cotes", "epaule*", "rachis", "bassin"),
    *("costilla*", "hombro*", "columna", "estern*"),
    *("coste", "spalla", "colonna", "addome"),
    *("costela*", "ombro*", "coluna"),
    *("ribben", "schouder*", "wervelkolom", "borstbeen", "sleutelbeen", "buik*"),
)
#: Pictures computed from another picture of the same exposure, or that only prepare one.
VARIANT = re.compile(
    r"\b(bone suppress\w*|soft tissue|dual energy|enhance\w*|invert\w*|edge|stitch\w*"
    r"|comparison|scout)\b"
)
DESCRIPTIONS = (
    "AcquisitionDeviceProcessingDescription",
    "ProtocolName",
    "SeriesDescription",
    "StudyDescription",
    "RequestedProcedureDescription",
)
#: StudyDescription and the request speak of the examination, not of this one picture.
IMAGE_DESCRIPTIONS = (*DESCRIPTIONS[:3], "DerivationDescription")


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionOptions:
    """What a site may decide about the choice."""

    secondary_capture: bool = True  #: take Secondary Capture objects whose Modality is CR or DX
    for_processing: bool = False  #: take detector data when the study has nothing else
    variants: bool = False  #: take computed variants when the study has nothing else
    view_unknown: Literal["reject", "accept"] = "reject"
    minimum_side: int = 256  #: pixels
    maximum_pixels: int = 64_000_000  #: Rows x Columns
    minimum_age: int = 18  #: years; 0: any
    chest_words: tuple[str, ...] = CHEST_WORDS
    other_region_words: tuple[str, ...] = OTHER_REGION_WORDS
    lateral_words: tuple[str, ...] = LATERAL_WORDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One stored object of the study."""

    header: Dataset  #: everything before PixelData; its ``file_meta`` tells the transfer syntax
    pixel_bytes: int | None  #: length of PixelData; None: there is none

    @property
    def sop_instance_uid(self) -> str:
        """The object's SOP Instance UID, "" when it has none."""
        return headers.text(self.header, "SOPInstanceUID")

    @property
    def sop_class_uid(self) -> str:
        """The object's SOP Class UID, "" when it has none."""
        return headers.text(self.header, "SOPClassUID")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why an image can't be the model's input."""

    code: str  #: refusal code of 2.1
    text: str  #: for people; never a value from the header that could hold a name


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why one object of the study is not the model's input."""

    sop_instance_uid: str
    view: View
    code: str  #: refusal code of 2.1, or NOT_CHOSEN: usable, but another image was better
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The one image the model gets."""

    sop_instance_uid: str
    rule: str  #: ids of the rules that decided
    view: View
    warnings: tuple[str, ...] = ()
    others: tuple[Reason, ...] = ()  #: the other objects; the laterals among them are evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The study has no image for the model."""

    code: str  #: that of the image which came nearest to being accepted
    text: str
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Study:
    """What the rules need to know beside the one header."""

    options: SelectionOptions
    rejected: frozenset[str]  #: SOP Instance UIDs that Key Objects take back
    has_presentation: bool
    take_colour: bool = False  #: this round lets RGB through
    take_variants: bool = False  #: this round lets computed variants through


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    candidate: Candidate
    view: View
    line: str  #: the line of 2.2 that told the view
    stage: int  #: how many rules it passed
    fault: Fault | None


Rule = Callable[[Candidate, _Study], Fault | None]


def choose(
    candidates: Sequence[Candidate],
    options: SelectionOptions | None = None,
    *,
    refused: Mapping[str, Fault] | None = None,
) -> Choice | Refusal:
    """Choose the input image of a study.

    ``candidates``: every stored object of the study, Key Objects included. ``refused``: faults by
    SOP Instance UID of images that were chosen before and then failed on their pixels
    (UNDECODABLE, BLANK, COLOR, later NOT_FRONTAL), so that the next best is chosen.
    No header makes it raise.
    """
    if not candidates:
        return Refusal(code="NOT_IMAGE", text="the study has no object")
    with headers.tolerant():
        study = _Study(
            options=options or SelectionOptions(),
            rejected=frozenset(uid for c in candidates for uid in _taken_back_by(c)),
            has_presentation=any(_for_presentation(c) for c in candidates),
        )
        for round_ in _rounds(study):
            judged = [_judge(c, round_, refused or {}) for c in candidates]
            if usable := [j for j in judged if not j.fault]:
                return _best(usable, judged)
        return _refusal(judged)


def size_fault(header: Dataset, pixel_bytes: int | None, maximum_pixels: int) -> Fault | None:
    """Tell from numbers alone why PixelData can't or must not be decoded."""
    rows, columns = headers.integer(header, "Rows") or 0, headers.integer(header, "Columns") or 0
    allocated = headers.integer(header, "BitsAllocated") or 0
    if min(rows, columns, allocated) <= 0 or not headers.cs(header, "PhotometricInterpretation"):
        return Fault(code="UNDECODABLE", text="an attribute that describes the pixels is missing")
    if rows * columns > maximum_pixels:
        return Fault(code="TOO_LARGE", text=f"{rows} x {columns} is over {maximum_pixels} pixels")
    samples = headers.integer(header, "SamplesPerPixel") or 1
    # PS3.5 8.1.1: the cells of native pixels follow each other without a gap.
    if _is_native(header) and (pixel_bytes or 0) * 8 < rows * columns * samples * allocated:
        return Fault(code="UNDECODABLE", text="PixelData is shorter than Rows x Columns")
    return None


# -- 2.3 and 2.4: the best one, or why there is none -----------------------------------------------


def _rounds(study: _Study) -> Iterator[_Study]:
    """Yield stricter before laxer: the last resorts of 2.1 are tried when all else failed."""
    yield study
    # Three equal planes are a grey picture, which only the pixels tell.
    yield replace(study, take_colour=True)
    if study.options.variants:
        yield replace(study, take_colour=True, take_variants=True)


def _judge(candidate: Candidate, study: _Study, refused: Mapping[str, Fault]) -> _Judged:
    view, line = view_of(candidate.header, study.options.lateral_words)
    stage, fault = len(RULES), refused.get(candidate.sop_instance_uid)
    for passed, rule in enumerate(RULES):
        if found := rule(candidate, study):
            stage, fault = passed, found
            break
    return _Judged(candidate=candidate, view=view, line=line, stage=stage, fault=fault)


def _best(usable: Sequence[_Judged], judged: Sequence[_Judged]) -> Choice:
    """Take PA before AP, then the latest, then the most pixels, then the lowest UID (2.3)."""
    by_uid = sorted(usable, key=lambda j: j.candidate.sop_instance_uid)
    ranked = sorted(by_uid, key=lambda j: (_preference(j), _when(j), _area(j)), reverse=True)
    best = ranked[0]
    return Choice(
        sop_instance_uid=best.candidate.sop_instance_uid,
        rule=f"{best.line}/{best.view}+2.3-{_decider(ranked)}",
        view=best.view,
        warnings=_warnings(best),
        others=tuple(_reason(j) for j in judged if j is not best),
    )


def _decider(ranked: Sequence[_Judged]) -> str:
    """Name what set the first apart from the second."""
    if len(ranked) == 1:
        return "only"
    first, second = ranked[:2]
    if _preference(first) != _preference(second):
        return "view"
    if _when(first) != _when(second):
        return "latest"
    return "pixels" if _area(first) != _area(second) else "uid"


def _preference(judged: _Judged) -> int:
    return -FRONTAL.index(judged.view) if judged.view in FRONTAL else -len(FRONTAL)


def _when(judged: _Judged) -> str:
    """Return the time of acquisition as digits that sort; "" when unknown."""
    header = judged.candidate.header
    # PS3.5 6.2, DT: an offset from UTC may follow; the images of a study share it.
    stamp = re.sub(r"[+-]\d{4}$", "", headers.text(header, "AcquisitionDateTime"))
    for day, time in (
        (stamp[:8], stamp[8:]),
        (headers.text(header, "AcquisitionDate"), headers.text(header, "AcquisitionTime")),
        (headers.text(header, "ContentDate"), headers.text(header, "ContentTime")),
    ):
        if _date(day):
            return _digits(day) + _digits(time).ljust(12, "0")
    return ""


def _area(judged: _Judged) -> int:
    header = judged.candidate.header
    return (headers.integer(header, "Rows") or 0) * (headers.integer(header, "Columns") or 0)


def _warnings(judged: _Judged) -> tuple[str, ...]:
    header = judged.candidate.header
    found = {
        "BurnedInAnnotation is YES": _is_yes(header, "BurnedInAnnotation"),
        "detector data (FOR PROCESSING)": _for_processing(judged.candidate),
        "computed variant of an image": _is_variant(header),
        "view unknown": judged.view == "unknown",
    }
    return tuple(text for text, applies in found.items() if applies)


def _reason(judged: _Judged) -> Reason:
    fault = judged.fault or Fault(code="NOT_CHOSEN", text="another image was better")
    return Reason(
        sop_instance_uid=judged.candidate.sop_instance_uid,
        view=judged.view,
        code=fault.code,
        text=fault.text,
    )


def _refusal(judged: Sequence[_Judged]) -> Refusal:
    nearest = _reason(max(judged, key=lambda j: j.stage))
    return Refusal(code=nearest.code, text=nearest.text, reasons=tuple(_reason(j) for j in judged))


# -- 2.1: the rules, in their order ----------------------------------------------------------------


def _image_rule(candidate: Candidate, study: _Study) -> Fault | None:
    header, sop_class = candidate.header, candidate.sop_class_uid
    text = ""
    if not candidate.pixel_bytes or not candidate.sop_instance_uid:
        text = "no PixelData or no SOP Instance UID"
    elif headers.text(header, "ManufacturerModelName").casefold() == OUR_MODEL_NAME:
        text = "written by dicom-node itself"
    elif sop_class == uids.SecondaryCaptureImageStorage:
        # Digitised and re-wrapped radiographs: the public NIH and RSNA objects are such.
        radiograph = headers.cs(header, "Modality") in ("CR", "DX")
        if not (study.options.secondary_capture and radiograph):
            text = "Secondary Capture is off, or its Modality is not CR or DX"
    elif not (_for_presentation(candidate) or _for_processing(candidate)):
        text = "SOP class is not that of a projection radiograph"
    return Fault(code="NOT_IMAGE", text=text) if text else None


def _processing_rule(candidate: Candidate, study: _Study) -> Fault | None:
    if not _for_processing(candidate):
        return None
    if study.options.for_processing and not study.has_presentation:
        return None
    return Fault(code="FOR_PROCESSING", text="detector data, not the image for presentation")


def _frames_rule(candidate: Candidate, study: _Study) -> Fault | None:
    if (headers.integer(candidate.header, "NumberOfFrames") or 1) > 1:
        return Fault(code="MULTIFRAME", text="NumberOfFrames is more than 1")
    return None


def _colour_rule(candidate: Candidate, study: _Study) -> Fault | None:
    samples = headers.integer(candidate.header, "SamplesPerPixel") or 1
    photometric = headers.cs(candidate.header, "PhotometricInterpretation")
    if samples == 1 and photometric in ("", "MONOCHROME1", "MONOCHROME2"):
        return None
    if samples == 3 and photometric == "RGB" and study.take_colour:
        return None
    return Fault(code="COLOR", text="PhotometricInterpretation is not MONOCHROME1 or MONOCHROME2")


def _chest_rule(candidate: Candidate, study: _Study) -> Fault | None:
    header, chest_words = candidate.header, study.options.chest_words
    described = _described(header)
    described_chest = headers.mentions(described, chest_words)
    body_part = headers.text(header, "BodyPartExamined")
    text = ""
    if body_part and not headers.mentions(headers.words(body_part), chest_words):
        text = "BodyPartExamined is not the chest"
    elif headers.mentions(described, study.options.other_region_words) and not described_chest:
        text = "the descriptions name another region"
    elif not (body_part or described_chest or _chest_region(header)):
        text = "nothing says chest"
    return Fault(code="NOT_CHEST", text=text) if text else None


def _frontal_rule(candidate: Candidate, study: _Study) -> Fault | None:
    view, line = view_of(candidate.header, study.options.lateral_words)
    if view in FRONTAL or (view == "unknown" and study.options.view_unknown == "accept"):
        return None
    why = ": ViewPosition and PatientOrientation disagree" if line == "2.2-1x3" else ""
    return Fault(code="NOT_FRONTAL", text=f"view is {view}{why}")


def _rejected_rule(candidate: Candidate, study: _Study) -> Fault | None:
    if candidate.sop_instance_uid in study.rejected:
        return Fault(code="REJECTED", text="a Key Object takes it back")
    if _is_yes(candidate.header, "QualityControlImage"):
        return Fault(code="REJECTED", text="QualityControlImage is YES")
    return None


def _variant_rule(candidate: Candidate, study: _Study) -> Fault | None:
    if _is_variant(candidate.header) and not study.take_variants:
        return Fault(code="VARIANT", text="computed from another picture, or only a scout")
    return None


def _size_rule(candidate: Candidate, study: _Study) -> Fault | None:
    header = candidate.header
    fault = size_fault(header, candidate.pixel_bytes, study.options.maximum_pixels)
    side = min(headers.integer(header, "Rows") or 0, headers.integer(header, "Columns") or 0)
    if fault is None and side < study.options.minimum_side:
        return Fault(code="TOO_SMALL", text=f"shorter side is {side} pixels")
    return fault


def _age_rule(candidate: Candidate, study: _Study) -> Fault | None:
    age = _age(candidate.header)
    if age is not None and age < study.options.minimum_age:
        # The model was trained on adult emergency patients.
        return Fault(code="AGE", text=f"younger than {study.options.minimum_age} years")
    return None


def _burned_in_rule(candidate: Candidate, study: _Study) -> Fault | None:
    secondary = candidate.sop_class_uid == uids.SecondaryCaptureImageStorage
    if secondary and _is_yes(candidate.header, "BurnedInAnnotation"):
        return Fault(code="BURNED_IN", text="Secondary Capture with burned-in annotation")
    return None


RULES: tuple[Rule, ...] = (
    _image_rule,
    _processing_rule,
    _frames_rule,
    _colour_rule,
    _chest_rule,
    _frontal_rule,
    _rejected_rule,
    _variant_rule,
    _size_rule,
    _age_rule,
    _burned_in_rule,
)

# -- what the rules ask the header -----------------------------------------------------------------


def _for_processing(candidate: Candidate) -> bool:
    intent = headers.cs(candidate.header, "PresentationIntentType")  # PS3.3 C.8.11.1
    detector = candidate.sop_class_uid == uids.DigitalXRayImageStorageForProcessing
    return detector or intent == "FOR PROCESSING"


def _for_presentation(candidate: Candidate) -> bool:
    return candidate.sop_class_uid in PRESENTATION_CLASSES and not _for_processing(candidate)


def _is_native(header: Dataset) -> bool:
    meta = getattr(header, "file_meta", None) or Dataset()
    return headers.text(meta, "TransferSyntaxUID") in ("", *NATIVE_SYNTAXES)


def _is_yes(header: Dataset, keyword: str) -> bool:
    return headers.cs(header, keyword) == "YES"


def _is_variant(header: Dataset) -> bool:
    described = (" ".join(headers.words(headers.text(header, k))) for k in IMAGE_DESCRIPTIONS)
    return any(VARIANT.search(line) for line in described)


def _described(header: Dataset) -> tuple[str, ...]:
    lines = [headers.text(header, keyword) for keyword in DESCRIPTIONS]
    procedures = headers.items(header, "ProcedureCodeSequence")
    lines += [headers.text(item, "CodeMeaning") for item in procedures]
    return headers.words(" | ".join(lines))


def _chest_region(header: Dataset) -> bool:
    regions = headers.items(header, "AnatomicRegionSequence")
    return any(headers.text(item, "CodeValue") in CHEST_REGIONS for item in regions)


def _taken_back_by(candidate: Candidate) -> Iterator[str]:
    """Yield the SOP Instance UIDs that a Key Object with a rejecting title names."""
    if candidate.sop_class_uid != uids.KeyObjectSelectionDocumentStorage:
        return
    titles = headers.items(candidate.header, "ConceptNameCodeSequence")
    if not any(headers.text(title, "CodeValue") in REJECTION_TITLES for title in titles):
        return
    for content in headers.items(candidate.header, "ContentSequence"):  # PS3.16 TID 2010
        for reference in headers.items(content, "ReferencedSOPSequence"):
            yield headers.text(reference, "ReferencedSOPInstanceUID")


def _age(header: Dataset) -> float | None:
    """Return the patient's age in years, None when the header does not tell."""
    # PS3.5 6.2, AS: nnnD, nnnW, nnnM or nnnY; public sets leave the Y out.
    stated = re.fullmatch(r"([0-9]{1,3})([DWMY]?)", headers.cs(header, "PatientAge"))
    if stated:
        per_year = {"D": 365.25, "W": 52.18, "M": 12.0}.get(stated[2], 1.0)
        return int(stated[1]) / per_year
    born = _date(headers.text(header, "PatientBirthDate"))
    seen = _date(headers.text(header, "StudyDate"))
    if born is None or seen is None or seen < born:
        return None
    return seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day))


def _date(value: str) -> date | None:
    try:
        return date.fromisoformat(_digits(value))
    except ValueError:
        return None


def _digits(value: str) -> str:
    """Keep the digits: ACR-NEMA wrote dates with dots and times with colons (PS3.5 6.2)."""
    return re.sub(r"[^0-9]", "", value)
