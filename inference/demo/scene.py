"""What a synthetic phantom shows: the finding labels and the geometry of one seed.

All ranges are demo-model.md section 1, where they were measured with the training recipe; lengths
are shorter image sides. Every seed draws the geometry of every finding, present or not: the same
seed with other labels is the same body with other findings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from inference.demo.canvas import Ellipse, Frame, Point

SIDES: Mapping[str, int] = {"left": 1, "right": -1}  # sign of x: patient's left is image right
ZONES = ("upper", "mid", "lower")

LABELS: tuple[str, ...] = (
    "cardiomegaly",
    "effusion_left",
    "effusion_right",
    "pneumothorax_left",
    "pneumothorax_right",
    "consolidation_RUL",
    "consolidation_RML",
    "consolidation_RLL",
    "consolidation_LUL",
    "consolidation_LLL",
    "nodule_left_upper",
    "nodule_left_mid",
    "nodule_left_lower",
    "nodule_right_upper",
    "nodule_right_mid",
    "nodule_right_lower",
    "pacemaker",
    "endotracheal_tube",
    "central_venous_catheter",
)

_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "heart": ("cardiomegaly",),
    "effusion": tuple(label for label in LABELS if label.startswith("effusion")),
    "pneumothorax": tuple(label for label in LABELS if label.startswith("pneumothorax")),
    "consolidation": tuple(label for label in LABELS if label.startswith("consolidation")),
    "nodule": tuple(label for label in LABELS if label.startswith("nodule")),
    "device": ("pacemaker", "endotracheal_tube", "central_venous_catheter"),
}
_FAMILY_WEIGHTS = (0.13, 0.18, 0.17, 0.20, 0.18, 0.14)
_COUNT_WEIGHTS = (0.22, 0.30, 0.28, 0.20)  # 0, 1, 2 or 3 findings
_BEHIND_BIG_HEART = {"consolidation_RML", "consolidation_LLL", "nodule_left_lower"}
_LOBE_ZONES = {"U": "upper", "M": "mid", "L": "lower"}

_CENTRE_Y = 0.06  # of the thorax
RIM_TAPER = 0.12  # the rim of a pneumothorax thins out over this height above its end
BELOW_DOME = 0.12  # the diaphragm is this much lower at the wall than at its dome
_LOBES: Mapping[str, Point] = {  # fraction mediastinum to wall, apex to base
    "consolidation_RUL": (0.50, 0.22),
    "consolidation_RML": (0.30, 0.62),
    "consolidation_RLL": (0.62, 0.86),
    "consolidation_LUL": (0.50, 0.28),
    "consolidation_LLL": (0.68, 0.84),
}
_NODULE_HEIGHTS = {"upper": (0.14, 0.30), "mid": (0.42, 0.58), "lower": (0.70, 0.84)}
_EFFUSION_FLOOR = {"left": 0.30, "right": 0.27}
_EFFUSION_HEIGHT = {"small": (0.06, 0.11), "large": (0.17, 0.28)}
_RIM_DEPTH = {"small": (0.15, 0.21), "large": (0.30, 0.42)}
_RIM_END = {"small": (-0.10, -0.02), "large": (0.05, 0.12)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rim:
    """The air of a pneumothorax along the chest wall."""

    depth: float  #: share of the thorax radius
    end: float  #: lowest y

    def depth_at(self, y: float) -> float:
        """Depth at height ``y``, thinning out towards the end."""
        return self.depth * math.sqrt(min(max((self.end - y) / RIM_TAPER, 0.0), 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesion:
    """A consolidation or a nodule."""

    shape: Ellipse
    amount: float  #: attenuation


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """The normal anatomy of one phantom."""

    thorax: Ellipse
    fat: float  #: chest wall, thickness outside the thorax
    mediastinum: float  #: half-width
    domes: Mapping[str, float]  #: y of the diaphragm's highest point per side
    heart: Ellipse
    bubble: Ellipse | None  #: stomach air under the left diaphragm
    marker: Point | None  #: of the letter L, in image lengths from the centre
    collimation: tuple[float, float, float, float]  #: left, right, top, bottom; image lengths

    def wall(self, y: float, depth: float = 0.0) -> float:
        """Distance from the midline to the chest wall, or to a lung that is ``depth`` off it."""
        height = (y - self.thorax.centre[1]) / self.thorax.radii[1]
        return self.thorax.radii[0] * math.sqrt(max((1 - depth) ** 2 - height * height, 0.0))

    def dome_centre(self) -> float:
        """Distance of the diaphragm's highest point from the midline."""
        return (self.mediastinum + self.thorax.radii[0]) / 2

    def place(self, side: str, across: float, down: float, rim: Rim | None) -> Point:
        """Point at a fraction mediastinum to (remaining) lung edge, and apex to base."""
        apex = self.thorax.centre[1] - self.thorax.radii[1]
        y = apex + down * (self.domes[side] - apex)
        edge = self.wall(y, rim.depth_at(y) if rim else 0.0)
        x = self.mediastinum + across * max(edge - self.mediastinum, 0.0)
        return SIDES[side] * x, y


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything that is to be seen on one phantom, independent of the pixel size."""

    seed: int
    labels: frozenset[str]
    sizes: Mapping[str, str]  #: "small" or "large" for each effusion and pneumothorax
    frame: Frame
    body: Body
    levels: Mapping[str, float]  #: y of the fluid's surface per effusion
    rims: Mapping[str, Rim]  #: per pneumothorax
    lesions: Mapping[str, Lesion]  #: per consolidation and nodule
    pacemaker: Point  #: centre of the box
    tube_end: float  #: y of the tip of the endotracheal tube
    catheter_end: float  #: y of the tip of the catheter


def scene(seed: int, labels: frozenset[str] | None = None) -> Scene:
    """Draw the phantom of a seed.

    Parameters
    ----------
    seed
        Any non-negative number; the same seed gives the same scene.
    labels
        The findings to show; ``None`` draws 0 to 3 of them.

    Raises
    ------
    ValueError
        A label is not one of ``LABELS``.
    """
    if labels is None:
        labels = _draw_labels(np.random.default_rng((seed, 1)))
    if unknown := labels.difference(LABELS):
        raise ValueError(f"unknown finding labels: {sorted(unknown)}")
    rng = np.random.default_rng((seed, 0))  # geometry only: labels, texture, noise have their own
    frame, body = _frame(rng), _body(rng, big_heart="cardiomegaly" in labels)
    sizes, levels, rims = _pleura(rng)
    rims = {label: rim for label, rim in rims.items() if label in labels}
    lesions = _lesions(rng, body, rims)
    return Scene(
        seed=seed,
        labels=labels,
        sizes={label: size for label, size in sizes.items() if label in labels},
        frame=frame,
        body=body,
        levels={label: level for label, level in levels.items() if label in labels},
        rims=rims,
        lesions={label: lesion for label, lesion in lesions.items() if label in labels},
        pacemaker=(rng.uniform(0.19, 0.25), rng.uniform(-0.27, -0.21)),
        tube_end=rng.uniform(-0.20, -0.13),
        catheter_end=rng.uniform(-0.08, 0.02),
    )


def side_of(label: str) -> str | None:
    """``left`` or ``right`` of a finding of the chest half, ``None`` for heart and devices."""
    if label.startswith("consolidation"):
        return "left" if label[-3] == "L" else "right"
    return next((side for side in SIDES if f"_{side}" in label), None)


def zone_of(label: str) -> str | None:
    """``upper``, ``mid`` or ``lower`` of a finding of the lungs, ``None`` for heart and devices."""
    family, _, place = label.partition("_")
    if family == "consolidation":
        return _LOBE_ZONES[place[1]]
    if family == "nodule":
        return place.rpartition("_")[2]
    return {"effusion": "lower", "pneumothorax": "upper"}.get(family)


def _draw_labels(rng: np.random.Generator) -> frozenset[str]:
    """Draw 0 to 3 findings that can be told apart on one image."""
    wanted = int(rng.choice(len(_COUNT_WEIGHTS), p=_COUNT_WEIGHTS))
    families = tuple(_FAMILIES.values())
    labels: set[str] = set()
    while len(labels) < wanted:
        family = families[int(rng.choice(len(families), p=_FAMILY_WEIGHTS))]
        label = family[int(rng.integers(len(family)))]
        if not any(_excluded(label, other) for other in labels):
            labels.add(label)
    return frozenset(labels)


def _excluded(one: str, other: str) -> bool:
    """Can these two not be shown together?"""
    families = one.partition("_")[0], other.partition("_")[0]
    if families in (("consolidation", "consolidation"), ("nodule", "nodule")):
        return True
    if "cardiomegaly" in (one, other):
        return bool(_BEHIND_BIG_HEART & {one, other})
    return side_of(one) is not None and (side_of(one), zone_of(one)) == (
        side_of(other),
        zone_of(other),
    )


def _frame(rng: np.random.Generator) -> Frame:
    """Draw canvas and position: square 30 %, portrait 45 %, landscape 25 %."""
    ratio = float(rng.choice((1.08, 1.2)))
    aspect = float(rng.choice((1.0, ratio, 1 / ratio), p=(0.30, 0.45, 0.25)))
    return Frame(
        aspect=aspect,
        scale=rng.uniform(0.86, 1.06),
        shift=(rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03)),
        rotation=math.radians(rng.uniform(-4, 4)),
    )


def _body(rng: np.random.Generator, *, big_heart: bool) -> Body:
    width, height = 0.37 * rng.uniform(0.93, 1.06), 0.42 * rng.uniform(0.94, 1.05)
    domes = {"right": rng.uniform(0.17, 0.21), "left": rng.uniform(0.20, 0.24)}
    return Body(
        thorax=Ellipse(centre=(0.0, _CENTRE_Y), radii=(width, height)),
        fat=rng.uniform(0.04, 0.13),
        mediastinum=rng.uniform(0.055, 0.075),
        domes=domes,
        heart=_heart(rng, width, big=big_heart),
        bubble=_bubble(rng, domes["left"]),
        marker=_marker(rng),
        collimation=_collimation(rng),
    )


def _heart(rng: np.random.Generator, thorax: float, *, big: bool) -> Ellipse:
    low, high = (0.58, 0.70) if big else (0.38, 0.47)  # gap on purpose: no borderline hearts
    half_width = thorax * (low + rng.uniform() * (high - low))
    return Ellipse(
        centre=(half_width * rng.uniform(0.30, 0.40), rng.uniform(0.09, 0.13)),
        radii=(half_width, half_width * rng.uniform(0.78, 0.92)),
        tilt=math.radians(rng.uniform(8, 22)),
    )


def _bubble(rng: np.random.Generator, dome: float) -> Ellipse | None:
    shape = Ellipse(
        centre=(rng.uniform(0.12, 0.20), dome + rng.uniform(0.055, 0.08)),
        radii=(rng.uniform(0.04, 0.075), rng.uniform(0.022, 0.035)),
    )
    return shape if rng.uniform() < 0.60 else None


def _marker(rng: np.random.Generator) -> Point | None:
    place = rng.uniform(0.38, 0.44), rng.uniform(-0.44, -0.38)
    return place if rng.uniform() < 0.70 else None


def _collimation(rng: np.random.Generator) -> tuple[float, float, float, float]:
    left, right, top, bottom = (float(width) for width in rng.uniform(0, 0.04, 4))
    return (left, right, top, bottom) if rng.uniform() < 0.30 else (0.0, 0.0, 0.0, 0.0)


def _pleura(
    rng: np.random.Generator,
) -> tuple[dict[str, str], dict[str, float], dict[str, Rim]]:
    """Draw size, fluid level and rim of each side's effusion and pneumothorax."""
    sizes: dict[str, str] = {}
    levels: dict[str, float] = {}
    rims: dict[str, Rim] = {}
    for side in SIDES:
        size = sizes[f"effusion_{side}"] = str(rng.choice(("small", "large")))
        levels[f"effusion_{side}"] = _EFFUSION_FLOOR[side] - rng.uniform(*_EFFUSION_HEIGHT[size])
        size = sizes[f"pneumothorax_{side}"] = str(rng.choice(("small", "large")))
        rims[f"pneumothorax_{side}"] = Rim(
            depth=rng.uniform(*_RIM_DEPTH[size]), end=rng.uniform(*_RIM_END[size])
        )
    return sizes, levels, rims


def _lesions(rng: np.random.Generator, body: Body, rims: Mapping[str, Rim]) -> dict[str, Lesion]:
    """Draw every consolidation and nodule; a collapsed lung takes its lesions with it."""
    lesions = {}
    for label, (across, down) in _LOBES.items():
        side = "left" if label[-3] == "L" else "right"
        at = across + rng.uniform(-0.10, 0.10), down + rng.uniform(-0.05, 0.05)
        shape = Ellipse(
            centre=body.place(side, *at, rims.get(f"pneumothorax_{side}")),
            radii=(rng.uniform(0.055, 0.085), rng.uniform(0.05, 0.075)),
            tilt=rng.uniform(-0.5, 0.5),
        )
        lesions[label] = Lesion(shape=shape, amount=rng.uniform(0.30, 0.45))
    for label in _FAMILIES["nodule"]:
        _, side, zone = label.split("_")
        # The left lower zone is half heart: a nodule there stays lateral, or nobody could see it.
        inner = 0.55 if label == "nodule_left_lower" else 0.30
        at = rng.uniform(inner, 0.80), rng.uniform(*_NODULE_HEIGHTS[zone])
        radius = rng.uniform(0.019, 0.030)
        centre = body.place(side, *at, rims.get(f"pneumothorax_{side}"))
        lesions[label] = Lesion(
            shape=Ellipse(centre=centre, radii=(radius, radius)), amount=rng.uniform(0.20, 0.30)
        )
    return lesions
