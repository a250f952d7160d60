"""Our decoder computes what transformers' ``LlamaForCausalLM`` computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from inference.llama import Llama, LlamaConfig
from tests.inference import plain

POSITIONS = 64


def same(here: Tensor, there: Tensor) -> None:
    """Equal but for the order of summation; logits here reach 30 in float32."""
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def published() -> LlamaForCausalLM:
    return plain.published()


@pytest.fixture(scope="module")
def llama(published: LlamaForCausalLM) -> Llama:
    return plain.ours(published)


@pytest.fixture(scope="module")
def texts() -> Tensor:
    """Three texts of 20 ids each, (3, 20)."""
    return torch.randint(3, 50, (3, 20), generator=torch.Generator().manual_seed(4))


@pytest.fixture
def expected(published: LlamaForCausalLM, texts: Tensor) -> Tensor:
    """Logits after each id, (3, 20, V)."""
    logits: Tensor = published(input_ids=texts).logits
    return logits


def test_a_prompt_gives_the_logits_of_its_last_token(
    llama: Llama, texts: Tensor, expected: Tensor
) -> None:
    cache = llama.place(slots=2, positions=POSITIONS)
    logits = llama.prefill(llama.embed_tokens(texts[:1]), cache, 1)
    assert logits.dtype == torch.float32
    same(logits, expected[0, -1])


def test_a_prompt_stays_in_its_slot(llama: Llama, texts: Tensor) -> None:
    cache = llama.place(slots=3, positions=POSITIONS)
    llama.prefill(llama.embed_tokens(texts[:1]), cache, 1)
    for kept in (*cache.keys, *cache.values):
        assert not kept[[0, 2]].any()
        assert not kept[1, :, 20:].any()
        assert kept[1, :, :20].any(dim=-1).all()


@pytest.mark.parametrize("queries", [1, 4])
def test_decoding_gives_the_logits_after_each_token(
    llama: Llama, texts: Tensor, expected: Tensor, queries: int
) -> None:
    cache = llama.place(slots=1, positions=POSITIONS)
    llama.prefill(llama.embed_tokens(texts[:1, :8]), cache, 0)
    for start in range(8, 20, queries):
        positions = torch.arange(start, start + queries)[None]
        logits = llama.decode(texts[:1, positions[0]], positions, cache, 32)
        same(logits, expected[:1, start : start + queries])


def test_rows_at_different_positions_share_a_pass(
    llama: Llama, texts: Tensor, expected: Tensor
) -> None:
    cache = llama.place(slots=3, positions=POSITIONS)
    starts = torch.tensor([3, 10, 16])
    for slot, start in enumerate(starts.tolist()):
        llama.prefill(llama.embed_tokens(texts[slot : slot + 1, :start]), cache, slot)
    positions = starts[:, None] + torch.arange(4)
    logits = llama.decode(texts.gather(1, positions), positions, cache, 32)
    for slot, row in enumerate(positions):
        same(logits[slot], expected[slot, row])


@pytest.mark.parametrize("keys", [20, 32, POSITIONS])
def test_the_number_of_positions_looked_at_changes_nothing(
    llama: Llama, texts: Tensor, expected: Tensor, keys: int
) -> None:
    cache = llama.place(slots=1, positions=POSITIONS)
    llama.prefill(llama.embed_tokens(texts[:1, :19]), cache, 0)
    logits = llama.decode(texts[:1, 19:], torch.tensor([[19]]), cache, keys)
    same(logits, expected[:1, 19:])


def test_what_an_earlier_report_left_is_not_seen(
    llama: Llama, texts: Tensor, expected: Tensor
) -> None:
    cache = llama.place(slots=1, positions=POSITIONS)
    for kept in (*cache.keys, *cache.values):
        kept.fill_(100.0)
    llama.prefill(llama.embed_tokens(texts[:1, :8]), cache, 0)
    logits = llama.decode(texts[:1, 8:9], torch.tensor([[8]]), cache, 32)
    same(logits, expected[:1, 8:9])


def test_a_rejected_token_is_overwritten(llama: Llama, texts: Tensor, expected: Tensor) -> None:
    cache = llama.place(slots=1, positions=POSITIONS)
    llama.prefill(llama.embed_tokens(texts[:1, :8]), cache, 0)
    wrong = torch.tensor([[7, 7, 7, 7]])
    llama.decode(wrong, torch.arange(8, 12)[None], cache, 32)
    logits = llama.decode(texts[:1, 8:10], torch.tensor([[8, 9]]), cache, 32)
    same(logits, expected[:1, 8:10])


def test_clearing_a_slot_rids_it_of_what_is_not_finite(
    llama: Llama, texts: Tensor, expected: Tensor
) -> None:
    cache = llama.place(slots=2, positions=POSITIONS)
    for kept in (*cache.keys, *cache.values):
        kept.fill_(float("nan"))
    cache.clear(0)
    llama.prefill(llama.embed_tokens(texts[:1, :8]), cache, 0)
    logits = llama.decode(texts[:1, 8:9], torch.tensor([[8]]), cache, 32)
    same(logits, expected[:1, 8:9])
    assert cache.keys[0][1].isnan().all()  # the neighbour is not touched


def test_no_tensor_of_the_model_is_missing_or_new(
    published: LlamaForCausalLM, llama: Llama
) -> None:
    there, here = published.state_dict(), llama.state_dict()
    assert sum(t.numel() for t in here.values()) == sum(t.numel() for t in there.values())


# -- configurations -------------------------------------------------------------------------------

VICUNA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-5,
}


def test_sizes_are_taken_from_the_published_configuration() -> None:
    config = LlamaConfig.of(VICUNA)
    assert (config.hidden_size, config.head_width, config.num_hidden_layers) == (4096, 128, 32)
    assert config.rope_theta == 10_000.0


@pytest.mark.parametrize(
    "spelling",
    [
        pytest.param({"rope_theta": 500_000.0}, id="transformers 4"),
        pytest.param({"rope_parameters": {"rope_theta": 500_000.0}}, id="transformers 5"),
    ],
)
def test_the_base_of_the_rotary_angles_has_two_spellings(spelling: dict[str, Any]) -> None:
    assert LlamaConfig.of(VICUNA | spelling).rope_theta == 500_000.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_key_value_heads", 8),
        ("hidden_act", "gelu"),
        ("tie_word_embeddings", True),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("head_dim", 80),
    ],
)
def test_another_kind_of_decoder_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        LlamaConfig.of(VICUNA | {key: value})


def test_stretched_rotary_angles_are_refused_in_either_spelling() -> None:
    with pytest.raises(ValueError, match="rope_type"):
        LlamaConfig.of(VICUNA | {"rope_parameters": {"rope_type": "linear", "factor": 2.0}})


def test_a_missing_size_is_named() -> None:
    incomplete = {key: value for key, value in VICUNA.items() if key != "vocab_size"}
    with pytest.raises(KeyError, match="vocab_size"):
        LlamaConfig.of(incomplete)
