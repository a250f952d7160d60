"""The text half of cross-modal retrieval: report text -> unit vector beside the images' vectors."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import ftfy
import torch
import torch.nn.functional as F
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

CONTEXT = 256  # context_length of biomedclipcxr_518.json
LAYER_NORM_EPS = 1e-12  # BERT's own, not torch's


def clean(text: str) -> str:
    """Straighten quotes and mojibake, undo HTML escapes twice, collapse white space.

    As open_clip 2.23.0 does before tokenising (tokenizer.py, basic_clean and whitespace_clean).
    """
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


class WordPiece:
    """BERT's uncased WordPiece over the lines of a ``vocab.txt``, at most ``CONTEXT`` ids."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        places = {piece: i for i, piece in enumerate(vocabulary)}
        self._tokenizer = BertWordPieceTokenizer(places, lowercase=True)
        self._tokenizer.enable_truncation(CONTEXT)

    def ids(self, text: str) -> list[int]:
        """[CLS] ... [SEP], unpadded."""
        ids: list[int] = self._tokenizer.encode(clean(text)).ids
        return ids

    def batch(self, texts: Sequence[str]) -> Tensor:
        """(B, T) ids padded with 0 to the longest; the mask hides the padding, so T is free."""
        rows = [torch.tensor(self.ids(text)) for text in texts]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)


class TextEncoder(nn.Module):
    """BERT, CLS row, two-layer projection: the ``text.*`` half of the published CLIP checkpoint."""

    def __init__(self, config: BertConfig, embedding: int) -> None:
        super().__init__()
        width = config.hidden_size
        hidden = (width + embedding) // 2  # open_clip 2.23.0 hf_model.py, proj_type "mlp"
        self.transformer = BertModel(config, add_pooling_layer=False)
        self.proj = nn.Sequential(
            nn.Linear(width, hidden, bias=False),
            nn.GELU(),
            nn.Linear(hidden, embedding, bias=False),
        )

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) ids padded with 0 -> (B, E) float32 vectors of norm 1."""
        hidden = self.transformer(input_ids=ids, attention_mask=(ids != 0).long())
        vectors = self.proj(hidden.last_hidden_state[:, 0]).float()
        return F.normalize(vectors, dim=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTower:
    """Words in, vectors out."""

    words: WordPiece
    network: TextEncoder
