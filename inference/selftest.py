"""Is a prepared model, on this device, what was proven? Its files, its arithmetic, its engine.

The proofs against the published code are the tests' (tests/inference); they ran on other machines
with tiny weights. What a site can't take from them is that *its* files arrived whole and that *its*
processor, driver and 4-bit kernels compute what they should. ``run`` checks this in place:

    files    every file is the one that was written
    layers   first and last decoder layer, prefill and decode, against transformers' in float32
             with the stored weights, unpacked here and not by the kernels under test
    engine   phantoms read at once, with drafts, get the words they get one by one without
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import LlamaConfig as PublishedConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from inference import models
from inference.demo import evaluate
from inference.demo.phantom import scene
from inference.findings import InferenceError, ModelUnavailable
from inference.llama import FUSED, Decode, Llama, LlamaConfig, Prefill
from inference.models import Options, ReportModel
from inference.weights.artefact import Artefact

TOKENS = 24  # through a layer: 23 at once, then one over the cache
EXACT = 1e-4  # relative L2, float32 against float32: 5e-7 measured; a wrong formula gives > 0.1
PACKED = 0.03  # ... where kernels round to 16 bits: 0.011 measured, NF4 on a CPU with AVX512-BF16

SEEDS = (1, 2)  # of the phantoms
NEW_TOKENS = 24  # enough for drafts to be agreed to and refused
DRAFT_TOKENS = 3


@runtime_checkable
class Prepared(ReportModel, Protocol):
    """A report model over prepared weights, as :class:`inference.llava.Llava` is."""

    artefact: Artefact
    language: Llama


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing looked at."""

    name: str
    passed: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found about one model on one device."""

    digest: str
    device: str
    checks: tuple[Check, ...]


def run(name: str, path: Path | None, *, device: str) -> Verdict:
    """Check a model. It is loaded twice and reads each phantom twice: minutes for 7B on a CPU.

    ``path``: prepared folder, None where the model brings its own.

    Raises:
        ModelUnavailable: it can't be loaded; files that are missing or changed say so here.
    """
    short = Options(slots=1, draft_tokens=0, max_new_tokens=NEW_TOKENS)
    with loaded(name, path, device, short) as plain:
        checks = [files(plain.artefact), *layers(plain.language, plain.artefact)]
        alone = attempt(plain, at_once=1)
        half = plain.language.dtype != torch.float32
        digest, where = plain.algorithm.digest, str(plain.device)
    drafting = replace(short, slots=len(SEEDS), draft_tokens=DRAFT_TOKENS)
    with loaded(name, path, device, drafting) as busy:
        busy.learn(alone.texts)  # else there would be nothing to draft from
        checks.append(compare(alone, attempt(busy, at_once=len(SEEDS)), half=half))
    return Verdict(digest=digest, device=where, checks=tuple(checks))


@contextmanager
def loaded(name: str, path: Path | None, device: str, options: Options) -> Iterator[Prepared]:
    """Hold a model for as long as the block lasts.

    Raises:
        ModelUnavailable: it can't be loaded, or is not of the kind that is prepared here.
    """
    model = models.load(name, path=path, device=device, options=options)
    if not isinstance(model, Prepared):
        raise ModelUnavailable(f"model {name} is not made of prepared weights: nothing to verify")
    try:
        yield model
    finally:
        model.close()


# --- files ------------------------------------------------------------------------------------


def files(artefact: Artefact) -> Check:
    """Every file of the folder against the manifest."""
    artefact.verify()
    count = len(artefact.manifest.files)
    return Check(name="files", passed=True, text=f"{count} files are as they were prepared")


# --- layers -----------------------------------------------------------------------------------


def layers(language: Llama, artefact: Artefact) -> list[Check]:
    """First and last decoder layer against the reference."""
    exact = artefact.scheme == "none" and language.dtype == torch.float32
    bound = EXACT if exact else PACKED
    checks = []
    for number in sorted({0, len(language.layers) - 1}):
        error = layer_error(language, artefact, number)
        checks.append(
            Check(
                name=f"layer {number}",
                passed=error <= bound,  # not-a-number fails
                text=f"differs by {error:.1e} (relative L2) from the reference, at most {bound:g}",
            )
        )
    return checks


@torch.inference_mode()
def layer_error(language: Llama, artefact: Artefact, number: int) -> float:
    """Relative L2 distance between what our layer and the reference add to their input."""
    ids = torch.arange(TOKENS, device=language.device) % language.config.vocab_size
    x = language.embed(ids)[None]  # (1, T, D)
    ours = (_ours(language, number, x) - x).float().cpu()
    given = x.float().cpu()
    reference = _reference(language.config, artefact, number)
    rotary = LlamaRotaryEmbedding(reference.self_attn.config)
    at = rotary(given, torch.arange(TOKENS)[None])
    theirs = reference(given, position_embeddings=at) - given
    return float((ours - theirs).norm() / theirs.norm())


def _ours(language: Llama, number: int, x: Tensor) -> Tensor:
    """(1, T, D) -> (1, T, D): all but the last token as a prompt, the last over the cache."""
    layer = language.layers[number]
    cache = language.place(slots=1, positions=TOKENS)
    positions = torch.arange(TOKENS, device=x.device)[None]  # (1, T)
    first, last = positions[:, :-1], positions[:, -1:]
    prompt = layer(x[:, :-1], number, Prefill(cache, 0, first))
    answer = layer(x[:, -1:], number, Decode.of(cache, last, TOKENS))
    return torch.cat([prompt, answer], dim=1)


def _reference(config: LlamaConfig, artefact: Artefact, number: int) -> LlamaDecoderLayer:
    """Transformers' layer in float32, with the stored weights under their published names."""
    published = PublishedConfig(  # type: ignore[call-arg]
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        attn_implementation="sdpa",  # causal without a mask
    )
    with torch.device("meta"):
        layer = LlamaDecoderLayer(published, layer_idx=0)
    state: dict[str, Tensor] = {}
    for block, fused in _blocks():
        name = f"language.layers.{number}.{block}{fused}.weight"
        pieces = FUSED.get(fused, (fused,))
        parts = stored(artefact, name).chunk(len(pieces))
        state |= {f"{block}{one}.weight": part for one, part in zip(pieces, parts, strict=True)}
    layer.load_state_dict(state, assign=True)
    return layer.eval()


def _blocks() -> Iterator[tuple[str, str]]:
    for fused in FUSED:
        yield ("self_attn." if fused in ("qkv_proj", "o_proj") else "mlp."), fused
    yield "", "input_layernorm"
    yield "", "post_attention_layernorm"


def stored(artefact: Artefact, name: str) -> Tensor:
    """One weight of the prepared file in float32, unpacked if it is packed."""
    weight = artefact.read(name)
    if f"{name}.absmax" not in artefact.entries:
        return weight.float()
    state = {
        key.removeprefix(f"{name}."): artefact.read(key)
        for key in artefact.entries
        if key.startswith(f"{name}.")
    }
    return unpack(weight, state)


def unpack(packed: Tensor, state: dict[str, Tensor]) -> Tensor:
    """NF4 with double quantisation -> (out, in) float32, by its definition (QLoRA, section 3).

    Independent of bitsandbytes but for the names under which it keeps its state.
    """
    said = json.loads(bytes(state["quant_state.bitsandbytes__nf4"].tolist()))
    scales = state["nested_quant_map"][state["absmax"].int()]  # one per block
    outer = state["nested_absmax"].repeat_interleave(said["nested_blocksize"])[: len(scales)]
    scales = scales * outer + said["nested_offset"]
    codes = packed.flatten()
    pairs = torch.stack([codes >> 4, codes & 15], dim=-1)  # the first weight is the high half
    values = state["quant_map"][pairs.flatten().int()].view(-1, said["blocksize"])
    weight: Tensor = (values * scales[:, None]).view(said["shape"])
    return weight


# --- engine -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a model said about the phantoms."""

    texts: tuple[str, ...] = ()
    accepted: int = 0  #: drafted tokens
    failure: str = ""  #: why it said nothing


def attempt(model: ReportModel, *, at_once: int) -> Said:
    """Read every phantom, ``at_once`` of them at a time."""
    phantoms = [evaluate.image(scene(seed)) for seed in SEEDS]
    try:
        with ThreadPoolExecutor(at_once) as pool:
            found = list(pool.map(lambda image: model.read([image], None), phantoms))
    except InferenceError as error:
        return Said(failure=str(error))
    return Said(
        texts=tuple(one.text for one in found), accepted=sum(one.accepted_drafts for one in found)
    )


def compare(plain: Said, busy: Said, *, half: bool) -> Check:
    """Same words either way.

    In half precision a near tie between two words may fall either way, for batches are rounded
    differently; then it is enough that one phantom agrees. A fault of the engine would spoil all.
    """
    if failure := plain.failure or busy.failure:
        return Check(name="engine", passed=False, text=failure)
    same = [one == other for one, other in zip(plain.texts, busy.texts, strict=True)]
    return Check(
        name="engine",
        passed=any(same) if half else all(same),
        text=f"{sum(same)} of {len(same)} phantoms get the same words at once with drafts "
        f"({busy.accepted} accepted) as one by one without",
    )
