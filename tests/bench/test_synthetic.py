"""The synthetic checkpoint is what a site would have downloaded, in all but its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceProcessor

from bench import synthetic
from inference.llama import EOS_ID
from inference.llava_rad import LlavaRad
from inference.weights.files import Checkpoint, read_json

SIZES = synthetic.SIZES["tiny"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    synthetic.write(folder, "tiny")
    return folder


def test_the_recipe_of_the_published_layout_accepts_it(published: Path) -> None:
    recipe = LlavaRad.recipe(published, None)
    packed = [part for part in recipe.parts if part.packed]
    assert len(packed) == 4 * SIZES.language["num_hidden_layers"]  # fused


def test_the_base_is_two_shards_split_where_the_real_ones_are(published: Path) -> None:
    shards = sorted((published / synthetic.BASE).glob("pytorch_model-*.bin"))
    first, second = (shard.stat().st_size for shard in shards)
    assert first > second
    index = read_json(published / synthetic.BASE / "pytorch_model.bin.index.json")
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}


def test_matrices_are_noise_of_the_usual_width_and_norms_are_ones(published: Path) -> None:
    base = Checkpoint.find(published / synthetic.BASE, "pytorch_model")
    matrix = base.read("model.layers.1.mlp.up_proj.weight").float()
    assert matrix.std().item() == pytest.approx(synthetic.STD, rel=0.05)
    other = base.read("model.layers.1.mlp.gate_proj.weight").float()
    assert not torch.equal(matrix, other)
    assert torch.equal(base.read("model.norm.weight"), torch.ones(64).half())


def test_no_report_can_end_before_its_limit(published: Path) -> None:
    head = Checkpoint.find(published / synthetic.BASE, "pytorch_model").read("lm_head.weight")
    assert not head[EOS_ID].any()
    assert head.any(dim=1).sum() == len(head) - 1


def test_every_vocabulary_has_as_many_pieces_as_its_network_has_rows(published: Path) -> None:
    pieces = SentencePieceProcessor(model_file=str(published / synthetic.BASE / "tokenizer.model"))
    assert len(pieces) == SIZES.language["vocab_size"]
    folder = published / synthetic.MODEL / synthetic.TEXT_TOWER
    assert len((folder / "vocab.txt").read_text("utf-8").splitlines()) == SIZES.text["vocab_size"]


def test_the_large_size_is_the_published_one() -> None:
    sizes = synthetic.SIZES["7b"]
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096  # llava-rad.md 1
    values = 32 * layer + 2 * 32000 * 4096 + 4096
    assert values == 6_738_415_616  # Llama 2 7B
    with torch.device("meta"):
        network = synthetic.LlamaForCausalLM(synthetic.LlamaConfig(**sizes.language))
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == values
