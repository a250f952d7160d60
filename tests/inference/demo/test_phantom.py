"""Phantoms show what their labels say, where they say it, at every size."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inference.demo.phantom import LABELS, Radiograph, Scene, render, render_many, scene
from inference.demo.scene import side_of, zone_of

SIZE = 128  # shorter side in pixels: enough to see where a finding is
BRIGHT = [label for label in LABELS if not label.startswith("pneumothorax")]
#: What a finding leaves in place of the body below it; the heart moves its own border.
OF_ONE_SIDE = [label for label in LABELS if side_of(label)] + ["pacemaker"]


def difference(label: str, seed: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """(H, W) what one finding changes in grey level, in noise-free terms, and its mask."""
    without = render(scene(seed, frozenset()), SIZE).stored.astype(np.float64)
    shown = render(scene(seed, frozenset({label})), SIZE)
    change = shown.stored - without
    mask = shown.masks[label]
    # The stretch to 12 bit follows the whole image: what it did to the rest is no finding.
    return change - np.median(change[~mask]), mask


def test_the_same_seed_gives_the_same_radiograph() -> None:
    first, second = render(scene(7), SIZE), render(scene(7), SIZE)
    assert np.array_equal(first.stored, second.stored)
    assert first.masks.keys() == second.masks.keys()


def test_another_seed_gives_another_radiograph() -> None:
    first, second = (scene(seed, frozenset()) for seed in (7, 8))
    assert first.body != second.body
    assert first.frame != second.frame


@pytest.mark.parametrize("size", [96, 168, 256])
def test_stored_values_are_12_bits_and_the_shorter_side_is_the_size(size: int) -> None:
    for seed in range(6):
        stored = render(scene(seed), size).stored
        assert stored.dtype == np.uint16
        assert min(stored.shape) == size
        assert stored.max() <= 4095
        assert stored.max() - stored.min() > 2500


def test_canvases_are_square_portrait_and_landscape() -> None:
    aspects = Counter(round(scene(seed).frame.aspect, 3) for seed in range(1000))
    portrait, landscape = aspects[1.08] + aspects[1.2], aspects[0.926] + aspects[0.833]
    assert aspects[1.0] + portrait + landscape == 1000
    assert aspects[1.0] == pytest.approx(300, abs=60)
    assert portrait == pytest.approx(450, abs=60)


@pytest.mark.parametrize("label", LABELS)
def test_geometry_does_not_depend_on_the_pixel_size(label: str) -> None:
    one = scene(21, frozenset({label}))
    small, large = render(one, 128).masks[label], render(one, 512).masks[label]
    image = Image.fromarray(large.astype(np.uint8) * 255)
    shrunk = np.asarray(image.resize(small.shape[::-1], Image.Resampling.BOX)) > 127
    union = np.count_nonzero(small | shrunk)
    assert np.count_nonzero(small & shrunk) / union > 0.5  # a tube is two pixels wide at 128
    # A thin line gets wider here and narrower there where it crosses the columns of a coarse grid.
    assert np.allclose(centroid(small), centroid(large), atol=0.03)


def centroid(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """(x, y) of a mask's middle, in shorter sides from the image centre."""
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    x, y = columns.mean() + 0.5 - width / 2, rows.mean() + 0.5 - height / 2
    return np.array([float(x), float(y)], np.float64) / float(min(mask.shape))


def test_other_labels_change_the_findings_and_not_the_body() -> None:
    healthy = scene(5, frozenset())
    ill = scene(5, frozenset({"nodule_left_mid", "effusion_right"}))
    same = dataclasses.replace(
        healthy, labels=ill.labels, sizes=ill.sizes, levels=ill.levels, lesions=ill.lesions
    )
    assert same == ill


def test_an_unknown_label_is_named() -> None:
    with pytest.raises(ValueError, match="tuberculosis"):
        scene(1, frozenset({"tuberculosis", "cardiomegaly"}))


@pytest.mark.parametrize("label", BRIGHT)
def test_a_finding_is_denser_where_its_mask_says(label: str) -> None:
    for seed in range(4):
        change, mask = difference(label, seed)
        assert change[mask].mean() > 100  # of 4095
        assert change[mask].mean() > 4 * abs(change[~mask].mean())


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_pneumothorax_is_darker_where_its_mask_says(side: str) -> None:
    for seed in range(4):
        change, mask = difference(f"pneumothorax_{side}", seed)
        assert change[mask].mean() < -60


@pytest.mark.parametrize("label", OF_ONE_SIDE)
def test_the_patients_left_is_the_image_right(label: str) -> None:
    expected = side_of(label) or "left"
    for seed in range(5):
        x, _ = centroid(render(scene(seed, frozenset({label})), SIZE).masks[label])
        assert (x > 0) == (expected == "left")


def test_zones_lie_one_above_the_other() -> None:
    for seed in range(10):
        heights = [
            scene(seed, frozenset({label})).lesions[label].shape.centre[1]
            for label in ("nodule_left_upper", "nodule_left_mid", "nodule_left_lower")
        ]
        assert heights == sorted(heights)


def test_big_and_normal_hearts_leave_a_gap() -> None:
    def ratio(seed: int, labels: frozenset[str]) -> float:
        body = scene(seed, labels).body
        return body.heart.radii[0] / body.thorax.radii[0]

    normal = [ratio(seed, frozenset()) for seed in range(100)]
    big = [ratio(seed, frozenset({"cardiomegaly"})) for seed in range(100)]
    assert 0.38 <= min(normal) <= max(normal) <= 0.47
    assert 0.58 <= min(big) <= max(big) <= 0.70


@pytest.mark.parametrize("label", ["effusion_left", "effusion_right", "pneumothorax_left"])
def test_large_covers_more_than_small(label: str) -> None:
    areas: dict[str, list[int]] = {"small": [], "large": []}
    for seed in range(16):
        one = scene(seed, frozenset({label}))
        areas[one.sizes[label]].append(int(render(one, SIZE).masks[label].sum()))
    assert max(areas["small"]) < min(areas["large"])


def test_every_finding_of_a_drawn_scene_leaves_a_mask() -> None:
    for seed in range(150):
        one = scene(seed)
        masks = render(one, 96).masks
        assert masks.keys() == one.labels
        assert all(mask.any() for mask in masks.values())


@given(st.integers(0, 2**40))
def test_drawn_findings_can_be_told_apart(seed: int) -> None:
    one = scene(seed)
    families = Counter(label.partition("_")[0] for label in one.labels)
    places = [(side_of(label), zone_of(label)) for label in one.labels if side_of(label)]
    assert len(one.labels) <= 3
    assert families["consolidation"] <= 1
    assert families["nodule"] <= 1
    assert len(places) == len(set(places))
    if "cardiomegaly" in one.labels:
        hidden = {"consolidation_RML", "consolidation_LLL", "nodule_left_lower"}
        assert not one.labels & hidden


@given(st.integers(0, 2**40), st.sets(st.sampled_from(LABELS)))
def test_a_scene_has_geometry_for_just_its_findings(seed: int, labels: set[str]) -> None:
    one = scene(seed, frozenset(labels))
    sized = {label for label in labels if label.startswith(("effusion", "pneumothorax"))}
    lesions = {label for label in labels if label.startswith(("consolidation", "nodule"))}
    assert one.sizes.keys() == sized
    assert one.levels.keys() | one.rims.keys() == sized
    assert one.lesions.keys() == lesions


def test_findings_come_as_often_as_the_recipe_says() -> None:
    drawn = [scene(seed).labels for seed in range(3000)]
    counts = Counter(map(len, drawn))
    for number, share in enumerate((0.22, 0.30, 0.28, 0.20)):
        # Four standard deviations of a share of 3,000.
        spread = 4 * math.sqrt(share * (1 - share) / 3000)
        assert counts[number] / 3000 == pytest.approx(share, abs=spread)
    assert {label for labels in drawn for label in labels} == set(LABELS)


@pytest.mark.parametrize(
    ("label", "side", "zone"),
    [
        ("consolidation_RUL", "right", "upper"),
        ("consolidation_RML", "right", "mid"),
        ("consolidation_LLL", "left", "lower"),
        ("nodule_left_mid", "left", "mid"),
        ("effusion_right", "right", "lower"),
        ("pneumothorax_left", "left", "upper"),
        ("cardiomegaly", None, None),
        ("endotracheal_tube", None, None),
    ],
)
def test_side_and_zone_of_a_label(label: str, side: str | None, zone: str | None) -> None:
    assert (side_of(label), zone_of(label)) == (side, zone)


def keep(scene: Scene, radiograph: Radiograph) -> tuple[int, Radiograph]:
    """Runs in the worker processes."""
    return scene.seed, radiograph


def test_many_phantoms_come_in_order_and_as_rendered_one_by_one() -> None:
    seeds = list(range(40, 110))
    many = list(render_many(seeds, 64, keep, processes=2))
    assert [seed for seed, _ in many] == seeds
    for seed, radiograph in many[::23]:
        assert np.array_equal(radiograph.stored, render(scene(seed), 64).stored)
