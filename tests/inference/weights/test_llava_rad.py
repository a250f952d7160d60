"""The published folders of LLaVA-Rad become parts; each fault in them is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from inference.findings import ModelUnavailable
from inference.weights.files import State, read_json
from inference.weights.llava_rad import recipe
from inference.weights.recipe import Recipe
from tests.inference import published
from tests.inference.golden import GOLDEN, MISSING, Case
from tests.inference.published import ADAPTER, BASE, CHECKPOINT, MODEL, QUERY, TRAINED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return published.written(tmp_path)


def drawn_up(folder: Path) -> Recipe:
    return recipe(folder, None, model="llava-rad")


def read(found: Recipe) -> State:
    return {part.name: part.read().float() for part in found.parts}


def base_of(folder: Path) -> State:
    """The language model as published, both shards."""
    shards = (published.tensors(folder / BASE / name) for name in published.SHARDS)
    return {name: tensor.float() for shard in shards for name, tensor in shard.items()}


def merged_of(folder: Path, name: str) -> Tensor:
    """One published projection with its adapter, by the book."""
    adapter = published.tensors(folder / ADAPTER)
    a, b = (adapter[f"base_model.model.{name}.lora_{half}.weight"].float() for half in "AB")
    return base_of(folder)[f"{name}.weight"] + published.ALPHA / published.RANK * (b @ a)


# --- what goes where --------------------------------------------------------------------------


def test_every_published_tensor_has_its_place(folder: Path) -> None:
    tensors, clip = read(drawn_up(folder)), published.tensors(folder / CHECKPOINT)
    trained = published.tensors(folder / TRAINED)
    same = {
        "vision.trunk.blocks.1.ls1.gamma": clip["module.visual.trunk.blocks.1.ls1.gamma"],
        "vision.head.proj.weight": clip["module.visual.head.proj.weight"],
        "text.proj.2.weight": clip["module.text.proj.2.weight"],
        "projector.2.bias": trained["base_model.model.model.mm_projector.2.bias"],
        "language.embed_tokens.weight": base_of(folder)["model.embed_tokens.weight"],
        "language.lm_head.weight": base_of(folder)["lm_head.weight"],
    }
    for name, theirs in same.items():
        assert torch.equal(tensors[name], theirs), name
    used = [clip, trained, base_of(folder)]
    strays = {
        "module.text.transformer.pooler.dense.weight",
        "module.text.transformer.embeddings.position_ids",
        "module.logit_scale",
        "base_model.model.model.vision_tower.stray.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
    }
    wanted = sum(t.numel() for state in used for name, t in state.items() if name not in strays)
    assert sum(t.numel() for t in tensors.values()) == wanted


def test_the_adapter_is_merged_in_float32_and_projections_are_fused(folder: Path) -> None:
    tensors = read(drawn_up(folder))
    for fused, block, names in (
        ("qkv_proj", "layers.1.self_attn", ("q_proj", "k_proj", "v_proj")),
        ("o_proj", "layers.1.self_attn", ("o_proj",)),
        ("gate_up_proj", "layers.0.mlp", ("gate_proj", "up_proj")),
        ("down_proj", "layers.0.mlp", ("down_proj",)),
    ):
        merged = torch.cat([merged_of(folder, f"model.{block}.{name}") for name in names])
        assert torch.equal(tensors[f"language.{block}.{fused}.weight"], merged)


def test_exactly_the_projections_are_to_be_packed(folder: Path) -> None:
    packed = {part.name for part in drawn_up(folder).parts if part.packed}
    assert packed == {
        f"language.layers.{layer}.{name}.weight"
        for layer in range(published.LAYERS)
        for name in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    }


def test_shapes_are_known_before_anything_is_read(folder: Path) -> None:
    for part in drawn_up(folder).parts:
        assert part.shape == part.read().shape, part.name


def test_safetensors_of_the_same_names_give_the_same(folder: Path) -> None:
    before = read(drawn_up(folder))
    for name in (*(f"{BASE}/{shard}" for shard in published.SHARDS), ADAPTER, TRAINED, CHECKPOINT):
        path = folder / name
        state = {name: tensor.clone() for name, tensor in published.tensors(path).items()}
        save_file(state, path.with_suffix(".safetensors"))
        path.unlink()
    (folder / published.INDEX).unlink()
    halves = [folder / BASE / Path(s).with_suffix(".safetensors").name for s in published.SHARDS]
    places = published.index(halves)
    published.put(folder / BASE / "pytorch_model.safetensors.index.json", {"weight_map": places})
    after = read(drawn_up(folder))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_that_says_so_has_no_adapter(folder: Path) -> None:
    settings = folder / MODEL / "config.json"
    published.put(settings, read_json(settings) | {"adapter": False})
    tensors = read(drawn_up(folder))
    plain = base_of(folder)["model.layers.0.self_attn.o_proj.weight"]
    assert torch.equal(tensors["language.layers.0.self_attn.o_proj.weight"], plain)


def test_both_folders_may_be_named(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "my-vicuna"
    (folder / BASE).rename(elsewhere)
    for source in (folder, folder / MODEL):
        found = recipe(source, elsewhere, model="llava-rad")
        assert found.sources["vicuna/config.json"] == elsewhere / "config.json"


def test_every_file_that_is_read_will_be_hashed(folder: Path) -> None:
    found = drawn_up(folder)
    assert set(found.sources.values()) == {path for path in folder.rglob("*") if path.is_file()}
    assert f"vicuna/{published.SHARDS[0]}" in found.sources
    assert "llava-rad/BERT/vocab.txt" in found.sources
    assert found.files.keys() == {"tokenizer.model", "vocab.txt"}


# --- upstream's own merge ---------------------------------------------------------------------


@pytest.mark.parametrize("case", ["case-s70", "case-s518"])
@pytest.mark.skipif(not GOLDEN.exists(), reason=MISSING)
def test_the_merge_is_upstreams(case: str) -> None:
    golden = Case(GOLDEN / "llava-rad" / case)
    ours = published.apart(read(drawn_up(golden.folder)))
    theirs = {
        name.removeprefix("merged/"): tensor
        for name, tensor in golden.arrays.items()
        if name.startswith("merged/")
    }
    assert theirs
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).abs().max() < 1e-6, name


# --- what is wrong is named -------------------------------------------------------------------

TOWER = "module.visual.trunk.blocks.1.ls1.gamma"
LORA = f"base_model.model.{QUERY}.lora_A.weight"
PROJECTOR = "base_model.model.model.mm_projector.2.bias"
LAST = f"{BASE}/{published.SHARDS[1]}"


@pytest.mark.parametrize(
    ("file", "name", "tensor", "said"),
    [
        pytest.param(CHECKPOINT, TOWER, None, "ls1.gamma is missing", id="missing"),
        pytest.param(CHECKPOINT, TOWER, torch.ones(63), r"ls1.gamma is \(63,\)", id="shape"),
        pytest.param(
            CHECKPOINT,
            "module.visual.trunk.reg_token",
            torch.ones(1, 4, 64),
            "reg_token is unexpected",
            id="a DINOv2 variant with registers",
        ),
        pytest.param(
            CHECKPOINT, "module.other", torch.ones(1), "module.other is unexpected", id="extra"
        ),
        pytest.param(
            CHECKPOINT, "module.text.proj.0.weight", None, "text.proj.0.weight", id="text tower"
        ),
        pytest.param(CHECKPOINT, "module.visual.head.proj.weight", None, "head", id="no head"),
        pytest.param(TRAINED, PROJECTOR, None, "bin: .*2.bias is missing", id="projector"),
        pytest.param(ADAPTER, LORA, None, "bin: .*lora_A.weight is missing", id="half a pair"),
        pytest.param(
            ADAPTER, LORA, torch.ones(4, 65), rf"{QUERY}.lora_A.weight is \(4, 65\)", id="adapter"
        ),
        pytest.param(
            ADAPTER,
            "base_model.model.lm_head.lora_A.weight",
            torch.ones(4, 64),
            "lm_head.lora_A.weight is unexpected",
            id="an adapter of something else",
        ),
        pytest.param(LAST, "lm_head.weight", None, "lacks lm_head.weight", id="language"),
    ],
)
def test_a_wrong_tensor_is_named(
    folder: Path, file: str, name: str, tensor: Tensor | None, said: str
) -> None:
    published.change(folder / file, name, tensor)
    with pytest.raises(ModelUnavailable, match=said):
        drawn_up(folder)


def test_a_pair_of_the_adapter_that_is_missing_is_named(folder: Path) -> None:
    for half in "AB":
        name = f"base_model.model.{QUERY}.lora_{half}.weight"
        published.change(folder / ADAPTER, name, None)
    with pytest.raises(ModelUnavailable, match=f"{QUERY}.lora_A.weight is missing"):
        drawn_up(folder)


@pytest.mark.parametrize(
    "file",
    [
        f"{MODEL}/config.json",
        f"{MODEL}/biomedclipcxr_518.json",
        f"{MODEL}/adapter_config.json",
        f"{MODEL}/BERT/config.json",
        CHECKPOINT,
        TRAINED,
        ADAPTER,
        f"{BASE}/config.json",
        f"{BASE}/tokenizer.model",
        LAST,
    ],
)
@pytest.mark.parametrize("fault", ["gone", "cut", "junk"])
def test_a_broken_file_is_named(folder: Path, file: str, fault: str) -> None:
    path = folder / file
    if fault == "gone":
        path.unlink()
    elif fault == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.write_bytes(b"\x00junk")
    with pytest.raises(ModelUnavailable, match=path.stem):
        drawn_up(folder)


def test_a_missing_vocabulary_is_named(folder: Path) -> None:
    (folder / MODEL / "BERT" / "vocab.txt").unlink()
    with pytest.raises(ModelUnavailable, match=r"vocab\.txt"):
        drawn_up(folder)


def test_a_missing_text_tower_is_named_with_its_origin(folder: Path) -> None:
    (folder / MODEL / "BERT").rename(folder / "elsewhere")
    with pytest.raises(ModelUnavailable, match=r"copy config.json and vocab.txt of microsoft/BERT"):
        drawn_up(folder)


def test_a_tokeniser_of_another_model_is_named(folder: Path) -> None:
    with (folder / MODEL / "BERT" / "vocab.txt").open("a") as file:
        file.write("\nj")
    with pytest.raises(ModelUnavailable, match=r"vocab\.txt has 10 pieces"):
        drawn_up(folder)


@pytest.mark.parametrize("missing", [BASE, MODEL])
def test_a_missing_folder_is_an_error(folder: Path, missing: str) -> None:
    (folder / missing).rename(folder / "elsewhere")
    with pytest.raises(ModelUnavailable, match="must hold llava-rad and one vicuna"):
        drawn_up(folder)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "mm_vision_select_layer", -1),
        ("config.json", "mm_projector_type", "linear"),
        ("adapter_config.json", "use_rslora", True),
        ("adapter_config.json", "bias", "all"),
    ],
)
def test_another_kind_of_model_is_refused(folder: Path, file: str, key: str, value: object) -> None:
    path = folder / MODEL / file
    published.put(path, read_json(path) | {key: value})
    with pytest.raises(ModelUnavailable, match=f"{key} is {value!r}"):
        drawn_up(folder)


@pytest.mark.parametrize(
    ("file", "lacking"),
    [
        (f"{MODEL}/config.json", "mm_vision_tower_checkpoint"),
        (f"{MODEL}/biomedclipcxr_518.json", "vision_cfg"),
        (f"{MODEL}/adapter_config.json", "lora_alpha"),
        (f"{BASE}/config.json", "num_attention_heads"),
    ],
)
def test_a_setting_that_is_not_there_is_named(folder: Path, file: str, lacking: str) -> None:
    content = read_json(folder / file)
    del content[lacking]
    published.put(folder / file, content)
    with pytest.raises(ModelUnavailable, match=f"{Path(file).name} lacks {lacking}"):
        drawn_up(folder)
