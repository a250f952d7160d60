"""What training writes is what the loader reads."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import nn

from inference.demo import evaluate, stages, train, vocabulary
from inference.demo.model import DemoModel
from inference.weights.prepare import prepare


@pytest.fixture(scope="module")
def trained() -> train.Trained:
    """Networks as they are before the first step."""
    torch.manual_seed(0)
    texts = vocabulary.reports(0)
    words = vocabulary.words(texts)
    projector, language = stages.new_language(vocabulary.PIECES)
    return train.Trained(
        pieces=vocabulary.sentence_pieces(texts),
        words=words,
        encoder=stages.new_encoder().eval(),
        projector=projector.eval(),
        language=language.eval(),
        text=stages.new_text(len(words)).eval(),
        scale=torch.tensor(2.6),
    )


@pytest.fixture(scope="module")
def folder(trained: train.Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    train.save_base(trained, folder / "vicuna-base")
    train.save_model(trained, folder / "llava-rad")
    return folder


def test_the_recipe_reads_what_was_written(
    trained: train.Trained, folder: Path, tmp_path: Path
) -> None:
    prepare(DemoModel.recipe(folder, None), tmp_path / "prepared", quantisation="none")
    with closing(DemoModel.load(tmp_path / "prepared", device="cpu")) as model:
        pairs: tuple[tuple[nn.Module, nn.Module], ...] = (
            (trained.encoder, model.vision),
            (trained.projector, model.projector),
            (trained.text, model.text_tower.network),
        )
        for before, after in pairs:
            for name, weight in before.state_dict().items():
                assert torch.allclose(weight, after.state_dict()[name], atol=1e-3), name
        head = trained.language.lm_head.weight
        assert torch.allclose(head, model.language.lm_head.weight, atol=1e-3)
        assert (tmp_path / "prepared" / "vocab.txt").read_text().split() == list(trained.words)


def test_the_written_model_is_small_and_readable_by_all(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8_000_000
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files)


def test_everything_is_made_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = train.Plan(
        phantoms=4, tower_steps=1, language_steps=1, retrieval_steps=1, tested=1, processes=1
    )
    train.make(plan, tmp_path)
    record = json.loads((tmp_path / "TRAINING.json").read_text())
    assert record["plan"]["seed"] == 0
    assert record["figures"]["nf4"]["n"] == 1
    assert set(record["seconds"]) >= {"data", "tower", "language", "retrieval", "measuring"}
    assert record["versions"]["torch"] == torch.__version__
    assert capsys.readouterr() == ("", "")  # no progress bar outside a terminal


@pytest.mark.parametrize("seed", [0, 1, 40])
def test_nothing_tested_was_trained_on(seed: int) -> None:
    assert train.Plan(seed=seed).seeds.stop <= evaluate.TEST_SEED
