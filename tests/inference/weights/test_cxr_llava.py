"""The published folder of CXR-LLaVA becomes parts; each fault in it is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inference.findings import ModelUnavailable
from inference.weights.cxr_llava import recipe
from inference.weights.recipe import Recipe
from tests.inference import published_cxr_llava as tiny


def drawn_up(folder: Path) -> Recipe:
    return recipe(folder, None, model="cxr-llava")


def read(found: Recipe) -> dict[str, Tensor]:
    return {part.name: part.read() for part in found.parts}


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pickles"])
def test_every_published_tensor_has_its_place(tmp_path: Path, pickled: bool) -> None:
    published = tiny.state()
    tensors = read(drawn_up(tiny.write(tmp_path, published, pickled=pickled)))
    assert sum(t.numel() for t in tensors.values()) == sum(t.numel() for t in published.values())
    same = {
        "vision.conv1.weight": "vision_tower.conv1.weight",
        "vision.transformer.resblocks.1.attn.in_proj_weight":
            "vision_tower.transformer.resblocks.1.attn.in_proj_weight",
        "projector.bias": "mm_projector.bias",
        "language.embed_tokens.weight": "llama.embed_tokens.weight",
        "language.layers.1.mlp.down_proj.weight": "llama.layers.1.mlp.down_proj.weight",
        "language.lm_head.weight": "lm_head.weight",
    }  # fmt: skip
    for name, theirs in same.items():
        assert torch.equal(tensors[name], published[theirs]), name


def test_projections_are_fused_in_order(tmp_path: Path) -> None:
    published = tiny.state()
    tensors = read(drawn_up(tiny.write(tmp_path, published)))
    for fused, block, names in (
        ("qkv_proj", "layers.1.self_attn", ("q_proj", "k_proj", "v_proj")),
        ("gate_up_proj", "layers.0.mlp", ("gate_proj", "up_proj")),
    ):
        stacked = torch.cat([published[f"llama.{block}.{name}.weight"] for name in names])
        assert torch.equal(tensors[f"language.{block}.{fused}.weight"], stacked)


def test_only_the_projections_of_the_language_model_are_packed(tmp_path: Path) -> None:
    packed = {part.name for part in drawn_up(tiny.write(tmp_path)).parts if part.packed}
    assert packed == {
        f"language.layers.{layer}.{name}.weight"
        for layer in range(tiny.LLAMA.num_hidden_layers)
        for name in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    }


def test_sizes_and_constants_come_from_the_folder(tmp_path: Path) -> None:
    config = drawn_up(tiny.write(tmp_path)).config
    assert json.loads(json.dumps(config)) == config
    assert config["vision"] == {
        "image_size": 32, "patch": 16, "width": 64, "depth": 2, "embedding": 16
    }  # fmt: skip
    assert config["language"]["hidden_size"] == 64
    assert (config["mean"], config["std"]) == (0.5518136078431373, 0.3821719215686275)


@pytest.mark.parametrize(
    ("said", "legacy"), [({"legacy": False}, False), ({"legacy": True}, True), ({"x": 1}, True)]
)
def test_an_unset_legacy_means_legacy(tmp_path: Path, said: dict[str, Any], legacy: bool) -> None:
    assert drawn_up(tiny.write(tmp_path, tokenizer=said)).config["legacy"] is legacy


def test_the_folder_above_will_do(tmp_path: Path) -> None:
    tiny.write(tmp_path / "cxr-llava-v2")
    found = drawn_up(tmp_path)
    assert found.files == {"tokenizer.model": tmp_path / "cxr-llava-v2" / "tokenizer.model"}
    assert "cxr-llava-v2/model-00002-of-00002.safetensors" in found.sources


def test_all_files_that_make_the_model_are_sources(tmp_path: Path) -> None:
    found = drawn_up(tiny.write(tmp_path))
    assert {path.name for path in found.sources.values()} == {
        "config.json", "tokenizer.model", "tokenizer_config.json",
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    }  # fmt: skip


def test_computed_tables_are_left_out(tmp_path: Path) -> None:
    stray = {"llama.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}
    names = {part.name for part in drawn_up(tiny.write(tmp_path, tiny.state() | stray)).parts}
    assert not [name for name in names if "rotary" in name]


# --- faults -----------------------------------------------------------------------------------


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    state = tiny.state()
    del state["mm_projector.bias"]
    with pytest.raises(ModelUnavailable, match=r"mm_projector\.bias is missing"):
        drawn_up(tiny.write(tmp_path, state))


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    # v2 has one Linear; a second one would be another model.
    state = tiny.state() | {"mm_projector.2.weight": torch.ones(2, 2)}
    with pytest.raises(ModelUnavailable, match=r"mm_projector\.2\.weight is unexpected"):
        drawn_up(tiny.write(tmp_path, state))


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    state = tiny.state() | {"vision_tower.conv1.weight": torch.ones(64, 3, 16, 16)}
    with pytest.raises(ModelUnavailable, match=r"conv1\.weight is \(64, 3, 16, 16\), not"):
        drawn_up(tiny.write(tmp_path, state))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (tiny.write(tmp_path) / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match="model-00002-of-00002"):
        drawn_up(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.model"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (tiny.write(tmp_path) / name).unlink()
    with pytest.raises(ModelUnavailable, match=name):
        drawn_up(tmp_path)


@pytest.mark.parametrize(
    "key", ["clip_vision_cfg", "clip_embed_dim", "image_preprocess_cfg", "llama"]
)
def test_a_missing_setting_is_named(tmp_path: Path, key: str) -> None:
    config = {k: v for k, v in tiny.CONFIG.items() if k != key}
    with pytest.raises(ModelUnavailable, match=f"lacks {key}"):
        drawn_up(tiny.write(tmp_path, config=config))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"clip_quick_gelu": True}, "clip_quick_gelu"),
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio"),
        ({"image_preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": 0.4}}, "another model"),
        ({"clip_vision_cfg": tiny.CONFIG["clip_vision_cfg"] | {"width": 96}}, "multiple of 64"),
        ({"llama": tiny.CONFIG["llama"] | {"num_key_value_heads": 1}}, "num_key_value_heads"),
    ],
    ids=["quick GELU", "padding", "three channels", "heads", "grouped heads"],
)
def test_another_kind_of_model_is_refused(
    tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    with pytest.raises(ModelUnavailable, match=word):
        drawn_up(tiny.write(tmp_path, config=tiny.CONFIG | change))


def test_a_tokeniser_with_more_pieces_than_the_network_is_refused(tmp_path: Path) -> None:
    state = tiny.state()
    for name in ("llama.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][:300]
    config = tiny.CONFIG | {"llama": tiny.CONFIG["llama"] | {"vocab_size": 300}}
    with pytest.raises(ModelUnavailable, match="320 pieces"):
        drawn_up(tiny.write(tmp_path, state, config=config))


def test_a_base_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="its own language model"):
        recipe(tiny.write(tmp_path), tmp_path / "vicuna-7b-v1.5", model="cxr-llava")
