from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.errors import Unreadable
from dicom_node.results import gsps
from dicom_node.results.record import DraftRecord
from tests.dicom_node.results import judges
from tests.dicom_node.results.acceptance import Case, case
from tests.dicom_node.results.acceptance_pages import (
    EVERY_KIND_S_MISTAKES,
    POINTS,
    Mistake,
    failing,
    failing_after,
    judged,
    lines,
    put,
)
from tests.dicom_node.results.samples import (
    CHARSET_FILES,
    ODD,
    charset_header,
    chosen,
    header,
    record,
    reference,
    reread,
    second_record,
)

# What pydicom says on reading our misspelt source.
pytestmark = pytest.mark.filterwarnings("ignore:Incorrect value for Specific Character Set")

SHARED = Path(__file__).parents[4] / "shared" / "data" / "cxr"
ROWS, COLUMNS = 96, 80
RECTANGLE: dict[str, object] = {
    "ShutterShape": "RECTANGULAR",
    "ShutterLeftVerticalEdge": "10",
    "ShutterRightVerticalEdge": "70",
    "ShutterUpperHorizontalEdge": "20",
    "ShutterLowerHorizontalEdge": "80",
}
CIRCLE: dict[str, object] = {
    "ShutterShape": "CIRCULAR",
    "CenterOfCircularShutter": ["40", "40"],
    "RadiusOfCircularShutter": "30",
    "ShutterPresentationValue": 0x8000,
}


def state(**changes: object) -> Dataset:
    return gsps.document(record(header(**changes), kind="gsps"))


# --- good states ---------------------------------------------------------------------------------


@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("make", [record, second_record], ids=["first", "second"])
def test_a_state_passes_every_acceptance_point(
    make: Callable[[Dataset], DraftRecord], polarity: str
) -> None:
    image = header(PhotometricInterpretation=polarity)
    assert failing(judged("gsps", make(image), image)) == []


@pytest.mark.parametrize("name", ODD)
def test_an_odd_source_still_gives_a_good_state(name: str) -> None:
    assert failing(judged("gsps", record(ODD[name]()), ODD[name]())) == []


@pytest.mark.parametrize("file", CHARSET_FILES)
def test_every_character_set_comes_back_byte_by_byte(file: str) -> None:
    assert failing(judged("gsps", record(charset_header(file)), charset_header(file))) == []


@pytest.mark.parametrize("name", ["ja", "ko", "ru", "utf-8", "no character set"])
def test_a_draft_that_the_source_s_set_cannot_write_moves_to_utf8(name: str) -> None:
    of = judged("gsps", record(ODD[name](), findings="Ödem \u2265 3 cm.\n\n咳."), ODD[name]())
    assert of.ds.SpecificCharacterSet == "ISO_IR 192"
    assert failing(of) == []


@settings(deadline=None, max_examples=30)  # the machine may be busy
@given(
    st.text("ab .\n\r\t\0\x1b\x85\\é-", min_size=1).filter(lambda t: t.strip("\0\x1b\x85 \n\r\t"))
)
def test_the_narrative_loses_nothing_but_control_characters(findings: str) -> None:
    assert failing(judged("gsps", record(findings=findings), header())) == []


def test_a_long_draft_is_all_there_in_smaller_lines() -> None:
    of = judged("gsps", record(findings="word " * 2000), header())
    assert failing(of) == []
    assert len(lines(of)) > 100


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data at {SHARED}")
def test_every_radiograph_of_the_shared_data_gives_a_good_state() -> None:
    files = [f for folder in ("real", "wrapped") for f in sorted((SHARED / folder).glob("*.dcm"))]
    assert len(files) > 15
    for file in files:
        with warnings.catch_warnings():  # other people's values: pydicom may say what it likes
            warnings.simplefilter("ignore")
            assert not _failing_points(file), file.name


def _failing_points(file: Path) -> list[str]:
    ds = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    study, series, instance = map(
        str, (ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)
    )
    used = reference(instance, series, study, str(ds.SOPClassUID))
    of = record(ds, study_instance_uid=study, inputs=(chosen(used),), evidence=(used,))
    image = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    return failing(judged("gsps", of, image))


# --- the picture stays the picture ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "ratio"),
    [
        pytest.param({}, [1, 1], id="nothing is known"),
        pytest.param({"PixelSpacing": ["0.143", "0.143"]}, [1, 1], id="square"),
        pytest.param({"ImagerPixelSpacing": ["0.2", "0.1"]}, [2, 1], id="twice as high"),
        pytest.param({"PixelAspectRatio": ["3", "4"]}, [3, 4], id="as a ratio"),
        pytest.param({"PixelSpacing": ["0", "0.1"]}, [1, 1], id="zero"),
        pytest.param({"PixelSpacing": ["0.1"]}, [1, 1], id="one value"),
        pytest.param({"PixelSpacing": ["1e30", "1e-30"]}, [1, 1], id="absurd"),
    ],
)
def test_pixels_are_displayed_as_high_and_wide_as_they_are(
    changes: dict[str, object], ratio: list[int]
) -> None:
    (area,) = state(**changes).DisplayedAreaSelectionSequence
    assert list(area.PresentationPixelAspectRatio) == ratio


def test_of_several_windows_the_first_is_taken() -> None:
    (voi,) = state(
        WindowCenter=["100", "200"], WindowWidth=["50", "60"], VOILUTFunction="SIGMOID"
    ).SoftcopyVOILUTSequence
    assert (voi.WindowCenter, voi.WindowWidth, voi.VOILUTFunction) == (100, 50, "SIGMOID")


@pytest.mark.parametrize("width", ["", "0", "-5"])
def test_a_window_that_is_none_is_left_out(width: str) -> None:
    assert "SoftcopyVOILUTSequence" not in state(WindowCenter="50", WindowWidth=width)


def test_a_window_that_is_no_number_is_left_out() -> None:
    image = reread(header(WindowCenter="1234", WindowWidth="400"), old=b"1234", new=b"wide")
    assert "SoftcopyVOILUTSequence" not in gsps.document(record(image, kind="gsps"))


@pytest.mark.parametrize("shutter", [RECTANGLE, CIRCLE], ids=["rectangle", "circle"])
def test_the_image_s_shutter_stays_shut(shutter: dict[str, object]) -> None:
    ds = state(**shutter)
    image = header(**shutter)
    assert [ds[keyword].value for keyword in shutter] == [image[k].value for k in shutter]
    assert ds.ShutterPresentationValue == shutter.get("ShutterPresentationValue", 0)


def test_the_image_s_overlays_stay_on_below_the_draft() -> None:
    ds = gsps.document(record(_with_overlays(), kind="gsps"))
    layers = {str(i.GraphicLayer): int(i.GraphicLayerOrder) for i in ds.GraphicLayerSequence}
    assert layers == {"IMAGE_OVERLAYS": 1, "AI_DRAFT": 2}
    assert [ds[group, 0x1001].value for group in (0x6000, 0x6004)] == ["IMAGE_OVERLAYS"] * 2


def _with_overlays() -> Dataset:
    image = header()
    for group in (0x6000, 0x6004):
        image.add_new((group, 0x0040), "CS", "G")
    return reread(image)


@pytest.mark.parametrize("shape", ["BITMAP", "RECTANGULAR", "NONSENSE"])
def test_a_shutter_without_its_edges_is_left_out(shape: str) -> None:
    assert "ShutterShape" not in state(ShutterShape=shape)


@pytest.mark.parametrize("missing", ["Rows", "Columns", "PhotometricInterpretation"])
def test_a_header_without_size_or_polarity_is_refused(missing: str) -> None:
    with pytest.raises(Unreadable, match=missing):
        state(**{missing: None})


def test_a_colour_image_is_refused() -> None:
    with pytest.raises(Unreadable, match="grey PhotometricInterpretation"):
        state(PhotometricInterpretation="RGB")


def _picture(**changes: object) -> Dataset:
    """Return a header and a 12-bit ramp."""
    ds = header(**changes)
    ramp = np.linspace(0, 4095, ROWS * COLUMNS).reshape(ROWS, COLUMNS).astype(np.uint16)
    polarity = str(ds.PhotometricInterpretation)
    ds.set_pixel_data(ramp, polarity, 12, generate_instance_uid=False)
    return ds


def _table(keyword: str) -> dict[str, object]:
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 16]
    item.LUTData = (np.sqrt(np.arange(4096) / 4096) * 65535).astype("<u2").tobytes()
    item["LUTData"].VR = "OW"
    if keyword == "ModalityLUTSequence":
        item.ModalityLUTType = "US"
    return {keyword: [item]}


SHOWN: dict[str, dict[str, object]] = {
    "MONOCHROME2": {},
    "MONOCHROME1": {"PhotometricInterpretation": "MONOCHROME1"},
    "window": {"WindowCenter": "1000", "WindowWidth": "500"},
    "window and polarity": {
        **{"WindowCenter": "1000", "WindowWidth": "500"},
        "PhotometricInterpretation": "MONOCHROME1",
    },
    "rescaled": {
        **{"RescaleIntercept": "-1024", "RescaleSlope": "2", "RescaleType": "US"},
        **{"WindowCenter": "1000", "WindowWidth": "500"},
    },
    "VOI LUT": _table("VOILUTSequence"),
    "Modality LUT": _table("ModalityLUTSequence"),
}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("name", SHOWN)
def test_dcmtk_shows_the_picture_as_it_shows_it_without_the_state(
    name: str, syntax: str, tmp_path: Path
) -> None:
    image = _picture(**SHOWN[name])
    alone, with_state = _shown(image, syntax, tmp_path)
    assert (alone == with_state).all()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("MONOCHROME1", lambda ds: setattr(ds, "PresentationLUTShape", "IDENTITY")),
        ("window", lambda ds: delattr(ds, "SoftcopyVOILUTSequence")),
        ("VOI LUT", lambda ds: delattr(ds, "SoftcopyVOILUTSequence")),
        ("Modality LUT", lambda ds: delattr(ds, "ModalityLUTSequence")),
    ],
)
def test_dcmtk_would_notice_what_is_missing(
    name: str, change: Callable[[Dataset], object], tmp_path: Path
) -> None:
    image = _picture(**SHOWN[name])
    alone, with_state = _shown(image, ExplicitVRLittleEndian, tmp_path, change)
    assert (alone != with_state).any()


def _shown(
    image: Dataset,
    syntax: str,
    folder: Path,
    change: Callable[[Dataset], object] = lambda ds: None,
) -> list[np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    """Return what dcmtk displays of the image alone, and by the state that we make of it.

    The image was sent to us in ``syntax``; dcmtk gets it in Explicit VR, for by itself it does not
    use the tables of an image in Implicit VR.
    """
    judges.require("dsrdump")  # of the same package
    sent = pydicom.dcmread(_written(folder / "sent.dcm", image, syntax), stop_before_pixels=True)
    _written(folder / "image.dcm", image, ExplicitVRLittleEndian)
    ds = gsps.document(record(sent, kind="gsps"))
    change(ds)
    pydicom.dcmwrite(folder / "state.dcm", ds, enforce_file_format=True)
    return [_displayed(folder, *options) for options in ((), ("-p", folder / "state.dcm"))]


def _written(file: Path, image: Dataset, syntax: str) -> Path:
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = UID(syntax)
    pydicom.dcmwrite(file, image, enforce_file_format=True)
    return file


def _displayed(folder: Path, *options: str | Path) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    command = ["dcmp2pgm", *map(str, options), str(folder / "image.dcm"), str(folder / "shown.pgm")]
    subprocess.run(command, capture_output=True, check=True)
    return np.frombuffer((folder / "shown.pgm").read_bytes(), np.uint8)


def test_dcmtk_finds_no_fault_in_a_state(tmp_path: Path) -> None:
    judges.require("dsrdump")
    file = tmp_path / "state.dcm"
    for image in (header(**RECTANGLE), header(**_table("VOILUTSequence"))):
        file.write_bytes(gsps.encode(record(image, kind="gsps")).file)
        done = subprocess.run(["dcmpschk", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        *told, verdict = (done.stdout + done.stderr).strip().splitlines()
        assert verdict == "W: Test passed."
        assert told == [f"W: Testing: {file}"]


@pytest.mark.parametrize("name", [*SHOWN, "shutter", "overlays"])
def test_dciodvfy_has_nothing_to_say_that_is_our_fault(name: str, tmp_path: Path) -> None:
    changes = {**SHOWN, "shutter": RECTANGLE}.get(name, {})
    image = _with_overlays() if name == "overlays" else header(**changes)
    file = tmp_path / "state.dcm"
    file.write_bytes(gsps.encode(record(image, kind="gsps")).file)
    verdict = judges.dciodvfy(file)
    assert judges.unexplained("dciodvfy", verdict) == []


# --- bad states ----------------------------------------------------------------------------------

ANNOTATION = ("GraphicAnnotationSequence", "TextObjectSequence")
MISTAKES: list[Mistake] = [
    *EVERY_KIND_S_MISTAKES,
    ("FILE-6", put("PixelData", b"ab")),
    ("PR-1", put("ContentLabel", "REPORT")),
    ("PR-2", put("BodyPartExamined", "KNEE")),
    ("PR-3", put("SeriesInstanceUID", "1.9", "ReferencedSeriesSequence")),
    ("PR-4", lambda of: _area(of, [96, 80])),
    ("PR-5", put("PresentationLUTShape", "INVERSE")),
    ("PR-6", lambda of: of.ds.GraphicAnnotationSequence[0].TextObjectSequence.pop()),
    ("PR-7", put("BoundingBoxAnnotationUnits", "PIXEL", *ANNOTATION)),
    ("PR-8", put("BoundingBoxBottomRightHandCorner", [0.9, 0.9], *ANNOTATION)),
    ("PR-9", put("GraphicLayer", "OTHER", "GraphicLayerSequence")),
]


def _area(of: Case, corner: list[int]) -> None:
    of.ds.DisplayedAreaSelectionSequence[0].DisplayedAreaBottomRightHandCorner = corner


@cache
def _good() -> tuple[bytes, DraftRecord]:
    of = second_record(header(), kind="gsps")
    return gsps.encode(of).file, of


@pytest.mark.parametrize(("point", "mutate"), MISTAKES, ids=[name for name, _ in MISTAKES])
def test_each_point_notices_its_mistake(point: str, mutate: Callable[[Case], object]) -> None:
    data, of = _good()
    assert point in failing_after(mutate, case(data, data, of, header()))


def test_every_point_has_a_mistake_that_it_notices() -> None:
    assert {name for name, _ in MISTAKES} == set(POINTS["gsps"])
