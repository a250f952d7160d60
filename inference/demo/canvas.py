"""Drawing on a pixel grid in body coordinates: soft shapes, smooth noise, blur.

Unit of length: the shorter image side = 1. The origin is the centre of the body, x grows to the
image right (the patient's left in a frontal view), y grows downwards. A shape is returned as a
:class:`Patch`, its coverage in [0, 1] inside the bounding box, so that a thin line costs its own
box and not the whole image (27 instead of 62 ms per radiograph, demo-model.md section 1).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Plane = npt.NDArray[np.float32]
Point = tuple[float, float]
Window = tuple[slice, slice]

_BLUR_GRID = 64  # cells along the shorter side: fine enough for the widths used here (.08)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """How the body lies on the image."""

    aspect: float  #: height / width of the image
    scale: float  #: image lengths per body length
    shift: Point  #: of the body's origin, in image lengths
    rotation: float  #: radians, clockwise as seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Ellipse:
    """An ellipse in body coordinates."""

    centre: Point
    radii: Point
    tilt: float = 0.0  #: radians, clockwise as seen


@dataclass(frozen=True, slots=True)
class Patch:
    """The coverage of a shape inside its bounding box; zero outside it."""

    window: Window
    coverage: Plane  #: in [0, 1]

    def add_to(self, plane: Plane, amount: float) -> None:
        """Add ``amount`` times the coverage."""
        plane[self.window] += np.float32(amount) * self.coverage

    def raise_to(self, plane: Plane, amount: float) -> None:
        """Take the larger of the plane and ``amount`` times the coverage (overlaps add nothing)."""
        part = plane[self.window]
        np.maximum(part, np.float32(amount) * self.coverage, out=part)


@dataclass(frozen=True, slots=True)
class Canvas:
    """A pixel grid with the body coordinates of every pixel."""

    frame: Frame
    side: int  #: pixels along the shorter side
    x: Plane  #: (H, W) body coordinate
    y: Plane  #: (H, W) body coordinate

    @classmethod
    def of(cls, frame: Frame, side: int) -> Canvas:
        """Lay the grid of an image whose shorter side has ``side`` pixels."""
        height = max(side, round(side * frame.aspect))
        width = max(side, round(side / frame.aspect))
        v = ((np.arange(height) + 0.5 - height / 2) / side - frame.shift[1]) / frame.scale
        u = ((np.arange(width) + 0.5 - width / 2) / side - frame.shift[0]) / frame.scale
        cos, sin = np.cos(frame.rotation), np.sin(frame.rotation)
        x = (cos * u)[None, :] + (sin * v)[:, None]
        y = (cos * v)[:, None] - (sin * u)[None, :]
        return cls(frame, side, x.astype(np.float32), y.astype(np.float32))

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        height, width = self.x.shape
        return height, width

    @property
    def pixel(self) -> float:
        """Length of a pixel's side in body lengths."""
        return 1 / (self.side * self.frame.scale)

    def blank(self) -> Plane:
        """(H, W) zeros."""
        return np.zeros(self.shape, np.float32)

    def window(self, low: Point, high: Point) -> Window:
        """Rows and columns that hold the body rectangle ``low`` to ``high`` (may be empty)."""
        xs = np.array([low[0], high[0], low[0], high[0]])
        ys = np.array([low[1], low[1], high[1], high[1]])
        cos, sin = np.cos(self.frame.rotation), np.sin(self.frame.rotation)
        columns = self._pixels(cos * xs - sin * ys, self.frame.shift[0], self.shape[1])
        rows = self._pixels(sin * xs + cos * ys, self.frame.shift[1], self.shape[0])
        return rows, columns

    def _pixels(self, lengths: npt.NDArray[np.float64], shift: float, count: int) -> slice:
        pixels = (lengths * self.frame.scale + shift) * self.side + count / 2
        first = min(max(int(np.floor(pixels.min())) - 1, 0), count)
        last = min(max(int(np.ceil(pixels.max())) + 1, first), count)
        return slice(first, last)

    def soft(self, inside: npt.NDArray[np.floating], edge: float = 0.0) -> Plane:
        """Coverage from a signed distance (positive inside), rising over ``edge`` or one pixel."""
        ramp = inside / np.float32(max(edge, self.pixel)) + np.float32(0.5)
        coverage: Plane = np.clip(ramp, 0, 1).astype(np.float32, copy=False)
        return coverage

    def ellipse(self, shape: Ellipse, edge: float = 0.0) -> Patch:
        """Fill an ellipse whose rim is ``edge`` wide."""
        reach = max(shape.radii) + edge
        window = self.window(
            (shape.centre[0] - reach, shape.centre[1] - reach),
            (shape.centre[0] + reach, shape.centre[1] + reach),
        )
        dx, dy = self.x[window] - shape.centre[0], self.y[window] - shape.centre[1]
        cos, sin = np.cos(shape.tilt), np.sin(shape.tilt)
        along = (dx * np.float32(cos) + dy * np.float32(sin)) / np.float32(shape.radii[0])
        across = (dy * np.float32(cos) - dx * np.float32(sin)) / np.float32(shape.radii[1])
        inside = (1 - np.sqrt(along * along + across * across)) * np.float32(min(shape.radii))
        return Patch(window, self.soft(inside, edge))

    def segment(self, start: Point, end: Point, half_width: float) -> Patch:
        """Draw a straight line with round ends."""
        reach = half_width + self.pixel
        window = self.window(
            (min(start[0], end[0]) - reach, min(start[1], end[1]) - reach),
            (max(start[0], end[0]) + reach, max(start[1], end[1]) + reach),
        )
        run, fall = end[0] - start[0], end[1] - start[1]
        dx, dy = self.x[window] - np.float32(start[0]), self.y[window] - np.float32(start[1])
        squared = max(run * run + fall * fall, 1e-12)
        along = np.clip((dx * np.float32(run) + dy * np.float32(fall)) / np.float32(squared), 0, 1)
        distance = np.hypot(dx - along * np.float32(run), dy - along * np.float32(fall))
        return Patch(window, self.soft(np.float32(half_width) - distance))

    def line(self, points: Sequence[Point], half_width: float) -> Plane:
        """(H, W) coverage of a line through ``points``."""
        plane = self.blank()
        for start, end in itertools.pairwise(points):
            self.segment(start, end, half_width).raise_to(plane, 1.0)
        return plane

    def noise(self, rng: np.random.Generator, cells: int) -> Plane:
        """(H, W) smooth noise of about unit variance with ``cells`` cells along the shorter side.

        The random grid does not depend on the pixel size: every size shows the same pattern.
        """
        rows = round(cells * max(1.0, self.frame.aspect)) + 1
        columns = round(cells * max(1.0, 1 / self.frame.aspect)) + 1
        return _resize(rng.standard_normal((rows, columns)).astype(np.float32), self.shape)

    def blur(self, plane: Plane, sigma: float) -> Plane:
        """Gaussian blur; ``sigma`` in shorter sides, well above 1/64 (done on a small copy)."""
        height, width = (round(_BLUR_GRID * n / min(self.shape)) for n in self.shape)
        small = np.asarray(
            Image.fromarray(plane).resize((width, height), Image.Resampling.BOX), np.float32
        )
        rows, columns = _gaussian(height, sigma), _gaussian(width, sigma)
        return _resize((rows @ small @ columns.T).astype(np.float32), self.shape)


def _gaussian(count: int, sigma: float) -> npt.NDArray[np.float64]:
    """(count, count) blur matrix; each row sums to 1, so the edges keep their level."""
    steps = np.subtract.outer(np.arange(count), np.arange(count)) / (sigma * _BLUR_GRID)
    weights = np.exp(-0.5 * steps * steps)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _resize(plane: Plane, shape: tuple[int, int]) -> Plane:
    """Bicubic resize to (H, W)."""
    image = Image.fromarray(plane).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32)
