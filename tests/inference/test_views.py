"""Which projection a header says an image is (pixel-pipeline specification, 2.2)."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from pathlib import Path

import pytest
from pydicom import Dataset

from inference import headers
from inference.views import FRONTAL, view_of

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the developers' data set is not at {SHARED}"
)


def header(**attributes: object) -> Dataset:
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def viewed(value: str, meaning: str = "") -> Dataset:
    return header(ViewCodeSequence=[header(CodeValue=value, CodeMeaning=meaning)])


@pytest.mark.parametrize(
    ("ds", "view", "line"),
    [
        (header(), "unknown", "2.2-0"),
        (header(ViewPosition="PA"), "PA", "2.2-1"),
        (header(ViewPosition="AP"), "AP", "2.2-1"),
        *[
            (header(ViewPosition=position), "lateral", "2.2-1")
            for position in ("LL", "RL", "LATERAL", "LAT", "LLAT", "RLAT", "LARGE LATERAL")
        ],
        *[
            (header(ViewPosition=position), "other", "2.2-1")
            for position in ("AP AXIAL", "LLD", "RLD", "LAO", "RAO", "LPO", "RPO", "LLO", "RLO")
        ],
        (header(ViewPosition="XTABLE LATERAL"), "other", "2.2-1"),
        (header(ViewPosition="SWIMMERS"), "other", "2.2-1"),
        (header(ViewPosition=["PA", "LL"]), "other", "2.2-1"),
        (viewed("272479007"), "PA", "2.2-2"),
        (viewed("R-10214"), "PA", "2.2-2"),
        (viewed("399348003"), "AP", "2.2-2"),
        (viewed("R-10206"), "AP", "2.2-2"),
        (viewed("399033003"), "frontal", "2.2-2"),
        (viewed("399173006"), "lateral", "2.2-2"),
        (viewed("R-102CD"), "lateral", "2.2-2"),
        (viewed("LOCAL1", "postero-anterior"), "PA", "2.2-2"),
        (viewed("LOCAL1", "Antero-posterior projection"), "AP", "2.2-2"),
        (viewed("LOCAL1", "left lateral"), "lateral", "2.2-2"),
        (viewed("LOCAL1", "antero-posterior oblique"), "other", "2.2-2"),
        (viewed("LOCAL1", "what we do on Mondays"), "unknown", "2.2-0"),
        (header(PatientOrientation=["L", "F"]), "frontal", "2.2-3"),
        (header(PatientOrientation=["R", "H"]), "frontal", "2.2-3"),
        (header(PatientOrientation=["P", "F"]), "lateral", "2.2-3"),
        (header(PatientOrientation=["A", "H"]), "lateral", "2.2-3"),
        (header(PatientOrientation=["LP", "F"]), "other", "2.2-3"),
        (header(PatientOrientation=["L", "A"]), "other", "2.2-3"),
        (header(PatientOrientation=["L"]), "unknown", "2.2-0"),
        (header(SeriesDescription="view: PA"), "PA", "2.2-4"),
        (header(SeriesDescription="Thorax p.a."), "PA", "2.2-4"),
        (header(SeriesDescription="Thorax a. p. liegend"), "AP", "2.2-4"),
        (header(SeriesDescription="Thorax seitlich"), "lateral", "2.2-4"),
        (header(SeriesDescription="Thorax de profil"), "lateral", "2.2-4"),
        (header(ProtocolName="CHEST PORTABLE"), "frontal", "2.2-4"),
        (header(ProtocolName="PORT CHEST"), "frontal", "2.2-4"),
        (header(ProtocolName="CHEST,GRID"), "frontal", "2.2-4"),
        (header(ProtocolName="GRID HIP"), "unknown", "2.2-0"),
        (header(AcquisitionDeviceProcessingDescription="CHEST AP PORT X-WISE"), "AP", "2.2-4"),
        (header(ProtocolName="CHEST LAT"), "lateral", "2.2-4"),
        (header(ProtocolName="CHEST DECUBITUS AP"), "other", "2.2-4"),
        (header(ProtocolName="CHEST OBL"), "other", "2.2-4"),
        (header(ProtocolName="AP LORDOTIC"), "other", "2.2-4"),
        (header(ProtocolName="PEDIATRIC CHEST AP"), "other", "2.2-4"),
        (header(ProtocolName="CHEST PA AND LATERAL"), "unknown", "2.2-0"),
    ],
)
def test_the_view_and_the_line_that_told_it(ds: Dataset, view: str, line: str) -> None:
    assert view_of(ds) == (view, line)


def test_the_first_conclusive_line_wins() -> None:
    ds = viewed("399348003")
    ds.SeriesDescription = "LATERAL"
    assert view_of(ds) == ("AP", "2.2-2")
    ds.ViewPosition = "PA"
    assert view_of(ds) == ("PA", "2.2-1")


@pytest.mark.parametrize(
    ("position", "orientation"),
    [("PA", ["P", "F"]), ("AP", ["L", "A"]), ("LATERAL", ["L", "F"])],
)
def test_a_position_that_contradicts_the_orientation_tells_nothing(
    position: str, orientation: list[str]
) -> None:
    ds = header(ViewPosition=position, PatientOrientation=orientation)
    assert view_of(ds) == ("unknown", "2.2-1x3")


def test_a_protocol_of_two_views_leaves_the_word_to_the_series() -> None:
    ds = header(ProtocolName="CHEST PA AND LATERAL", SeriesDescription="LATERAL")
    assert view_of(ds) == ("lateral", "2.2-4")
    ds.SeriesDescription = "PA"
    assert view_of(ds) == ("PA", "2.2-4")


def test_descriptions_that_disagree_tell_nothing() -> None:
    ds = header(ProtocolName="CHEST PA", SeriesDescription="LATERAL")
    assert view_of(ds) == ("unknown", "2.2-0")


def test_a_site_has_words_of_its_own() -> None:
    ds = header(SeriesDescription="KYLKI")
    assert view_of(ds, ("kylki",)) == ("lateral", "2.2-4")


@needs_shared
def test_real_headers_give_what_tags_can_give() -> None:
    """Tags let laterals through: known, and the reason for a later check on the pixels."""
    found: Counter[tuple[str, bool]] = Counter()
    with (
        gzip.open(SHARED / "reports" / "iu_dicom_headers.csv.gz", "rt") as table,
        headers.tolerant(),
    ):
        for row in csv.DictReader(table):
            ds = header(ViewPosition=row["View Position"])
            directions = row["Patient Orientation"].strip("[]").replace("'", "").split(", ")
            ds.PatientOrientation = directions if len(directions) == 2 else ""
            found[row["true_projection"], view_of(ds)[0] in FRONTAL] += 1
    # 1,107 laterals say PA, and their orientation, where there is one, does not contradict.
    assert found == {
        ("Frontal", True): 2111,
        ("Frontal", False): 944,
        ("Lateral", False): 1800,
        ("Lateral", True): 1107,
    }
