"""Many callers, one device thread, the plain loop's words."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from inference.findings import ModelFailure, ModelUnavailable
from inference.generate import Engine, Limits
from inference.llama import Llama
from tests.inference.generate.conftest import NEW_TOKENS
from tests.inference.plain import Case

LIMITS = Limits(max_new_tokens=NEW_TOKENS)


@pytest.fixture
def engine(weights: Llama) -> Iterator[Engine]:
    engine = Engine(weights, slots=3, positions=80)
    yield engine
    engine.close()


def test_eight_callers_at_once_hear_what_the_plain_loop_says(
    engine: Engine, pool: list[Case]
) -> None:
    def ask(case: Case) -> tuple[int, ...]:
        return engine.generate(lambda: case.embeds, limits=LIMITS).ids

    with ThreadPoolExecutor(8) as callers:
        said = list(callers.map(ask, pool * 2))
    assert said == [case.answer.ids for case in pool * 2]


def test_a_past_report_speeds_up_the_same_report(engine: Engine, pool: list[Case]) -> None:
    case = next(case for case in pool if 5 < len(case.answer.ids) < NEW_TOKENS)
    engine.learn(case.answer.ids[:-1])
    said = engine.generate(lambda: case.embeds, limits=LIMITS)
    assert said.ids == case.answer.ids
    assert said.passes < len(said.ids) - 1


def test_slots_in_use_are_told(engine: Engine, pool: list[Case]) -> None:
    busy: list[int] = []

    def embed() -> Tensor:
        busy.append(engine.busy)
        return pool[0].embeds

    engine.generate(embed, limits=LIMITS)
    assert (engine.slots, busy, engine.busy) == (3, [1], 0)


def test_what_embedding_raises_reaches_its_caller(engine: Engine, pool: list[Case]) -> None:
    def embed() -> Tensor:
        raise OSError("no such image")

    with pytest.raises(OSError, match="no such image"):
        engine.generate(embed, limits=LIMITS)
    assert engine.generate(lambda: pool[0].embeds, limits=LIMITS).ids == pool[0].answer.ids


def test_other_work_runs_between_passes(engine: Engine) -> None:
    assert engine.call(lambda: 5) == 5


def test_a_cancelled_caller_is_told(engine: Engine, pool: list[Case]) -> None:
    cancelled = threading.Event()

    def embed() -> Tensor:
        cancelled.set()
        return max(pool, key=lambda case: len(case.answer.ids)).embeds

    with pytest.raises(ModelFailure, match="cancelled"):
        engine.generate(embed, limits=Limits(max_new_tokens=NEW_TOKENS, cancelled=cancelled))


def test_closing_ends_the_wait_of_all(weights: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    passing = threading.Event()

    def say_seven(ids: Tensor, *given: object) -> Tensor:
        passing.set()
        return torch.nn.functional.one_hot(torch.full_like(ids, 7), 50).float()

    monkeypatch.setattr(weights, "decode", say_seven)
    engine = Engine(weights, slots=1, positions=20_000)
    endless = Limits(max_new_tokens=19_000)
    with ThreadPoolExecutor(2) as callers:
        answers = [
            callers.submit(engine.generate, lambda: torch.zeros(1, 5, 64), limits=endless)
            for _ in range(2)
        ]
        assert passing.wait(60)
        engine.close()
        for answer in answers:
            assert isinstance(answer.exception(60), ModelFailure)


def test_too_many_slots_are_refused_at_start(
    weights: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    def place(*, slots: int, positions: int) -> None:
        raise torch.OutOfMemoryError("tried to allocate 900 GiB")

    monkeypatch.setattr(weights, "place", place)
    with pytest.raises(ModelUnavailable, match="no memory for 900 slots of 80 tokens"):
        Engine(weights, slots=900, positions=80)
