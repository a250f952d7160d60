"""Training examples: image and labels go through the same geometry."""

from __future__ import annotations

import numpy as np
import pytest

from inference.demo.dataset import GRID, RENDERED, SIDE, examples, reduce
from inference.demo.phantom import LABELS, Radiograph, render, scene


def radiograph(label: str, rows: slice, columns: slice, shape: tuple[int, int]) -> Radiograph:
    """Make a picture of noise, bright where the one finding is."""
    mask = np.zeros(shape, np.bool_)
    mask[rows, columns] = True
    stored = np.random.default_rng(0).integers(0, 1000, shape, np.uint16) + 3000 * mask
    return Radiograph(seed=1, stored=stored.astype(np.uint16), masks={label: mask})


def test_an_example_has_the_towers_size() -> None:
    one = scene(3)
    example = reduce(one, render(one, RENDERED))
    assert example.pixels.shape == (SIDE, SIDE)
    assert example.pixels.dtype == np.uint8
    assert example.patches.shape == (GRID * GRID, len(LABELS))
    assert example.labels == one.labels
    assert {label for label, there in zip(LABELS, example.present, strict=True) if there} == (
        one.labels
    )


@pytest.mark.parametrize("shape", [(224, 224), (268, 224), (224, 268)])
def test_patches_lie_where_the_finding_is_seen(shape: tuple[int, int]) -> None:
    rows, columns = slice(60, 100), slice(130, 180)
    example = reduce(scene(1), radiograph("nodule_left_upper", rows, columns, shape))
    patches = example.patches[:, LABELS.index("nodule_left_upper")].reshape(GRID, GRID)
    brightness = example.pixels.reshape(GRID, 14, GRID, 14).mean(axis=(1, 3))
    assert 6 < patches.sum() < 25
    assert brightness[patches].min() > brightness[~patches].mean()
    assert brightness.argmax() in np.flatnonzero(patches)


def test_a_finding_must_cover_its_share_of_a_patch() -> None:
    # At 224 pixels a patch is 18.67 wide: 6 columns of it are a share of .32.
    strip = radiograph("cardiomegaly", slice(0, 224), slice(0, 6), (224, 224))
    assert not reduce(scene(1), strip).patches.any()
    strip = radiograph("consolidation_RUL", slice(0, 224), slice(0, 6), (224, 224))
    assert reduce(scene(1), strip).patches.sum() == GRID


def test_processes_give_the_examples_in_order() -> None:
    made = list(examples(range(3), processes=1))
    for seed, example in enumerate(made):
        one = scene(seed)
        alone = reduce(one, render(one, RENDERED))
        assert (example.pixels == alone.pixels).all()
        assert (example.patches == alone.patches).all()
