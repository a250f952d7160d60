"""Report texts as token ids: what the language model of ``bench.generate`` is made to say.

Random weights say nothing that could be drafted, so the words come from real reports. They are
tokenised by a model trained on them in the run, with so few pieces that a report is as long as
Llama's tokeniser makes it (mean 59 tokens, serving.md 1). No text leaves this process.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from inference.demo import report
from inference.demo.scene import scene
from inference.llama import EOS_ID

#: Open-i, Indiana University (CC BY-NC-ND 4.0): beside the repository where it may be used.
REPORTS = Path(__file__).parents[2] / "shared" / "data" / "reports" / "iu_reports.csv"
PIECES = 700  # gives 57 tokens a report; 1,000 pieces give 47, 600 give 65
PHANTOMS = 2700  # as many as there are real ones

Ids = Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Reports in a fixed random order, each ending with EOS."""

    reports: Sequence[Ids]
    source: str  #: for the table's note


def read(file: Path = REPORTS) -> Corpus:
    """The real reports, or phantoms' where there are none."""
    texts, source = _texts(file)
    random.Random(0).shuffle(texts)
    trained = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=trained,
        vocab_size=PIECES,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    pieces = SentencePieceProcessor(model_proto=trained.getvalue())
    return Corpus(reports=[(*pieces.encode(text), EOS_ID) for text in texts], source=source)


def _texts(file: Path) -> tuple[list[str], str]:
    if not file.exists():
        return [_phantom(seed) for seed in range(PHANTOMS)], "phantoms' reports (few templates)"
    with file.open(newline="", encoding="utf-8") as lines:
        findings = [row["findings"].strip() for row in csv.DictReader(lines)]
    return [text for text in findings if text], "Open-i findings sections"


def _phantom(seed: int) -> str:
    shown = scene(seed)
    return report.write(shown.labels, shown.sizes, seed=seed)
