"""Final reports as they were kept: the only writer of ``report``.

Every version that came is a row that stays. Which of them a study's report is now, is worked out
from all of them (:func:`standing`): nothing is overwritten when a correction comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping, func
from sqlalchemy.dialects import postgresql

from dicom_node import events, nudges, studies
from dicom_node.db import instance, report, study
from dicom_node.reports.final import Claim, FinalReport, Section, Source, Verdict
from dicom_node.reports.matching import Claimed, Outcome, claimed
from dicom_node.storage import Identity

#: So long after a study's last instance its reports are looked for again: far more than a
#: transaction takes that began before the instance's and did not see it.
_OVERLAP = timedelta(minutes=1)
#: Studies that got an instance within this time may have reports waiting.
_RECENT = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """One report that was read, and where its bytes are."""

    final: FinalReport
    part: int = 0  #: which of the reports in its file
    sha256: str  #: of the file
    path: str  #: relative to the data folder
    received_at: datetime | None = None  #: None: now


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One report as we hold it."""

    id: int
    study_instance_uid: str | None
    source: Source
    source_uid: str
    state: str  #: matched, parked, ignored
    reason: str | None
    verdict: Verdict
    order_key: str
    sections: Mapping[Section, str]
    text: str
    author_role: str
    predecessors: Sequence[str]
    verified_at: datetime | None
    received_at: datetime
    indexed_at: datetime | None
    claim: Claimed

    @property
    def at(self) -> datetime:
        """When it was verified, or else came."""
        return self.verified_at or self.received_at


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentReport:
    """What the radiologist says of a study now."""

    report: Report  #: the latest final or corrected one
    addenda: Sequence[Report]  #: to it, oldest first

    @property
    def text(self) -> str:
        """The report with its addenda: what is indexed."""
        return "\n\n".join(filter(None, [self.report.text, *(one.text for one in self.addenda)]))

    def final(self) -> FinalReport:
        """The report with its addenda, as a reader would give it in one piece."""
        sections = dict(self.report.sections)
        parts = [sections.get("addendum", ""), *(one.text for one in self.addenda)]
        sections["addendum"] = "\n\n".join(filter(None, parts))
        return FinalReport(
            source=self.report.source,
            source_uid=self.report.source_uid,
            order_key=self.report.order_key,
            verdict=self.report.verdict,
            claim=Claim(),
            sections=sections,
            verified_at=self.report.verified_at,
            author_role=self.report.author_role,
        )


# -- writing ---------------------------------------------------------------------------------------


def keep(connection: Connection, new: Arrived, outcome: Outcome) -> int | None:
    """Write a report down; its id, or ``None`` when the same one is already here."""
    final, whose = new.final, claimed(new.final.claim)
    sections = {name: _clean(text) for name, text in final.sections.items()}
    values = {
        "source": final.source,
        "source_uid": _clean(final.source_uid),
        "part": new.part,
        "sha256": new.sha256,
        "path": new.path,
        "state": outcome.state,
        "study_instance_uid": outcome.study_instance_uid,
        "reason": outcome.reason or final.reason or None,
        "verdict": final.verdict,
        "order_key": final.order_key,
        "claimed_study_uid": _clean(whose.study_instance_uid),
        **{name: getattr(whose.identity, name) for name in Identity.__dataclass_fields__},
        "sections": sections,
        "text": _clean(final.text),
        "author_role": final.author_role,
        "predecessors": list(final.predecessors),
        "verified_at": final.verified_at,
    }
    if new.received_at is not None:
        values["received_at"] = new.received_at
    insert = postgresql.insert(report).values(values).on_conflict_do_nothing()
    kept_id: int | None = connection.scalar(insert.returning(report.c.id))
    if kept_id is not None:
        _tell(connection, kept_id, None, outcome, final.verdict)
    return kept_id


def settle(connection: Connection, one: Report, outcome: Outcome) -> None:
    """Write down what came of looking for the study of a report again."""
    moved = (outcome.state, outcome.study_instance_uid) != (one.state, one.study_instance_uid)
    values: dict[str, Any] = {
        "state": outcome.state,
        "study_instance_uid": outcome.study_instance_uid,
        "reason": outcome.reason,
        "tried_at": func.now(),
    }
    if moved:
        values["due_at"] = func.now()
    connection.execute(sa.update(report).where(report.c.id == one.id).values(values))
    if moved:
        _leave(connection, one, outcome)
        _tell(connection, one.id, one.state, outcome, one.verdict)


def _leave(connection: Connection, one: Report, outcome: Outcome) -> None:
    if one.study_instance_uid is not None:
        uid = one.study_instance_uid
        _index_again(connection, uid)
        events.append(connection, uid, f"report {one.id}", one.state, "parked", outcome.reason)


def _tell(
    connection: Connection, report_id: int, before: str | None, outcome: Outcome, verdict: str
) -> None:
    if outcome.study_instance_uid is not None:
        uid = outcome.study_instance_uid
        events.append(connection, uid, f"report {report_id}", before, outcome.state, verdict)


def _index_again(connection: Connection, study_instance_uid: str) -> None:
    connection.execute(
        sa.update(report)
        .where(report.c.study_instance_uid == study_instance_uid)
        .values(indexed_at=None, due_at=func.now(), nudged_at=None)
    )


def indexed(connection: Connection, reports: Iterable[Report]) -> None:
    """These reports were looked at by the index."""
    ids = [one.id for one in reports]
    connection.execute(sa.update(report).where(report.c.id.in_(ids)).values(indexed_at=func.now()))


def nudge(connection: Connection, *, every: timedelta) -> list[int]:
    """The matched reports the index has not seen, and nobody was told of within ``every``."""
    due = sa.and_(report.c.state == "matched", report.c.indexed_at.is_(None))
    return nudges.mark(connection, report, due, every=every)


def _clean(text: str) -> str:
    """The text without what Postgres can't hold: NUL and halves of characters."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


# -- reading ---------------------------------------------------------------------------------------


def current(connection: Connection, study_instance_uid: str) -> CurrentReport | None:
    """What the radiologist says of a study now; ``None``: nothing final."""
    return standing(of_study(connection, study_instance_uid))


def standing(reports: Sequence[Report]) -> CurrentReport | None:
    """Work out which of a study's reports stands; pure.

    Of the final and corrected ones the latest verified (PS3.3 C.17.2), unless another names it as
    its predecessor. An addendum is appended to the report it was written for, and never replaces
    one. A withdrawal takes all back that came before it of the same order.

    Parameters
    ----------
    reports
        The matched reports of one study, in the order in which they came.
    """
    live: list[Report] = []
    for one in reports:
        if one.verdict == "withdrawn":
            live = [other for other in live if other.order_key != one.order_key]
        else:
            live.append(one)
    finals = [one for one in live if one.verdict in ("final", "corrected")]
    replaced = {uid for one in finals for uid in one.predecessors if uid != one.source_uid}
    standing = [one for one in finals if one.source_uid not in replaced]
    if not standing:
        return None
    latest = max(standing, key=lambda one: (one.at, one.id))
    addenda = [one for one in live if one.verdict == "addendum" and _adds_to(one, latest)]
    return CurrentReport(report=latest, addenda=sorted(addenda, key=lambda one: (one.at, one.id)))


def _adds_to(addendum: Report, base: Report) -> bool:
    same_order = addendum.order_key == base.order_key
    return base.source_uid in addendum.predecessors or (same_order and addendum.at >= base.at)


def of_study(connection: Connection, study_instance_uid: str) -> list[Report]:
    """The matched reports of a study, in the order in which they came."""
    query = sa.select(report).where(report.c.study_instance_uid == study_instance_uid)
    return [_report(row) for row in connection.execute(query.order_by(report.c.id)).mappings()]


def find(connection: Connection, report_id: int) -> Report | None:
    """The report with that id."""
    query = sa.select(report).where(report.c.id == report_id)
    row = connection.execute(query).mappings().one_or_none()
    return _report(row) if row else None


def newest(connection: Connection, *, state: str | None, limit: int) -> list[Report]:
    """Reports, the latest received first."""
    query = sa.select(report).order_by(report.c.id.desc()).limit(limit)
    if state is not None:
        query = query.where(report.c.state == state)
    return [_report(row) for row in connection.execute(query).mappings()]


def studies_with_reports(connection: Connection) -> Sequence[str]:
    """The studies that a report was matched to."""
    query = sa.select(report.c.study_instance_uid).where(report.c.state == "matched").distinct()
    return cast(
        Sequence[str], connection.scalars(query.order_by(report.c.study_instance_uid)).all()
    )


def to_look_for_again(connection: Connection, *, limit: int) -> list[Report]:
    """Reports that what arrived since may concern, the longest untouched first.

    Parked ones whose study may be here now, and matched ones of a study that grew: its new images
    may say that it is another patient's.
    """
    recent = (
        sa.select(study)
        .where(sa.or_(study.c.state == "receiving", study.c.received_at > func.now() - _RECENT))
        .cte()
    )
    untried = report.c.tried_at < recent.c.received_at + _OVERLAP
    # One select for each way, for each has an index; "or" in one join has none.
    concerned = sa.union(
        *(sa.select(report.c.id).join(recent, sa.and_(one, untried)) for one in _concerns(recent))
    )
    query = (
        sa.select(report)
        .where(report.c.id.in_(concerned))
        .order_by(report.c.tried_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [_report(row) for row in connection.execute(query).mappings()]


def _concerns(recent: sa.CTE) -> Iterator[sa.ColumnElement[bool]]:
    """How a report may have to do with a study."""
    said, is_parked = recent.c, report.c.state == "parked"
    named = report.c.claimed_study_uid == said.study_instance_uid
    same_order = sa.and_(said.accession_key != "", report.c.accession_key == said.accession_key)
    same_day = sa.and_(
        said.patient_id_key != "",
        said.study_date != "",
        report.c.patient_id_key == said.patient_id_key,
        report.c.study_date == said.study_date,
    )
    for way in (named, same_order, same_day):
        yield sa.and_(is_parked, way)
    yield report.c.study_instance_uid == said.study_instance_uid


def unread(connection: Connection, *, limit: int) -> list[tuple[studies.Instance, datetime]]:
    """Received SR documents nobody has looked at, with the time they came, oldest first.

    Each gets a row when it is looked at, with the time it came; so all that came well before the
    latest of those times need not be asked for.
    """
    latest = sa.select(func.max(report.c.received_at)).where(
        report.c.source == "sr",
        report.c.path.startswith("instances/"),  # not those of `reports import`
    )
    seen = sa.exists().where(
        report.c.source == "sr",
        report.c.source_uid == instance.c.sop_instance_uid,
        report.c.sha256 == instance.c.sha256,
    )
    query = (
        sa.select(instance)
        .where(
            instance.c.sop_class_uid.in_(studies.STRUCTURED_REPORTS),
            func.coalesce(instance.c.received_at > latest.scalar_subquery() - _RECENT, True),
            ~seen,
        )
        .order_by(instance.c.received_at)
        .limit(limit)
    )
    names = studies.Instance.__dataclass_fields__
    return [
        (studies.Instance(**{name: row[name] for name in names}), row["received_at"])
        for row in connection.execute(query).mappings()
    ]


def _report(row: RowMapping) -> Report:
    plain = [name for name in Report.__dataclass_fields__ if name != "claim"]
    identity = Identity(**{name: row[name] for name in Identity.__dataclass_fields__})
    return Report(
        **{name: row[name] for name in plain},
        claim=Claimed(study_instance_uid=row["claimed_study_uid"], identity=identity),
    )
