"""Greedy decoding with a KV cache: embeddings in, ids out. Knows nothing of text or images."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from inference.findings import ModelFailure

MAX_NEW_TOKENS = 256  # scripts/eval.sh of LLaVA-Rad
EOS_ID = 2  # Llama


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Ids of one answer and what it took."""

    ids: tuple[int, ...]  #: EOS included when it was reached
    prefill_seconds: float
    decode_seconds: float


@torch.inference_mode()
def greedy(
    language: LlamaForCausalLM, inputs_embeds: Tensor, *, max_new_tokens: int = MAX_NEW_TOKENS
) -> Generation:
    """Continue (1, T, D) prompt embeddings until EOS or ``max_new_tokens``.

    Raises:
        ModelFailure: the logits are not finite (the device gave out, or fp16 overflowed).
    """
    cache = DynamicCache(config=language.config)
    start = time.perf_counter()
    ids = [_step(language, inputs_embeds, cache)]
    prefilled = time.perf_counter()
    embed = language.get_input_embeddings()
    while ids[-1] != EOS_ID and len(ids) < max_new_tokens:
        last = torch.tensor([ids[-1:]], device=inputs_embeds.device)
        ids.append(_step(language, embed(last), cache))
    return Generation(
        ids=tuple(ids),
        prefill_seconds=prefilled - start,
        decode_seconds=time.perf_counter() - prefilled,
    )


def _step(language: LlamaForCausalLM, inputs_embeds: Tensor, cache: DynamicCache) -> int:
    """Feed (1, t, D) rows, grow the cache, return the most likely next id."""
    output = language(
        inputs_embeds=inputs_embeds, past_key_values=cache, use_cache=True, logits_to_keep=1
    )
    logits = output.logits[0, -1]  # (V,)
    if not torch.isfinite(logits).all():
        raise ModelFailure("the model's logits are not finite")
    return int(logits.argmax())
