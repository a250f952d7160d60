from __future__ import annotations

from collections.abc import Callable
from functools import cache
from io import BytesIO

import numpy as np
import pypdfium2
import pytest
from pydicom import Dataset

from dicom_node.results import capture
from dicom_node.results.header import subject
from dicom_node.results.page import page
from dicom_node.results.record import DraftRecord, Refusal
from tests.dicom_node.results.acceptance import Case, case
from tests.dicom_node.results.acceptance_pages import (
    EVERY_KIND_S_MISTAKES,
    POINTS,
    Mistake,
    failing,
    failing_after,
    judged,
    pages,
    put,
)
from tests.dicom_node.results.samples import ODD, header, record, second_record

# What pydicom says on reading our misspelt source.
pytestmark = pytest.mark.filterwarnings("ignore:Incorrect value for Specific Character Set")

LONG = " ".join(f"word{number}" for number in range(2000))
A4 = (1754, 1241)  # at 150 dpi


@pytest.mark.parametrize("make", [record, second_record], ids=["first", "second"])
def test_a_capture_passes_every_acceptance_point(make: Callable[[Dataset], DraftRecord]) -> None:
    of = judged("capture", make(header()), header())
    assert failing(of) == []
    assert of.ds.pixel_array.shape == A4


def test_a_capture_of_a_refusal_passes_them_and_has_no_source() -> None:
    why = Refusal(code="NOT_FRONTAL", text="no frontal chest image")
    of = judged("capture", record(findings="", inputs=(), history=None, refusal=why), header())
    assert failing(of) == []
    assert "SourceImageSequence" not in of.ds


@pytest.mark.parametrize("name", ODD)
def test_an_odd_source_still_gives_a_good_capture(name: str) -> None:
    assert failing(judged("capture", record(ODD[name]()), ODD[name]())) == []


def test_the_pages_of_a_long_draft_lie_below_each_other() -> None:
    of = record(kind="capture", findings=LONG)
    count = len(pages(page(subject(of))))
    picture = capture.document(of).pixel_array
    assert picture.shape == (count * A4[0], A4[1])
    for number in range(count):  # each has its banner
        top = picture[number * A4[0] : number * A4[0] + 400]
        assert ((top < 32).mean(axis=1) > 0.3).sum() > 60


def test_more_pages_than_an_image_has_rows_for_are_drawn_smaller() -> None:
    document = pypdfium2.PdfDocument.new()
    for _ in range(38):
        document.new_page(595.28, 841.89)
    file = BytesIO()
    document.save(file)
    document.close()
    rows, columns = capture.rendered(file.getvalue()).shape
    assert 65000 < rows <= 65535
    assert columns < A4[1]


def test_another_text_gives_another_picture() -> None:
    one, other = (capture.document(record(kind="capture", findings=f)) for f in ("Clear.", "Big."))
    assert (one.pixel_array != other.pixel_array).any()


MISTAKES: list[Mistake] = [
    *EVERY_KIND_S_MISTAKES,
    ("SC-1", put("ConversionType", "DV")),
    ("SC-2", put("BodyPartExamined", "KNEE")),
    ("SC-3", put("PhotometricInterpretation", "MONOCHROME1")),
    ("SC-4", lambda of: _show(of, np.full(A4, 255, np.uint8))),
    ("SC-5", lambda of: of.ds.SourceImageSequence.pop()),
    ("SC-6", put("DateOfSecondaryCapture", "20300101")),
]


def _show(of: Case, picture: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> None:
    of.ds.set_pixel_data(picture, "MONOCHROME2", 8, generate_instance_uid=False)


@cache
def _good() -> tuple[bytes, DraftRecord]:
    of = second_record(header(), kind="capture")
    return capture.encode(of).file, of


@pytest.mark.parametrize(("point", "mutate"), MISTAKES, ids=[name for name, _ in MISTAKES])
def test_each_point_notices_its_mistake(point: str, mutate: Callable[[Case], object]) -> None:
    data, of = _good()
    assert point in failing_after(mutate, case(data, data, of, header()))


def test_every_point_has_a_mistake_that_it_notices() -> None:
    assert {name for name, _ in MISTAKES} == set(POINTS["capture"])
