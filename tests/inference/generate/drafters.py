"""Sources of drafts for tests: right, noisy, wrong, none, and one that is broken."""

from __future__ import annotations

from collections.abc import Sequence

from tests.inference.plain import Case

VOCABULARY = 50


class Right:
    """Knows every answer of a pool."""

    def __init__(self, pool: Sequence[Case]) -> None:
        self.answers = [list(case.answer.ids) for case in pool]
        self.learnt: list[list[int]] = []

    def propose(self, ids: Sequence[int], tokens: int) -> list[int]:
        so_far = list(ids)
        known = (answer for answer in self.answers if answer[: len(so_far)] == so_far)
        return next(known, [])[len(so_far) :][: max(tokens, 0)]

    def learn(self, ids: Sequence[int]) -> None:
        self.learnt.append(list(ids))


class Noisy(Right):
    """Wrong at every third position of an answer."""

    def propose(self, ids: Sequence[int], tokens: int) -> list[int]:
        right = super().propose(ids, tokens)
        return [
            (token + (place % 3 == 0)) % VOCABULARY for place, token in enumerate(right, len(ids))
        ]


class Wrong(Right):
    """Never right."""

    def propose(self, ids: Sequence[int], tokens: int) -> list[int]:
        return [(token + 1) % VOCABULARY for token in super().propose(ids, tokens)]


class Silent(Right):
    """Never has a guess."""

    def propose(self, ids: Sequence[int], tokens: int) -> list[int]:
        return []


class Broken(Right):
    """Raises."""

    def propose(self, ids: Sequence[int], tokens: int) -> list[int]:
        raise LookupError("no such table")
