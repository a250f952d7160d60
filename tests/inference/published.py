"""Writes a tiny random LLaVA-Rad as its authors publish it: shards, pickles, strays and all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceTrainer
from torch import Tensor, nn
from transformers import BertConfig, LlamaConfig, LlamaForCausalLM

from inference.embeddings import TextEncoder
from inference.llama import FUSED
from inference.vision import VisionConfig, VisionEncoder
from inference.weights.files import State

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYERS = 2
LLAMA = LlamaConfig(
    vocab_size=40, hidden_size=64, intermediate_size=128, num_hidden_layers=LAYERS,
    num_attention_heads=2,
)  # fmt: skip
BERT = BertConfig(
    vocab_size=9, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
)
VISION = VisionConfig(image_size=28, patch=14, width=64, depth=2, embedding=16)
RANK, ALPHA = 4, 8

BASE = "vicuna-7b-v1.5"
MODEL = "llava-rad"
SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
INDEX = f"{BASE}/pytorch_model.bin.index.json"
CHECKPOINT = f"{MODEL}/biomedclipcxr_518_checkpoint.pt"
TRAINED = f"{MODEL}/non_lora_trainables.bin"
ADAPTER = f"{MODEL}/adapter_model.bin"
QUERY = "model.layers.0.self_attn.q_proj"


def written(folder: Path) -> Path:
    """Write both folders, always with the same numbers; return ``folder``."""
    torch.manual_seed(0)
    state = {name: t.half() for name, t in LlamaForCausalLM(LLAMA).state_dict().items()}
    _write_base(folder / BASE, state)
    model = folder / MODEL
    put(model / "config.json", {"mm_vision_tower_checkpoint": Path(CHECKPOINT).name})
    put(
        model / "biomedclipcxr_518.json",
        {
            "vision_cfg": {"image_size": VISION.image_size},
            "text_cfg": {"hf_model_name": "microsoft/BERT"},
        },
    )
    targets = {"r": RANK, "lora_alpha": ALPHA, "target_modules": list(PROJECTIONS)}
    put(model / "adapter_config.json", targets)
    put(folder / ADAPTER, _adapter(state))
    put(folder / TRAINED, _trained())
    put(folder / CHECKPOINT, _clip())
    put(model / "BERT" / "config.json", BERT.to_dict())
    (model / "BERT" / "vocab.txt").write_text("\n".join("abcdefghi"))
    return folder


def put(path: Path, content: object) -> None:
    """Write JSON or, into anything else, a pickle as torch does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(content))
    else:
        torch.save(content, path)


def tensors(path: Path) -> State:
    """All tensors of one of the files."""
    content = torch.load(path, weights_only=False)  # written by this module
    state: State = content.get("state_dict", content)
    return state


def change(path: Path, name: str, tensor: Tensor | None) -> None:
    """Replace, add or (None) remove one tensor of a pickle."""
    content = torch.load(path, weights_only=False)  # written by this module
    state = content.get("state_dict", content)
    state.pop(name, None)
    if tensor is not None:
        state[name] = tensor
    torch.save(content, path)


def index(shards: Sequence[Path]) -> dict[str, str]:
    """The weight map of safetensors shards."""
    return {name: path.name for path in shards for name in load_file(path)}


def apart(state: State) -> State:
    """The language model's fused tensors under their published names."""
    found: State = {}
    for name, tensor in state.items():
        block, _, last = name.removeprefix("language.").removesuffix(".weight").rpartition(".")
        pieces = FUSED.get(last, (last,)) if name.startswith("language.layers.") else ()
        for piece, rows in zip(pieces, tensor.chunk(len(pieces) or 1), strict=False):
            found[f"model.{block}.{piece}.weight"] = rows
    return found


def _write_base(folder: Path, state: State) -> None:
    items = list(state.items())
    stray = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}
    halves = dict(items[:9]) | stray, dict(items[9:])  # cut within a layer, as published
    for name, half in zip(SHARDS, halves, strict=True):
        put(folder / name, half)
    places = {key: name for name, half in zip(SHARDS, halves, strict=True) for key in half}
    put(folder / Path(INDEX).name, {"weight_map": places})
    put(folder / "config.json", LLAMA.to_dict())
    (folder / "tokenizer.model").write_bytes(pieces())


def _adapter(state: State) -> State:
    """LoRA for the seven projections of every layer."""
    halves = {}
    for name in [n.removesuffix(".weight") for n in state]:
        if name.rpartition(".")[2] in PROJECTIONS:
            rows, columns = state[f"{name}.weight"].shape
            a, b = torch.randn(RANK, columns), torch.randn(rows, RANK)
            halves[f"base_model.model.{name}.lora_A.weight"] = a.bfloat16()
            halves[f"base_model.model.{name}.lora_B.weight"] = b.bfloat16()
    return halves


def _trained() -> State:
    wide = LLAMA.hidden_size
    projector = nn.Sequential(nn.Linear(VISION.width, wide), nn.GELU(), nn.Linear(wide, wide))
    state = _prefixed(projector, "base_model.model.model.mm_projector.")
    return state | {"base_model.model.model.vision_tower.stray.weight": torch.ones(3)}


def _clip() -> dict[str, object]:
    text = TextEncoder(BERT, VISION.embedding)
    state = _prefixed(VisionEncoder(VISION), "module.visual.") | _prefixed(text, "module.text.")
    state["module.text.transformer.pooler.dense.weight"] = torch.ones(32, 32)
    state["module.text.transformer.embeddings.position_ids"] = torch.arange(512)[None]
    state["module.logit_scale"] = torch.tensor(4.6)
    optimiser = {"param_groups": [{"lr": np.float64(1e-4)}]}  # as open_clip's schedule leaves it
    return {"epoch": 1, "state_dict": state, "optimizer": optimiser}


def _prefixed(module: nn.Module, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in module.state_dict().items()}


@cache
def pieces() -> bytes:
    """A SentencePiece model."""
    file = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["the lungs are clear", "the heart is normal"]),
        model_writer=file,
        vocab_size=LLAMA.vocab_size,
        model_type="bpe",
        minloglevel=2,
    )
    return file.getvalue()
