"""Score a reader of phantoms: how many findings it states rightly, whether it retrieves them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from inference.demo import report
from inference.demo.phantom import Scene, render, scene
from inference.findings import Image
from inference.pixels import mimic_jpg

TEST_SEED = 1_000_000  # phantoms from here on were never trained on
SIZE = 512  # shorter image side in pixels: what the node's filters accept

Read = Callable[[Scene], str]


def image(phantom: Scene, *, size: int = SIZE, invert: bool = False) -> Image:
    """Render a phantom as the models take it.

    ``invert`` shows what a forgotten MONOCHROME1 inversion would feed them.
    """
    pixels = mimic_jpg(render(phantom, size).stored, invert=invert)
    return Image(pixels=pixels, sop_instance_uid=f"2.25.{phantom.seed}")


def score(read: Read, seeds: Iterable[int]) -> report.Score:
    """Compare what ``read`` writes of each seed's phantom with what was drawn.

    ``read`` may be a model in this process or a whole node behind a DICOM association.
    """
    phantoms = map(scene, seeds)
    return report.score((phantom.labels, report.parse(read(phantom))) for phantom in phantoms)


def same_findings_top1(
    queries: npt.NDArray[np.float32],
    index: npt.NDArray[np.float32],
    labels: Sequence[frozenset[str]],
) -> float:
    """Share of queries (n, D) whose nearest row of ``index`` (n, D) has the same findings.

    By findings and not by row, because many phantoms have equal reports.
    """
    nearest: list[int] = (queries @ index.T).argmax(axis=1).tolist()
    return sum(labels[i] == labels[j] for i, j in enumerate(nearest)) / len(labels)
