"""How a pass runs: few fixed shapes, one small copy in, one out, CUDA graphs on a CUDA device.

A pass covers slots 0 to B - 1. Its shape is rounded up, so that a few dozen graphs serve every
load: B to a power of two, Q to the longest draft plus one, K to a multiple of 256. What pads a pass
is computed and thrown away: it only writes where no mask looks before the next write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from inference.llama import BOS_ID, Cache, Llama

NOT_FINITE = -1  # in the place of an id
KEY_STEP = 256  # positions; fewer steps are fewer graphs, more steps less padding
WARM_UPS = 3  # before a capture, which lazy initialisation would break (PyTorch, CUDA semantics)


class Row(NamedTuple):
    """What one slot feeds: its newest token and a draft of those to come."""

    ids: list[int]
    position: int  #: of the first id


#: What a padded row feeds: a token that every prompt begins with, at the place where it does.
IDLE = Row([BOS_ID], 0)


class Shape(NamedTuple):
    """Size of a pass: B, Q and K."""

    rows: int
    queries: int
    keys: int


class Passes:
    """Runs a language model over the slots of its cache."""

    def __init__(self, language: Llama, cache: Cache, *, queries: int) -> None:
        self.language = language
        self.cache = cache
        self.queries = queries
        shape = (2, cache.slots, queries)  # ids, positions
        self._inputs = torch.zeros(shape, dtype=torch.int64, device=language.device)
        self._graphs = Graphs(language.device) if language.device.type == "cuda" else None

    def prefill(self, x: Tensor, slot: int) -> int:
        """Prompt embeddings (1, T, D) into a slot -> first id, or ``NOT_FINITE``."""
        return int(likeliest(self.language.prefill(x, self.cache, slot)))

    def decode(self, rows: Mapping[int, Row]) -> list[list[int]]:
        """Rows by slot -> for every slot and query the next id, or ``NOT_FINITE``."""
        shape = self._shape(rows)
        every = [_padded(rows.get(slot, IDLE), shape.queries) for slot in range(shape.rows)]
        ids, positions = zip(*every, strict=True)
        self._inputs[:, : shape.rows, : shape.queries] = torch.tensor([ids, positions])
        run = partial(self._run, shape)
        said = self._graphs.replay(shape, run) if self._graphs else run()  # (B, Q)
        return [[int(token) for token in row] for row in said.tolist()]

    def _shape(self, rows: Mapping[int, Row]) -> Shape:
        queries = max(len(row.ids) for row in rows.values())
        used = max(row.position for row in rows.values()) + queries
        return Shape(
            rows=min(1 << max(rows).bit_length(), self.cache.slots),
            queries=queries,
            keys=min(-(-used // KEY_STEP) * KEY_STEP, self.cache.positions),
        )

    def _run(self, shape: Shape) -> Tensor:
        ids, positions = self._inputs[:, : shape.rows, : shape.queries]
        return likeliest(self.language.decode(ids, positions, self.cache, shape.keys))


class Graphs:
    """One CUDA graph per shape: a pass is a thousand small launches, replayed as one.

    The graphs share one memory pool: they never run at the same time, and what one has put out is
    copied to the host before the next runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[Shape, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def replay(self, shape: Shape, run: Callable[[], Tensor]) -> Tensor:
        """What ``run`` would give; it is called for the first pass of a shape only."""
        if shape not in self._captured:
            self._captured[shape] = self._capture(run)
        graph, output = self._captured[shape]
        graph.replay()
        return output

    def _capture(self, run: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Record a pass; the warm-up writes the same keys and values as the replay will."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                run()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            output = run()
        return graph, output


def likeliest(logits: Tensor) -> Tensor:
    """(..., V) float -> (...) int64: the greedy choice, ``NOT_FINITE`` where a logit is not."""
    finite = torch.isfinite(logits).all(dim=-1)
    return logits.argmax(dim=-1).masked_fill(~finite, NOT_FINITE)


def _padded(row: Row, queries: int) -> tuple[list[int], list[int]]:
    """Ids and positions of a row; what follows its draft is its last id again."""
    ids = row.ids + row.ids[-1:] * (queries - len(row.ids))
    return ids, list(range(row.position, row.position + queries))
