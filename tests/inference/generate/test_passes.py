"""Passes have few shapes, and what pads them is harmless."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from inference.generate.passes import NOT_FINITE, WARM_UPS, Graphs, Passes, Row, Shape, likeliest
from inference.llama import Cache, Llama


class Recorder:
    """A language model that notes the sizes of its passes and always says 7."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.shapes: list[Shape] = []

    def decode(self, ids: Tensor, positions: Tensor, cache: Cache, keys: int) -> Tensor:
        assert ids.shape == positions.shape
        rows, queries = ids.shape
        self.shapes.append(Shape(rows, queries, keys))
        logits = torch.zeros(*ids.shape, 50)
        logits[..., 7] = 1
        return logits


def shape_of(rows: dict[int, Row], *, slots: int = 16) -> Shape:
    language: Any = Recorder()
    cache: Any = SimpleNamespace(slots=slots, positions=1800)
    Passes(language, cache, queries=4).decode(rows)
    shape: Shape = language.shapes[0]
    return shape


@pytest.mark.parametrize(
    ("highest", "rows"), [(0, 1), (1, 2), (2, 4), (3, 4), (4, 8), (7, 8), (8, 16), (15, 16)]
)
def test_rows_are_a_power_of_two(highest: int, rows: int) -> None:
    assert shape_of({highest: Row([5], 10)}).rows == rows


def test_rows_are_never_more_than_there_are_slots() -> None:
    assert shape_of({2: Row([5], 10)}, slots=3).rows == 3


def test_queries_are_one_or_the_longest_draft_and_one() -> None:
    assert shape_of({0: Row([5], 10), 1: Row([6], 10)}).queries == 1
    assert shape_of({0: Row([5], 10), 1: Row([6, 7], 10)}).queries == 2
    assert shape_of({0: Row([5, 8, 8, 8], 10), 1: Row([6, 7], 10)}).queries == 4


@pytest.mark.parametrize(
    ("position", "keys"), [(0, 256), (255, 256), (256, 512), (1790, 1792), (1799, 1800)]
)
def test_keys_are_a_multiple_of_256_or_the_whole_slot(position: int, keys: int) -> None:
    assert shape_of({0: Row([5], position)}).keys == keys


def test_the_last_query_of_a_pass_sees_itself() -> None:
    assert shape_of({0: Row([5, 6], 254)}).keys == 256
    assert shape_of({0: Row([5, 6], 255)}).keys == 512


def test_padding_leaves_the_other_slots_words_alone(weights: Llama) -> None:
    with torch.inference_mode():
        alone = Passes(weights, weights.place(slots=4, positions=64), queries=4)
        beside = Passes(weights, weights.place(slots=4, positions=64), queries=4)
        prompt = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(3))
        for passes in (alone, beside):
            passes.prefill(prompt, 3)
        beside.prefill(prompt[:, :2], 1)
        rows = {3: Row([5, 6, 7, 8], 9)}
        said = alone.decode(rows)
        assert beside.decode({1: Row([4], 2), **rows})[3] == said[3]


def test_the_most_likely_token_is_chosen_unless_a_logit_is_not_finite() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [0.0, 3.0, float("nan")], [float("-inf"), 3.0, 1.0]])
    assert likeliest(logits).tolist() == [1, NOT_FINITE, NOT_FINITE]


def test_a_pass_asks_nothing_of_the_host(weights: Llama) -> None:
    """A capture can't wait for numbers; on the meta device there are none to wait for."""
    with torch.device("meta"):
        language = Llama(weights.config)
        cache = language.place(slots=4, positions=64)
        ids = torch.zeros(4, 4, dtype=torch.int64)
    said = likeliest(language.decode(ids, ids, cache, 64))
    assert said.shape == (4, 4)


class FakeGraph:
    """Stands for a CUDA graph, for there is no CUDA where most tests run."""

    replays = 0

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(
        device="cuda", wait_stream=lambda other: None, synchronize=lambda: None
    )
    fakes: dict[str, Any] = {
        "Stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "stream": lambda stream: nullcontext(),
        "graph_pool_handle": lambda: (0, 1),
        "CUDAGraph": FakeGraph,
        "graph": lambda graph, pool, stream: nullcontext(),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)


@pytest.mark.usefixtures("fake_cuda")
def test_each_shape_is_captured_once() -> None:
    runs: list[str] = []

    def run(name: str) -> Tensor:
        runs.append(name)
        return torch.tensor([len(runs)])

    graphs = Graphs(torch.device("cuda"))
    small, large = Shape(1, 1, 256), Shape(2, 1, 256)
    first = graphs.replay(small, lambda: run("small"))
    graphs.replay(large, lambda: run("large"))
    assert graphs.replay(small, lambda: run("small")) is first
    assert runs == ["small"] * (WARM_UPS + 1) + ["large"] * (WARM_UPS + 1)
