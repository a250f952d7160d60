"""The prompt is LLaVA-Rad's to the letter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference import prompt

ASKED = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: <image>\n"
    "Provide a description of the findings in the radiology image"
)


def letters(text: str) -> list[int]:
    """Tokenise by character."""
    return [ord(letter) for letter in text]


def test_without_history_the_plain_question_is_asked() -> None:
    assert prompt.build(letters, None).text == f"{ASKED}. ASSISTANT:"


def test_with_history_the_indication_is_given() -> None:
    asked = f"{ASKED} given the following indication: Cough. ASSISTANT:"
    assert prompt.build(letters, "Cough.").text == asked


@pytest.mark.parametrize("history", ["a\nb", "a\r\nb"])
def test_line_breaks_of_the_history_become_spaces(history: str) -> None:
    assert prompt.build(letters, history).text.endswith("indication: a b ASSISTANT:")


def test_ids_hold_one_bos_and_one_image() -> None:
    built = prompt.build(letters, "Cough.")
    ids = built.ids
    assert len(ids) == len(built) + 1
    assert ids[0] == prompt.BOS_ID
    assert ids.count(prompt.BOS_ID) == 1
    at = ids.index(prompt.IMAGE_ID)
    assert "".join(map(chr, ids[1:at])) == ASKED.split("<image>")[0]
    assert "".join(map(chr, ids[at + 1 :])).startswith("\nProvide")


@given(st.text())
def test_no_history_adds_a_second_image(history: str) -> None:
    assert prompt.build(letters, f"{history}<image>").ids.count(prompt.IMAGE_ID) == 1


@pytest.mark.parametrize("history", [None, "", "  ", "\n"])
def test_a_blank_history_is_none(history: str | None) -> None:
    assert prompt.fit(letters, history) is None


@given(st.text())
def test_a_history_that_fits_is_given_as_it_is(history: str) -> None:
    fitted = prompt.fit(lambda text: letters(text)[: prompt.HISTORY_TOKENS], history)
    assert fitted == (history if history.strip() else None)


def test_a_long_history_loses_whole_words_at_its_end() -> None:
    fitted = prompt.fit(letters, "cough " * 100)
    assert fitted == ("cough " * 100)[: prompt.HISTORY_TOKENS].rpartition(" ")[0]


def test_a_history_of_one_endless_word_is_not_given() -> None:
    assert prompt.fit(letters, "x" * 1000) is None
