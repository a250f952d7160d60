"""The draft as text over the image: a Grayscale Softcopy Presentation State (PS3.3 A.33.1).

Off by default, for it covers what the radiologist reads. Whatever of an image's own presentation
is not in the state counts as switched off (PS3.4 N.2): window, look-up tables, polarity, shutter
and overlays are therefore repeated here, so that the picture stays the picture.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from fractions import Fraction

from pydicom import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage

from dicom_node.errors import Unreadable
from dicom_node.results import objects, source
from dicom_node.results.header import SeriesKind, Subject, header, subject
from dicom_node.results.objects import ResultObject
from dicom_node.results.record import DraftRecord, Reference
from dicom_node.results.text_sr import banner, paragraphs

SERIES = SeriesKind(modality="PR", number=5, title="AI DRAFT")
LAYER = "AI_DRAFT"
OVERLAYS = "IMAGE_OVERLAYS"  #: layer of the image's own overlays, below ours

_POLARITY = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}  # PS3.3 C.11.6.1.2
_LINE = 90  # characters
_LINE_HEIGHT = 0.03  # of the displayed area, less where there are many lines
_SPACINGS = (
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "PixelAspectRatio",
)
_SHUTTERS = {  # PS3.3 C.7.6.11; a BITMAP shutter is an overlay
    "RECTANGULAR": (
        "ShutterLeftVerticalEdge",
        "ShutterRightVerticalEdge",
        "ShutterUpperHorizontalEdge",
        "ShutterLowerHorizontalEdge",
    ),
    "CIRCULAR": ("CenterOfCircularShutter", "RadiusOfCircularShutter"),
    "POLYGONAL": ("VerticesOfThePolygonalShutter",),
}
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,2})?")  # PS3.5 6.2, DS


def encode(record: DraftRecord) -> ResultObject:
    """Return the draft over its image as a Part 10 file; pure.

    Raises
    ------
    Unreadable
        The stored header does not tell the image's size or polarity.
    """
    return objects.from_dataset(document(record))


def document(record: DraftRecord) -> Dataset:
    """Return the presentation state of the record's first image, with file meta; pure.

    Raises
    ------
    Unreadable
        The stored header does not tell the image's size or polarity.
    """
    of = subject(record)
    image = record.inputs[0].reference  # the one whose header we have
    ds = header(of, GrayscaleSoftcopyPresentationStateStorage, SERIES)
    _identification(ds, of)
    ds.BodyPartExamined = "CHEST"
    ds.ReferencedSeriesSequence = [_series(image)]
    ds.DisplayedAreaSelectionSequence = [_displayed_area(of.source)]
    _grayscale(ds, of.source)
    _shutter(ds, of.source)
    layers = [*_overlays(ds, of.source), LAYER]
    ds.GraphicLayerSequence = [_layer(*entry) for entry in enumerate(layers, start=1)]
    ds.GraphicAnnotationSequence = [_annotation(of.record)]
    return ds


def _identification(ds: Dataset, of: Subject) -> None:
    ds.ContentLabel = LAYER
    ds.ContentDescription = "AI draft over the image; unverified, not for diagnosis"
    ds.ContentCreatorName = None
    ds.PresentationCreationDate = of.started_at.strftime("%Y%m%d")
    ds.PresentationCreationTime = of.started_at.strftime("%H%M%S")


def _series(image: Reference) -> Dataset:
    item, instance = Dataset(), Dataset()
    instance.ReferencedSOPClassUID = image.sop_class_uid
    instance.ReferencedSOPInstanceUID = image.sop_instance_uid
    item.SeriesInstanceUID = image.series_instance_uid
    item.ReferencedImageSequence = [instance]
    return item


def _displayed_area(header: Dataset) -> Dataset:
    """Return the whole image, its pixels as high and wide as they are."""
    if not (source.has(header, "Rows") and source.has(header, "Columns")):
        raise Unreadable("stored draft record: source_header has no Rows and Columns")
    item = Dataset()
    item.DisplayedAreaTopLeftHandCorner = [1, 1]
    item.DisplayedAreaBottomRightHandCorner = [header.Columns, header.Rows]
    item.PresentationSizeMode = "SCALE TO FIT"
    # Not as a spacing: a viewer may measure with that, and the image's may not be at the patient.
    item.PresentationPixelAspectRatio = _aspect_ratio(header)
    return item


def _aspect_ratio(header: Dataset) -> Sequence[int]:
    for keyword in _SPACINGS:
        pair = _decimals(header, keyword)
        if len(pair) == 2 and min(map(float, pair)) > 0:
            ratio = (Fraction(pair[0]) / Fraction(pair[1])).limit_denominator(1000)
            if 0 < ratio <= 1000:
                return [ratio.numerator, ratio.denominator]
    return [1, 1]


def _grayscale(ds: Dataset, header: Dataset) -> None:
    polarity = source.plain(header, "PhotometricInterpretation").upper()
    if polarity not in _POLARITY:
        raise Unreadable("stored draft record: source_header has no grey PhotometricInterpretation")
    ds.PresentationLUTShape = _POLARITY[polarity]
    _modality_lut(ds, header)
    voi = [*_voi_lut(header)]
    if voi:
        ds.SoftcopyVOILUTSequence = voi


def _modality_lut(ds: Dataset, header: Dataset) -> None:
    intercept, slope = (_decimals(header, k)[:1] for k in ("RescaleIntercept", "RescaleSlope"))
    if intercept and slope:
        ds.RescaleIntercept, ds.RescaleSlope = intercept[0], slope[0]
        ds.RescaleType = source.plain(header, "RescaleType") or "US"  # unspecified
    elif source.has(header, "ModalityLUTSequence"):
        source.fill(ds, "ModalityLUTSequence", header)


def _voi_lut(header: Dataset) -> Iterator[Dataset]:
    """Yield what the image is shown with: its first window, otherwise its first table."""
    item = source.dataset_like(header)
    center, width = (_decimals(header, k)[:1] for k in ("WindowCenter", "WindowWidth"))
    if center and width and float(width[0]) > 0:
        item.WindowCenter, item.WindowWidth = center[0], width[0]
        function = source.plain(header, "VOILUTFunction")
        if function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
            item.VOILUTFunction = function
        yield item
    elif source.has(header, "VOILUTSequence"):
        source.fill(item, "VOILUTSequence", header)
        yield item


def _shutter(ds: Dataset, header: Dataset) -> None:
    shapes = source.plain(header, "ShutterShape").split("\\")
    needed = [keyword for shape in shapes for keyword in _SHUTTERS.get(shape, ())]
    if not set(shapes) <= set(_SHUTTERS) or not all(source.has(header, k) for k in needed):
        return
    for keyword in ("ShutterShape", *needed):
        source.fill(ds, keyword, header)
    if source.has(header, "ShutterPresentationValue"):
        source.fill(ds, "ShutterPresentationValue", header)
    else:
        ds.ShutterPresentationValue = 0  # black


def _overlays(ds: Dataset, header: Dataset) -> Sequence[str]:
    """Switch the image's own overlays on; a laterality marker may be among them."""
    groups = [tag.group for tag in source.OVERLAY_TYPES if tag in header]
    for group in groups:
        ds.add_new((group, 0x1001), "CS", OVERLAYS)  # Overlay Activation Layer, PS3.3 C.11.7
    return [OVERLAYS] if groups else []


def _layer(order: int, name: str) -> Dataset:
    item = Dataset()
    item.GraphicLayer = name
    item.GraphicLayerOrder = order
    item.GraphicLayerRecommendedDisplayGrayscaleValue = 0xFFFF
    return item


def _annotation(record: DraftRecord) -> Dataset:
    """Return the draft as one text object a line: some viewers show only the first line of each."""
    lines = [
        *_lines(banner(record)),
        *(line for part in paragraphs(record.findings) for line in _lines(part)),
    ]
    height = min(_LINE_HEIGHT, 0.98 / len(lines))
    item = Dataset()
    item.GraphicLayer = LAYER
    item.TextObjectSequence = [
        _text(line, top=0.01 + number * height, height=height) for number, line in enumerate(lines)
    ]
    return item


def _lines(text: str) -> list[str]:
    return textwrap.wrap(text, _LINE, break_on_hyphens=False)


def _text(line: str, *, top: float, height: float) -> Dataset:
    """PS3.3 table C.10-5, in fractions of the displayed area."""
    item = Dataset()
    item.BoundingBoxAnnotationUnits = "DISPLAY"
    item.UnformattedTextValue = line
    item.BoundingBoxTopLeftHandCorner = [0.01, top]
    item.BoundingBoxBottomRightHandCorner = [0.99, top + height]
    item.BoundingBoxTextHorizontalJustification = "LEFT"
    return item


def _decimals(header: Dataset, keyword: str) -> list[str]:
    """Return the values of a decimal or integer string; none if one of them is neither."""
    values = [value.strip() for value in source.plain(header, keyword).split("\\")]
    legal = all(_DECIMAL.fullmatch(value) and len(value) <= 16 for value in values)
    return values if legal else []
