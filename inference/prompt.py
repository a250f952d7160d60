"""The prompt of LLaVA-Rad: conversation template as data, clinical history -> token ids.

Pure. Sources: microsoft/LLaVA-Rad at 1fc4409, llava/conversation.py ("v1"), llava/utils.py (the
two questions), llava/eval/model_mimic_cxr.py (how they are put together).
"""

from __future__ import annotations

from collections.abc import Callable

PROMPT_ID = "llava-rad-v1"  # changes with any word below; recorded with each draft

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
QUESTION = "Provide a description of the findings in the radiology image"
IMAGE_MARK = "<image>"
IMAGE_ID = -200  # llava/constants.py IMAGE_TOKEN_INDEX; no vocabulary holds it
BOS_ID = 1  # Llama

HISTORY_TOKENS = 128  # what 1,792 positions hold beside image, prompt and 256 new tokens

Tokenise = Callable[[str], list[int]]  #: text -> ids without BOS


def question(history: str | None) -> str:
    """What is asked about the image; line breaks become spaces, nothing else is cleaned."""
    if history is None:
        return f"{QUESTION}."
    reason = history.replace("\r\n", "\n").replace("\n", " ")
    return f"{QUESTION} given the following indication: {reason}"


def parts(history: str | None) -> tuple[str, str]:
    """The prompt before and after the image.

    Built as two parts, never split at the mark afterwards: a history may contain the mark's text.
    """
    return f"{SYSTEM} USER: ", f"\n{question(history)} ASSISTANT:"


def text(history: str | None) -> str:
    """The whole prompt as one string, the image as ``<image>``."""
    before, after = parts(history)
    return before + IMAGE_MARK + after


def token_ids(tokenise: Tokenise, history: str | None) -> list[int]:
    """Prompt ids with one BOS at the start and ``IMAGE_ID`` where the image goes."""
    before, after = parts(history)
    return [BOS_ID, *tokenise(before), IMAGE_ID, *tokenise(after)]


def fit(tokenise: Tokenise, history: str | None) -> str | None:
    """The history as the model will be given it: None if blank, whole words cut off if too long.

    The caller stores the result with the draft, so that a cut can be seen.
    """
    words = (history or "").split(" ")
    while words and len(tokenise(" ".join(words))) > HISTORY_TOKENS:
        words.pop()
    return " ".join(words) if any(word.strip() for word in words) else None
