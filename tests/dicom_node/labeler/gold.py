"""The labeler against gold labels: ``python -m tests.dicom_node.labeler.gold`` prints the figures.

The gold (NegBio's ``openi_gld_std14.csv``, Indiana reports) says 1 where Open-i's MeSH indexers
coded a finding, else 0: "denied", "not spoken of" or "too doubtful to code". Findings are labelled
from findings and impression together. Errors are listed by report id: texts may not be copied.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dicom_node.labeler import Finding, Presence, findings, vocabulary

REPORTS = Path(__file__).parents[4] / "shared" / "data" / "reports"
MISSING = f"no gold labels in {REPORTS}"
HALVES = ("development", "held-out")

#: column -> findings that the indexers coded by that word
COLUMNS: Mapping[str, tuple[Finding, ...]] = {
    "Atelectasis": (Finding.ATELECTASIS,),
    "Cardiomegaly": (Finding.CARDIOMEGALY,),
    "Effusion": (Finding.PLEURAL_EFFUSION,),
    "Infiltration": (Finding.INFILTRATE,),
    "Mass": (Finding.MASS,),
    "Nodule": (Finding.NODULE,),
    "Pneumonia": (Finding.PNEUMONIA,),
    "Pneumothorax": (Finding.PNEUMOTHORAX,),
    "Consolidation": (Finding.CONSOLIDATION,),
    "Edema": (Finding.EDEMA,),
    "Emphysema": (Finding.EMPHYSEMA,),
    "Fibrosis": (Finding.FIBROSIS,),
    "Pleural_Thickening": (Finding.PLEURAL_THICKENING, Finding.AIRWAY_THICKENING),
    "Hernia": (Finding.HERNIA,),
}


@dataclass(frozen=True, slots=True)
class Report:
    """One report with its gold labels."""

    uid: str
    text: str
    gold: frozenset[str]  #: columns with a 1

    @property
    def half(self) -> str:
        """Which half it is in; the rules were written looking at "development" alone."""
        return HALVES[hashlib.sha256(self.uid.encode()).digest()[0] % 2]


@dataclass(slots=True)
class Score:
    """Counts of one column."""

    hits: int = 0
    false: int = 0
    missed: int = 0

    @property
    def n(self) -> int:
        return self.hits + self.missed

    @property
    def precision(self) -> float:
        return self.hits / max(1, self.hits + self.false)

    @property
    def recall(self) -> float:
        return self.hits / max(1, self.n)

    @property
    def f1(self) -> float:
        return 2 * self.hits / max(1, 2 * self.hits + self.false + self.missed)

    def add(self, wanted: bool, given: bool) -> None:
        self.hits += wanted and given
        self.false += given and not wanted
        self.missed += wanted and not given

    def __str__(self) -> str:
        return f"{self.n:5} {self.precision:6.3f} {self.recall:6.3f} {self.f1:6.3f}"


@cache
def reports(half: str) -> tuple[Report, ...]:
    """All reports of one half that have gold labels."""
    gold = {
        row["filename"].removeprefix("CXR"): frozenset(c for c in COLUMNS if row[c] == "1")
        for row in _rows("iu_labels.csv")
    }
    rows = (row for row in _rows("iu_reports.csv") if row["uid"] in gold)
    every = (
        Report(row["uid"], f"{row['findings']}\n{row['impression']}", gold[row["uid"]])
        for row in rows
    )
    return tuple(report for report in every if report.half == half)


def positive(every: Iterable[Report]) -> dict[str, Score]:
    """PRESENT against gold 1. UNDETERMINED and ABSENT count as "not present"."""
    scores = {column: Score() for column in COLUMNS}
    for report in every:
        said = _said(report)
        for column, score in scores.items():
            score.add(column in report.gold, said.get(column) is Presence.PRESENT)
    return scores


def negated(every: Iterable[Report]) -> dict[str, Score]:
    """ABSENT against gold 0, where a phrase of the finding occurs in the report.

    UNDETERMINED is not ABSENT: with gold 0 it is a miss. What the labeler sets aside (history,
    condition) is a miss as well.
    """
    scores = {column: Score() for column in COLUMNS}
    for report in every:
        said = _said(report)
        for column in _spoken_of(report):
            scores[column].add(column not in report.gold, said.get(column) is Presence.ABSENT)
    return scores


def micro(scores: Mapping[str, Score], *, without: str = "") -> Score:
    """Sum of the columns, but for one."""
    summed = [score for column, score in scores.items() if column != without]
    return Score(
        hits=sum(score.hits for score in summed),
        false=sum(score.false for score in summed),
        missed=sum(score.missed for score in summed),
    )


def errors(every: Iterable[Report]) -> Iterator[tuple[str, str, str]]:
    """Column, kind of error and report of each difference in :func:`positive`."""
    for report in every:
        said = _said(report)
        for column in COLUMNS:
            given, wanted = said.get(column), column in report.gold
            if wanted != (given is Presence.PRESENT):
                yield column, f"gold {int(wanted)}, here {given or 'nothing'}", report.uid


def sample() -> list[tuple[str, dict[str, str]]]:
    """The sample of the CheXpert labeler: text, and its labels as 1.0, 0.0 or -1.0 (uncertain)."""
    rows = _rows("chexpert_sample_labels.csv")
    return [(row["Reports"], row) for row in rows]


def _said(report: Report) -> dict[str, Presence]:
    found = findings(report.text)
    order = (Presence.PRESENT, Presence.UNDETERMINED, Presence.ABSENT)
    said = {c: {found[f] for f in fs if f in found} for c, fs in COLUMNS.items()}
    return {c: min(given, key=order.index) for c, given in said.items() if given}


def _spoken_of(report: Report) -> list[str]:
    named = {found.finding for found in vocabulary.named(report.text)}
    return [column for column, of in COLUMNS.items() if named.intersection(of)]


def _rows(name: str) -> list[dict[str, str]]:
    with (REPORTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def _print(half: str) -> None:
    every = reports(half)
    for title, scores in (("PRESENT", positive(every)), ("ABSENT", negated(every))):
        print(
            f"\n{half}, {len(every)} reports: {title}\n{'':20} {'n':>5} {'P':>6} {'R':>6} {'F1':>6}"
        )
        # No report has a 1 in the column Hernia, not even those that the indexers coded so.
        sums = {"micro": micro(scores), "micro but Hernia": micro(scores, without="Hernia")}
        for column, score in {**scores, **sums}.items():
            print(f"{column:20} {score}")


def main() -> None:
    """Print the tables of both halves, and the errors of the half that may be looked at."""
    for half in HALVES:
        _print(half)
    print("\nerrors of the development half: report uids")
    listed: dict[tuple[str, str], list[str]] = {}
    for column, kind, uid in errors(reports(HALVES[0])):
        listed.setdefault((column, kind), []).append(uid)
    for (column, kind), uids in sorted(listed.items()):
        print(f"{column:20} {kind}: {' '.join(uids)}")


if __name__ == "__main__":
    main()
