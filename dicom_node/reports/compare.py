"""Draft against final report: what the radiologist kept, changed and threw away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from dicom_node import labeler
from dicom_node.labeler import Label, Presence
from dicom_node.reports.final import FinalReport

Outcome = Literal["accepted", "edited", "rejected"]

REJECTED_ABOVE = 0.5  #: distance
MAX_WORDS = 4000  #: of either text; the rest is not compared

_END_PUNCTUATION = ".,;:!?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One draft against one final report. Labels are in the order of ``Label``."""

    draft: str = field(repr=False)
    final: str = field(repr=False)  #: what was measured against: the findings, or the whole text
    impression: str = field(repr=False)  #: the final report's, with its conclusion
    distance: float  #: edit distance in words, over the words of the longer text: 0 to 1
    outcome: Outcome
    agreed: tuple[Label, ...]  #: present in both
    missed: tuple[Label, ...]  #: present in the final report, not in the draft
    added: tuple[Label, ...]  #: present in the draft, not in the final report
    contradicted: tuple[Label, ...]  #: present in the one, absent in the other


def compare(draft_text: str, final: FinalReport) -> Comparison:
    """Compare a draft's findings with a final report; pure.

    Words are measured against the findings section, where there is one; labels against the whole
    text, for a radiologist may name a finding in the impression alone. Undetermined is not present.
    """
    measured = final.sections.get("findings") or final.text
    parts = (final.sections.get("impression"), final.sections.get("conclusion"))
    ours, theirs = labeler.labels(draft_text), labeler.labels(final.text)
    distance = word_distance(draft_text, measured)
    return Comparison(
        draft=draft_text,
        final=measured,
        impression="\n".join(filter(None, parts)),
        distance=distance,
        outcome=_outcome(distance),
        agreed=_those(lambda one: _present(ours, one) and _present(theirs, one)),
        missed=_those(lambda one: _present(theirs, one) and not _present(ours, one)),
        added=_those(lambda one: _present(ours, one) and not _present(theirs, one)),
        contradicted=_those(
            lambda one: {ours.get(one), theirs.get(one)} == {Presence.PRESENT, Presence.ABSENT}
        ),
    )


def word_distance(one: str, other: str) -> float:
    """Return the edit distance of two texts in words, over the longer one's number of words.

    Case, blanks and punctuation at a word's end do not count.
    """
    first, second = _words(one), _words(other)
    return levenshtein(first, second) / max(1, len(first), len(second))


def levenshtein(first: Sequence[str], second: Sequence[str]) -> int:
    """Return how many insertions, deletions and substitutions lead from one to the other."""
    numbers = {word: number for number, word in enumerate({*first, *second})}
    columns = np.array([numbers[word] for word in second], dtype=np.int64)
    steps = np.arange(len(second) + 1)
    row = steps
    for word in first:
        below = row + 1
        below[1:] = np.minimum(below[1:], row[:-1] + (columns != numbers[word]))
        # A run of insertions: the least of what stands to the left, plus the way from there.
        row = np.minimum.accumulate(below - steps) + steps
    return int(row[-1])


def _words(text: str) -> list[str]:
    stripped = (word.rstrip(_END_PUNCTUATION) for word in text.casefold().split())
    return [word for word in stripped if word][:MAX_WORDS]


def _outcome(distance: float) -> Outcome:
    if distance == 0:
        return "accepted"
    return "edited" if distance <= REJECTED_ABOVE else "rejected"


def _present(labels: Mapping[Label, Presence], label: Label) -> bool:
    return labels.get(label) is Presence.PRESENT


def _those(holds: Callable[[Label], bool]) -> tuple[Label, ...]:
    return tuple(label for label in Label if holds(label))
