"""What radiologists made of the drafts, summed up by model version and week."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean, median

from dicom_node.labeler import Label
from dicom_node.reports.compare import Comparison, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A draft that was live when the final report came, and that report."""

    algorithm_name: str
    algorithm_version: str
    digest: str  #: of the weights
    at: datetime  #: when the final report came; has a time zone
    comparison: Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCounts:
    """How often a label was present in both texts, in one or contradicted by the other."""

    agreed: int
    missed: int
    added: int
    contradicted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model version in one week; ``dataclasses.asdict`` of it is JSON."""

    algorithm_name: str
    algorithm_version: str
    digest: str
    week: str  #: ISO 8601, in UTC: 2026-W07
    n: int
    accepted: int
    edited: int
    rejected: int
    mean_distance: float
    median_distance: float
    labels: Mapping[str, LabelCounts]  #: only those that were present somewhere
    f1: float | None  #: micro, of present labels; None where neither text has any


def summarise(pairs: Iterable[Pair]) -> list[Row]:
    """Sum up pairs, earliest week first; pure, and the order of the pairs does not matter."""
    groups: dict[tuple[str, str, str, str], list[Comparison]] = {}
    for pair in pairs:
        names = (_week(pair.at), pair.algorithm_name, pair.algorithm_version, pair.digest)
        groups.setdefault(names, []).append(pair.comparison)
    return [_row(names, groups[names]) for names in sorted(groups)]


def _row(names: tuple[str, str, str, str], comparisons: Sequence[Comparison]) -> Row:
    week, name, version, digest = names
    distances = [one.distance for one in comparisons]
    outcomes: Counter[Outcome] = Counter(one.outcome for one in comparisons)
    labels = _labels(comparisons)
    return Row(
        algorithm_name=name,
        algorithm_version=version,
        digest=digest,
        week=week,
        n=len(comparisons),
        accepted=outcomes["accepted"],
        edited=outcomes["edited"],
        rejected=outcomes["rejected"],
        mean_distance=fmean(distances),
        median_distance=median(distances),
        labels=labels,
        f1=_f1(labels.values()),
    )


def _week(at: datetime) -> str:
    year, week, _ = at.astimezone(UTC).isocalendar()
    return f"{year:04}-W{week:02}"


def _labels(comparisons: Sequence[Comparison]) -> dict[str, LabelCounts]:
    agreed = Counter(label for one in comparisons for label in one.agreed)
    missed = Counter(label for one in comparisons for label in one.missed)
    added = Counter(label for one in comparisons for label in one.added)
    contradicted = Counter(label for one in comparisons for label in one.contradicted)
    return {
        label.value: LabelCounts(
            agreed=agreed[label],
            missed=missed[label],
            added=added[label],
            contradicted=contradicted[label],
        )
        for label in Label
        if agreed[label] or missed[label] or added[label]
    }


def _f1(counts: Iterable[LabelCounts]) -> float | None:
    """Return 2 TP / (2 TP + FN + FP) over all labels, the final report taken for the truth."""
    every = list(counts)
    agreed = sum(one.agreed for one in every)
    mistaken = sum(one.missed + one.added for one in every)
    return 2 * agreed / (2 * agreed + mistaken) if agreed or mistaken else None
