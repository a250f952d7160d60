from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from dataclasses import replace
from io import BytesIO

import numpy as np
import pypdfium2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dicom_node.results.header import subject
from dicom_node.results.page import page, paragraphs, shown
from dicom_node.results.record import DraftRecord, Refusal
from tests.dicom_node.results.acceptance import squeezed
from tests.dicom_node.results.acceptance_pages import pages, solid
from tests.dicom_node.results.samples import ALGORITHM, header, record, second_record

LONG = " ".join(f"word{number}" for number in range(2000))
BANNER = "AI-GENERATED DRAFT - NOT FOR DIAGNOSIS."


def thumbnail(width: int = 43, height: int = 51) -> str:
    ramp = np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(ramp).save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def made(of: DraftRecord) -> bytes:
    return page(subject(of))


def told(of: DraftRecord) -> str:
    return squeezed(" ".join(pages(made(of))))


def pictures(file: bytes) -> list[tuple[int, int]]:
    document = pypdfium2.PdfDocument(file)
    kind = pypdfium2.raw.FPDF_PAGEOBJ_IMAGE
    found = [
        tuple(map(int, one.get_px_size())) for p in document for one in p.get_objects(filter=[kind])
    ]
    document.close()
    return [(width, height) for width, height in found]


def refused(text: str) -> DraftRecord:
    why = Refusal(code="NOT_FRONTAL", text=text)
    return record(findings="", inputs=(), history=None, history_source=None, refusal=why)


# --- what a page says ----------------------------------------------------------------------------


def test_a_page_says_that_it_is_a_draft() -> None:
    assert told(record()).startswith(
        f"{BANNER} Unverified output of LLaVA-Rad. "
        "A radiologist must review, correct and sign before any use."
    )


def test_every_page_of_a_long_draft_says_so_and_no_word_is_lost() -> None:
    texts = pages(made(record(findings=LONG)))
    assert len(texts) > 3
    assert all(BANNER in squeezed(text) for text in texts)
    assert re.findall(r"word\d+", " ".join(texts)) == LONG.split()


def test_a_page_says_request_findings_impression_and_origin_in_that_order() -> None:
    assert told(second_record()).endswith(
        "REQUEST Cough and fever Request from: RequestAttributesSequence "
        "FINDINGS There is no focal consolidation. The heart is mildly enlarged. "
        "IMPRESSION Mild cardiomegaly. "
        "Generated 2024-03-11T10:20:30+01:00 by dicom-node 0.1.0. Model LLaVA-Rad 1.0+nf4; "
        "decoding=greedy; preprocess=mimic-jpg-v1; prompt=findings-v1; quantisation=nf4; "
        "weights=sha256:0123456789ab. Input image(s): 1.2.826.0.1.3680043.10.1561.5.1.1.1, "
        "1.2.826.0.1.3680043.10.1561.5.1.2.1. Chosen by: only frontal."
    )


@pytest.mark.parametrize("empty", [None, "", " \n", "\0"])
def test_a_page_has_no_heading_for_what_is_not_there(empty: str | None) -> None:
    said = told(record(history=empty, impression=empty))
    assert "REQUEST" not in said
    assert "IMPRESSION" not in said


def test_paragraphs_and_lines_are_kept() -> None:
    (text,) = pages(made(record(findings="One.\n\nTwo:\n1. a\r\n2. b")))
    found = [line for line in text.splitlines() if line in ("One.", "Two:", "1. a", "2. b")]
    assert found == ["One.", "Two:", "1. a", "2. b"]


def test_a_page_names_no_patient() -> None:
    said = told(record())
    for name in ("Doe", "Jane", "MRN0012345", "1958"):
        assert name not in said


def test_a_refusal_gives_a_page_that_says_why_there_is_no_draft() -> None:
    said = told(refused("no frontal chest image"))
    assert said.startswith(
        "AI-GENERATED DRAFT NOT PRODUCED - NOT FOR DIAGNOSIS: NOT_FRONTAL (no frontal chest "
        "image). A radiologist must read this study as usual."
    )
    assert "Input image(s): none." in said
    assert "FINDINGS" not in said


def test_a_long_reason_still_leaves_room_for_the_page() -> None:
    reason = "x" * 80 + " the image is not one " * 100
    assert solid(reason) in solid("".join(pages(made(refused(reason)))))


def test_a_demo_model_is_named_in_the_banner() -> None:
    demo = replace(ALGORITHM, name="DEMO MODEL (phantoms only)", demo=True)
    assert "Unverified output of DEMO MODEL (phantoms only)." in told(record(algorithm=demo))


# --- the picture ---------------------------------------------------------------------------------


def test_the_image_used_is_shown_as_reduced() -> None:
    file = made(record(thumbnail=thumbnail()))
    assert pictures(file) == [(43, 51)]
    assert "An image that was read, reduced. Not for diagnosis." in " ".join(pages(file))


def test_a_page_without_a_picture_has_no_caption() -> None:
    file = made(record())
    assert pictures(file) == []
    assert "reduced" not in " ".join(pages(file))


@pytest.mark.parametrize(("width", "height"), [(1, 300), (300, 1), (1, 1)])
def test_a_picture_of_any_shape_fits(width: int, height: int) -> None:
    assert pictures(made(record(thumbnail=thumbnail(width, height)))) == [(width, height)]


# --- characters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("<b>No</b> <para> effusion", id="tags"),
        pytest.param("a & b &amp; c &#65; < 3 cm > 2", id="entities"),
        pytest.param("<br/><img src='/etc/passwd'/>", id="a file"),
        pytest.param(r"C:\temp \n (1) [2] {3}", id="PDF syntax"),
        pytest.param("Größe ≥ 3 cm \u2013 “déjà vu”…", id="typography"),
        pytest.param("x" * 500, id="one long word"),
    ],
)
def test_text_comes_through_as_it_is(text: str) -> None:
    assert solid(text) in solid("".join(pages(made(record(findings=text)))))


def test_what_the_font_cannot_draw_is_shown_as_its_code_point() -> None:
    said = solid(told(record(history="咳と熱, Łódź \U0001f600 a\u200bb\xad")))
    assert "[U+54B3][U+3068][U+71B1],Łód[U+017A][U+1F600]a[U+200B]b[U+00AD]" in said


@settings(deadline=None, max_examples=200)  # the machine may be busy
@given(st.text())
def test_no_character_is_lost(text: str) -> None:
    def character(match: re.Match[str]) -> str:
        return chr(int(match[1], 16))

    kept = "".join(paragraphs(text))
    read = re.sub(r"\[U\+([0-9A-F]{4,6})\]", character, "".join(map(shown, paragraphs(text))))
    assert read.split() == kept.split()
    assert solid(kept) == solid(text)


@settings(deadline=None, max_examples=30)
@given(st.text(min_size=1).filter(lambda t: any(c.isprintable() and c != " " for c in t)))
def test_any_text_makes_a_page(text: str) -> None:
    assert BANNER in told(record(findings=text, history=text, impression=text))


@settings(deadline=None, max_examples=30)
@given(st.text("abcdefg ,.;<>&é≥\n\t", min_size=1).filter(lambda t: t.strip()))
def test_the_page_s_text_is_the_draft_s(text: str) -> None:
    said = solid("".join(pages(made(record(findings=text, history=None)))))
    assert f"FINDINGS{solid(text)}Generated" in said


# --- the same bytes ------------------------------------------------------------------------------


def test_a_page_made_again_has_the_same_bytes() -> None:
    of = second_record(thumbnail=thumbnail(), findings=LONG)
    first = made(of)
    made(record(findings="≥ another page \u2013 in between"))
    assert made(DraftRecord.from_json(of.to_json())) == first


MAKE = (
    "import sys, hashlib\n"
    "from dicom_node.results import objects\n"
    "from dicom_node.results.record import DraftRecord\n"
    "for line in sys.stdin:\n"
    "    file = objects.encode(DraftRecord.from_json(line)).file\n"
    "    print(hashlib.sha256(file).hexdigest())\n"
)


def test_no_process_and_no_time_zone_changes_a_byte() -> None:
    image = header(Columns=80, PhotometricInterpretation="MONOCHROME2")
    kinds = ("pdf", "capture", "gsps")
    of = [record(image, kind=k, thumbnail=thumbnail(), findings="Größe ≥ 3") for k in kinds]
    stored = "\n".join(one.to_json() for one in of)
    digests = {_elsewhere(stored, seed, zone) for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo"))}
    assert len(digests) == 1
    assert len(digests.pop().split()) == 3


def _elsewhere(stored: str, seed: str, zone: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": zone}
    done = subprocess.run(
        [sys.executable, "-c", MAKE],
        input=stored,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout
