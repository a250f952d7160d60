"""Which projection a header says an image is (section 2.2 of the pixel-pipeline specification).

Tags alone are not enough: of 7,469 real headers ViewPosition says PA on 37 % of the laterals.
They decide for now; a check on the pixels may later turn a frontal into NOT_FRONTAL.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import Literal

from pydicom import Dataset

from inference import headers

View = Literal["PA", "AP", "frontal", "lateral", "other", "unknown"]

FRONTAL: tuple[View, ...] = ("PA", "AP", "frontal")  # in order of preference (2.3)

# ViewPosition: defined terms of CR (PS3.3 C.8.1.1.2) and DX (C.8.11.5), and "LARGE LATERAL" and
# others as found; the rest is "other", as MIMIC's authors map it (MIT-LCP/mimic-cxr).
POSITIONS: dict[str, View] = {
    **{"PA": "PA", "AP": "AP"},
    **dict.fromkeys(("LL", "RL", "LATERAL", "LAT", "LLAT", "RLAT", "LARGE LATERAL"), "lateral"),
}
# ViewCodeSequence, PS3.16 CID 4010: SNOMED CT and the older SNOMED RT codes.
VIEW_CODES: dict[str, View] = {
    **dict.fromkeys(("272479007", "R-40888", "R-10214"), "PA"),
    **dict.fromkeys(("399348003", "R-10206"), "AP"),
    **dict.fromkeys(("399033003", "R-10202"), "frontal"),
    **dict.fromkeys(
        ("399173006", "R-10236", "399198007", "R-10232", "399067008", "R-102CD"), "lateral"
    ),
}
#: "lateral" in English, German, French, Spanish and Portuguese, Italian, Dutch (headers.words).
LATERAL_WORDS = (
    *("lat", "lateral", "llat", "rlat", "seitlich*", "profil", "perfil"),
    *("laterale", "laterolaterale", "lateraal", "dwars"),
)
ODD_WORDS = ("decub*", "obl*", "lordotic", "pedi*", "axial", "swimmers", "xtable")
#: The order is that of the search: detector processing is chosen for the view, names are typed.
DESCRIPTIONS = ("AcquisitionDeviceProcessingDescription", "ProtocolName", "SeriesDescription")


def view_of(header: Dataset, lateral_words: Collection[str] = LATERAL_WORDS) -> tuple[View, str]:
    """Return the view and the id of the line that told it.

    "2.2-0": no line did; "2.2-1x3": ViewPosition and PatientOrientation contradict each other.
    """
    position, orientation = _by_position(header), _by_orientation(header)
    if position and orientation and (position in FRONTAL) != (orientation in FRONTAL):
        return "unknown", "2.2-1x3"
    lines = (
        ("2.2-1", position),
        ("2.2-2", _by_code(header, lateral_words)),
        ("2.2-3", orientation),
        ("2.2-4", _by_description(header, lateral_words)),
    )
    return next(((view, line) for line, view in lines if view), ("unknown", "2.2-0"))


def _by_position(header: Dataset) -> View | None:
    position = headers.cs(header, "ViewPosition")
    return POSITIONS.get(position, "other") if position else None


def _by_code(header: Dataset, lateral_words: Collection[str]) -> View | None:
    for item in headers.items(header, "ViewCodeSequence")[:1]:
        view = VIEW_CODES.get(headers.text(item, "CodeValue"))
        return view or _meant(headers.words(headers.text(item, "CodeMeaning")), lateral_words)
    return None


def _by_orientation(header: Dataset) -> View | None:
    """Row and column direction (PS3.3 C.7.6.1.1.1), such as L\\F of a frontal image."""
    row, _, column = headers.cs(header, "PatientOrientation").partition("\\")
    if not row or not column:
        return None
    if column not in ("F", "H"):
        return "other"
    if row in ("L", "R"):
        return "frontal"
    return "lateral" if row in ("A", "P") else "other"


def _by_description(header: Dataset, lateral_words: Collection[str]) -> View | None:
    """Take the view on which all descriptions agree that name just one."""
    described = (headers.words(headers.text(header, keyword)) for keyword in DESCRIPTIONS)
    found = [view for words in described if (view := _meant(words, lateral_words))]
    if not found or len({view in FRONTAL for view in found}) > 1:
        return None
    return found[0]


def _meant(words: tuple[str, ...], lateral_words: Collection[str]) -> View | None:
    """Return the view that words name; None for none and for several ("CHEST PA AND LATERAL")."""
    if headers.mentions(words, ODD_WORDS):
        return "other"
    frontal = _frontal_meant(words)
    if headers.mentions(words, lateral_words):
        return None if frontal else "lateral"
    return frontal


def _frontal_meant(words: tuple[str, ...]) -> View | None:
    run_together = "".join(words)
    if ("pa" in words or "posteroanterior" in run_together) and "ap" not in words:
        return "PA"
    if ("ap" in words or "anteroposterior" in run_together) and "pa" not in words:
        return "AP"
    # "CHEST,GRID" and "GRID CHEST": a grid is used for frontal bedside images.
    grid = {"chest", "grid"} in (set(pair) for pair in pairwise(words))
    named = headers.mentions(words, ("pa", "ap", "port", "portable", "frontal"))
    return "frontal" if named or grid else None
