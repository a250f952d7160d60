"""Synthetic frontal chest radiographs with known findings, for training and trying the demo model.

A phantom resembles a chest film as a drawing does: it teaches a tiny model to look and to write,
and says nothing about patients. The recipe is demo-model.md section 1; :mod:`inference.demo.scene`
holds the geometry, this module the attenuation along the rays and the detector.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from inference.demo.canvas import Canvas, Ellipse, Plane, Point
from inference.demo.scene import (
    BELOW_DOME,
    LABELS,
    RIM_TAPER,
    SIDES,
    Body,
    Lesion,
    Rim,
    Scene,
    scene,
)

__all__ = ["LABELS", "Radiograph", "Scene", "render", "render_many", "scene"]

T = TypeVar("T")

_MENISCUS = 0.07  # rise of the fluid's surface from the mediastinum to the wall
_RIBS = 8
_VESSELS = 7  # per side
_QUANTA_SIDE = 256  # pixels along the shorter side for which the quanta per pixel are stated


@dataclass(frozen=True, slots=True, kw_only=True)
class Radiograph:
    """One rendered phantom."""

    seed: int  #: of the scene
    stored: npt.NDArray[np.uint16]  #: (H, W), 12 bit, MONOCHROME2: dense is bright
    masks: Mapping[str, npt.NDArray[np.bool_]]  #: (H, W) where each present finding is drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class _Film:
    """The planes that the parts of one phantom share, all (H, W)."""

    canvas: Canvas
    attenuation: Plane
    lung: Plane  #: aerated or fluid-filled chest cavity beside the mediastinum, in [0, 1]
    heart: Plane  #: in [0, 1]
    radius: Plane  #: relative to the thorax: 1 at the chest wall
    masks: dict[str, npt.NDArray[np.bool_]]


def render(scene: Scene, size: int = 512) -> Radiograph:
    """Render a scene with ``size`` pixels along the shorter side.

    The geometry does not depend on ``size``; the noise does (the same exposure falls on smaller
    pixels).
    """
    canvas = Canvas.of(scene.frame, size)
    structure = np.random.default_rng((scene.seed, 2))
    film = _anatomy(canvas, scene, structure)
    _lungs_and_pleura(film, scene, structure)
    _devices(film, scene)
    stored = _detect(film, scene, np.random.default_rng((scene.seed, 3)))
    return Radiograph(seed=scene.seed, stored=stored, masks=film.masks)


def render_many(
    seeds: Iterable[int],
    size: int,
    then: Callable[[Scene, Radiograph], T],
    *,
    processes: int = 2,
) -> Iterator[T]:
    """Render the scenes of many seeds in worker processes, in the order of the seeds.

    ``then`` runs in the worker and reduces a radiograph to what the caller keeps, so that neither
    memory nor pipes carry whole masks; it must be importable (a module-level function).
    """
    work = functools.partial(_render_one, size=size, then=then)
    # spawn: a forked child of a process that already runs torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        yield from pool.map(work, seeds, chunksize=32)


def _render_one(seed: int, *, size: int, then: Callable[[Scene, Radiograph], T]) -> T:
    one = scene(seed)
    return then(one, render(one, size))


# --- anatomy ---


def _anatomy(canvas: Canvas, scene: Scene, rng: np.random.Generator) -> _Film:
    """Draw what every phantom has, but for the lung's own pattern."""
    body, x, y = scene.body, canvas.x, canvas.y
    radius = np.hypot(x / body.thorax.radii[0], (y - body.thorax.centre[1]) / body.thorax.radii[1])
    thickness = _thickness(canvas, body)
    lung = _lung(canvas, body, radius)
    heart = canvas.blank()
    canvas.ellipse(body.heart, 0.012).raise_to(heart, 1.0)
    attenuation = thickness - np.float32(0.62) * thickness * lung
    film = _Film(
        canvas=canvas, attenuation=attenuation, lung=lung, heart=heart, radius=radius, masks={}
    )
    _mediastinum(film, body)
    _bones(film, body, rng)
    if "cardiomegaly" in scene.labels:
        film.masks["cardiomegaly"] = heart > 0.5
    return film


def _thickness(canvas: Canvas, body: Body) -> Plane:
    """(H, W) length of the ray in soft tissue, 1 in the middle of the trunk, 0 outside."""
    width = body.thorax.radii[0] + body.fat
    across = np.abs(canvas.x)
    slope = -0.42 + 0.35 * np.maximum(across - 0.10, 0) ** np.float32(1.2)
    trunk = canvas.soft(canvas.y - slope - 0.02, 0.05)
    trunk *= np.sqrt(np.clip(1 - (across / np.float32(width)) ** 4, 0, 1))
    neck = np.float32(0.75) * np.sqrt(np.clip(1 - (across / np.float32(0.10)) ** 2, 0, 1))
    return np.maximum(trunk, neck * (canvas.y < 0)).astype(np.float32)


def _lung(canvas: Canvas, body: Body, radius: Plane) -> Plane:
    """(H, W) chest cavity beside the mediastinum and above the diaphragm."""
    across = np.abs(canvas.x)
    centre = body.dome_centre()
    bow = ((across - centre) / np.float32(body.thorax.radii[0] - centre)) ** 2
    dome = np.where(canvas.x > 0, np.float32(body.domes["left"]), np.float32(body.domes["right"]))
    inside = canvas.soft((1 - radius) * np.float32(body.thorax.radii[0]), 0.008)
    inside *= canvas.soft(across - np.float32(body.mediastinum), 0.015)
    inside *= canvas.soft(dome + np.float32(BELOW_DOME) * bow - canvas.y, 0.008)
    return inside


def _mediastinum(film: _Film, body: Body) -> None:
    """Draw heart, aortic knob, trachea and stomach bubble."""
    canvas, attenuation = film.canvas, film.attenuation
    attenuation += film.heart * (np.float32(0.42) * film.lung + np.float32(0.08))
    knob = Ellipse(centre=(body.mediastinum + 0.005, -0.15), radii=(0.036, 0.036))
    canvas.ellipse(knob, 0.01).add_to(attenuation, 0.24)
    canvas.segment((0.0, -0.60), (-0.004, -0.13), 0.018).add_to(attenuation, -0.16)
    if body.bubble is not None:
        canvas.ellipse(body.bubble, 0.008).add_to(attenuation, -0.35)


def _bones(film: _Film, body: Body, rng: np.random.Generator) -> None:
    """Draw spine, ribs and clavicles."""
    canvas, attenuation = film.canvas, film.attenuation
    ripple = 1 + 0.25 * np.sin(canvas.y * np.float32(2 * np.pi / 0.065) + rng.uniform(0, 6))
    attenuation += np.float32(0.22) * ripple * canvas.soft(0.036 - np.abs(canvas.x), 0.012)
    for sign in SIDES.values():
        inner, outer = (sign * 0.03, -0.275), (sign * 0.31, -0.345 + rng.uniform(-0.015, 0.015))
        canvas.segment(inner, outer, 0.012).add_to(attenuation, 0.11)
    top = -0.30 + rng.uniform(-0.02, 0.02)
    for number in range(_RIBS):
        for sign in SIDES.values():
            _rib(film, body, sign, top + 0.072 * number)


def _rib(film: _Film, body: Body, sign: int, top: float) -> None:
    """Draw one posterior rib: a shallow arch from the spine down to the wall."""
    reach = body.thorax.radii[0]
    low, high = sorted((sign * 0.035, sign * reach))
    window = film.canvas.window((low, top - 0.04), (high, top + 0.13))
    x, y = film.canvas.x[window], film.canvas.y[window]
    along = np.abs(x) / np.float32(reach)
    middle = top + np.float32(0.13) * along * along - np.float32(0.06) * along
    shape = film.canvas.soft(0.011 - np.abs(y - middle), 0.004)
    shape *= (film.radius[window] < 1) & (np.sign(x) == sign)
    film.attenuation[window] += np.float32(0.07) * shape


# --- lungs and pleura ---


def _lungs_and_pleura(film: _Film, scene: Scene, rng: np.random.Generator) -> None:
    """Draw lung pattern, effusions, pneumothoraces, consolidation and nodule."""
    pattern = _texture(film, rng) + _vessels(film, scene.body, rng)
    fleck = film.canvas.noise(rng, 28)
    remaining = film.lung.copy()  # what air, then fluid, leaves of the lung
    for label, rim in scene.rims.items():
        _pneumothorax(film, label, rim, remaining)
    for label, lesion in scene.lesions.items():
        is_consolidation = label.startswith("consolidation")
        _lesion(film, label, lesion, remaining, fleck if is_consolidation else None)
    # Fluid after the lesions: it hides the lung's pattern but not what is denser than lung.
    for label, level in scene.levels.items():
        _effusion(film, scene.body, label, level, remaining)
    film.attenuation[...] += pattern * remaining * (1 - np.float32(0.7) * film.heart)


def _lesion(film: _Film, label: str, lesion: Lesion, remaining: Plane, fleck: Plane | None) -> None:
    """Draw a consolidation (fuzzy and flecked) or, without ``fleck``, a nodule."""
    patch = film.canvas.ellipse(lesion.shape, 0.006 if fleck is None else 0.03)
    shape = patch.coverage * remaining[patch.window]
    film.masks[label] = np.zeros(film.canvas.shape, np.bool_)
    film.masks[label][patch.window] = shape > 0.5
    if fleck is not None:
        shape *= np.clip(1 + np.float32(0.3) * fleck[patch.window], 0.3, 1.7)
    film.attenuation[patch.window] += np.float32(lesion.amount) * shape


def _texture(film: _Film, rng: np.random.Generator) -> Plane:
    """(H, W) band-limited noise at two scales."""
    coarse, fine = film.canvas.noise(rng, 24), film.canvas.noise(rng, 60)
    return np.float32(0.016) * coarse + np.float32(0.012) * fine


def _vessels(film: _Film, body: Body, rng: np.random.Generator) -> Plane:
    """(H, W) hilar vessels: random lines of three segments, thinner and fainter outwards."""
    plane = film.canvas.blank()
    for sign in SIDES.values():
        for angle in np.linspace(-1.35, 1.35, _VESSELS) + rng.uniform(-0.2, 0.2, _VESSELS):
            start = (sign * (body.mediastinum + 0.012), -0.05 + rng.uniform(-0.03, 0.03))
            _vessel(film.canvas, plane, start, (sign, float(angle)), rng)
    return plane


def _vessel(
    canvas: Canvas, plane: Plane, start: Point, heading: Point, rng: np.random.Generator
) -> None:
    sign, angle = heading
    for half_width, amount in ((0.0075, 0.15), (0.0055, 0.11), (0.0035, 0.08)):
        length, angle = rng.uniform(0.05, 0.085), angle + rng.uniform(-0.35, 0.35)
        end = start[0] + sign * length * np.cos(angle), start[1] + length * np.sin(angle)
        canvas.segment(start, end, half_width).raise_to(plane, amount)
        start = end


def _pneumothorax(film: _Film, label: str, rim: Rim, remaining: Plane) -> None:
    """Draw free air at the wall, the pleural line, and the denser rest of the lung."""
    canvas = film.canvas
    half = film.lung * (_sign(label) * canvas.x > 0)
    depth = np.float32(rim.depth) * np.sqrt(np.clip((rim.end - canvas.y) / RIM_TAPER, 0, 1))
    inward = (film.radius - 1 + depth) * np.float32(0.37)  # > 0 in the air; about in lengths
    air = half * canvas.soft(inward, 0.004) * (depth > 0)
    line = half * canvas.soft(0.0035 - np.abs(inward), 0.003) * (depth > 0.02)
    film.attenuation[...] += (
        np.float32(0.11) * line - np.float32(0.10) * air + np.float32(0.05) * (half - air)
    )
    remaining *= 1 - air
    film.masks[label] = air > 0.5


def _effusion(film: _Film, body: Body, label: str, level: float, remaining: Plane) -> None:
    """Draw fluid that fills the chest cavity up to a level that rises towards the wall."""
    canvas = film.canvas
    lateral = np.clip(np.abs(canvas.x) / np.float32(body.thorax.radii[0]), 0, 1)
    surface = np.float32(level) - np.float32(_MENISCUS) * lateral * lateral
    fluid = film.lung * (_sign(label) * canvas.x > 0) * canvas.soft(canvas.y - surface, 0.012)
    film.attenuation[...] += np.float32(0.55) * fluid * (1 - np.float32(0.7) * film.heart)
    remaining *= 1 - fluid
    film.masks[label] = fluid > 0.5


def _sign(label: str) -> int:
    return SIDES[label.rpartition("_")[2]]


# --- devices ---


def _devices(film: _Film, scene: Scene) -> None:
    """Draw pacemaker, endotracheal tube and right central venous catheter."""
    drawings = {
        "pacemaker": (_pacemaker, 1.0),
        "endotracheal_tube": (_tube, 0.38),
        "central_venous_catheter": (_catheter, 0.36),
    }
    for label, (draw, amount) in drawings.items():
        if label in scene.labels:
            shape = draw(film.canvas, scene)
            film.attenuation[...] += np.float32(amount) * shape
            film.masks[label] = shape > 0.25  # below half of the thin lead's coverage


def _pacemaker(canvas: Canvas, scene: Scene) -> Plane:
    """(H, W) box on the patient's left with a lead to the tip of the right ventricle."""
    x, y = scene.pacemaker
    box = np.minimum(0.042 - np.abs(canvas.x - x), 0.034 - np.abs(canvas.y - y))
    heart = scene.body.heart
    tip = heart.centre[0] + 0.35 * heart.radii[0], heart.centre[1] + 0.45 * heart.radii[1]
    lead = ((x - 0.03, y), (0.06, y - 0.05), (-0.035, -0.20), (-0.045, 0.0), tip)
    shape = canvas.line(lead, 0.0055)
    shape *= np.float32(0.55)
    return np.maximum(shape, canvas.soft(box))


def _tube(canvas: Canvas, scene: Scene) -> Plane:
    """(H, W) tube in the midline down to above the carina."""
    return canvas.line(((0.004, -0.62), (0.0, -0.35), (-0.002, scene.tube_end)), 0.0085)


def _catheter(canvas: Canvas, scene: Scene) -> Plane:
    """(H, W) line from the right side of the neck along the superior vena cava."""
    route = ((-0.10, -0.60), (-0.085, -0.36), (-0.062, -0.22), (-0.058, scene.catheter_end))
    return canvas.line(route, 0.0075)


# --- detector ---


def _detect(film: _Film, scene: Scene, rng: np.random.Generator) -> npt.NDArray[np.uint16]:
    """Turn attenuation into 12-bit stored values."""
    canvas = film.canvas
    settings = np.random.default_rng((scene.seed, 4))  # so that every size gets the same exposure
    beam = np.exp(-np.float32(settings.uniform(1.6, 2.4)) * film.attenuation)
    share = np.float32(settings.uniform(0.08, 0.16))
    beam = (1 - share) * beam + share * canvas.blur(beam, 0.08)
    quanta = np.exp(settings.uniform(np.log(2000), np.log(20000)))
    quanta = np.float32(quanta * (_QUANTA_SIDE / canvas.side) ** 2)
    # Poisson noise as its normal limit: the darkest ray still has dozens of quanta at 256 px.
    beam += np.sqrt(beam / quanta) * rng.standard_normal(canvas.shape, np.float32)
    density = -np.log(np.maximum(beam, 1 / quanta))
    low, high = np.percentile(density, (0.2, 99.8))
    grey = np.clip((density - np.float32(low)) / np.float32(high - low), 0, 1)
    grey **= np.float32(settings.uniform(0.8, 1.3))
    offset, gain = settings.uniform(0.0, 0.12), settings.uniform(0.75, 0.88)
    grey = np.float32(offset) + np.float32(gain) * grey
    _marker_and_border(grey, scene.body, canvas.side)
    stored: npt.NDArray[np.uint16] = np.rint(grey * 4095).astype(np.uint16)
    return stored


def _marker_and_border(grey: Plane, body: Body, side: int) -> None:
    """Burn in the letter L of the patient's left and blacken what the collimator covers."""
    height, width = grey.shape
    if body.marker is not None:
        row, column = round(height / 2 + body.marker[1] * side), round(width / 2)
        column += round(body.marker[0] * side)
        tall, wide, pen = (max(1, round(length * side)) for length in (0.05, 0.03, 0.009))
        grey[row : row + tall, column : column + pen] = 1
        grey[row + tall - pen : row + tall, column : column + wide] = 1
    left, right, top, bottom = (round(share * side) for share in body.collimation)
    grey[:top] = 0
    grey[height - bottom :] = 0
    grey[:, :left] = 0
    grey[:, width - right :] = 0
