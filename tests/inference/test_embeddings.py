"""Texts become unit vectors, whatever stands beside them in a batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig

from inference.embeddings import CONTEXT, TextEncoder, WordPiece, clean

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "clear", "lung", "##s", "the"]
WORDS = WordPiece(VOCABULARY)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    return TextEncoder(config, 16).eval()


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        pytest.param("a  b\n\tc ", "a b c", id="white space collapses"),
        pytest.param("a &amp; b", "a & b", id="HTML escapes are undone"),
        pytest.param("5 &amp;lt; 6", "5 < 6", id="twice"),
    ],
)
def test_texts_are_cleaned_as_open_clip_does(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_words_are_split_into_known_pieces() -> None:
    assert WORDS.ids("The LUNGS clear, xyz.") == [2, 9, 7, 8, 6, 1, 1, 5, 3]


def test_long_texts_are_cut_at_the_context() -> None:
    ids = WORDS.ids("clear " * 1000)
    assert len(ids) == CONTEXT
    assert ids[-1] == VOCABULARY.index("[SEP]")


@given(st.text())
def test_any_text_has_ids(text: str) -> None:
    ids = WORDS.ids(text)
    assert ids[0] == VOCABULARY.index("[CLS]")
    assert len(ids) <= CONTEXT


def test_vectors_have_norm_one(encoder: TextEncoder) -> None:
    vectors = encoder(WORDS.batch(["the lungs", "clear", ""]))
    assert vectors.shape == (3, 16)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3))


def test_padding_changes_no_vector(encoder: TextEncoder) -> None:
    alone = encoder(WORDS.batch(["the lungs"]))
    beside = encoder(WORDS.batch(["the lungs", "the lungs clear . " * 20]))
    assert torch.allclose(alone[0], beside[0], atol=1e-6)
    assert not torch.allclose(beside[0], beside[1], atol=1e-3)
