"""The score tells a good reader from a bad one."""

from __future__ import annotations

import numpy as np
import pytest

from inference.demo import evaluate, report
from inference.demo.phantom import Scene, scene

SEEDS = range(evaluate.TEST_SEED, evaluate.TEST_SEED + 100)


def truth(phantom: Scene) -> str:
    return report.write(phantom.labels, phantom.sizes, seed=phantom.seed)


def test_the_truth_scores_one() -> None:
    score = evaluate.score(truth, SEEDS)
    assert (score.f1, score.exact, score.n) == (1, 1, len(SEEDS))


def test_another_phantoms_report_scores_low() -> None:
    assert evaluate.score(lambda phantom: truth(scene(phantom.seed + 1)), SEEDS).f1 < 0.3


def test_saying_nothing_scores_zero() -> None:
    assert evaluate.score(lambda _: "The lungs are clear.", SEEDS).f1 == 0


def test_images_are_as_the_node_makes_them() -> None:
    image = evaluate.image(scene(SEEDS[0]), size=256)
    inverted = evaluate.image(scene(SEEDS[0]), size=256, invert=True)
    assert min(image.pixels.shape) == 256
    assert image.preprocess == "mimic-jpg-v1"
    assert np.corrcoef(image.pixels.ravel(), inverted.pixels.ravel())[0, 1] < -0.9


def test_retrieval_counts_equal_findings_and_not_equal_rows() -> None:
    labels = [frozenset("a"), frozenset("b"), frozenset("a"), frozenset("c")]
    queries = np.eye(4, dtype=np.float32)
    index = queries[[2, 1, 0, 0]]  # rows 0 and 2 found as each other, row 3 by nobody right
    assert evaluate.same_findings_top1(queries, index, labels) == pytest.approx(0.75)
