"""The cached loop says what the plain one says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from inference.findings import ModelFailure
from inference.generate import EOS_ID, greedy


@pytest.fixture(scope="module")
def language() -> LlamaForCausalLM:
    """A tiny Llama whose random weights are wide enough for varied output."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def embeds() -> Tensor:
    return torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(2))


def plainly(language: LlamaForCausalLM, embeds: Tensor, tokens: int) -> list[int]:
    """Greedy decoding as it is defined: no cache, the whole sequence anew for every token."""
    ids: list[int] = []
    with torch.no_grad():
        while len(ids) < tokens and EOS_ID not in ids:
            ids.append(int(language(inputs_embeds=embeds).logits[0, -1].argmax()))
            row = language.get_input_embeddings()(torch.tensor([ids[-1:]]))
            embeds = torch.cat([embeds, row], dim=1)
    return ids


def test_cached_decoding_equals_the_plain_loop(language: LlamaForCausalLM, embeds: Tensor) -> None:
    ids = list(greedy(language, embeds, max_new_tokens=40).ids)
    assert ids == plainly(language, embeds, 40)
    assert len(set(ids)) > 5


def test_decoding_ends_at_the_limit(language: LlamaForCausalLM, embeds: Tensor) -> None:
    assert len(greedy(language, embeds, max_new_tokens=3).ids) == 3


def test_decoding_ends_with_eos(language: LlamaForCausalLM, embeds: Tensor) -> None:
    head = language.lm_head.weight
    before = head.detach().clone()
    third = greedy(language, embeds, max_new_tokens=3).ids[2]
    with torch.no_grad():
        head[[EOS_ID, third]] = head[[third, EOS_ID]]  # now EOS is what would have come third
    try:
        ids = greedy(language, embeds, max_new_tokens=40).ids
    finally:
        with torch.no_grad():
            head.copy_(before)
    assert ids[-1] == EOS_ID
    assert ids.index(EOS_ID) == len(ids) - 1 == 2


def test_times_are_measured(language: LlamaForCausalLM, embeds: Tensor) -> None:
    answer = greedy(language, embeds, max_new_tokens=3)
    assert answer.prefill_seconds > 0
    assert answer.decode_seconds > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_fail_the_report(
    language: LlamaForCausalLM, embeds: Tensor, value: float
) -> None:
    with pytest.raises(ModelFailure, match="not finite") as failure:
        greedy(language, torch.full_like(embeds, value))
    assert failure.value.retry
