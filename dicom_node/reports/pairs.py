"""Which draft a final report is compared with: the one that was live when the report came.

A draft that came later was not before the radiologist's eyes, and a superseded one was no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from dicom_node import drafts
from dicom_node.drafts import Draft
from dicom_node.reports import store
from dicom_node.reports.compare import Comparison, compare
from dicom_node.reports.feedback import Pair
from dicom_node.reports.store import CurrentReport, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A final report against one model's draft."""

    draft: Draft
    comparison: Comparison


def compared(
    kept: Sequence[Draft], reports: Sequence[Report]
) -> tuple[CurrentReport, list[Compared]] | None:
    """Compare a study's drafts with its final report, one of each model; ``None``: it has none.

    ``kept`` are all drafts and ``reports`` all matched reports of one study, in order of arrival.
    """
    current = store.standing(reports)
    if current is None:
        return None
    final = current.final()
    return current, [
        Compared(draft=one, comparison=compare(one.text, final))
        for one in live_at(kept, current.report)
    ]


def live_at(kept: Sequence[Draft], report: Report) -> list[Draft]:
    """The drafts that were live when a report came, one of each model."""
    made = {one.sop_instance_uid: one.created_at for one in kept}
    live: dict[str, Draft] = {}
    for one in kept:
        made_at, replaced_at = one.created_at, made.get(one.superseded_by or "")
        is_live = made_at is not None and made_at <= report.received_at
        is_past = replaced_at is not None and replaced_at <= report.received_at
        if one.text and is_live and not is_past and one.alternative_of is None:
            live.setdefault(one.model, one)  # its other kinds say the same
    return list(live.values())


def feedback(connection: Connection) -> Iterator[Pair]:
    """Every draft that a final report can be held against, study by study."""
    for uid in store.studies_with_reports(connection):
        found = compared(drafts.of_study(connection, uid), store.of_study(connection, uid))
        if found is not None:
            current, pairs = found
            yield from (_pair(current, one) for one in pairs)


def _pair(current: CurrentReport, one: Compared) -> Pair:
    algorithm: Mapping[str, Any] = one.draft.record["algorithm"]
    return Pair(
        algorithm_name=algorithm["name"],
        algorithm_version=algorithm["version"],
        digest=algorithm["digest"],
        at=current.report.received_at,
        comparison=one.comparison,
    )
