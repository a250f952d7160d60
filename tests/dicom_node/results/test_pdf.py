from __future__ import annotations

from collections.abc import Callable
from functools import cache
from io import BytesIO

import pydicom
import pypdfium2
import pytest
from pydicom import Dataset

from dicom_node.results import pdf
from dicom_node.results.record import DraftRecord, Refusal
from tests.dicom_node.results.acceptance import Case, case
from tests.dicom_node.results.acceptance_pages import (
    EVERY_KIND_S_MISTAKES,
    POINTS,
    Mistake,
    drop,
    failing,
    failing_after,
    judged,
    pages,
    pdf_of,
    put,
)
from tests.dicom_node.results.samples import (
    CHARSET_FILES,
    ODD,
    charset_header,
    header,
    record,
    second_record,
)

# What pydicom says on reading our misspelt source.
pytestmark = pytest.mark.filterwarnings("ignore:Incorrect value for Specific Character Set")


@pytest.mark.parametrize("make", [record, second_record], ids=["first", "second"])
def test_a_document_passes_every_acceptance_point(make: Callable[[Dataset], DraftRecord]) -> None:
    assert failing(judged("pdf", make(header()), header())) == []


def test_a_document_of_a_refusal_passes_them_and_has_no_source() -> None:
    why = Refusal(code="NOT_FRONTAL", text="no frontal chest image")
    of = judged("pdf", record(findings="", inputs=(), history=None, refusal=why), header())
    assert failing(of) == []
    assert "SourceInstanceSequence" not in of.ds


@pytest.mark.parametrize("name", ODD)
def test_an_odd_source_still_gives_a_good_document(name: str) -> None:
    assert failing(judged("pdf", record(ODD[name]()), ODD[name]())) == []


@pytest.mark.parametrize("file", CHARSET_FILES)
def test_every_character_set_comes_back_byte_by_byte(file: str) -> None:
    assert failing(judged("pdf", record(charset_header(file)), charset_header(file))) == []


def test_a_narrative_beyond_the_source_s_set_is_on_the_page_as_it_was_written() -> None:
    of = judged("pdf", record(findings="Opacity \u2265 3 cm \u2013 “new”."), header())
    assert failing(of) == []
    assert "Opacity \u2265 3 cm \u2013 “new”." in " ".join(pages(pdf_of(of)))


@pytest.mark.parametrize("more", ["", "x"])
def test_the_length_is_the_file_s_whatever_the_padding(more: str) -> None:
    ds = pydicom.dcmread(BytesIO(pdf.encode(record(kind="pdf", findings=f"Clear{more}.")).file))
    assert bytes(ds.EncapsulatedDocument)[: ds.EncapsulatedDocumentLength].endswith(b"%%EOF\n")
    assert len(ds.EncapsulatedDocument) % 2 == 0


MISTAKES: list[Mistake] = [
    *EVERY_KIND_S_MISTAKES,
    ("FILE-6", put("PixelData", b"ab")),
    ("PRE-1", drop("PredecessorDocumentsSequence")),
    ("PRE-2", put("StudyInstanceUID", "1.9", "PredecessorDocumentsSequence")),
    (
        "PRE-3",
        drop(
            "PurposeOfReferenceCodeSequence",
            *("PredecessorDocumentsSequence", "ReferencedSeriesSequence", "ReferencedSOPSequence"),
        ),
    ),
    ("PRE-4", put("SOPInstanceUID", "2.25.8")),
    ("PRE-5", put("SeriesInstanceUID", "2.25.7")),
    ("PDF-1", put("BurnedInAnnotation", "NO")),
    ("PDF-2", put("DocumentTitle", "Report")),
    ("PDF-3", drop("ConceptNameCodeSequence")),
    ("PDF-4", put("VerificationFlag", "VERIFIED")),
    ("PDF-5", put("MIMETypeOfEncapsulatedDocument", "text/plain")),
    ("PDF-6", lambda of: _show(of, pdf_of(of) + b"trailing")),
    ("PDF-7", lambda of: of.ds.SourceInstanceSequence.pop()),
    ("PDF-8", put("AcquisitionDateTime", "20300101000000")),
    ("PDF-9", lambda of: _show(of, _blank())),
    ("PDF-10", lambda of: _show(of, pdf_of(_other("Clear lungs.")))),
    ("PDF-11", lambda of: _show(of, pdf_of(_other(f"{of.image.PatientName} is well.")))),
]


def _other(findings: str) -> Case:
    return judged("pdf", record(findings=findings), header())


def _blank() -> bytes:
    document, buffer = pypdfium2.PdfDocument.new(), BytesIO()
    document.new_page(595, 842)
    document.save(buffer)
    document.close()
    return buffer.getvalue()


def _show(of: Case, file: bytes) -> None:
    of.ds.EncapsulatedDocument, of.ds.EncapsulatedDocumentLength = file, len(file)


@cache
def _good() -> tuple[bytes, DraftRecord]:
    of = second_record(header(), kind="pdf")
    return pdf.encode(of).file, of


@pytest.mark.parametrize(("point", "mutate"), MISTAKES, ids=[name for name, _ in MISTAKES])
def test_each_point_notices_its_mistake(point: str, mutate: Callable[[Case], object]) -> None:
    data, of = _good()
    assert point in failing_after(mutate, case(data, data, of, header()))


def test_every_point_has_a_mistake_that_it_notices() -> None:
    assert {name for name, _ in MISTAKES} == set(POINTS["pdf"])
