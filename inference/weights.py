"""Find, check and load the published weight files, in 4 bits where asked.

A model is two folders side by side, as published::

    vicuna-*/    config.json, tokenizer.model, pytorch_model-*.bin + index  (base language model)
    llava-rad/   config.json, non_lora_trainables, adapter_model + adapter_config.json (optional),
                 vision checkpoint and biomedclipcxr_518.json, Biomed*BERT* folder (text tower)

Each tensor file may be a pickle (``.bin``, ``.pt``) or the same names as ``.safetensors``. Pickles
are read with ``weights_only=True`` and a short allow-list, never unpickled in full. The order is
upstream's: merge LoRA in float32, then quantise; merging into 4-bit weights would round twice.
"""

from __future__ import annotations

import os

# Nothing here may reach a hub (bitsandbytes looks for a CPU kernel there at import); must be set
# before the first import of huggingface_hub, which reads it once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hashlib
import json
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from numpy._core.multiarray import scalar
from safetensors import SafetensorError
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn
from transformers import BertConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from inference.embeddings import TextEncoder
from inference.findings import ModelUnavailable
from inference.vision import VisionConfig, VisionEncoder

State = dict[str, Tensor]

#: The seven projections of a Llama layer: what the adapter changes and what NF4 packs.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BLOCK = 64  # weights that share a scale; bitsandbytes' default, as in LLaVA-Rad's 4-bit loader
QUANTISATION = f"nf4 (block {BLOCK}, double)"

VISION_JSON = "biomedclipcxr_518.json"
_HASHED = frozenset({".json", ".model", ".txt", ".safetensors", ".bin", ".pt"})

# The vision checkpoint is a training checkpoint: its optimiser state holds NumPy scalars (learning
# rates), which weights_only refuses. These names and no others, the last also as NumPy 1 wrote it.
_ALLOWED: list[Any] = [
    np.dtype,
    np.dtypes.Float64DType,
    scalar,
    (scalar, "numpy.core.multiarray.scalar"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The two published folders."""

    base: Path
    model: Path

    @classmethod
    def within(cls, folder: Path) -> Source:
        """Find ``llava-rad`` and the one ``vicuna-*`` under ``folder``.

        Raises:
            ModelUnavailable: one of them is missing, or there are several bases.
        """
        bases = [p for p in folder.glob("vicuna-*") if p.is_dir()]
        if len(bases) != 1 or not (folder / "llava-rad").is_dir():
            raise ModelUnavailable(f"{folder} must hold llava-rad and one vicuna-* folder")
        return cls(base=bases[0], model=folder / "llava-rad")

    @property
    def text_tower(self) -> Path:
        """Folder with config and vocabulary of the text tower, beside the checkpoint."""
        name = str(setting(self.model / VISION_JSON, "text_cfg", "hf_model_name"))
        return self.model / name.rsplit("/", 1)[-1]

    def pieces(self) -> SentencePieceProcessor:
        """Tokeniser of the language model.

        Raises:
            ModelUnavailable: it is missing or unreadable.
        """
        path = self.base / "tokenizer.model"
        try:
            return SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ModelUnavailable(f"{path} can't be read: {error}") from error

    def words(self) -> list[str]:
        """WordPiece vocabulary of the text tower, in the order of its ids.

        Raises:
            ModelUnavailable: it is missing or unreadable.
        """
        path = self.text_tower / "vocab.txt"
        try:
            return path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeError) as error:
            raise ModelUnavailable(f"{path}: {error}") from error

    def digest(self) -> str:
        """SHA-256 (hex) over names and contents of all files that make the model."""
        total = hashlib.sha256()
        for folder in (self.base, self.model):
            for path in sorted(p for p in folder.rglob("*") if p.suffix in _HASHED):
                with path.open("rb") as file:
                    total.update(path.relative_to(folder).as_posix().encode() + b"\0")
                    total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """Everything that holds weights, on one device, in evaluation mode."""

    vision: VisionEncoder
    projector: nn.Sequential
    language: LlamaForCausalLM
    text: TextEncoder


def load(source: Source, *, device: torch.device, quantise: bool = True) -> Networks:
    """Build all networks from the published files.

    Language model, projector and tower compute in float16 on CUDA (as upstream) and in float32 on
    the CPU; the text tower always in float32. ``quantise``: NF4 for the seven projections.

    Raises:
        ModelUnavailable: a file or tensor is missing, unknown, unreadable or has the wrong shape.
    """
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    clip = _clip_state(source)
    vision = _vision(source, clip)
    language = _language(source, torch.float16 if quantise else dtype)
    projector = _projector(source, vision.config.width, language.config.hidden_size)
    text = _text(source, clip, vision.config.embedding)
    _check_vocabulary("tokenizer.model", len(source.pieces()), language.config.vocab_size)
    _check_vocabulary("vocab.txt", len(source.words()), text.transformer.config.vocab_size)
    if quantise:
        quantise_projections(language, device=device, compute=dtype)
    modules: list[tuple[nn.Module, torch.dtype]] = [
        (vision, dtype), (projector, dtype), (language, dtype), (text, torch.float32)
    ]  # fmt: skip
    for module, precision in modules:
        module.to(device, precision).eval().requires_grad_(False)
    return Networks(vision=vision, projector=projector, language=language, text=text)


def _check_vocabulary(what: str, pieces: int, rows: int) -> None:
    if pieces > rows:
        raise ModelUnavailable(f"{what} has {pieces} pieces, the network only {rows} embeddings")


def quantise_projections(
    language: LlamaForCausalLM, *, device: torch.device, compute: torch.dtype
) -> None:
    """Replace exactly the seven projections of each layer by NF4 ones, in place.

    Never save the result: after a forward on a CPU with AVX512-BF16 bitsandbytes has repacked the
    weights, and what would be written is silently ruined.
    """
    for layer in language.model.layers:
        for block, name in product((layer.self_attn, layer.mlp), PROJECTIONS):
            if (linear := getattr(block, name, None)) is not None:
                setattr(block, name, _nf4(linear, device=device, compute=compute))


def _nf4(linear: nn.Linear, *, device: torch.device, compute: torch.dtype) -> Linear4bit:
    packed = Linear4bit(  # type: ignore[no-untyped-call]
        linear.in_features, linear.out_features, bias=False, compute_dtype=compute, device="meta"
    )
    packed.weight = Params4bit(
        linear.weight.data, blocksize=BLOCK, compress_statistics=True, quant_type="nf4",
        module=packed,
    )  # fmt: skip
    moved: Linear4bit = packed.to(device)  # the move is what quantises
    return moved


# --- one network each -------------------------------------------------------------------------


def _vision(source: Source, clip: State) -> VisionEncoder:
    size = int(setting(source.model / VISION_JSON, "vision_cfg", "image_size"))
    state = cut(clip, "visual.")
    try:
        config = VisionConfig.of(state, image_size=size)
    except (KeyError, ValueError) as error:
        raise ModelUnavailable(f"vision checkpoint: no ViT with a linear head: {error}") from error
    encoder = VisionEncoder(config)
    fill(encoder, state, what="vision checkpoint")
    return encoder


def _text(source: Source, clip: State, embedding: int) -> TextEncoder:
    config = BertConfig.from_dict(read_json(source.text_tower / "config.json"))
    encoder = TextEncoder(config, embedding)
    # Left over from training: the pooler is not used, position ids are only 0, 1, 2, ...
    unused = ("transformer.pooler.", "transformer.embeddings.position_ids")
    state = {k: v for k, v in cut(clip, "text.").items() if not k.startswith(unused)}
    fill(encoder, state, what="text tower")
    return encoder


def _projector(source: Source, width: int, hidden: int) -> nn.Sequential:
    """mlp2x_gelu. Other keys of the file are strays, which upstream drops as well."""
    projector = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
    state = read_tensors(source.model, "non_lora_trainables")
    fill(projector, cut(state, "base_model.model.model.mm_projector."), what="projector")
    return projector


def _language(source: Source, dtype: torch.dtype) -> LlamaForCausalLM:
    config = LlamaConfig.from_dict(read_json(source.base / "config.json"))
    with torch.device("meta"):  # 7 B random values would only be thrown away
        language = LlamaForCausalLM(config)
    language.model.rotary_emb = LlamaRotaryEmbedding(config)  # computed tables, in no file
    fill(language, merged_language(source, dtype), what="language model")
    return language


def merged_language(source: Source, dtype: torch.dtype) -> State:
    """Tensors of the base language model as ``dtype``, the adapter merged in float32.

    Raises:
        ModelUnavailable: the adapter does not fit the base.
    """
    base = read_tensors(source.base, "model", "pytorch_model")
    state = {k: v for k, v in base.items() if not k.endswith("rotary_emb.inv_freq")}
    for name, delta in _adapter(source):
        if name not in state or state[name].shape != delta.shape:
            raise ModelUnavailable(f"adapter: the base has no {name} of {tuple(delta.shape)}")
        state[name] = (state[name].float() + delta).to(dtype)
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def _adapter(source: Source) -> Iterator[tuple[str, Tensor]]:
    """Names in the base with their float32 (out, in) differences, one at a time.

    A folder without ``adapter_config.json`` has no adapter.
    """
    if not (source.model / "adapter_config.json").exists():
        return
    options = source.model / "adapter_config.json"
    scale = setting(options, "lora_alpha") / setting(options, "r")
    state = read_tensors(source.model, "adapter_model")
    names = {key.removesuffix(".lora_A.weight").removesuffix(".lora_B.weight") for key in state}
    if state.keys() != {f"{name}.lora_{half}.weight" for name in names for half in "AB"}:
        raise ModelUnavailable("adapter: its tensors are not pairs of lora_A and lora_B")
    for name in names:
        a, b = (state[f"{name}.lora_{half}.weight"].float() for half in "AB")
        yield f"{name.removeprefix('base_model.model.')}.weight", b @ a * scale


def fill(module: nn.Module, state: State, *, what: str) -> None:
    """Give ``module`` exactly the tensors of ``state``.

    Raises:
        ModelUnavailable: naming each missing, unexpected or wrongly shaped tensor.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    faults = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    faults += [f"{name} is unexpected" for name in found.keys() - wanted.keys()]
    faults += [
        f"{name} is {found[name]}, not {wanted[name]}"
        for name in wanted.keys() & found.keys()
        if wanted[name] != found[name]
    ]
    if faults:
        raise ModelUnavailable(f"{what}: {'; '.join(sorted(faults)[:10])}")
    module.load_state_dict(state, assign=True)


# --- files ------------------------------------------------------------------------------------


def _clip_state(source: Source) -> State:
    """The CLIP pair (``visual.*``, ``text.*``, ``logit_scale``) of the vision checkpoint."""
    name = str(setting(source.model / "config.json", "mm_vision_tower_checkpoint"))
    state = read_tensors(source.model, Path(name).stem)
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def cut(state: State, prefix: str) -> State:
    """The tensors under ``prefix``, named without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def read_json(path: Path) -> dict[str, Any]:
    """Read one of the published configuration files.

    Raises:
        ModelUnavailable: it is missing or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ModelUnavailable(f"{path} is no JSON object")
    return content


def setting(path: Path, *keys: str) -> Any:
    """One value of a configuration file, below nested keys.

    Raises:
        ModelUnavailable: it is not there.
    """
    value: Any = read_json(path)
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise ModelUnavailable(f"{path} lacks {'.'.join(keys)}")
        value = value[key]
    return value


def read_tensors(folder: Path, *stems: str) -> State:
    """Tensors of ``folder/stem``, from one file or from the shards of an index.

    Raises:
        ModelUnavailable: there is no such file, or it can't be read.
    """
    state: State = {}
    for path in _files(folder, stems):
        state |= _read(path)
    return state


def _files(folder: Path, stems: Sequence[str]) -> list[Path]:
    """The first of the possible files, safetensors before pickles; an index gives its shards."""
    for suffix, stem in product((".safetensors", ".bin", ".pt"), stems):
        path = folder / f"{stem}{suffix}"
        index = folder / f"{path.name}.index.json"
        if path.exists():
            return [path]
        if index.exists():
            return [folder / name for name in sorted({*read_json(index)["weight_map"].values()})]
    raise ModelUnavailable(f"{folder} holds no {' or '.join(stems)} (.safetensors, .bin or .pt)")


def _read(path: Path) -> State:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise ModelUnavailable(f"{path} can't be read: {error}") from error
    state: State = content.get("state_dict", content)
    return state
