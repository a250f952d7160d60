"""Every foreign judge on every kind of object that we send, and on those of odd sources."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from html import unescape
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
)

from dicom_node.labeler import Label
from dicom_node.results import objects
from dicom_node.results.chest_labels import NO_FINDING, chest_label
from dicom_node.results.record import DraftRecord, LabelledFinding, Refusal
from inference.findings import Algorithm
from tests.dicom_node.results import judges
from tests.dicom_node.results.judges import Verdict, reasons, unexplained
from tests.dicom_node.results.samples import ODD, header, record, second_record

# What pydicom says on reading our misspelt source.
pytestmark = pytest.mark.filterwarnings("ignore:Incorrect value for Specific Character Set")

Presence = Literal["present", "absent", "undetermined"]

BANNER = "AI-GENERATED DRAFT - NOT FOR DIAGNOSIS."
NARRATIVE = ("There is no focal consolidation.", "The heart is mildly enlarged.")
FLAGS = ("PARTIAL", "UNVERIFIED", "PRELIMINARY")
LABELLER = Algorithm(
    name="Rule labeler",
    version="1",
    manufacturer="dicom-node project",
    digest="fedcba9876543210" * 4,
    parameters={},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One object and what every judge has to see in it."""

    record: DraftRecord
    iod: str  #: dicom3tools' name of it
    words: tuple[str, ...] = ()  #: in its content tree

    @property
    def sop_class(self) -> str:
        return self.record.sop_class_uid or BasicTextSRStorage


def _text(of: DraftRecord, *more: str, iod: str = "BasicTextSR") -> Sample:
    return Sample(record=of, iod=iod, words=(BANNER, *NARRATIVE, *more))


REFUSED: dict[str, Any] = {
    "findings": "",
    "inputs": (),
    "refusal": Refusal(code="NOT_FRONTAL", text="the study holds no frontal chest image"),
}


def _status() -> Sample:
    of = record(**REFUSED)
    banner = "AI-GENERATED DRAFT NOT PRODUCED - NOT FOR DIAGNOSIS: NOT_FRONTAL"
    return Sample(record=of, iod="BasicTextSR", words=(banner,))


def _japanese() -> Sample:
    image = header(SpecificCharacterSet="ISO_IR 192", PatientName="Yamada^Tarou=山田^太郎")
    return _text(record(image, history="咳と熱"), "咳と熱")


def _labels(**certainty: float) -> tuple[LabelledFinding, ...]:
    """All labels, and every presence among them."""
    presences: list[Presence] = ["present", "absent", "undetermined"]
    return tuple(
        LabelledFinding(label=str(label), presence=presence, certainty=certainty.get(label.name))
        for label, presence in zip(Label, cycle(presences), strict=False)
    )


def _coded(of: DraftRecord, sop_class: str, iod: str) -> Sample:
    names = [chest_label(str(one)).code.meaning for one in Label if one != NO_FINDING]
    asked = replace(of, kind="coded_sr", sop_class_uid=sop_class)
    return Sample(record=asked, iod=iod, words=("NOT FOR DIAGNOSIS", *names))


def _thumbnail() -> str:
    ramp = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(ramp).save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _page(kind: str, iod: str, of: DraftRecord) -> Sample:
    return Sample(record=replace(of, kind=kind, thumbnail=_thumbnail()), iod=iod)


EXTRACTED = record(labels=_labels(), labeler=LABELLER)
CLASSIFIED = second_record(labels=_labels(ATELECTASIS=71.5, PNEUMONIA=50.5, EDEMA=100.0))
ENHANCED = record(sop_class_uid=EnhancedSRStorage)
COMPREHENSIVE = second_record(sop_class_uid=ComprehensiveSRStorage)
UNCODED = record(header(ProcedureCodeSequence=[]), labels=_labels(), labeler=LABELLER)
TEXT_SR = {
    "text SR": _text(record()),
    "text SR, Enhanced": _text(ENHANCED, iod="EnhancedSR"),
    "text SR, Comprehensive": _text(COMPREHENSIVE, "Mild cardiomegaly.", iod="ComprehensiveSR"),
    "text SR, second version": _text(second_record(), "Mild cardiomegaly."),
    "text SR, labelled": _text(EXTRACTED),
    "text SR, legacy headings": _text(second_record(legacy_heading_codes=True)),
    "text SR, Japanese": _japanese(),
    "status SR": _status(),
}
CODED_SR = {
    "coded SR": _coded(EXTRACTED, Comprehensive3DSRStorage, "Comprehensive3DSR"),
    "coded SR, Comprehensive": _coded(EXTRACTED, ComprehensiveSRStorage, "ComprehensiveSR"),
    "coded SR, Enhanced": _coded(EXTRACTED, EnhancedSRStorage, "EnhancedSR"),
    "coded SR, second, of a classifier": _coded(
        CLASSIFIED, Comprehensive3DSRStorage, "Comprehensive3DSR"
    ),
    "coded SR, no procedure code": _coded(UNCODED, Comprehensive3DSRStorage, "Comprehensive3DSR"),
}
PAGES = {
    "PDF": _page("pdf", "EncapsulatedPDF", record()),
    "PDF, second version": _page("pdf", "EncapsulatedPDF", second_record()),
    "PDF of a status": _page("pdf", "EncapsulatedPDF", record(**REFUSED)),
    "Secondary Capture": _page("capture", "SCImage", record()),
    "Secondary Capture, second version": _page("capture", "SCImage", second_record()),
    "GSPS": _page("gsps", "GrayscaleSoftcopyPresentationState", record()),
    "GSPS, second version": _page("gsps", "GrayscaleSoftcopyPresentationState", second_record()),
}
SR = {**TEXT_SR, **CODED_SR}
SAMPLES = {**SR, **PAGES}
KINDS = ("text_sr", "coded_sr", "pdf", "capture", "gsps")


@cache
def _bytes(name: str) -> bytes:
    return objects.encode(SAMPLES[name].record).file


@pytest.fixture
def file(name: str, tmp_path: Path) -> Path:
    """The object of that name, as the file that is sent."""
    return _written(tmp_path / "object.dcm", _bytes(name))


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@cache
def _odd(source: str, kind: str) -> bytes:
    changes = {"labels": _labels(), "labeler": LABELLER} if kind == "coded_sr" else {}
    return objects.encode(record(ODD[source](), kind=kind, **changes)).file


def _missing(words: tuple[str, ...], shown: str) -> list[str]:
    plain = unescape(shown.replace("<br>", " "))
    return [word for word in words if word not in plain]


# --- good objects --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_dciodvfy_has_nothing_to_say_that_is_our_fault(name: str, file: Path) -> None:  # [TOOL-1]
    verdict = judges.dciodvfy(file)
    assert unexplained("dciodvfy", verdict) == []
    assert verdict.status == 0
    assert verdict.shown == SAMPLES[name].iod


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ODD)
def test_dciodvfy_blames_only_the_source_of_an_odd_one(
    source: str, kind: str, tmp_path: Path
) -> None:
    verdict = judges.dciodvfy(_written(tmp_path / "odd.dcm", _odd(source, kind)))
    assert unexplained("dciodvfy", verdict, odd_source=True) == []
    assert verdict.shown


@pytest.mark.parametrize("name", SR)
def test_dcsrdump_shows_the_whole_tree(name: str, file: Path) -> None:
    verdict = judges.dcsrdump(file)
    assert unexplained("dcsrdump", verdict) == []
    assert len(verdict.shown.splitlines()) == 1 + _items(pydicom.dcmread(file))


def _items(parent: Dataset) -> int:
    return sum(1 + _items(child) for child in parent.get("ContentSequence", []))


@pytest.mark.parametrize("name", SR)
def test_dsrdump_reads_the_whole_tree(name: str, file: Path) -> None:  # [TOOL-2]
    verdict = judges.dsrdump(file)
    assert unexplained("dsrdump", verdict) == []
    assert verdict.status == 0
    assert _missing((*SAMPLES[name].words, *FLAGS), verdict.shown) == []


@pytest.mark.parametrize("kind", ["text_sr", "coded_sr"])
@pytest.mark.parametrize("source", ODD)
def test_dsrdump_reads_the_document_of_an_odd_source(
    source: str, kind: str, tmp_path: Path
) -> None:
    verdict = judges.dsrdump(_written(tmp_path / "odd.dcm", _odd(source, kind)))
    assert unexplained("dsrdump", verdict, odd_source=True) == []
    assert verdict.status == 0
    assert verdict.shown.count("NOT FOR DIAGNOSIS") == 2  # series description, and banner or group


@pytest.mark.parametrize("name", SR)
def test_dsr2html_shows_flags_and_every_word(name: str, file: Path) -> None:
    verdict = judges.dsr2html(file)
    assert unexplained("dsr2html", verdict) == []
    assert verdict.status == 0
    assert _missing((*SAMPLES[name].words, *FLAGS), verdict.shown) == []


@pytest.mark.parametrize("name", SR)
def test_dsr2xml_gives_what_its_schema_wants(name: str, file: Path) -> None:
    verdict = judges.dsr2xml(file)
    assert unexplained("dsr2xml", verdict) == []
    assert verdict.status == 0
    assert _missing(SAMPLES[name].words, verdict.shown) == []


@pytest.mark.parametrize("name", ["GSPS", "GSPS, second version"])
def test_dcmpschk_passes_the_presentation_state(name: str, file: Path) -> None:
    verdict = judges.dcmpschk(file)
    assert verdict.complaints == ()
    assert "Test passed." in verdict.shown


@pytest.mark.parametrize("name", [n for n, s in SR.items() if s.sop_class != BasicTextSRStorage])
def test_highdicom_reads_all_but_basic_text(name: str, file: Path) -> None:
    verdict = judges.highdicom_reads(file)
    assert verdict.complaints == ()
    assert verdict.shown == SAMPLES[name].iod


@pytest.mark.parametrize("name", SAMPLES)
def test_strict_pydicom_finds_no_illegal_value(name: str, file: Path) -> None:
    assert judges.pydicom_reads(file).complaints == ()


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdict]:
    """PixelMed's verdict on every document, and on each that it must find a mistake in."""
    folder = tmp_path_factory.mktemp("pixelmed")
    files = {name: _written(folder / f"{n}.dcm", _bytes(name)) for n, name in enumerate(SR)}
    for name, mistake in TEMPLATE_MISTAKES.items():
        files[name] = _written(
            folder / f"{name}.dcm", _mistaken("text SR, legacy headings", mistake)
        )
    verdicts = judges.pixelmed(list(files.values()), folder / "driver.bsh")
    return {name: verdicts[path] for name, path in files.items()}


@pytest.mark.parametrize("name", SR)
def test_pixelmed_finds_the_template_kept(name: str, templates: dict[str, Verdict]) -> None:
    assert unexplained("PixelMed", templates[name]) == []
    assert templates[name].status == 0
    template = "TID_2000" if name in TEXT_SR else "TID_1500"
    assert f"Found Root Template {template}" in templates[name].shown


def test_pixelmed_says_nothing_at_all_of_legacy_headings(templates: dict[str, Verdict]) -> None:
    assert templates["text SR, legacy headings"].complaints == ()


def test_pixelmed_has_no_error_without_a_procedure_code(templates: dict[str, Verdict]) -> None:
    complaints = templates["coded SR, no procedure code"].complaints
    assert not [line for line in complaints if not line.startswith("Warning")]


@pytest.mark.parametrize("judge", [judges.dciodvfy, judges.dsrdump])
def test_no_explanation_is_one_too_many(judge: Callable[[Path], Verdict], tmp_path: Path) -> None:
    kinds = KINDS if judge is judges.dciodvfy else ("text_sr", "coded_sr")
    objects_ = [_bytes(name) for name in (SAMPLES if judge is judges.dciodvfy else SR)]
    objects_ += [_odd(source, kind) for source in ODD for kind in kinds]
    said = {
        line
        for number, data in enumerate(objects_)
        for line in judge(_written(tmp_path / f"{number}.dcm", data)).complaints
    }
    assert _unused(reasons(judge.__name__, odd_source=True), said) == []


def test_no_explanation_of_pixelmed_s_is_one_too_many(templates: dict[str, Verdict]) -> None:
    said = {line for name in SR for line in templates[name].complaints}
    assert _unused(reasons("PixelMed"), said) == []


def _unused(patterns: Iterable[str], said: Iterable[str]) -> list[str]:
    return [p for p in patterns if not any(re.match(p, line) for line in said)]


# --- bad objects: each judge must notice its mistake ---------------------------------------------


def _last_text(ds: Dataset) -> Dataset:
    item: Dataset = ds.ContentSequence[-1].ContentSequence[0]
    return item


def _no_completion_flag(ds: Dataset) -> None:
    del ds.CompletionFlag


def _nameless_item(ds: Dataset) -> None:
    del _last_text(ds).ConceptNameCodeSequence


def _wrong_relationship(ds: Dataset) -> None:
    _last_text(ds).RelationshipType = "HAS PROPERTIES"


def _unknown_item(ds: Dataset) -> None:
    _last_text(ds).ConceptNameCodeSequence[0].CodeValue = "121999"


def _no_displayed_area(ds: Dataset) -> None:
    del ds.DisplayedAreaSelectionSequence


def _odd_character_set(ds: Dataset) -> None:
    ds.SpecificCharacterSet = ["", "ISO 2022 IR 87"]


def _no_template(ds: Dataset) -> None:
    del ds.ContentTemplateSequence


def _long_study_id(ds: Dataset) -> None:
    with pydicom.config.disable_value_validation():
        ds.StudyID = "S" * 17


TEMPLATE_MISTAKES = {"relationship": _wrong_relationship, "item": _unknown_item}
MISTAKES: list[tuple[Callable[[Path], Verdict], Callable[[Dataset], None]]] = [
    (judges.dciodvfy, _no_completion_flag),
    (judges.dcsrdump, _nameless_item),
    (judges.dsrdump, _wrong_relationship),
    (judges.dsr2html, _wrong_relationship),
    (judges.dsr2xml, _odd_character_set),
    (judges.highdicom_reads, _nameless_item),
    (judges.pydicom_reads, _long_study_id),
]


def _mistaken(name: str, mistake: Callable[[Dataset], None]) -> bytes:
    ds = pydicom.dcmread(BytesIO(_bytes(name)))
    mistake(ds)
    buffer = BytesIO()
    with pydicom.config.disable_value_validation():
        ds.save_as(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(("judge", "mistake"), MISTAKES)
def test_a_judge_notices_a_mistake(
    judge: Callable[[Path], Verdict], mistake: Callable[[Dataset], None], tmp_path: Path
) -> None:
    file = _written(tmp_path / "bad.dcm", _mistaken("text SR, Enhanced", mistake))
    assert unexplained(judge.__name__, judge(file)) != []


def test_dcmpschk_notices_a_mistake(tmp_path: Path) -> None:
    verdict = judges.dcmpschk(_written(tmp_path / "bad", _mistaken("GSPS", _no_displayed_area)))
    assert "Test failed" in verdict.shown
    assert verdict.complaints


@pytest.mark.parametrize("mistake", TEMPLATE_MISTAKES)
def test_pixelmed_notices_a_mistake(mistake: str, templates: dict[str, Verdict]) -> None:
    assert unexplained("PixelMed", templates[mistake]) != []


def test_a_missing_tool_fails_in_ci_and_skips_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(judges.PACKAGES, "no-such-tool", "no-such-package")
    for ci, outcome in (("true", pytest.fail.Exception), ("", pytest.skip.Exception)):
        monkeypatch.setenv("CI", ci)
        with pytest.raises(outcome, match="apt-get install no-such-package"):
            judges.require("no-such-tool")
