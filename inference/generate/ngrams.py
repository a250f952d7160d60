"""Drafts of the next tokens from this node's own past reports.

A table of what followed each context, long and short, mixed by how often each was seen. A wrong
draft costs time and never changes the text, because the model checks every token. Figures:
serving.md section 5 and docs/benchmarks.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from inference.llama import BOS_ID, EOS_ID

LENGTHS = (1, 2, 3, 4, 6, 8)  # tokens of context, start marker included; 5 and 7 add nothing
CAPACITY = 200_000  # contexts; 2,000 reports make 167,000

# A context counts for as much as the shorter ones together once it was seen this often (Jelinek and
# Mercer's mixing, with weights by frequency as in Witten and Bell's).
PRIOR = 4


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

    def mix(self, token: int, shorter: float) -> float:
        """How likely a token is, from how likely shorter contexts say it is."""
        return (self.counts[token] + PRIOR * shorter) / (self.total + PRIOR)

    def add(self, token: int) -> None:
        self.total += 1
        self.counts[token] += 1
        if self.counts[token] >= self.counts[self.most]:  # ties: the newest
            self.most = token


class Ngrams:
    """Context of one to eight tokens -> what followed it how often."""

    def __init__(self, capacity: int = CAPACITY, *, least_likely: float = 0.0) -> None:
        """``least_likely``: a chain ends before it becomes less likely than this to be right."""
        self.capacity = capacity
        self.least_likely = least_likely
        self._table: dict[tuple[int, ...], _Followers] = {}  # least recently learnt first

    def __len__(self) -> int:
        return len(self._table)

    def propose(self, ids: Sequence[int], tokens: int) -> list[int]:
        """Chain at most ``tokens`` guesses; none follows EOS, an unknown or a doubtful context."""
        text = (BOS_ID, *ids)[-LENGTHS[-1] :]
        draft: list[int] = []
        likelihood = 1.0
        while len(draft) < tokens and EOS_ID not in draft:
            token, share = self._likeliest(text)
            likelihood *= share
            if not share or likelihood < self.least_likely:
                break
            draft.append(token)
            text = (*text, token)
        return draft

    def learn(self, ids: Sequence[int]) -> None:
        """Count what followed what; contexts not met for longest give way."""
        text = (BOS_ID, *ids, EOS_ID)
        for end in range(1, len(text)):
            for context in _contexts(text[:end]):
                followers = self._table.pop(context, None) or _Followers()
                followers.add(text[end])
                self._table[context] = followers
        surplus = max(0, len(self) - self.capacity)
        for context in list(islice(self._table, surplus)):
            del self._table[context]

    def _likeliest(self, text: tuple[int, ...]) -> tuple[int, float]:
        """The next token and its share; the share is 0 when nothing is known.

        Looks at what is the most frequent follower of some context: the rest is never worth it.
        """
        known = [found for context in _contexts(text) if (found := self._table.get(context))]
        best, most = EOS_ID, 0.0
        for token in {followers.most for followers in known}:
            share = 0.0
            for followers in known:  # from the shortest to the longest
                share = followers.mix(token, share)
            if share > most:
                best, most = token, share
        return best, most


def _contexts(text: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Ends of a text, the shortest first."""
    for length in LENGTHS:
        if length <= len(text):
            yield text[-length:]
