"""The plain greedy loop over transformers' Llama: the specification of the slot engine.

With tiny networks and prompts whose greedy choices are clear: where two tokens are almost equally
likely, another order of summation may pick the other one, which is no fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM
from transformers import LlamaConfig as PublishedConfig

from inference.llama import EOS_ID, FUSED, Llama, LlamaConfig

CLEAR = 1e-3  #: least difference of the two best logits; float32 noise here is below 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the plain loop says."""

    ids: tuple[int, ...]  #: EOS included when it was reached
    margin: float  #: least difference between the best and the second best logit


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A prompt and its answer."""

    embeds: Tensor  #: (1, T, D)
    answer: Answer


@torch.inference_mode()
def greedy(language: LlamaForCausalLM, embeds: Tensor, *, max_new_tokens: int = 256) -> Answer:
    """Continue (1, T, D) prompt embeddings until EOS or ``max_new_tokens``."""
    cache = DynamicCache(config=language.config)
    embed = language.get_input_embeddings()
    ids: list[int] = []
    margins: list[float] = []
    while EOS_ID not in ids and len(ids) < max_new_tokens:
        output = language(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        best = output.logits[0, -1].topk(2)
        margins.append(float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
        embeds = embed(torch.tensor([ids[-1:]], device=embeds.device))
    return Answer(ids=tuple(ids), margin=min(margins))


def published(seed: int = 1) -> LlamaForCausalLM:
    """A tiny Llama whose random weights are wide enough for varied output."""
    torch.manual_seed(seed)
    config = PublishedConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()  # type: ignore[no-any-return,no-untyped-call]


def ours(language: LlamaForCausalLM) -> Llama:
    """Our decoder with the same weights."""
    there = language.state_dict()
    fused = Llama(LlamaConfig.of(language.config.to_dict())).eval()
    fused.load_state_dict({name: _fused(there, name) for name in fused.state_dict()})
    return fused


def cases(language: LlamaForCausalLM, *, new_tokens: int) -> Iterator[Case]:
    """Endless random prompts of 3 to 40 rows with a clear answer."""
    random = torch.Generator().manual_seed(2)
    while True:
        tokens = int(torch.randint(3, 41, (1,), generator=random))
        embeds = torch.randn(1, tokens, language.config.hidden_size, generator=random)
        answer = greedy(language, embeds, max_new_tokens=new_tokens)
        if answer.margin > CLEAR:
            yield Case(embeds=embeds, answer=answer)


def _fused(there: dict[str, Tensor], name: str) -> Tensor:
    """A tensor of ours, made of the published ones."""
    layer, _, last = name.removesuffix(".weight").rpartition(".")
    if last in FUSED:
        return torch.cat([there[f"model.{layer}.{part}.weight"] for part in FUSED[last]])
    return there[name if name.startswith("lm_head.") else f"model.{name}"]
