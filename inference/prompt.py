"""Prompts around an image; the words of LLaVA-Rad: clinical history -> token ids.

Pure. Sources: microsoft/LLaVA-Rad at 1fc4409, llava/conversation.py ("v1"), llava/utils.py (the
two questions), llava/eval/model_mimic_cxr.py (how they are put together).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

PROMPT_ID = "llava-rad-v1"  # changes with any word below; recorded with each draft

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
QUESTION = "Provide a description of the findings in the radiology image"
IMAGE_MARK = "<image>"
IMAGE_ID = -200  # llava/constants.py IMAGE_TOKEN_INDEX; no vocabulary holds it
BOS_ID = 1  # Llama

HISTORY_TOKENS = 128  # every slot must have room for them, so longer ones are cut visibly

Tokenise = Callable[[str], list[int]]  #: text -> ids without BOS


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What is asked about an image."""

    text: str  #: whole, the image as ``<image>``
    before: Sequence[int]  #: ids up to the image, BOS first
    after: Sequence[int]  #: ids behind it

    @property
    def ids(self) -> list[int]:
        """All ids, ``IMAGE_ID`` where the image goes."""
        return [*self.before, IMAGE_ID, *self.after]

    def __len__(self) -> int:
        """Ids without the image."""
        return len(self.before) + len(self.after)


def question(history: str | None) -> str:
    """What is asked about the image; line breaks become spaces, nothing else is cleaned."""
    if history is None:
        return f"{QUESTION}."
    reason = history.replace("\r\n", "\n").replace("\n", " ")
    return f"{QUESTION} given the following indication: {reason}"


def build(tokenise: Tokenise, history: str | None) -> Prompt:
    """The whole prompt.

    Built as two parts, never split at the mark afterwards: a history may contain the mark's text.
    """
    before, after = f"{SYSTEM} USER: ", f"\n{question(history)} ASSISTANT:"
    return Prompt(
        text=before + IMAGE_MARK + after,
        before=(BOS_ID, *tokenise(before)),
        after=tuple(tokenise(after)),
    )


def fit(tokenise: Tokenise, history: str | None) -> str | None:
    """The history as the model will be given it: None if blank, whole words cut off if too long.

    The caller stores the result with the draft, so that a cut can be seen.
    """
    words = (history or "").split(" ")
    while words and len(tokenise(" ".join(words))) > HISTORY_TOKENS:
        words.pop()
    return " ".join(words) if any(word.strip() for word in words) else None
