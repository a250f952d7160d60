"""Writes a tiny random CXR-LLaVA as its authors publish it: for tests without golden data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceTrainer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from inference.clip_vision import ClipVision
from inference.vision import VisionConfig

State = dict[str, Tensor]

VISION = VisionConfig(image_size=32, patch=16, width=64, depth=2, embedding=16)
LLAMA = LlamaConfig(
    vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=2, rms_norm_eps=1e-5,
)  # fmt: skip

SHARDS = ("model-00001-of-00002", "model-00002-of-00002")


def _trained_pieces() -> bytes:
    """A tokeniser like Llama's: byte fallback, nothing normalised, a blank before each text."""
    file = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["the lungs are clear", "the heart is normal", "[INST] is asked"]),
        model_writer=file, vocab_size=LLAMA.vocab_size, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return file.getvalue()


PIECES = _trained_pieces()

CONFIG: dict[str, Any] = {
    "model_type": "CXR-LLAVA",
    "clip_embed_dim": VISION.embedding,
    "clip_quick_gelu": False,
    "clip_vision_cfg": {
        "image_size": VISION.image_size,
        "layers": VISION.depth,
        "patch_size": VISION.patch,
        "width": VISION.width,
    },
    "image_preprocess_cfg": {"mean": 0.5518136078431373, "std": 0.3821719215686275},
    "llama": LLAMA.to_dict(),
    "mm_projector_dim": VISION.width,
}


def state() -> State:
    """All tensors under their published names, bfloat16 as published."""
    torch.manual_seed(0)
    vision, projector = ClipVision(VISION), nn.Linear(VISION.width, LLAMA.hidden_size)
    for weight in vision.parameters():
        nn.init.normal_(weight, std=0.1)
    parts = {
        "vision_tower.": vision.state_dict(),
        "mm_projector.": projector.state_dict(),
        "": {_published(n): t for n, t in LlamaForCausalLM(LLAMA).state_dict().items()},
    }
    return {p + name: t.bfloat16() for p, part in parts.items() for name, t in part.items()}


def _published(name: str) -> str:
    return f"llama.{name.removeprefix('model.')}" if name.startswith("model.") else name


def write(
    folder: Path,
    tensors: Mapping[str, Tensor] | None = None,
    *,
    config: Mapping[str, Any] = CONFIG,
    tokenizer: Mapping[str, Any] | None = None,
    pickled: bool = False,
) -> Path:
    """Write a whole published folder, in two shards; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = state() if tensors is None else tensors
    names = [f"{stem}.bin" if pickled else f"{stem}.safetensors" for stem in SHARDS]
    halves = list(tensors.items())[:20], list(tensors.items())[20:]
    for name, half in zip(names, halves, strict=True):
        shard = {key: tensor.contiguous() for key, tensor in half}
        torch.save(shard, folder / name) if pickled else save_file(shard, folder / name)
    places = {key: name for name, half in zip(names, halves, strict=True) for key, _ in half}
    index = "pytorch_model.bin.index.json" if pickled else "model.safetensors.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer or {"legacy": False}))
    (folder / "tokenizer.model").write_bytes(PIECES)
    return folder
