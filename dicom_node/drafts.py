"""Drafts as they were kept: the only writer of ``draft``. A draft is never changed or deleted.

One reading of a study gives one draft of each kind that the site wants; together they are live
until a later reading supersedes all of them. An alternative says the same as its draft, in an
object that a certain peer takes; it is live when its draft is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping
from sqlalchemy.dialects import postgresql

from dicom_node.config import KINDS
from dicom_node.db import draft


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """One result object: its bytes are at ``path``, what it was made from in ``record``."""

    sop_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    study_instance_uid: str
    job_id: int
    model: str
    kind: str  #: text_sr, ...: see ``config.KINDS``
    version: int
    text: str  #: the model's findings, verbatim; empty: a status SR
    inputs: Sequence[Mapping[str, Any]]  #: [{"sop_instance_uid", "sha256"}]
    record: Mapping[str, Any]  #: results.record.DraftRecord as JSON
    path: str  #: relative to the data folder
    sha256: str
    superseded_by: str | None = None
    alternative_of: str | None = None
    created_at: datetime | None = None


def _draft(row: RowMapping) -> Draft:
    return Draft(**{name: row[name] for name in Draft.__dataclass_fields__})


def keep(connection: Connection, *new: Draft) -> Sequence[str]:
    """Write down the drafts of one reading; returns those that they supersede.

    Everything that was live of the study and model gives way: to the new draft of its kind, or to
    the first of the new ones where its kind is no longer made.
    """
    connection.execute(sa.insert(draft), [_values(one) for one in new])
    first = new[0]
    of_kind = {one.kind: one.sop_instance_uid for one in new}
    before = live(connection, first.study_instance_uid, model=first.model)
    superseded = [old for old in before if old.sop_instance_uid not in of_kind.values()]
    for old in superseded:
        connection.execute(
            sa.update(draft)
            .where(draft.c.sop_instance_uid == old.sop_instance_uid)
            .values(superseded_by=of_kind.get(old.kind, first.sop_instance_uid))
        )
    return [old.sop_instance_uid for old in superseded]


def keep_alternative(connection: Connection, new: Draft) -> None:
    """Write down another object that says what a draft says; a second time changes nothing."""
    if new.alternative_of is None:
        raise ValueError("an alternative names its draft")
    insert = postgresql.insert(draft).values(_values(new))
    connection.execute(insert.on_conflict_do_nothing())


def _values(new: Draft) -> dict[str, Any]:
    values = {name: getattr(new, name) for name in Draft.__dataclass_fields__}
    del values["created_at"]
    return values


def live(
    connection: Connection, study_instance_uid: str, *, model: str | None = None
) -> Sequence[Draft]:
    """The drafts of a study that nothing supersedes: the latest reading's, in kinds' order."""
    kinds = sa.cast(postgresql.array(KINDS), postgresql.ARRAY(sa.Text))
    query = (
        sa.select(draft)
        .where(
            draft.c.study_instance_uid == study_instance_uid,
            draft.c.superseded_by.is_(None),
            draft.c.alternative_of.is_(None),
        )
        .order_by(draft.c.created_at.desc(), sa.func.array_position(kinds, draft.c.kind))
    )
    if model is not None:
        query = query.where(draft.c.model == model)
    return [_draft(row) for row in connection.execute(query).mappings()]


def current(
    connection: Connection, study_instance_uid: str, *, model: str | None = None
) -> Draft | None:
    """The draft that stands for a study: of its live ones, the latest and most readable."""
    return next(iter(live(connection, study_instance_uid, model=model)), None)


def alternatives(connection: Connection, draft_uid: str) -> Sequence[Draft]:
    """What was made for peers that do not take the draft."""
    rows = connection.execute(sa.select(draft).where(draft.c.alternative_of == draft_uid))
    return [_draft(row) for row in rows.mappings()]


def find(connection: Connection, sop_instance_uid: str) -> Draft | None:
    """The draft with that SOP Instance UID."""
    row = connection.execute(sa.select(draft).where(draft.c.sop_instance_uid == sop_instance_uid))
    found = row.mappings().one_or_none()
    return _draft(found) if found else None


def texts(connection: Connection, *, digest: str, limit: int) -> Sequence[str]:
    """What the model with these weights wrote lately, the oldest first; superseded drafts too."""
    each = (
        sa.select(draft.c.text, draft.c.created_at)
        .ext(postgresql.distinct_on(draft.c.job_id))
        .where(draft.c.record["algorithm"]["digest"].astext == digest, draft.c.text != "")
        .order_by(draft.c.job_id, draft.c.created_at)
        .subquery()
    )
    newest = sa.select(each).order_by(each.c.created_at.desc()).limit(limit).subquery()
    return connection.scalars(sa.select(newest.c.text).order_by(newest.c.created_at)).all()


def of_study(connection: Connection, study_instance_uid: str) -> list[Draft]:
    """All drafts of a study with their alternatives, oldest first."""
    rows = connection.execute(
        sa.select(draft)
        .where(draft.c.study_instance_uid == study_instance_uid)
        .order_by(draft.c.created_at, draft.c.sop_instance_uid)
    )
    return [_draft(row) for row in rows.mappings()]
