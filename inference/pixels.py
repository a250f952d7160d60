"""From a stored DICOM object to the 8-bit picture the model was trained on (``mimic-jpg-v1``).

MIMIC-CXR-JPG was made from the stored values alone: no modality LUT, no window, no cropping
(PhysioNet, doi 10.13026/jsn5-t979; core function in MIT-LCP/mimic-cxr issue 16). Section numbers
are those of the pixel-pipeline specification.

What is bounded: the numbers in the header are judged before any pixel is decoded, and codecs run
in a child with limits (``inference.decoder``). What is not: a deflated data set (PS3.5 A.5) may
unfold to any length while it is parsed, in the memory of the process that called ``read``.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image as PillowImage
from pydicom import Dataset, FileDataset
from pydicom import uid as uids
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag

from inference import decoder, headers
from inference.findings import GreyImage, Image, UnreadablePixels
from inference.selection import Candidate, size_fault

JPEG_QUALITY = 95  # MIMIC-CXR-JPG 2.1.0, Methods: "a quality factor of 95"

# 4, outlier guard: 12-bit data give 171 levels, one 65535 pixel among them 91 and then 9.
GUARD_DISTINCT_VALUES = 256
GUARD_LEVELS = 64
GUARD_PERCENTILES = (0.01, 99.99)

# 4, polarity sanity check: a guess that no data have tested.
FRAME_FRACTION = 0.02
INVERTED_DIFFERENCE = 100  # grey levels

PIXEL_DATA = 0x7FE00010
UNDEFINED_LENGTH = 0xFFFFFFFF  # PS3.5 A.4: encapsulated pixels

StoredValues = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelOptions:
    """What a site may decide about the conversion."""

    maximum_pixels: int = 64_000_000  #: Rows x Columns
    decoder_seconds: float = 60.0  #: how long a codec may take for one image
    jpeg: bool = True  #: step 5, the round trip; skipping it differs by 1.5 grey levels
    apply_orientation: bool = False  #: mirror and flip to L\\F; the reference does not


@dataclass(frozen=True, slots=True, kw_only=True)
class _Polarity:
    invert: bool
    warnings: tuple[str, ...]


# -- reading objects -------------------------------------------------------------------------------


def read(file: Path | BinaryIO, options: PixelOptions | None = None) -> Image:
    """Decode a stored Part 10 file and convert it as MIMIC-CXR-JPG was made.

    Returns the picture: (H, W) uint8, lungs dark, with everything a draft has to record.
    Raises UnreadablePixels: UNDECODABLE, TOO_LARGE, MULTIFRAME, COLOR or BLANK; OSError when the
    file can't be read.
    """
    options = options or PixelOptions()
    with headers.tolerant():
        ds = _parse(file)
        stored = _decode(ds, options)
        polarity = _polarity(ds)
        stored, orientation = _oriented(stored, ds, apply=options.apply_orientation)
        tamed, clipped = _tamed(stored, _padding(ds))
        uid = headers.text(ds, "SOPInstanceUID")
    grey = equalised(tamed, invert=polarity.invert)
    return Image(
        pixels=jpeg_round_trip(grey) if options.jpeg else grey,
        sop_instance_uid=uid,
        preprocess=_preprocess_id(options, clipped=clipped),
        sha256=hashlib.sha256(grey.tobytes()).hexdigest(),
        warnings=(*polarity.warnings, *orientation, *_clip_warning(clipped), *_sanity(grey)),
    )


def read_header(path: Path) -> Candidate:
    """Read what ``selection.choose`` needs of a stored Part 10 file: all up to the pixels.

    Raises UnreadablePixels UNDECODABLE when the file can't be parsed.
    """
    lengths: list[int] = []

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag == PIXEL_DATA:
            lengths.append(length)
        return bool(tag >= PIXEL_DATA)

    with headers.tolerant(), path.open("rb") as file:
        try:
            header = read_partial(file, stop_when=at_pixels)
        except headers.PYDICOM_ERRORS as error:
            raise _undecodable("can't be parsed", error) from error
        left = path.stat().st_size - file.tell()
    if not lengths:
        return Candidate(header=header, pixel_bytes=None)
    deflated = header.file_meta.get("TransferSyntaxUID") == uids.DeflatedExplicitVRLittleEndian
    # A truncated file holds less than it says; of a deflated one only its word is known.
    said = lengths[0]
    return Candidate(
        header=header,
        pixel_bytes=said if deflated and said != UNDEFINED_LENGTH else min(said, left),
    )


def from_file(path: Path) -> Image:
    """Take an 8-bit PNG or JPEG as it is: (H, W) uint8, without ``mimic-jpg-v1``.

    Raises UnreadablePixels: UNDECODABLE, TOO_LARGE or COLOR.
    """
    stream = BytesIO(path.read_bytes())
    try:
        with PillowImage.open(stream) as picture:
            if picture.width * picture.height > PixelOptions().maximum_pixels:
                raise UnreadablePixels("TOO_LARGE", f"{picture.height} x {picture.width} pixels")
            if picture.mode not in ("L", "1", "RGB"):
                raise UnreadablePixels("UNDECODABLE", f"not an 8-bit picture: {picture.mode}")
            pixels = np.array(picture.convert("L") if picture.mode == "1" else picture)
    except (OSError, SyntaxError, ValueError, PillowImage.DecompressionBombError) as error:
        raise _undecodable("not a picture", error) from error
    grey = _one_plane(pixels)
    digest = hashlib.sha256(grey.tobytes()).hexdigest()
    return Image(pixels=grey, sop_instance_uid="", preprocess="as-is", sha256=digest)


def _parse(file: Path | BinaryIO) -> FileDataset:
    # Read outside the try: a file that is away or a failing disk is not the sender's mistake.
    stream = BytesIO(file.read_bytes()) if isinstance(file, Path) else file
    try:
        return pydicom.dcmread(stream)
    except headers.PYDICOM_ERRORS as error:
        raise _undecodable("can't be parsed", error) from error


def _decode(ds: Dataset, options: PixelOptions) -> StoredValues:
    """Guard, then decode: -> (H, W) stored values."""
    try:
        pixel_bytes = len(ds["PixelData"].value or b"")
    except headers.PYDICOM_ERRORS as error:
        raise _undecodable("no PixelData", error) from error
    if (headers.integer(ds, "NumberOfFrames") or 1) > 1:
        raise UnreadablePixels("MULTIFRAME", "NumberOfFrames is more than 1")
    if fault := size_fault(ds, pixel_bytes, options.maximum_pixels):
        raise UnreadablePixels(fault.code, fault.text)
    if headers.cs(ds, "PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2", "RGB"):
        raise UnreadablePixels("COLOR", "PhotometricInterpretation is not grey")
    return _one_plane(decoder.decode(ds, seconds=options.decoder_seconds))


def _one_plane(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(H, W) as it is; (H, W, 3) only if the three planes are equal."""
    if pixels.ndim == 2:
        return pixels
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UnreadablePixels("UNDECODABLE", f"{pixels.ndim} dimensions")
    first = pixels[..., :1]
    if not (pixels == first).all():
        raise UnreadablePixels("COLOR", "the three colour planes differ")
    return np.ascontiguousarray(pixels[..., 0])


def _undecodable(what: str, error: Exception) -> UnreadablePixels:
    # The error's own words may repeat a value of the header; its kind can't.
    return UnreadablePixels("UNDECODABLE", f"{what} ({type(error).__name__})")


# -- section 3: stored values to 8 bits ------------------------------------------------------------


def mimic_jpg(stored: StoredValues, *, invert: bool) -> GreyImage:
    """Convert as MIMIC-CXR-JPG did: stretch, invert, equalise, JPEG.

    ``stored``: (H, W), any integer type; ``invert``: high values are shown dark (MONOCHROME1).
    Returns (H, W) uint8, lungs dark. Raises UnreadablePixels BLANK when all values are equal.
    """
    return jpeg_round_trip(equalised(stored, invert=invert))


def equalised(stored: StoredValues, *, invert: bool) -> GreyImage:
    """Do what ``mimic_jpg`` does short of the JPEG: (H, W) integers -> (H, W) uint8."""
    u = stretch(stored)
    # Inverting after the equalisation would differ by up to 11 grey levels (mean 5.0).
    return equalise(255 - u if invert else u)


def stretch(stored: StoredValues) -> GreyImage:
    """Map lowest..highest stored value to 0..255, truncating: (H, W) integers -> (H, W) uint8."""
    # int64: the reference subtracts in the stored type, which overflows for int16.
    shifted = stored.astype(np.int64) - int(stored.min())
    highest = int(shifted.max())
    if highest == 0:
        raise UnreadablePixels("BLANK", "all pixels have the same value")
    return _levels(shifted, highest)


def equalise(u: GreyImage) -> GreyImage:
    """Equalise the histogram bit for bit as OpenCV's ``equalizeHist``: (H, W) -> (H, W) uint8."""
    histogram = np.bincount(u.ravel(), minlength=256)
    first = int(histogram.nonzero()[0][0])
    if histogram[first] == u.size:
        return u.copy()
    above = np.cumsum(histogram) - histogram[: first + 1].sum()
    above[: first + 1] = 0
    # float32 and half-to-even, as cv::equalizeHist's saturate_cast<uchar>(sum * scale).
    scale = np.float32(255) / np.float32(u.size - histogram[first])
    lut = np.rint(above.astype(np.float32) * scale).clip(0, 255).astype(np.uint8)
    equal: GreyImage = lut[u]
    return equal


def jpeg_round_trip(grey: GreyImage) -> GreyImage:
    """Store as JPEG and decode: the model never saw a picture without JPEG's losses."""
    buffer = BytesIO()
    PillowImage.fromarray(grey).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    with PillowImage.open(buffer) as picture:
        return np.array(picture)  # a copy, because Pillow's own buffer is read-only


def _levels(shifted: npt.NDArray[np.int64], highest: int) -> GreyImage:
    # This order of operations in float64, as the reference: shifted * 255 // highest differs.
    return (shifted / highest * 255).astype(np.uint8)


# -- section 4: polarity, orientation, outliers ----------------------------------------------------


def _polarity(ds: Dataset) -> _Polarity:
    """Tell whether high stored values are shown dark; each reversal undoes the one before it."""
    photometric = headers.cs(ds, "PhotometricInterpretation")
    inverse = photometric == "MONOCHROME1"
    slope = _modality_reverses(ds)
    voi = any(_descends(item, ds) for item in headers.items(ds, "VOILUTSequence")[:1])
    shape = headers.cs(ds, "PresentationLUTShape")
    found = {
        "polarity=slope: the modality transformation descends": slope,
        "polarity=voi: the VOI LUT descends": voi,
        # PS3.3 C.8.11.3: DX pairs IDENTITY with MONOCHROME2, INVERSE with MONOCHROME1.
        f"PresentationLUTShape {shape} contradicts {photometric}": (
            shape in ("IDENTITY", "INVERSE") and (shape == "INVERSE") != inverse
        ),
    }
    return _Polarity(
        invert=inverse ^ slope ^ voi,
        warnings=tuple(text for text, applies in found.items() if applies),
    )


def _modality_reverses(ds: Dataset) -> bool:
    """PS3.3 C.11.1: a Modality LUT or else a slope maps stored values to shown ones."""
    luts = headers.items(ds, "ModalityLUTSequence")
    if luts:
        return _descends(luts[0], ds)
    return (headers.number(ds, "RescaleSlope") or 0) < 0


def _descends(lut: Dataset, ds: Dataset) -> bool:
    """Tell whether a LUT (PS3.3 C.11.1.1, C.11.2.1.1) maps its last input below its first."""
    data = headers.values(lut, "LUTData")
    if len(data) == 1 and isinstance(data[0], bytes):
        big = headers.text(ds.file_meta, "TransferSyntaxUID") == uids.ExplicitVRBigEndian
        count = headers.integer(lut, "LUTDescriptor") or 2**16  # PS3.3 C.11.1.1: 0 is 65,536
        # 8-bit entries come packed two to a word, or one to a word.
        kind = "u1" if len(data[0]) < 2 * count else (">u2" if big else "<u2")
        data = tuple(np.frombuffer(data[0][: len(data[0]) // 2 * 2], kind)[:count].tolist())
    ends = [v for v in (*data[:1], *data[-1:]) if isinstance(v, int)]
    return len(ends) == 2 and ends[1] < ends[0]


def _oriented(
    stored: StoredValues, ds: Dataset, *, apply: bool
) -> tuple[StoredValues, tuple[str, ...]]:
    """Check against L\\F, how a frontal image is normally shown (PS3.3 C.7.6.1.1.1)."""
    row, _, column = headers.cs(ds, "PatientOrientation").partition("\\")
    mirrored, flipped = row == "R", column == "H"
    if not (mirrored or flipped):
        return stored, ()
    found = "orientation=" + "mirrored" * mirrored + "+" * (mirrored and flipped)
    found += "flipped" * flipped
    if not apply:
        return stored, (f"{found}: left and right may be swapped in the draft",)
    turned = stored[:: -1 if flipped else 1, :: -1 if mirrored else 1]
    return turned, (f"{found}: turned to L\\F",)


def _padding(ds: Dataset) -> tuple[int, int] | None:
    """Return the lowest and the highest padding value (PS3.3 C.7.5.1.1.2), None without padding."""
    value = headers.integer(ds, "PixelPaddingValue")
    if value is None:
        return None
    limit = headers.integer(ds, "PixelPaddingRangeLimit")
    return (value, value) if limit is None else (min(value, limit), max(value, limit))


def _tamed(stored: StoredValues, padding: tuple[int, int] | None) -> tuple[StoredValues, bool]:
    """Clip the few extreme values that would leave the rest without contrast.

    Returns the values and whether they were clipped; the reference clips nothing.
    """
    distinct = np.unique(stored).astype(np.int64)
    shifted = distinct - distinct[0]
    if len(distinct) < GUARD_DISTINCT_VALUES:
        return stored, False
    if len(np.unique(_levels(shifted, int(shifted[-1])))) >= GUARD_LEVELS:
        return stored, False
    kept = stored
    if padding is not None:
        kept = stored[(stored < padding[0]) | (stored > padding[1])]
    low, high = np.percentile(kept if kept.size else stored, GUARD_PERCENTILES, method="nearest")
    return stored.clip(low, high), True


def _clip_warning(clipped: bool) -> tuple[str, ...]:
    return ("extreme pixel values were clipped: the picture had lost its contrast",) * clipped


def _preprocess_id(options: PixelOptions, *, clipped: bool) -> str:
    return "mimic-jpg-v1" + "+clip" * clipped + "+nojpeg" * (not options.jpeg)


def _sanity(grey: GreyImage) -> tuple[str, ...]:
    """Warn when the frame (air beside the patient) is much brighter than the centre."""
    rows, columns = grey.shape
    top, left = math.ceil(rows * FRAME_FRACTION), math.ceil(columns * FRAME_FRACTION)
    on_frame = np.ones(grey.shape, dtype=bool)
    on_frame[top : rows - top, left : columns - left] = False
    frame = grey[on_frame].mean()
    centre = grey[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4].mean()
    if frame - centre <= INVERTED_DIFFERENCE:
        return ()
    return (f"possibly inverted: frame {frame:.0f}, centre {centre:.0f}",)
