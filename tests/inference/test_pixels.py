"""Decoding and ``mimic-jpg-v1`` (pixel-pipeline specification, sections 3 and 4)."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import gdcm  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as PillowImage
from pydicom import Dataset, dcmread
from pydicom import uid as uids
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as DicomSequence

from inference import pixels
from inference.findings import UnreadablePixels
from inference.pixels import PixelOptions

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the developers' data set is not at {SHARED}"
)

Grey = npt.NDArray[np.uint8]
Stored = npt.NDArray[np.integer[Any]]

RAMP = [273 * i for i in range(16)]
RISING = [17 * i for i in range(16)]


# -- section 3, test vectors (computed with OpenCV) ------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "invert", "expected"),
    [
        pytest.param(RAMP, False, RISING, id="ramp12-MONOCHROME2"),
        pytest.param(RAMP, True, RISING[::-1], id="ramp12-MONOCHROME1"),
        pytest.param(
            [1000] * 5 + [1001, 1002, 1003] + [1500] * 3 + [2000] * 5,
            False,
            [0] * 8 + [96] * 3 + [255] * 5,
            id="offset",
        ),
        pytest.param(
            [-1024, -1024, -500, 0, 0, 0, 10, 20, 300, 300, 300, 300, 1000, 2000, 2000, 3071],
            False,
            [0, 0, 18, 73, 73, 73, 91, 109, 182, 182, 182, 182, 200, 237, 237, 255],
            id="signed",
        ),
        pytest.param(
            [*range(100, 1600, 100), 65535],
            False,
            [0, 0, 0, 59, 59, 59, 98, 98, 157, 157, 157, 196, 196, 235, 235, 255],
            id="hot",
        ),
    ],
)
def test_the_specified_vectors_come_out(
    stored: list[int], invert: bool, expected: list[int]
) -> None:
    grey = pixels.equalised(np.array(stored).reshape(4, 4), invert=invert)
    assert grey.ravel().tolist() == expected


@pytest.mark.parametrize("invert", [False, True])
def test_a_constant_image_is_blank(invert: bool) -> None:
    with pytest.raises(UnreadablePixels) as refused:
        pixels.mimic_jpg(np.full((4, 4), 77), invert=invert)
    assert refused.value.code == "BLANK"


def test_int16_does_not_overflow() -> None:
    wide = np.array([[-32768, 0], [100, 32767]], dtype=np.int16)
    expected = pixels.equalised(wide.astype(np.int32), invert=False)
    np.testing.assert_array_equal(pixels.equalised(wide, invert=False), expected)


def plain_equalise(u: Grey) -> list[int]:
    """OpenCV's equalizeHist, pixel by pixel: the specification."""
    flat = [int(v) for v in u.ravel()]
    histogram = [flat.count(k) for k in range(256)]
    first = next(k for k in range(256) if histogram[k])
    if histogram[first] == len(flat):
        return flat
    scale = np.float32(255) / np.float32(len(flat) - histogram[first])
    lut, above = [0] * 256, 0
    for k in range(first + 1, 256):
        above += histogram[k]
        lut[k] = min(255, round(float(np.float32(above) * scale)))  # round: half to even
    return [lut[v] for v in flat]


@given(arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_equalisation_equals_the_plain_loop(u: Grey) -> None:
    assert pixels.equalise(u).ravel().tolist() == plain_equalise(u)


@given(
    arrays(np.int32, (3, 5), elements=st.integers(-40_000, 70_000)).filter(
        lambda a: a.min() != a.max()
    )
)
def test_stretching_equals_the_plain_loop(stored: Stored) -> None:
    values = [int(v) for v in stored.ravel()]
    highest = max(values) - min(values)
    expected = [int((v - min(values)) / highest * 255) for v in values]
    assert pixels.stretch(stored).ravel().tolist() == expected


def test_the_result_can_be_written_to() -> None:
    # torch.from_numpy warns about read-only memory.
    assert pixels.mimic_jpg(phantom(), invert=False).flags.writeable


# -- section 3, what each mistake costs ------------------------------------------------------------


def phantom(side: int = 192) -> npt.NDArray[np.uint16]:
    """A 12-bit picture with two dark lungs in a bright body, and noise."""
    y, x = np.mgrid[:side, :side] / side
    body = 2600 * np.exp(-(((x - 0.5) / 0.55) ** 4) - ((y - 0.5) / 0.7) ** 4)
    for centre in (0.3, 0.7):
        body -= 1500 * np.exp(-(((x - centre) / 0.13) ** 2) - ((y - 0.45) / 0.26) ** 2)
    noise = np.random.default_rng(7).normal(0, 25, body.shape)
    stored: npt.NDArray[np.uint16] = (body + 700 + noise).clip(0, 4095).astype(np.uint16)
    return stored


def difference(wrong: Grey, right: Grey) -> float:
    return float(np.abs(wrong.astype(int) - right.astype(int)).mean())


def window(stored: Stored) -> Stored:
    return stored.clip(1200, 2800)


def sigmoid(stored: Stored) -> Stored:
    return (4095 / (1 + np.exp(-(stored.astype(float) - 2000) / 700))).astype(np.uint16)


def inverted_late(stored: Stored) -> Grey:
    return 255 - pixels.equalised(stored, invert=False)


@pytest.mark.parametrize(
    ("mistake", "invert", "least", "most"),
    [
        pytest.param(lambda s: pixels.equalised(s, invert=False), True, 100, 150, id="polarity"),
        pytest.param(lambda s: pixels.equalised(window(s), invert=False), False, 5, 100, id="voi"),
        pytest.param(pixels.stretch, False, 10, 100, id="no equalisation"),
        pytest.param(
            lambda s: pixels.equalised(sigmoid(s), invert=False), False, 0.01, 3, id="sigmoid"
        ),
        pytest.param(inverted_late, True, 0.1, 11, id="inverted after equalisation"),
    ],
)
def test_each_mistake_costs_about_what_the_specification_says(
    mistake: Callable[[Stored], Grey], invert: bool, least: float, most: float
) -> None:
    right = pixels.equalised(phantom(), invert=invert)
    assert least < difference(mistake(phantom()), right) < most


def test_the_jpeg_step_changes_little_but_something() -> None:
    grey = pixels.equalised(phantom(), invert=False)
    assert 0 < difference(pixels.mimic_jpg(phantom(), invert=False), grey) < 4


# -- decoding: one file for each transfer syntax ---------------------------------------------------


def chest(stored: Stored, **attributes: object) -> Dataset:
    """A CR object of ``stored``; ``attributes`` overwrite."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uids.ExplicitVRLittleEndian
    ds.SOPClassUID = uids.ComputedRadiographyImageStorage
    ds.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    ds.PatientName = "Mustermann^Erika"
    ds.PatientID = "4711"
    ds.Rows, ds.Columns = stored.shape[:2]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated = stored.dtype.itemsize * 8
    ds.BitsStored = 12 if ds.BitsAllocated == 16 else ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    ds.PixelData = stored.tobytes()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def stream(ds: Dataset) -> BytesIO:
    """The data set as a Part 10 file."""
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return buffer


def native(syntax: uids.UID) -> Callable[[Path], BytesIO]:
    def make(folder: Path) -> BytesIO:
        ds = chest(phantom())
        ds.file_meta.TransferSyntaxUID = syntax
        if syntax == uids.ExplicitVRBigEndian:
            ds.PixelData = phantom().astype(">u2").tobytes()
        ds["PixelData"].VR = "OW"
        return stream(ds)

    return make


def encoded(syntax: str, **options: Any) -> Callable[[Path], BytesIO]:
    def make(folder: Path) -> BytesIO:
        ds = chest(phantom())
        ds.compress(syntax, generate_instance_uid=False, **options)
        return stream(ds)

    return make


def encoded_by_gdcm(syntax: Any, stored: Stored) -> Callable[[Path], BytesIO]:
    """No plug-in of pydicom writes JPEG, but gdcm does."""

    def make(folder: Path) -> BytesIO:
        source, target = folder / "native.dcm", folder / "jpeg.dcm"
        source.write_bytes(stream(chest(stored)).getvalue())
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), None
        reader.SetFileName(str(source))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(target))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return BytesIO(target.read_bytes())

    return make


#: 18 * row * column on 16 x 16, 12 bits, reversible, RPCL: written by OpenJPH 0.26.3.
HTJ2K = base64.b64decode(
    "/0//UQApQAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wA"
    "EyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAKkAAf+TwAAmD/0FB3QAAMAAE0AA"
    "E0AAEwDe/QKHdADe/QKHdAC++wMHdADAABPAABPAABOAAHj3AKJUAADg7gCjVAAA3P0AglQAwAAVMAAFVAABKEIAGIqQeGPV"
    "AACIEOnAQYHstgC04CBUAMAALTgABaMAAJiGw+phBgBwDeDnVC66mTycI9oAhsPqYeYawP2IMDP7EED2WgDi/oAAVQD/2Q=="
)


def high_throughput(syntax: uids.UID) -> Callable[[Path], BytesIO]:
    def make(folder: Path) -> BytesIO:
        ds = chest(small())
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = encapsulate([HTJ2K])
        ds["PixelData"].is_undefined_length = True
        return stream(ds)

    return make


def small() -> npt.NDArray[np.uint16]:
    rows, columns = np.mgrid[:16, :16]
    product: npt.NDArray[np.uint16] = (18 * rows * columns).astype(np.uint16)
    return product


EIGHT_BIT = (phantom() >> 4).astype(np.uint8)
LOSSLESS = [
    pytest.param(native(uids.ImplicitVRLittleEndian), phantom(), id="implicit"),
    pytest.param(native(uids.ExplicitVRLittleEndian), phantom(), id="explicit"),
    pytest.param(native(uids.ExplicitVRBigEndian), phantom(), id="big endian"),
    pytest.param(native(uids.DeflatedExplicitVRLittleEndian), phantom(), id="deflated"),
    pytest.param(encoded(uids.RLELossless), phantom(), id="RLE"),
    pytest.param(encoded(uids.JPEGLSLossless), phantom(), id="JPEG-LS .80"),
    pytest.param(encoded(uids.JPEG2000Lossless), phantom(), id="JPEG 2000 .90"),
    pytest.param(
        encoded_by_gdcm(gdcm.TransferSyntax.JPEGLosslessProcess14, phantom()),
        phantom(),
        id="JPEG lossless .57",
    ),
    pytest.param(
        encoded_by_gdcm(gdcm.TransferSyntax.JPEGLosslessProcess14_1, phantom()),
        phantom(),
        id="JPEG lossless .70",
    ),
    pytest.param(high_throughput(uids.HTJ2KLossless), small(), id="HTJ2K .201"),
    pytest.param(high_throughput(uids.HTJ2KLosslessRPCL), small(), id="HTJ2K .202"),
    pytest.param(high_throughput(uids.HTJ2K), small(), id="HTJ2K .203"),
]
LOSSY = [
    pytest.param(
        encoded_by_gdcm(gdcm.TransferSyntax.JPEGBaselineProcess1, EIGHT_BIT),
        EIGHT_BIT,
        id="JPEG baseline .50",
    ),
    pytest.param(encoded(uids.JPEGLSNearLossless, jls_error=2), phantom(), id="JPEG-LS .81"),
    pytest.param(encoded(uids.JPEG2000, j2k_cr=[4]), phantom(), id="JPEG 2000 .91"),
]


@pytest.mark.parametrize(("make", "original"), LOSSLESS)
def test_a_lossless_transfer_syntax_gives_the_original(
    make: Callable[[Path], BytesIO], original: Stored, tmp_path: Path
) -> None:
    image = pixels.read(make(tmp_path))
    grey = pixels.equalised(original, invert=False)
    assert image.sha256 == hashlib.sha256(grey.tobytes()).hexdigest()
    np.testing.assert_array_equal(image.pixels, pixels.jpeg_round_trip(grey))
    assert image.preprocess == "mimic-jpg-v1"
    assert image.sop_instance_uid == "1.2.826.0.1.3680043.8.498.1"


@pytest.mark.parametrize(("make", "original"), LOSSY)
def test_a_lossy_transfer_syntax_comes_close(
    make: Callable[[Path], BytesIO], original: Stored, tmp_path: Path
) -> None:
    image = pixels.read(make(tmp_path), PixelOptions(jpeg=False))
    assert difference(image.pixels, pixels.equalised(original, invert=False)) < 5


@pytest.mark.parametrize(
    "name",
    [
        "JPEG2000.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "image_dfl.dcm",
        "MR_small_bigendian.dcm",
    ],
)
def test_files_of_other_encoders_decode(name: str) -> None:
    path = get_testdata_file(name)
    assert isinstance(path, str)
    image = pixels.read(Path(path))
    assert image.pixels.dtype == np.uint8
    assert len(np.unique(image.pixels)) > 30


def test_12_bit_jpeg_extended_decodes_as_dcmtk_does() -> None:
    # No free encoder writes it. The digest is that of steps 1-4 on the output of DCMTK's dcmdjpeg.
    path = get_testdata_file("JPGExtended.dcm")
    assert isinstance(path, str)
    assert pixels.read(Path(path)).sha256 == DCMTK_JPEG_EXTENDED


DCMTK_JPEG_EXTENDED = "e0abcb8a1cf6af591fb05a050bf9969cdcd580b5a2fbf67399913d7799f65d27"


# -- decoding: what is refused ---------------------------------------------------------------------


def code_of(ds: Dataset | BytesIO) -> str:
    with pytest.raises(UnreadablePixels) as refused:
        pixels.read(ds if isinstance(ds, BytesIO) else stream(ds))
    assert "Mustermann" not in str(refused.value)
    assert "4711" not in str(refused.value)
    return refused.value.code


def test_a_size_bomb_is_refused_before_it_is_decoded() -> None:
    assert code_of(chest(small(), Rows=65535, Columns=65535)) == "TOO_LARGE"


def test_a_compressed_size_bomb_is_refused_before_it_is_decoded() -> None:
    ds = chest(small())
    ds.compress(uids.RLELossless)
    ds.Rows = ds.Columns = 40_000
    assert code_of(ds) == "TOO_LARGE"


def test_short_pixel_data_is_undecodable() -> None:
    assert code_of(chest(small(), Rows=17)) == "UNDECODABLE"


def test_a_missing_description_of_the_pixels_is_undecodable() -> None:
    described = ("Rows", "BitsAllocated", "PhotometricInterpretation", "BitsStored", "PixelData")
    for keyword in described:
        ds = chest(small())
        ds["PixelData"].VR = "OW"
        del ds[keyword]
        assert code_of(ds) == "UNDECODABLE", keyword


def test_several_frames_are_refused() -> None:
    ds = chest(small(), NumberOfFrames=2, PixelData=small().tobytes() * 2)
    assert code_of(ds) == "MULTIFRAME"


def test_a_blank_object_is_refused() -> None:
    assert code_of(chest(np.full((16, 16), 9, dtype=np.uint16))) == "BLANK"


def rgb(red: Grey, green: Grey, blue: Grey) -> Dataset:
    planes = np.stack([red, green, blue], axis=-1)
    return chest(planes, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)


def test_rgb_with_equal_planes_is_a_grey_picture() -> None:
    grey = (small() >> 4).astype(np.uint8)
    image = pixels.read(stream(rgb(grey, grey, grey)), PixelOptions(jpeg=False))
    np.testing.assert_array_equal(image.pixels, pixels.equalised(grey, invert=False))


def test_colour_is_refused() -> None:
    grey = (small() >> 4).astype(np.uint8)
    assert code_of(rgb(grey, grey, 255 - grey)) == "COLOR"
    assert code_of(chest(grey, PhotometricInterpretation="PALETTE COLOR")) == "COLOR"


@pytest.mark.parametrize(
    "syntax",
    [
        *(uids.RLELossless, uids.JPEGLSLossless, uids.JPEG2000Lossless, uids.JPEGLosslessSV1),
        *(uids.JPEGBaseline8Bit, uids.JPEGExtended12Bit, uids.HTJ2KLossless),
    ],
)
def test_garbage_in_place_of_a_stream_is_undecodable(syntax: uids.UID) -> None:
    ds = chest(small())
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([bytes(range(256))])
    ds["PixelData"].is_undefined_length = True
    assert code_of(ds) == "UNDECODABLE"


def test_an_unknown_transfer_syntax_is_undecodable() -> None:
    ds = chest(small())
    ds.file_meta.TransferSyntaxUID = uids.UID("1.2.826.0.1.3680043.8.498.99")
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True, implicit_vr=False, little_endian=True)
    buffer.seek(0)
    assert code_of(buffer) == "UNDECODABLE"


def test_what_is_no_dicom_file_is_undecodable() -> None:
    assert code_of(BytesIO(b"%PDF-1.7" * 100)) == "UNDECODABLE"
    assert code_of(BytesIO()) == "UNDECODABLE"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 255)), min_size=1, max_size=20))
def test_a_damaged_file_is_read_or_refused_but_never_crashes(
    damage: list[tuple[int, int]],
) -> None:
    damaged = bytearray(stream(chest(small())).getvalue())
    for at, value in damage:
        damaged[at % len(damaged)] = value
    with suppress(UnreadablePixels):
        assert pixels.read(BytesIO(damaged)).pixels.ndim == 2


# -- section 4 -------------------------------------------------------------------------------------


def lut(data: object, entries: int = 4096) -> DicomSequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [entries, 0, 16])
    item.add_new("LUTData", "OW" if isinstance(data, bytes) else "US", data)
    return DicomSequence([item])


FALLING = np.arange(4096, dtype="<u2")[::-1].tobytes()
GROWING = np.arange(4096, dtype="<u2").tobytes()
RESCALE = {"RescaleIntercept": 4095, "RescaleSlope": -1}


@pytest.mark.parametrize(
    ("attributes", "inverted", "record"),
    [
        pytest.param({}, False, None, id="MONOCHROME2"),
        pytest.param({"PhotometricInterpretation": "MONOCHROME1"}, True, None, id="MONOCHROME1"),
        pytest.param(RESCALE, True, "polarity=slope", id="negative slope"),
        pytest.param(
            {"PhotometricInterpretation": "MONOCHROME1", **RESCALE},
            False,
            "polarity=slope",
            id="MONOCHROME1 and negative slope",
        ),
        pytest.param({"ModalityLUTSequence": lut(FALLING)}, True, "polarity=slope", id="modality"),
        pytest.param({"ModalityLUTSequence": lut(GROWING)}, False, None, id="modality grows"),
        pytest.param({"VOILUTSequence": lut(FALLING)}, True, "polarity=voi", id="VOI"),
        pytest.param({"VOILUTSequence": lut([9, 5, 1], 3)}, True, "polarity=voi", id="VOI, US"),
        pytest.param({"VOILUTSequence": lut(b"\7\5\3\1", 4)}, True, "polarity=voi", id="8-bit"),
        pytest.param(
            {"VOILUTSequence": lut(FALLING), **RESCALE}, False, "polarity=voi", id="VOI and slope"
        ),
        pytest.param({"VOILUTSequence": lut(b"", 0)}, False, None, id="empty LUT"),
        pytest.param({"WindowCenter": 9, "WindowWidth": 2}, False, None, id="window ignored"),
        pytest.param(
            {"PresentationLUTShape": "INVERSE"}, False, "PresentationLUTShape", id="contradiction"
        ),
        pytest.param({"PresentationLUTShape": "IDENTITY"}, False, None, id="agreement"),
    ],
)
def test_polarity_is_what_the_display_would_show(
    attributes: dict[str, object], inverted: bool, record: str | None
) -> None:
    image = pixels.read(stream(chest(phantom(), **attributes)), PixelOptions(jpeg=False))
    expected = pixels.equalised(phantom(), invert=inverted)
    np.testing.assert_array_equal(image.pixels, expected)
    recorded = [w for w in image.warnings if "inverted" not in w]
    assert any(w.startswith(record) for w in recorded) if record else not recorded


def test_a_mirrored_picture_is_kept_and_warned_of() -> None:
    image = pixels.read(stream(chest(small(), PatientOrientation=["R", "F"])))
    assert image.warnings[0].startswith("orientation=mirrored: left and right")
    np.testing.assert_array_equal(image.pixels, pixels.mimic_jpg(small(), invert=False))


def test_a_site_may_have_pictures_turned() -> None:
    ds = chest(small(), PatientOrientation=["R", "H"])
    image = pixels.read(stream(ds), PixelOptions(apply_orientation=True, jpeg=False))
    expected = pixels.equalised(small()[::-1, ::-1], invert=False)
    np.testing.assert_array_equal(image.pixels, expected)
    assert image.warnings[0] == "orientation=mirrored+flipped: turned to L\\F"


def test_one_hot_pixel_does_not_take_the_contrast() -> None:
    hot = phantom()
    hot[0, 0] = 65535
    ungarded = pixels.equalised(hot, invert=False)
    image = pixels.read(stream(chest(hot, BitsStored=16, HighBit=15)), PixelOptions(jpeg=False))
    clean = pixels.equalised(phantom(), invert=False)
    assert len(np.unique(ungarded)) < 20
    assert difference(ungarded, clean) > 5
    assert difference(image.pixels, clean) < 2
    assert image.preprocess == "mimic-jpg-v1+clip+nojpeg"
    assert any("clipped" in w for w in image.warnings)


def test_padding_does_not_count_for_the_percentiles() -> None:
    padded = phantom()
    padded[:, :40] = 65535
    ds = chest(padded, BitsStored=16, HighBit=15)
    ds.add_new("PixelPaddingValue", "US", 65535)
    image = pixels.read(stream(ds))
    # The padding is white, the rest keeps its contrast.
    assert image.preprocess == "mimic-jpg-v1+clip"
    assert len(np.unique(image.pixels[:, 60:])) > 50


def test_few_distinct_values_are_left_alone() -> None:
    two = np.zeros((16, 16), dtype=np.uint16)
    two[4:, :] = 4000
    assert pixels.read(stream(chest(two))).preprocess == "mimic-jpg-v1"


def test_a_bright_frame_around_a_dark_centre_looks_inverted() -> None:
    y, x = np.mgrid[-1:1:100j, -1:1:100j]
    bowl = (2000 * np.maximum(abs(x), abs(y))).astype(np.uint16)
    assert any("possibly inverted" in w for w in pixels.read(stream(chest(bowl))).warnings)
    hill = bowl.max() - bowl
    assert not pixels.read(stream(chest(hill))).warnings


# -- headers and pictures --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "syntax",
    [
        *(uids.ImplicitVRLittleEndian, uids.ExplicitVRLittleEndian),
        *(uids.ExplicitVRBigEndian, uids.DeflatedExplicitVRLittleEndian),
    ],
)
def test_a_header_knows_the_length_of_the_pixels(syntax: uids.UID, tmp_path: Path) -> None:
    path = tmp_path / "chest.dcm"
    path.write_bytes(native(syntax)(tmp_path).getvalue())
    candidate = pixels.read_header(path)
    assert candidate.pixel_bytes == phantom().nbytes
    assert "PixelData" not in candidate.header
    assert candidate.sop_instance_uid == "1.2.826.0.1.3680043.8.498.1"


def test_a_header_of_encapsulated_pixels_knows_an_upper_bound(tmp_path: Path) -> None:
    path = tmp_path / "chest.dcm"
    path.write_bytes(encoded(uids.RLELossless)(tmp_path).getvalue())
    length = pixels.read_header(path).pixel_bytes
    assert length is not None
    assert 0 < len(dcmread(path).PixelData) <= length < path.stat().st_size


def test_a_header_knows_that_a_file_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "chest.dcm"
    path.write_bytes(native(uids.ExplicitVRLittleEndian)(tmp_path).getvalue()[:-5000])
    length = pixels.read_header(path).pixel_bytes
    assert length is not None
    assert length < phantom().nbytes


def test_a_header_may_have_no_pixels(tmp_path: Path) -> None:
    ds = chest(small())
    del ds.PixelData
    path = tmp_path / "sr.dcm"
    path.write_bytes(stream(ds).getvalue())
    assert pixels.read_header(path).pixel_bytes is None


def test_a_file_without_a_header_is_undecodable(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("nothing")
    with pytest.raises(UnreadablePixels) as refused:
        pixels.read_header(path)
    assert refused.value.code == "UNDECODABLE"


def test_a_file_that_is_away_is_no_refusal(tmp_path: Path) -> None:
    for function in (pixels.read, pixels.read_header, pixels.from_file):
        with pytest.raises(FileNotFoundError):
            function(tmp_path / "gone")


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_picture_is_taken_as_it_is(mode: str, tmp_path: Path) -> None:
    grey = (small() >> 4).astype(np.uint8)
    PillowImage.fromarray(grey).convert(mode).save(tmp_path / "chest.png")
    image = pixels.from_file(tmp_path / "chest.png")
    np.testing.assert_array_equal(image.pixels, grey)
    assert (image.preprocess, image.sop_instance_uid) == ("as-is", "")
    assert image.sha256 == hashlib.sha256(grey.tobytes()).hexdigest()


def test_a_picture_in_colour_of_16_bits_or_broken_is_refused(tmp_path: Path) -> None:
    PillowImage.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "COLOR.png")
    PillowImage.fromarray(small()).save(tmp_path / "UNDECODABLE.png")
    (tmp_path / "UNDECODABLE.jpg").write_bytes(b"\xff\xd8\xff no")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(UnreadablePixels) as refused:
            pixels.from_file(path)
        assert refused.value.code == path.stem


# -- real objects ----------------------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize("group", ["real", "wrapped"])
def test_every_real_chest_decodes(group: str) -> None:
    files = sorted((SHARED / "cxr" / group).glob("*.dcm"))
    assert len(files) >= 9
    for path in files:
        image = pixels.read(path)
        header = dcmread(path, stop_before_pixels=True)
        assert image.pixels.shape == (header.Rows, header.Columns), path.name
        assert image.preprocess == "mimic-jpg-v1", path.name
        assert len(np.unique(image.pixels)) > 60, path.name


@needs_shared
def test_a_wrong_photometric_flag_turns_the_picture_and_nothing_here_can_tell() -> None:
    # Same pixels, one header lies. The sanity check (a guess) does not catch it.
    right = pixels.read(SHARED / "cxr/real/rsna-sc-pa-mono2-8bit-jpeg.dcm")
    wrong = pixels.read(SHARED / "cxr/real/rsna-sc-pa-mono1-flag-flipped.dcm")
    assert difference(wrong.pixels, right.pixels) > 100
    assert wrong.warnings == ()


REFUSED = {
    "other/mr-enhanced-multiframe.dcm": "MULTIFRAME",
    "other/us-ybr-jpeg.dcm": "MULTIFRAME",
    "other/sc-rgb.dcm": "COLOR",
    "other/sr-basic-text.dcm": "UNDECODABLE",
    "other/parametric-map-float.dcm": "UNDECODABLE",
    "other/DICOMDIR": "UNDECODABLE",
    "hostile/oob-monochrome-46341.dcm": "TOO_LARGE",
    "hostile/oob-monochrome-65535.dcm": "TOO_LARGE",
    "hostile/mr-truncated.dcm": "UNDECODABLE",
    "hostile/bad-vr.dcm": "UNDECODABLE",
    "hostile/j2k-embedded-delimiter.dcm": "UNDECODABLE",
    "hostile/j2k-too-short.dcm": "UNDECODABLE",
    "hostile/j2k-jp2-header.dcm": "COLOR",
    "hostile/rle-32bit-2frame.dcm": "MULTIFRAME",
    "hostile/meta-missing-tsyntax.dcm": "UNDECODABLE",
    "hostile/cxr-headless-implicit-fuji.dcm": "UNDECODABLE",
    "hostile/deeply-nested-sequence.dcm.gz": "UNDECODABLE",
}


@needs_shared
@pytest.mark.parametrize(("name", "code"), REFUSED.items(), ids=REFUSED)
def test_hostile_and_foreign_objects_are_refused_with_a_code(name: str, code: str) -> None:
    with pytest.raises(UnreadablePixels) as refused:
        pixels.read(SHARED / name)
    assert refused.value.code == code


@needs_shared
def test_a_sequence_nested_past_the_recursion_limit_is_refused() -> None:
    path = SHARED / "hostile" / "deeply-nested-sequence.dcm.gz"
    with gzip.open(path) as file, pytest.raises(UnreadablePixels) as refused:
        pixels.read(BytesIO(file.read()))
    assert refused.value.code == "UNDECODABLE"
