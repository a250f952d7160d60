"""Weights are read from the published layout, checked and packed; files are made here."""

from __future__ import annotations

import json
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from safetensors.torch import save_file
from sentencepiece import SentencePieceTrainer
from torch import Tensor, nn
from transformers import BertConfig, LlamaConfig, LlamaForCausalLM

from inference.embeddings import TextEncoder
from inference.findings import ModelUnavailable
from inference.vision import VisionConfig, VisionEncoder
from inference.weights import PROJECTIONS, Networks, Source, State, load, read_tensors

CPU = torch.device("cpu")
LAYERS = 2
LLAMA = LlamaConfig(
    vocab_size=40, hidden_size=64, intermediate_size=128, num_hidden_layers=LAYERS,
    num_attention_heads=2,
)  # fmt: skip
BERT = BertConfig(
    vocab_size=9, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
)
VISION = VisionConfig(image_size=28, patch=14, width=64, depth=2, embedding=16)
QUERY = "model.layers.0.self_attn.q_proj"
CHECKPOINT = "biomedclipcxr_518_checkpoint.pt"


PIECES_FILE = BytesIO()
SentencePieceTrainer.train(
    sentence_iterator=iter(["the lungs are clear", "the heart is normal"]),
    model_writer=PIECES_FILE,
    vocab_size=40,
    model_type="bpe",
    minloglevel=2,
)
PIECES = PIECES_FILE.getvalue()


def written(path: Path, content: object) -> None:
    """Write JSON or, into anything else, a pickle as torch does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(content))
    else:
        torch.save(content, path)


def prefixed(module: nn.Module, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in module.state_dict().items()}


def adapter(state: State) -> State:
    """LoRA of rank 4 for the seven projections of every layer."""
    factors = {}
    for name in [n.removesuffix(".weight") for n in state]:
        if name.rpartition(".")[2] in PROJECTIONS:
            rows, columns = state[f"{name}.weight"].shape
            factors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(4, columns).bfloat16()
            factors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, 4).bfloat16()
    return factors


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Both folders as upstream's training leaves them: shards, pickles, strays and all."""
    torch.manual_seed(0)
    base, model = tmp_path / "vicuna-7b-v1.5", tmp_path / "llava-rad"
    state = {k: v.half() for k, v in LlamaForCausalLM(LLAMA).state_dict().items()}
    stray = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}
    shards = dict(list(state.items())[:9]) | stray, dict(list(state.items())[9:])
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    for name, shard in zip(names, shards, strict=True):
        written(base / name, shard)
    index = {k: name for name, shard in zip(names, shards, strict=True) for k in shard}
    written(base / "pytorch_model.bin.index.json", {"weight_map": index})
    written(base / "config.json", LLAMA.to_dict())
    written(model / "adapter_config.json", {"r": 4, "lora_alpha": 8})
    written(model / "adapter_model.bin", adapter(state))
    projector = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    trained = prefixed(projector, "base_model.model.model.mm_projector.")
    trained["base_model.model.model.vision_tower.stray.weight"] = torch.ones(3)
    written(model / "non_lora_trainables.bin", trained)
    written(model / "config.json", {"mm_vision_tower_checkpoint": CHECKPOINT})
    written(
        model / "biomedclipcxr_518.json",
        {"vision_cfg": {"image_size": 28}, "text_cfg": {"hf_model_name": "microsoft/BERT"}},
    )
    written(model / "BERT" / "config.json", BERT.to_dict())
    (model / "BERT" / "vocab.txt").write_text("\n".join("abcdefghi"))
    (base / "tokenizer.model").write_bytes(PIECES)
    text = TextEncoder(BERT, VISION.embedding)
    clip = prefixed(VisionEncoder(VISION), "module.visual.") | prefixed(text, "module.text.")
    clip["module.text.transformer.pooler.dense.weight"] = torch.ones(32, 32)
    clip["module.text.transformer.embeddings.position_ids"] = torch.arange(512)[None]
    clip["module.logit_scale"] = torch.tensor(4.6)
    optimiser = {"param_groups": [{"lr": np.float64(1e-4)}]}  # as open_clip's schedule leaves it
    written(model / CHECKPOINT, {"epoch": 1, "state_dict": clip, "optimizer": optimiser})
    return Source(base=base, model=model)


def change(path: Path, name: str, tensor: Tensor | None) -> None:
    """Replace, add or (None) remove one tensor of a pickle."""
    content = torch.load(path, weights_only=False)  # written by this test
    state = content.get("state_dict", content)
    state.pop(name, None)
    if tensor is not None:
        state[name] = tensor
    torch.save(content, path)


def tensors(networks: Networks) -> State:
    parts = {"vision.": networks.vision, "projector.": networks.projector,
             "language.": networks.language, "text.": networks.text}  # fmt: skip
    return {k: v for prefix, part in parts.items() for k, v in prefixed(part, prefix).items()}


def test_the_published_layout_is_read(source: Source) -> None:
    networks = load(source, device=CPU, quantise=False)
    for module in (networks.vision, networks.projector, networks.language, networks.text):
        assert not module.training
    assert {t.dtype for t in tensors(networks).values()} == {torch.float32}
    logits = networks.language(input_ids=torch.tensor([[1, 5, 7]])).logits
    assert torch.isfinite(logits).all()


def test_both_folders_are_found_side_by_side(source: Source) -> None:
    assert Source.within(source.model.parent) == source


@pytest.mark.parametrize("missing", ["vicuna-7b-v1.5", "llava-rad"])
def test_a_missing_folder_is_an_error(source: Source, missing: str) -> None:
    (source.model.parent / missing).rename(source.model.parent / "elsewhere")
    with pytest.raises(ModelUnavailable, match="llava-rad and one vicuna"):
        Source.within(source.model.parent)


def test_the_adapter_is_merged_in_float32(source: Source) -> None:
    plain = read_tensors(source.base, "pytorch_model")[f"{QUERY}.weight"]
    factors = read_tensors(source.model, "adapter_model")
    a, b = (factors[f"base_model.model.{QUERY}.lora_{half}.weight"].float() for half in "AB")
    merged = load(source, device=CPU, quantise=False).language.state_dict()[f"{QUERY}.weight"]
    assert torch.allclose(merged, plain.float() + 2 * (b @ a), atol=1e-6)  # alpha 8 / r 4 = 2


def test_a_folder_without_adapter_is_the_plain_base(source: Source) -> None:
    (source.model / "adapter_config.json").unlink()
    plain = read_tensors(source.base, "pytorch_model")[f"{QUERY}.weight"]
    loaded = load(source, device=CPU, quantise=False).language.state_dict()[f"{QUERY}.weight"]
    assert torch.equal(loaded, plain.float())


def test_safetensors_of_the_same_names_give_the_same(source: Source) -> None:
    before = tensors(load(source, device=CPU, quantise=False))
    save_file(read_tensors(source.base, "pytorch_model"), source.base / "model.safetensors")
    for path in source.model.glob("*.[bp][it]*"):
        if path.suffix in (".bin", ".pt"):
            state = {k: v.clone() for k, v in read_tensors(source.model, path.stem).items()}
            save_file(state, path.with_suffix(".safetensors"))
    for path in source.model.parent.rglob("*"):
        if path.suffix in (".bin", ".pt"):
            path.unlink()
    after = tensors(load(source, device=CPU, quantise=False))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


# --- four bits --------------------------------------------------------------------------------


def test_exactly_the_seven_projections_are_packed(source: Source) -> None:
    networks = load(source, device=CPU)
    packed = {n for n, m in networks.language.named_modules() if isinstance(m, Linear4bit)}
    assert len(packed) == 7 * LAYERS
    assert {name.rpartition(".")[2] for name in packed} == set(PROJECTIONS)
    for part in (networks.vision, networks.projector, networks.text):
        assert not any(isinstance(module, Linear4bit) for module in part.modules())


def test_packing_is_nf4_with_double_quantisation(source: Source) -> None:
    plain = load(source, device=CPU, quantise=False).language.get_submodule(QUERY).weight
    packed = load(source, device=CPU).language.get_submodule(QUERY).weight
    state = packed.quant_state
    assert (state.quant_type, state.blocksize, state.nested) == ("nf4", 64, True)
    unpacked = dequantize_4bit(packed.data, state).float()
    error = (unpacked - plain).norm() / plain.norm()
    assert 0.05 < error < 0.13  # 9 % for Gaussian weights


def test_packed_networks_run_and_repeat(source: Source) -> None:
    language = load(source, device=CPU).language
    ids = torch.tensor([[1, 5, 7]])
    assert torch.equal(language(input_ids=ids).logits, language(input_ids=ids).logits)


# --- what is wrong is named -------------------------------------------------------------------

TOWER = "module.visual.trunk.blocks.1.ls1.gamma"


@pytest.mark.parametrize(
    ("file", "name", "tensor", "said"),
    [
        pytest.param("llava-rad/" + CHECKPOINT, TOWER, None, "ls1.gamma is missing", id="missing"),
        pytest.param(
            "llava-rad/" + CHECKPOINT, TOWER, torch.ones(63), r"ls1.gamma is \(63,\)", id="shape"
        ),
        pytest.param(
            "llava-rad/" + CHECKPOINT,
            "module.visual.trunk.reg_token",
            torch.ones(1, 4, 64),
            "reg_token is unexpected",
            id="a DINOv2 variant with registers",
        ),
        pytest.param(
            "llava-rad/" + CHECKPOINT, "module.text.proj.0.weight", None, "text tower", id="text"
        ),
        pytest.param(
            "llava-rad/" + CHECKPOINT, "module.visual.head.proj.weight", None, "head", id="no head"
        ),
        pytest.param(
            "llava-rad/non_lora_trainables.bin",
            "base_model.model.model.mm_projector.2.bias",
            None,
            "projector: 2.bias is missing",
            id="projector",
        ),
        pytest.param(
            "llava-rad/adapter_model.bin",
            f"base_model.model.{QUERY}.lora_A.weight",
            None,
            "pairs",
            id="half an adapter",
        ),
        pytest.param(
            "llava-rad/adapter_model.bin",
            f"base_model.model.{QUERY}.lora_A.weight",
            torch.ones(4, 65),
            QUERY,
            id="an adapter of another base",
        ),
        pytest.param(
            "vicuna-7b-v1.5/pytorch_model-00002-of-00002.bin",
            "lm_head.weight",
            None,
            "lm_head.weight is missing",
            id="language",
        ),
    ],
)
def test_a_wrong_tensor_is_named(
    source: Source, file: str, name: str, tensor: Tensor | None, said: str
) -> None:
    change(source.model.parent / file, name, tensor)
    with pytest.raises(ModelUnavailable, match=said):
        load(source, device=CPU)


@pytest.mark.parametrize(
    "file",
    [
        "llava-rad/config.json",
        "llava-rad/biomedclipcxr_518.json",
        "llava-rad/BERT/config.json",
        f"llava-rad/{CHECKPOINT}",
        "llava-rad/non_lora_trainables.bin",
        "vicuna-7b-v1.5/config.json",
        "vicuna-7b-v1.5/pytorch_model-00002-of-00002.bin",
    ],
)
@pytest.mark.parametrize("fault", ["gone", "cut", "junk"])
def test_a_broken_file_is_named(source: Source, file: str, fault: str) -> None:
    path = source.model.parent / file
    if fault == "gone":
        path.unlink()
    elif fault == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.write_bytes(b"\x00junk")
    with pytest.raises(ModelUnavailable, match=path.stem):
        load(source, device=CPU)


@pytest.mark.parametrize("file", ["llava-rad/BERT/vocab.txt", "vicuna-7b-v1.5/tokenizer.model"])
def test_a_missing_tokeniser_is_named(source: Source, file: str) -> None:
    path = source.model.parent / file
    path.unlink()
    with pytest.raises(ModelUnavailable, match=path.name):
        load(source, device=CPU)


def test_a_tokeniser_of_another_model_is_named(source: Source) -> None:
    with (source.text_tower / "vocab.txt").open("a") as file:
        file.write("\nj")
    with pytest.raises(ModelUnavailable, match=r"vocab\.txt has 10 pieces"):
        load(source, device=CPU)


@pytest.mark.parametrize(
    ("file", "lacking"),
    [
        ("config.json", "mm_vision_tower_checkpoint"),
        ("biomedclipcxr_518.json", "vision_cfg.image_size"),
        ("adapter_config.json", "lora_alpha"),
    ],
)
def test_a_setting_that_is_not_there_is_named(source: Source, file: str, lacking: str) -> None:
    written(source.model / file, {"vision_cfg": 1})
    with pytest.raises(ModelUnavailable, match=rf"{file} lacks {lacking}"):
        load(source, device=CPU)


class Exploit:
    """Unpickles to a call."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_that_would_run_code_is_refused(source: Source, tmp_path: Path) -> None:
    trace = tmp_path / "was-here"
    written(source.model / "non_lora_trainables.bin", {"weight": Exploit(trace)})
    with pytest.raises(ModelUnavailable, match="non_lora_trainables"):
        load(source, device=CPU)
    assert not trace.exists()


def test_the_digest_follows_every_file_of_the_model(source: Source) -> None:
    digests = [source.digest()]
    (source.base / "README.md").write_text("not a part of the model")
    assert source.digest() == digests[0]
    for path in (source.base / "config.json", source.model / "adapter_model.bin"):
        path.write_bytes(path.read_bytes() + b" ")
        digests.append(source.digest())
    assert len(set(digests)) == 3
    assert all(len(digest) == 64 for digest in digests)
