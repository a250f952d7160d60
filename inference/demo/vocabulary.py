"""Tokenisers of the demo model, made from its own reports."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from io import BytesIO

from sentencepiece import SentencePieceTrainer

from inference import prompt
from inference.demo import report
from inference.demo.phantom import scene

PIECES = 640
REPORTS = 6000

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # BERT's, in BERT's order


def reports(seed: int) -> list[str]:
    """Reports of random phantoms in random wording."""
    draw = random.Random(seed)
    return [_report(draw) for _ in range(REPORTS)]


def _report(draw: random.Random) -> str:
    phantom = scene(draw.getrandbits(32))
    return report.write(phantom.labels, phantom.sizes, seed=draw.getrandbits(32))


def sentence_pieces(texts: Iterable[str]) -> bytes:
    """Train a SentencePiece model like Llama's: BPE, byte fallback, unk 0, bos 1, eos 2."""
    model = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=_lines(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        normalization_rule_name="identity",  # as Llama: no Unicode folding, blanks are kept
        remove_extra_whitespaces=False,
        num_threads=1,  # for the same result every time
        minloglevel=2,
    )
    return model.getvalue()


def _lines(texts: Iterable[str]) -> Iterator[str]:
    yield from texts
    for history in (None, "Cough and fever."):
        yield from prompt.build(lambda _: [], history).text.split("\n")


def words(texts: Iterable[str]) -> list[str]:
    """Whole words and punctuation as a WordPiece vocabulary."""
    found = {word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())}
    return [*_SPECIAL, *sorted(found)]
