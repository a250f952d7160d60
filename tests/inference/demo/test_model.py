"""The committed demo weights read phantoms; the figures here are floors, TRAINING.json has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.demo import evaluate, report
from inference.demo.model import PREPARED, PUBLISHED, DemoModel
from inference.demo.phantom import Scene, scene
from inference.findings import Findings, FloatVector
from inference.models import ReportModel
from inference.weights.artefact import Artefact
from inference.weights.prepare import prepare

TESTED = 40

Read = tuple[Sequence[Scene], Sequence[Findings]]


def vector(draft: Findings) -> FloatVector:
    assert draft.image_embedding is not None
    return draft.image_embedding.vector


@pytest.fixture(scope="module")
def model() -> DemoModel:
    return DemoModel.load(device="cpu")


@pytest.fixture(scope="module")
def read(model: DemoModel) -> Read:
    """Forty phantoms that were never trained on, with the model's drafts."""
    phantoms = [scene(evaluate.TEST_SEED + i) for i in range(TESTED)]
    return phantoms, [model.read([evaluate.image(phantom)], None) for phantom in phantoms]


def test_findings_are_read_rightly(read: Read) -> None:
    texts = {phantom.seed: draft.text for phantom, draft in zip(*read, strict=True)}
    score = evaluate.score(lambda phantom: texts[phantom.seed], texts)
    assert score.f1 >= 0.95
    assert score.n == TESTED


def test_inverted_images_are_read_wrongly(model: DemoModel) -> None:
    # The polarity of the pixels matters: text is fluent but wrong, so only a score can tell.
    def misread(phantom: Scene) -> str:
        return model.read([evaluate.image(phantom, invert=True)], None).text

    assert evaluate.score(misread, range(evaluate.TEST_SEED, evaluate.TEST_SEED + 12)).f1 < 0.5


def test_images_and_reports_find_each_other(model: DemoModel, read: Read) -> None:
    phantoms, drafts = read
    labels = [phantom.labels for phantom in phantoms]
    images = np.stack([vector(draft) for draft in drafts])
    texts = np.stack(
        [model.embed_text(report.write(p.labels, p.sizes, seed=p.seed)).vector for p in phantoms]
    )
    assert evaluate.same_findings_top1(images, texts, labels) >= 0.8
    assert evaluate.same_findings_top1(texts, images, labels) >= 0.8


def test_a_sentence_finds_an_image_with_its_finding(model: DemoModel, read: Read) -> None:
    phantoms, drafts = read
    images = np.stack([vector(draft) for draft in drafts])
    present = frozenset().union(*(phantom.labels for phantom in phantoms))
    found = [
        label in phantoms[int((images @ model.embed_text(sentence).vector).argmax())].labels
        for label, sentence in report.SENTENCES.items()
        if label in present
    ]
    assert sum(found) / len(found) >= 0.8


def test_it_says_that_it_is_a_demo(model: DemoModel) -> None:
    assert isinstance(model, ReportModel)
    assert "DEMO MODEL" in model.algorithm.name
    assert model.algorithm.demo
    assert model.algorithm.version.endswith("+nf4")


def test_the_same_image_gives_the_same_draft(model: DemoModel, read: Read) -> None:
    (phantom, *_), (draft, *_) = read
    again = model.read([evaluate.image(phantom)], None)
    assert again.text == draft.text
    assert (vector(again) == vector(draft)).all()


def test_the_weights_stay_small() -> None:
    files = [p for folder in (PUBLISHED, PREPARED) for p in folder.rglob("*") if p.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000


def test_the_prepared_weights_are_made_from_the_published_ones(tmp_path: Path) -> None:
    made = prepare(DemoModel.recipe(PUBLISHED, None), tmp_path / "prepared", quantisation="nf4")
    kept = Artefact.open(PREPARED, model="demo")
    assert made.sources == kept.manifest.sources
    again = Artefact.open(tmp_path / "prepared", model="demo")
    assert again.entries.keys() == kept.entries.keys()
    for name in kept.entries:
        # Scales are means and maxima: another processor may sum in another order.
        assert torch.allclose(again.read(name).float(), kept.read(name).float(), rtol=1e-5), name


def test_the_training_is_on_record() -> None:
    record = json.loads((PUBLISHED / "TRAINING.json").read_text(encoding="utf-8"))
    assert record["figures"]["nf4"]["n"] >= 200
    assert record["figures"]["nf4"]["f1"] >= 0.95
