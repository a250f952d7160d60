"""Drafts of the next tokens from this node's own past reports.

A table of what followed each context. A wrong draft costs time and never changes the text, because
the model checks every token. Figures: serving.md section 5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from inference.llama import BOS_ID, EOS_ID

LONGEST = 6  # tokens of context, start marker included
CAPACITY = 200_000  # contexts; 2,700 reports make 160,000

UNSEEN = 0.3  # as if something else had followed that often, or one sighting would be certainty


class Drafts(Protocol):
    """Guesses what the model will say next."""

    def propose(self, ids: Sequence[int], tokens: int) -> list[int]:
        """At most ``tokens`` ids that may follow the answer's ``ids`` so far."""

    def learn(self, ids: Sequence[int]) -> None:
        """Take the ids of a finished report, without EOS."""


@dataclass(slots=True)
class _Followers:
    counts: Counter[int] = field(default_factory=Counter)
    most: int = EOS_ID
    total: int = 0

    @property
    def share(self) -> float:
        """How likely the most frequent one is to follow."""
        return self.counts[self.most] / (self.total + UNSEEN)

    def add(self, token: int) -> None:
        self.total += 1
        self.counts[token] += 1
        if self.counts[token] >= self.counts[self.most]:  # ties: the newest
            self.most = token


class Ngrams:
    """Context of up to six tokens -> most frequent next token; the longest known context wins."""

    def __init__(self, capacity: int = CAPACITY, *, least_likely: float = 0.0) -> None:
        """``least_likely``: a chain ends before it becomes less likely than this to be right."""
        self.capacity = capacity
        self.least_likely = least_likely
        self._table: dict[tuple[int, ...], _Followers] = {}  # least recently learnt first

    def __len__(self) -> int:
        return len(self._table)

    def propose(self, ids: Sequence[int], tokens: int) -> list[int]:
        """Chain at most ``tokens`` guesses; none follows EOS, an unknown or a doubtful context."""
        known = [BOS_ID, *ids][-LONGEST:]
        draft: list[int] = []
        likelihood = 1.0
        while len(draft) < tokens and EOS_ID not in draft:
            followers = self._followers(known)
            likelihood *= followers.share if followers else 0.0
            if followers is None or likelihood < self.least_likely:
                break
            draft.append(followers.most)
            known = [*known, followers.most][-LONGEST:]
        return draft

    def learn(self, ids: Sequence[int]) -> None:
        """Count what followed what; contexts not met for longest give way."""
        text = (BOS_ID, *ids, EOS_ID)
        for end in range(1, len(text)):
            for start in range(max(0, end - LONGEST), end):
                self._add(text[start:end], text[end])
        surplus = max(0, len(self) - self.capacity)
        for context in list(islice(self._table, surplus)):
            del self._table[context]

    def _followers(self, known: list[int]) -> _Followers | None:
        for start in range(len(known)):
            followers = self._table.get(tuple(known[start:]))
            if followers:
                return followers
        return None

    def _add(self, context: tuple[int, ...], token: int) -> None:
        followers = self._table.pop(context, None) or _Followers()
        followers.add(token)
        self._table[context] = followers
