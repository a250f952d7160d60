"""The draft as a page to look at: PDF bytes, for viewers that show no structured report.

A page says what the text SR says, and whose draft it is not: it names no patient, for the object
that carries it does. Equal records give equal bytes.
"""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from xml.sax.saxutils import escape

import reportlab
from pydicom import Dataset
from pydicom.sr.coding import Code
from reportlab.lib.colors import black, white
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    Flowable,
    HRFlowable,
    Image,
    KeepTogether,
    Paragraph,
    SimpleDocTemplate,
    Spacer,
)

from dicom_node.results.header import Subject, code_item
from dicom_node.results.record import DraftRecord
from dicom_node.results.text_sr import banner, paragraphs, provenance, request

TITLE = "AI DRAFT - NOT FOR DIAGNOSIS"
CAPTION = "An image that was read, reduced. Not for diagnosis."

_MARGIN = 18 * mm
_TOP = 32 * mm  # OHIF opens its player over the top of a capture, and must not hide the banner
_WIDTH = A4[0] - 2 * _MARGIN
_PICTURE = 80 * mm  # its longer side
_PADDING = 9  # of the banner's box, in points
_FRAME = 6  # reportlab's own padding around the text

_REGULAR, _BOLD = "DicomNodeVera", "DicomNodeVeraBold"


def page(of: Subject) -> bytes:
    """Return the draft as a PDF document of A4 pages, the banner on each of them; pure.

    What the font can't draw is shown as its code point, [U+4E2D]. A record with a refusal gives a
    page with banner and origin: why there is no draft.
    """
    _register_fonts()
    record = of.record
    head = _banner(record)
    buffer = BytesIO()
    document = SimpleDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=_MARGIN - _FRAME,
        rightMargin=_MARGIN - _FRAME,
        topMargin=_TOP + head.height + 2 * _PADDING,
        bottomMargin=_MARGIN,
        title=TITLE,
        author=record.node.model_name,
        lang="en-US",
        invariant=1,  # no time, no random identifier
    )

    def frame(canvas: Canvas, _: SimpleDocTemplate) -> None:
        head.drawOn(canvas, _MARGIN + _PADDING, A4[1] - _TOP - head.height)
        _footer(canvas)

    document.build([*_story(of)], onFirstPage=frame, onLaterPages=frame)
    return buffer.getvalue()


def shown(text: str) -> str:
    """Return ``text`` as the page's font can draw it: [U+4E2D] stands for what it can't."""
    return "".join(_shown(character) for character in text)


def source_items(record: DraftRecord, purpose: Code) -> list[Dataset]:
    """Return the images used, as items of a SOP Instance Reference Macro (PS3.3 table 10-11)."""
    items = []
    for image in record.inputs:
        item = Dataset()
        item.ReferencedSOPClassUID = image.reference.sop_class_uid
        item.ReferencedSOPInstanceUID = image.reference.sop_instance_uid
        item.PurposeOfReferenceCodeSequence = [code_item(purpose)]
        items.append(item)
    return items


def _story(of: Subject) -> Iterator[Flowable]:
    record = of.record
    if record.thumbnail:
        yield _picture(base64.b64decode(record.thumbnail))
    yield from _section("REQUEST", "\n\n".join(request(record)))
    yield from _section("FINDINGS", record.findings)
    yield from _section("IMPRESSION", record.impression or "")
    yield Spacer(0, 10)
    yield HRFlowable(width="100%", thickness=0.5, color=black)
    yield Paragraph(_markup(provenance(of)), _style(7, spaceBefore=4))


def _section(heading: str, text: str) -> Iterator[Flowable]:
    body = [Paragraph(_markup(part), _style(11, spaceAfter=6)) for part in paragraphs(text)]
    if body:
        yield Paragraph(heading, _style(11, fontName=_BOLD, spaceBefore=8, keepWithNext=1))
        yield from body


def _picture(jpeg: bytes) -> Flowable:
    width, height = ImageReader(BytesIO(jpeg)).getSize()
    scale = _PICTURE / max(width, height)
    image = Image(BytesIO(jpeg), width * scale, height * scale, hAlign="LEFT")
    return KeepTogether([image, Paragraph(CAPTION, _style(7, spaceBefore=2, spaceAfter=4))])


def _banner(record: DraftRecord) -> Paragraph:
    """Return the banner as a box, measured: as large as leaves the text two thirds of a page."""
    for size in (16, 13, 10, 7, 5):
        style = _style(
            size,
            fontName=_BOLD,
            textColor=white,
            backColor=black,
            borderPadding=_PADDING,
            borderColor=black,
            borderWidth=1,
        )
        box = Paragraph(_markup(banner(record)), style)
        box.wrap(_WIDTH - 2 * _PADDING, A4[1])
        if box.height < A4[1] / 3:
            break
    return box


def _footer(canvas: Canvas) -> None:
    canvas.saveState()
    canvas.setFont(_REGULAR, 7)
    canvas.drawString(_MARGIN, _MARGIN - 10, TITLE)
    canvas.drawRightString(A4[0] - _MARGIN, _MARGIN - 10, f"Page {canvas.getPageNumber()}")
    canvas.restoreState()


def _style(size: int, *, fontName: str = _REGULAR, **changes: object) -> ParagraphStyle:
    return ParagraphStyle(
        "page", fontName=fontName, fontSize=size, leading=round(size * 1.35), **changes
    )


def _markup(text: str) -> str:
    """Return ``text`` in reportlab's XML, its lines kept."""
    return escape(shown(text.replace("\r\n", "\n"))).replace("\n", "<br/>")


def _shown(character: str) -> str:
    if character.isspace():
        return character if character in "\n\xa0" else " "
    # Vera has a glyph for U+FFFF; soft hyphens and their like would be drawn as nothing.
    drawn = ord(character) in _glyphs() and unicodedata.category(character) not in ("Cf", "Cn")
    return character if drawn else f"[U+{ord(character):04X}]"


@cache
def _glyphs() -> frozenset[int]:
    _register_fonts()
    faces = [pdfmetrics.getFont(name).face for name in (_REGULAR, _BOLD)]
    return frozenset.intersection(*(frozenset(face.charToGlyph) for face in faces))


@cache
def _register_fonts() -> None:
    # By path: reportlab would look in the system's folders first, and find another Vera there.
    fonts = Path(reportlab.__file__).parent / "fonts"
    pdfmetrics.registerFont(TTFont(_REGULAR, str(fonts / "Vera.ttf")))
    pdfmetrics.registerFont(TTFont(_BOLD, str(fonts / "VeraBd.ttf")))
