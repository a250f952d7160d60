"""One report on its way from the queue through a slot to its caller."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor

from inference.findings import ModelFailure
from inference.llama import EOS_ID

STAGES = ("wait", "vision", "prefill", "decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a report ends at the latest. ``max_new_tokens`` also bounds its passes."""

    max_new_tokens: int = 256  #: at least 1
    seconds: float | None = None  #: of wall time from when it has a slot; None means no limit
    cancelled: threading.Event | None = None  #: looked at before each pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Ids of one answer and what it took."""

    ids: tuple[int, ...]  #: EOS included when it was reached
    prompt_tokens: int
    passes: int  #: decode passes it had a row in; the first token comes from the prefill
    accepted: int  #: drafted tokens that the model agreed to
    seconds: Mapping[str, float]  #: by ``STAGES``: for a slot, in ``embed``, prompt, the rest


@dataclass(eq=False, slots=True, kw_only=True)
class Report:
    """What is known of a report so far."""

    embed: Callable[[], Tensor]  #: () -> (1, T, D) prompt embeddings
    limits: Limits
    answer: Future[Generation] = field(default_factory=Future)
    ids: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    passes: int = 0
    accepted: int = 0
    #: clock at submission and at the end of each stage, seconds
    marks: list[float] = field(default_factory=lambda: [time.perf_counter()])

    @property
    def position(self) -> int:
        """Where the newest token stands; its keys and values are not in the slot yet."""
        return self.prompt_tokens + len(self.ids) - 1

    @property
    def room(self) -> int:
        """New tokens still allowed."""
        return self.limits.max_new_tokens - len(self.ids)

    @property
    def complete(self) -> bool:
        """Nothing more is to be written."""
        return self.ids[-1] == EOS_ID or self.room <= 0

    def mark(self) -> None:
        """A stage ends now."""
        self.marks.append(time.perf_counter())

    def check_limits(self) -> None:
        """Go on?

        Raises:
            ModelFailure: cancelled, or out of time.
        """
        if self.limits.cancelled and self.limits.cancelled.is_set():
            raise ModelFailure("the report was cancelled")
        # marks[1]: a wait for a slot is the backlog's fault, not the report's.
        limit, admitted = self.limits.seconds, self.marks[1:2]
        if limit is not None and admitted and time.perf_counter() - admitted[0] >= limit:
            raise ModelFailure(f"the report took longer than {limit:g} s ({len(self.ids)} tokens)")

    def take(self, draft: Sequence[int], said: Sequence[int]) -> None:
        """Keep what the model agrees to of a draft, then the model's own next token.

        ``said[i]`` is what the model says after ``i`` drafted tokens; the answer ends at EOS or at
        its limit, wherever in the draft that is.
        """
        agreed = 0
        while agreed < len(draft) and draft[agreed] == said[agreed]:
            agreed += 1
        before = len(self.ids)
        for token in said[: agreed + 1]:
            self.ids.append(token)
            if self.complete:
                break
        self.accepted += min(agreed, len(self.ids) - before)

    def deliver(self) -> None:
        """Hand the answer to the caller."""
        self.mark()
        spent = (end - start for start, end in pairwise(self.marks))
        self.answer.set_result(
            Generation(
                ids=tuple(self.ids),
                prompt_tokens=self.prompt_tokens,
                passes=self.passes,
                accepted=self.accepted,
                seconds=dict(zip(STAGES, spent, strict=True)),
            )
        )
