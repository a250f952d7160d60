"""The tokeniser of a language model, looked at before it is copied."""

from __future__ import annotations

from pathlib import Path

from sentencepiece import SentencePieceProcessor

from inference.findings import ModelUnavailable


def check_pieces(path: Path, rows: int) -> None:
    """Compare ``tokenizer.model`` with the ``rows`` of the network's embeddings.

    Raises:
        ModelUnavailable: it is missing or damaged, or has pieces that the network has no row for.
    """
    if not path.is_file():
        raise ModelUnavailable(f"{path} is missing: download it")
    try:
        pieces = len(SentencePieceProcessor(model_file=str(path)))
    except (OSError, RuntimeError) as error:
        raise ModelUnavailable(f"{path} can't be read, download it again ({error})") from error
    if pieces > rows:
        raise ModelUnavailable(f"{path} has {pieces} pieces, the network only {rows} embeddings")
