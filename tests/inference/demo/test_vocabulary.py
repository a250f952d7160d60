"""The demo's tokenisers know its reports by heart."""

from __future__ import annotations

import pytest
from sentencepiece import SentencePieceProcessor

from inference import prompt
from inference.demo import vocabulary
from inference.embeddings import WordPiece


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return vocabulary.reports(0)


@pytest.fixture(scope="module")
def pieces(texts: list[str]) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_proto=vocabulary.sentence_pieces(texts))


def test_reports_follow_the_seed(texts: list[str]) -> None:
    assert len(texts) == vocabulary.REPORTS
    assert texts == vocabulary.reports(0)
    assert texts != vocabulary.reports(1)


def test_pieces_are_numbered_as_llamas(pieces: SentencePieceProcessor) -> None:
    assert len(pieces) == vocabulary.PIECES
    assert (pieces.unk_id(), pieces.bos_id(), pieces.eos_id()) == (0, prompt.BOS_ID, 2)


def test_reports_come_back_whole_and_short(
    texts: list[str], pieces: SentencePieceProcessor
) -> None:
    for text in texts[:200]:
        assert pieces.decode(pieces.encode(text)) == text
    assert max(len(pieces.encode(text)) for text in texts) < 64


@pytest.mark.parametrize("text", ["\nProvide", "Fieber, Kälte: 38,5 °C", "呼吸困難"])
def test_other_texts_fall_back_to_bytes(text: str, pieces: SentencePieceProcessor) -> None:
    ids = pieces.encode(text)
    assert pieces.unk_id() not in ids
    assert pieces.decode(ids) == text


def test_words_cover_every_report(texts: list[str]) -> None:
    words = vocabulary.words(texts)
    tokenise = WordPiece(words)
    unknown = words.index("[UNK]")
    assert all(unknown not in tokenise.ids(text) for text in texts)
    assert words[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
