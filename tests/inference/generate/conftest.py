"""One tiny network for all tests of the engine, and prompts with the plain loop's answers."""

from __future__ import annotations

from itertools import islice

import pytest
from transformers import LlamaForCausalLM

from inference.llama import Llama
from tests.inference import plain
from tests.inference.plain import Case

NEW_TOKENS = 40


@pytest.fixture(scope="session")
def published() -> LlamaForCausalLM:
    return plain.published()


@pytest.fixture(scope="session")
def weights(published: LlamaForCausalLM) -> Llama:
    return plain.ours(published)


@pytest.fixture(scope="session")
def pool(published: LlamaForCausalLM) -> list[Case]:
    """Prompts whose answers end by EOS, early and late, or by the limit of 40 tokens."""
    found = list(islice(plain.cases(published, new_tokens=NEW_TOKENS), 16))
    lengths = {len(case.answer.ids) for case in found}
    assert {1, NEW_TOKENS} < lengths
    return found
