"""Writes a random checkpoint in LLaVA-Rad's published layout: ``python -m bench.synthetic DIR``.

The real weights may not be had here, yet time, memory and disc of ``models prepare`` depend on
sizes only. Files, tensor names, shapes and types are those of reference llava-rad.md 1 and 2, the
odd ones included: shards as pickles, rotary buffers inside, strays, an optimiser with a NumPy
scalar. The numbers are noise; nothing that such a model writes means anything.
"""

from __future__ import annotations

import argparse
import json
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from sentencepiece import SentencePieceTrainer
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]  # made at import
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import set_default_mmap_options, skip_data
from transformers import BertConfig, LlamaConfig, LlamaForCausalLM

from inference import prompt
from inference.demo import report
from inference.demo.scene import LABELS
from inference.embeddings import TextEncoder
from inference.llama import EOS_ID, FUSED
from inference.vision import VisionConfig, VisionEncoder

BASE, MODEL = "vicuna-7b-v1.5", "llava-rad"
TEXT_TOWER = "BiomedNLP-BiomedBERT-base-uncased-abstract"
CHECKPOINT = "biomedclipcxr_518_checkpoint.pt"
FIRST_SHARD = 9.98 / 13.48  # of the base's bytes, as published
STD = 0.02  # initializer_range of the published configurations
NOISE = 2**24  # random numbers that are made; every tensor is a stretch of them, repeated
PERIOD = NOISE // 2 - 1  # no multiple of a row: equal rows would tie
PROJECTIONS = tuple(chain.from_iterable(FUSED.values()))

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What tells a tiny checkpoint from one of the published size."""

    language: Mapping[str, Any]  #: keys of the base's config.json
    vision: VisionConfig
    text: Mapping[str, Any]  #: keys of the text tower's config.json
    rank: int  #: of the adapter


SIZES: Mapping[str, Sizes] = {
    "tiny": Sizes(
        language={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "vocab_size": 640,
        },
        vision=VisionConfig(image_size=28, patch=14, width=64, depth=3, embedding=64),
        text={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": 128,
        },
        rank=4,
    ),
    "7b": Sizes(
        language={
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 32000,
        },
        vision=VisionConfig(image_size=518, patch=14, width=768, depth=12, embedding=512),
        text={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "vocab_size": 30522,
        },
        rank=64,
    ),
}


def write(folder: Path, size: str) -> None:
    """Write ``vicuna-7b-v1.5/`` and ``llava-rad/`` below ``folder``.

    Memory stays small: files are made at their full length first and filled through a mapping.
    """
    sizes = SIZES[size]
    base, model = folder / BASE, folder / MODEL
    (model / TEXT_TOWER).mkdir(parents=True)
    base.mkdir()
    _write_configurations(base, model, sizes)
    _write_vocabularies(base, model, sizes)
    files = [*_base_files(base, sizes), *_model_files(model, sizes)]
    talk = Console(stderr=True)
    for path, content in track(files, "random tensors", console=talk, disable=not talk.is_terminal):
        _write_tensors(path, content)


# --- tensors ----------------------------------------------------------------------------------

#: A file's name and what is in it, as tensors without memory.
File = tuple[Path, dict[str, Any]]


def _base_files(folder: Path, sizes: Sizes) -> Iterator[File]:
    """Two shards of float16 with the float32 rotary buffers inside, and their index."""
    with torch.device("meta"):
        network = LlamaForCausalLM(LlamaConfig(**sizes.language, tie_word_embeddings=False))
    halves = _fake(_shapes(network), torch.float16)
    rotary = sizes.language["hidden_size"] // sizes.language["num_attention_heads"] // 2
    names = [
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq"
        for i in range(sizes.language["num_hidden_layers"])
    ]
    buffers = _fake(dict.fromkeys(names, (rotary,)), torch.float32)
    shards = _in_two(halves)
    shards[0].update(buffers)
    files = [folder / f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    places = {name: file.name for file, shard in zip(files, shards, strict=True) for name in shard}
    _write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": places})
    yield from zip(files, shards, strict=True)


def _in_two(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split where the published shards are split."""
    whole = sum(tensor.nbytes for tensor in state.values())
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    for name, tensor in state.items():
        held = sum(one.nbytes for one in first.values())
        fits = held + tensor.nbytes <= FIRST_SHARD * whole and not second
        (first if fits else second)[name] = tensor
    return first, second


def _model_files(folder: Path, sizes: Sizes) -> Iterator[File]:
    """Adapter, projector with a stray, and the CLIP pair as a training checkpoint."""
    lora = _fake(dict(_adapter(sizes)), torch.bfloat16)
    yield folder / "adapter_model.bin", lora
    yield folder / "non_lora_trainables.bin", _fake(dict(_trained(sizes)), torch.float16)
    clip = _fake(dict(_clip(sizes)), torch.float32)
    schedule = {"param_groups": [{"lr": np.float64(1e-4)}]}  # as open_clip's schedule leaves it
    content = {"epoch": 1, "name": "synthetic", "state_dict": clip, "optimizer": schedule}
    yield folder / CHECKPOINT, content


def _adapter(sizes: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    with torch.device("meta"):
        network = LlamaForCausalLM(LlamaConfig(**sizes.language))
    for name, (rows, columns) in _projections(_shapes(network)):
        yield f"base_model.model.{name}.lora_A.weight", (sizes.rank, columns)
        yield f"base_model.model.{name}.lora_B.weight", (rows, sizes.rank)


def _projections(shapes: Shapes) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in PROJECTIONS:
            yield module, shape


def _trained(sizes: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, hidden = sizes.vision.width, sizes.language["hidden_size"]
    for place, columns in (("0", width), ("2", hidden)):
        yield f"base_model.model.model.mm_projector.{place}.weight", (hidden, columns)
        yield f"base_model.model.model.mm_projector.{place}.bias", (hidden,)
    yield "base_model.model.model.vision_tower.stray.weight", (width,)


def _clip(sizes: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    with torch.device("meta"):
        vision = VisionEncoder(sizes.vision)
        text = TextEncoder(BertConfig(**sizes.text), sizes.vision.embedding)
    for prefix, network in (("module.visual.", vision), ("module.text.", text)):
        for name, shape in _shapes(network).items():
            yield prefix + name, shape
    yield "module.text.transformer.pooler.dense.weight", (sizes.text["hidden_size"],) * 2
    yield "module.text.transformer.pooler.dense.bias", (sizes.text["hidden_size"],)
    yield "module.logit_scale", ()


def _shapes(network: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _fake(shapes: Shapes, dtype: torch.dtype) -> dict[str, Tensor]:
    with FakeTensorMode():
        return {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}


def _write_tensors(path: Path, content: dict[str, Any]) -> None:
    with skip_data(materialize_fake_tensors=True):
        torch.save(content, path)
    with set_default_mmap_options(mmap.MAP_SHARED):  # what is filled in goes to the file
        mapped = torch.load(path, mmap=True, weights_only=False)  # our own file, a line ago
    for name, tensor in mapped.get("state_dict", mapped).items():
        _fill(name, tensor)


@cache
def _noise(dtype: torch.dtype) -> Tensor:
    return (torch.randn(NOISE, generator=torch.Generator().manual_seed(0)) * STD).to(dtype)


def _fill(name: str, tensor: Tensor) -> None:
    """Noise for matrices, ones for norms and scales, zeros for biases."""
    if tensor.ndim <= 1:
        tensor.fill_(0 if name.endswith(".bias") else 1)
        return
    start = crc32(name.encode()) % (NOISE - PERIOD)  # another stretch for another name
    for chunk in torch.split(tensor.view(-1), PERIOD):
        chunk.copy_(_noise(tensor.dtype)[start : start + len(chunk)])
    if name == "lm_head.weight":
        tensor[EOS_ID] = 0  # its logit 0 is never the largest: reports reach their limit


# --- configurations and vocabularies ----------------------------------------------------------


def _write_configurations(base: Path, model: Path, sizes: Sizes) -> None:
    language = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "num_key_value_heads": sizes.language["num_attention_heads"],
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **sizes.language,
    }
    _write_json(base / "config.json", language)
    _write_json(base / "generation_config.json", {"temperature": 0.9, "top_p": 0.6})
    _write_json(base / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    _write_json(base / "special_tokens_map.json", {"pad_token": "<unk>"})
    llava = {
        "model_type": "llava",
        "mm_hidden_size": sizes.vision.width,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "biomedclip_cxr_518",
        "mm_vision_tower_checkpoint": CHECKPOINT,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "square",
    }
    _write_json(model / "config.json", language | llava)
    lora = {"r": sizes.rank, "lora_alpha": 2 * sizes.rank, "bias": "none", "peft_type": "LORA"}
    _write_json(model / "adapter_config.json", lora | {"target_modules": list(PROJECTIONS)})
    _write_json(model / "biomedclipcxr_518.json", _clip_configuration(sizes.vision))
    bert = {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12, **sizes.text}
    _write_json(model / TEXT_TOWER / "config.json", bert)


def _clip_configuration(vision: VisionConfig) -> dict[str, Any]:
    name = f"microsoft/{TEXT_TOWER}"
    return {
        "embed_dim": vision.embedding,
        "vision_cfg": {
            "timm_model_name": "vit_base_patch14_dinov2.lvd142m",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": vision.image_size,
        },
        "text_cfg": {
            "hf_model_name": name,
            "hf_tokenizer_name": name,
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 256,
        },
    }


def _write_vocabularies(base: Path, model: Path, sizes: Sizes) -> None:
    pieces = _pieces(sizes.language["vocab_size"])
    (base / "tokenizer.model").write_bytes(pieces)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,-/()"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    words += _fillers(sizes.text["vocab_size"] - len(words))
    (model / TEXT_TOWER / "vocab.txt").write_text("\n".join(words), encoding="utf-8")


def _pieces(wanted: int) -> bytes:
    """A sentencepiece model of exactly so many pieces: of our own texts, then fillers.

    The prompt's words are pieces, so that it is about as many tokens long as the real one.
    """
    texts = (prompt.SYSTEM, prompt.QUESTION, "USER: ASSISTANT:", *_reports())
    file = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=file,
        vocab_size=min(wanted, 600),
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    model = ModelProto.FromString(file.getvalue())
    lowest = min(piece.score for piece in model.pieces)
    for number, filler in enumerate(_fillers(wanted - len(model.pieces)), start=1):
        model.pieces.add(piece=f"\N{LOWER ONE EIGHTH BLOCK}{filler}", score=lowest - number)
    serialised: bytes = model.SerializeToString()
    return serialised


def _reports() -> Iterator[str]:
    for label in LABELS:
        for size in ("small", "large"):
            yield report.write(frozenset({label}), {label: size}, seed=None)


def _fillers(count: int) -> Iterable[str]:
    return (f"filler{number}" for number in range(count))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="A random checkpoint in LLaVA-Rad's layout.")
    parser.add_argument("folder", type=Path, help="is made; two folders are written into it")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    write(arguments.folder, arguments.size)


if __name__ == "__main__":
    main()
