"""Who is compared by ``bench.generate``: our engine, and transformers' ``generate``.

All have the same shapes and random weights that are made in place, one layer copied as often as
needed: every copy has memory of its own, so a pass reads as much as with real weights.
"""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
import transformers
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from bench.corpus import Ids
from inference.generate import Engine, Generation, Limits
from inference.llama import FUSED, Cache, Llama, LlamaConfig
from inference.weights import nf4

SAID = 1e4  # a logit above any other
SLACK = 64  # positions behind a slot's own, for drafts that run over its end


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one batch of reports took."""

    reports: int
    seconds: float  #: wall time
    prefill_seconds: float  #: of it, before each report's first token
    tokens: int  #: decoded, so without the first of each report
    passes: int

    @property
    def decode_seconds(self) -> float:
        """Wall time without prefill."""
        return self.seconds - self.prefill_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What all run."""

    sizes: LlamaConfig
    prompt_tokens: int
    rows: int  #: most reports at once
    longest: int  #: tokens of the longest report
    device: torch.device


class Contestant(ABC):
    """One way to continue prompts."""

    name: ClassVar[str]
    key_dtype: torch.dtype  #: of keys and values
    _weight_bytes: int

    def __init__(self, course: Course) -> None:
        self.course = course

    @abstractmethod
    def run(self, reports: Sequence[Ids]) -> Sample:
        """Write these reports at once."""

    @abstractmethod
    def learn(self, reports: Iterable[Ids]) -> None:
        """Take past reports."""

    @abstractmethod
    def close(self) -> None:
        """End what runs beside."""

    @cached_property
    def prompt(self) -> Tensor:
        """(1, T, D): the same noise for everybody; what a prompt says changes no time."""
        draw = torch.Generator().manual_seed(0)
        shape = (1, self.course.prompt_tokens, self.course.sizes.hidden_size)
        return torch.randn(shape, generator=draw).to(self.course.device, self.key_dtype)

    def pass_bytes(self, rows: int, answer_tokens: float) -> float:
        """Bytes that one decode pass must read: weights, and keys and values half way through."""
        sizes, positions = self.course.sizes, self.course.prompt_tokens + answer_tokens / 2
        per_position = 2 * sizes.num_hidden_layers * sizes.hidden_size
        held: float = rows * positions * per_position * self.key_dtype.itemsize
        return self._weight_bytes + held

    def weigh(self, network: nn.Module) -> None:
        """Note how much a pass reads; before the first one, which repacks weights on some CPUs."""
        self._weight_bytes = sum(
            tensor.nbytes
            for name, tensor in network.state_dict().items()
            if "embed_tokens" not in name  # a few rows of it
        )


# --- ours -------------------------------------------------------------------------------------


class Reciter(Llama):
    """Computes everything, then says the next token of a given report.

    ``text`` is what the next prompt that comes in will be answered with.
    """

    text: Ids
    script: Tensor  #: (S, P): which token follows each position

    def prefill(self, x: Tensor, cache: Cache, slot: int) -> Tensor:
        """As Llama's; from now on the slot recites ``text``."""
        logits = super().prefill(x, cache, slot)
        last = x.shape[1] - 1
        self.script[slot, last : last + len(self.text)] = torch.tensor(self.text)
        return _saying(logits, self.script[slot, last])

    def decode(self, ids: Tensor, positions: Tensor, cache: Cache, keys: int) -> Tensor:
        """As Llama's, but the likeliest token is the script's."""
        logits = super().decode(ids, positions, cache, keys)
        rows = torch.arange(len(ids), device=ids.device)[:, None]
        return _saying(logits, self.script[rows, positions])


def _saying(logits: Tensor, wanted: Tensor) -> Tensor:
    return logits.scatter_(-1, wanted[..., None], SAID)


class Ours(Contestant):
    """Our engine on fused 4-bit layers."""

    name = "engine NF4"
    draft_tokens = 0
    four_bits: ClassVar = True

    def __init__(self, course: Course) -> None:
        super().__init__(course)
        self._language = reciter(course.sizes, course.device, four_bits=self.four_bits)
        self.key_dtype = self._language.dtype
        self.weigh(self._language)
        positions = course.prompt_tokens + course.longest
        self._language.script = torch.zeros(
            course.rows, positions + SLACK, dtype=torch.int64, device=course.device
        )
        self._engine = Engine(
            self._language, slots=course.rows, positions=positions, draft_tokens=self.draft_tokens
        )

    def run(self, reports: Sequence[Ids]) -> Sample:
        """Submit all at once, each from a thread of its own, as the worker does."""
        began = time.perf_counter()
        with ThreadPoolExecutor(len(reports)) as callers:
            answers = list(callers.map(self._write, reports))
        seconds = time.perf_counter() - began
        if [answer.ids for answer in answers] != [tuple(report) for report in reports]:
            raise RuntimeError("the engine wrote something else than the model said")
        return Sample(
            reports=len(reports),
            seconds=seconds,
            prefill_seconds=sum(a.seconds["vision"] + a.seconds["prefill"] for a in answers),
            tokens=sum(len(answer.ids) - 1 for answer in answers),
            passes=max(answer.passes for answer in answers),
        )

    def _write(self, report: Ids) -> Generation:
        def embed() -> Tensor:
            self._language.text = report
            return self.prompt

        return self._engine.generate(embed, limits=Limits(max_new_tokens=self.course.longest))

    def learn(self, reports: Iterable[Ids]) -> None:
        """Fill the table of n-grams."""
        for report in reports:
            self._engine.learn(report[:-1])

    def close(self) -> None:
        """End the device thread."""
        self._engine.close()


class OursDrafting(Ours):
    """The same with drafts from past reports."""

    name = "engine NF4, drafts"
    draft_tokens = 3


class OursHalf(Ours):
    """The same engine on 16-bit weights, which the product does not offer.

    It tells what is the engine's from what is the 4-bit kernels': on a CPU those are bound by
    unpacking, and a checked token costs far more than its share of the memory traffic.
    """

    name = "engine 16 bit"
    four_bits = False


class OursHalfDrafting(OursHalf):
    """The same with drafts from past reports."""

    name = "engine 16 bit, drafts"
    draft_tokens = 3


def reciter(config: LlamaConfig, device: torch.device, *, four_bits: bool = True) -> Reciter:
    """A random language model with NF4 projections as ``models prepare`` makes them, or 16 bits."""
    dtype = torch.float32 if four_bits and device.type == "cpu" else half(device)
    language = Reciter(replace(config, num_hidden_layers=1))
    (layer,) = language.layers
    if four_bits:
        for block, name in _projections(layer, FUSED):
            setattr(block, name, _packed(getattr(block, name), dtype, device))
    language.config = config
    language.layers = _copies(layer.to(device, dtype), config.num_hidden_layers)
    return language.to(device, dtype).eval().requires_grad_(False)


def _packed(linear: nn.Linear, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The same layer in NF4, quantised on the CPU as ``models prepare`` does."""
    return nf4.linear(nf4.pack(linear.weight.detach().half()), compute=dtype, device=device)


def _projections(layer: nn.Module, names: Iterable[str]) -> Iterator[tuple[nn.Module, str]]:
    for name in names:
        for block in layer.children():
            if hasattr(block, name):
                yield block, name


def _copies(layer: nn.Module, count: int) -> nn.ModuleList:
    return nn.ModuleList(copy.deepcopy(layer) for _ in range(count))


# --- the peer ---------------------------------------------------------------------------------


class Theirs(Contestant):
    """transformers' greedy ``generate`` on 16-bit weights."""

    name = "HF 16 bit"
    quantised = False

    def __init__(self, course: Course) -> None:
        super().__init__(course)
        self._language = peer(course.sizes, course.device, quantised=self.quantised)
        self.key_dtype = self._language.dtype
        self.weigh(self._language)

    def run(self, reports: Sequence[Ids]) -> Sample:
        """One batch, until its longest report is written."""
        longest = max(map(len, reports))
        x = self.prompt.expand(len(reports), -1, -1)
        stamp = _Stamp(self.course.device)
        began = time.perf_counter()
        self._language.generate(  # type: ignore[misc]  # its self is typed as another class
            inputs_embeds=x,
            attention_mask=torch.ones(x.shape[:2], dtype=torch.int64, device=self.course.device),
            max_new_tokens=longest,
            do_sample=False,
            logits_processor=transformers.LogitsProcessorList([stamp]),
        )
        seconds = time.perf_counter() - began
        return Sample(
            reports=len(reports),
            seconds=seconds,
            prefill_seconds=stamp.first - began,
            tokens=sum(len(report) - 1 for report in reports),
            passes=longest - 1,
        )

    def learn(self, reports: Iterable[Ids]) -> None:
        """Nothing here drafts."""

    def close(self) -> None:
        """Nothing runs beside."""


class TheirsNF4(Theirs):
    """The same with the layers that ``BitsAndBytesConfig`` (NF4, double) puts in."""

    name = "HF NF4 (bnb)"
    quantised = True


class _Stamp(transformers.LogitsProcessor):
    """Notes when the prompt was through."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.first = 0.0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self.first:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.first = time.perf_counter()
        return scores


def peer(config: LlamaConfig, device: torch.device, *, quantised: bool) -> LlamaForCausalLM:
    """transformers' Llama of the same shapes, in 16 bits."""
    dtype = half(device)
    sizes: dict[str, Any] = asdict(config) | {"num_hidden_layers": 1}
    theirs = transformers.LlamaConfig(**sizes, tie_word_embeddings=False)
    language: Any = LlamaForCausalLM(theirs)
    language.to(device, dtype)
    layer = language.model.layers[0]
    if quantised:
        seven = [piece for pieces in FUSED.values() for piece in pieces]
        for block, name in _projections(layer, seven):
            setattr(block, name, _quantised(getattr(block, name), dtype, device))
    language.model.layers = _copies(layer.to(device), config.num_hidden_layers)
    for number, one in enumerate(language.model.layers):
        one.self_attn.layer_idx = number
    language.config.num_hidden_layers = config.num_hidden_layers
    language.generation_config.eos_token_id = None  # as many tokens as it is asked for
    language.generation_config.pad_token_id = 0
    made: LlamaForCausalLM = language.to(device).eval().requires_grad_(False)
    return made


def _quantised(linear: nn.Linear, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The same layer as bitsandbytes makes it."""
    layer: Any = Linear4bit(  # type: ignore[no-untyped-call]
        linear.in_features,
        linear.out_features,
        bias=False,
        compute_dtype=dtype,
        quant_type="nf4",
    )
    layer.weight = Params4bit(linear.weight.detach().half(), requires_grad=False, quant_type="nf4")
    quantised: nn.Module = layer.to(device)
    return quantised


def half(device: torch.device) -> torch.dtype:
    """The 16-bit type that a device computes fast in."""
    return torch.float16 if device.type == "cuda" else torch.bfloat16


CONTESTANTS: tuple[type[Theirs] | type[Ours], ...] = (
    Theirs,
    TheirsNF4,
    Ours,
    OursDrafting,
    OursHalf,
    OursHalfDrafting,
)
