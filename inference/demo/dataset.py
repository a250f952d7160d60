"""Training data of the demo model: phantoms as the tower takes them, with patch-wise labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage

from inference.demo.phantom import LABELS, Radiograph, Scene, render_many
from inference.pixels import mimic_jpg
from inference.vision import crop

SIDE = 168  # pixels a side of the demo tower
PATCH = 14
GRID = SIDE // PATCH
RENDERED = 224  # shorter side in pixels at which training phantoms are drawn

#: Share of a patch that a finding must cover to be its label (demo-model.md section 4).
_SHARE: Mapping[str, float] = {
    "effusion": 0.12,
    "pneumothorax": 0.12,
    "consolidation": 0.30,
    "cardiomegaly": 0.35,
}
_SMALL_SHARE = 0.08  # nodules and devices


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One phantom of the training set."""

    pixels: npt.NDArray[np.uint8]  #: (168, 168)
    patches: npt.NDArray[np.bool_]  #: (144, 19): which finding lies in which patch
    labels: frozenset[str]
    sizes: Mapping[str, str]

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """(19,) which findings the phantom has."""
        return np.array([label in self.labels for label in LABELS])


def examples(seeds: Iterable[int], *, processes: int) -> Iterator[Example]:
    """Render the phantoms of ``seeds`` and reduce each to what training needs."""
    return render_many(seeds, RENDERED, reduce, processes=processes)


def reduce(scene: Scene, radiograph: Radiograph) -> Example:
    """Send a radiograph down the pixel pipeline, and its masks through the same geometry."""
    grey = PilImage.fromarray(mimic_jpg(radiograph.stored, invert=False))
    patches = np.zeros((GRID * GRID, len(LABELS)), np.bool_)
    for label, mask in radiograph.masks.items():
        share = _SHARE.get(label.partition("_")[0], _SMALL_SHARE)
        patches[:, LABELS.index(label)] = _patch_shares(mask) > share
    return Example(
        pixels=np.array(crop(grey, SIDE, PilImage.Resampling.BICUBIC)),
        patches=patches,
        labels=scene.labels,
        sizes=dict(scene.sizes),
    )


def _patch_shares(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """(H, W) -> (144,) share of each patch that the mask covers, in [0, 1]."""
    drawn = PilImage.fromarray(mask.astype(np.uint8) * 255)
    square = np.array(crop(drawn, SIDE, PilImage.Resampling.BOX)) / 255
    shares: npt.NDArray[np.float64] = square.reshape(GRID, PATCH, GRID, PATCH).mean(axis=(1, 3))
    return shares.ravel()
