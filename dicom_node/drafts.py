"""Drafts as they were kept: the only writer of ``draft``. A draft is never changed or deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping

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
    kind: str  #: text_sr, ...
    version: int
    text: str  #: the model's findings, verbatim
    inputs: Sequence[Mapping[str, Any]]  #: [{"sop_instance_uid", "sha256"}]
    record: Mapping[str, Any]  #: results.record.DraftRecord as JSON
    path: str  #: relative to the data folder
    sha256: str
    superseded_by: str | None = None
    created_at: datetime | None = None


def _draft(row: RowMapping) -> Draft:
    return Draft(**{name: row[name] for name in Draft.__dataclass_fields__})


def keep(connection: Connection, new: Draft) -> Sequence[str]:
    """Write a draft down; returns the drafts of the study, model and kind that it supersedes."""
    values = {name: getattr(new, name) for name in Draft.__dataclass_fields__}
    del values["created_at"]
    connection.execute(sa.insert(draft).values(values))
    return connection.scalars(
        sa.update(draft)
        .where(
            draft.c.study_instance_uid == new.study_instance_uid,
            draft.c.model == new.model,
            draft.c.kind == new.kind,
            draft.c.sop_instance_uid != new.sop_instance_uid,
            draft.c.superseded_by.is_(None),
        )
        .values(superseded_by=new.sop_instance_uid)
        .returning(draft.c.sop_instance_uid)
    ).all()


def current(
    connection: Connection, study_instance_uid: str, *, model: str | None = None
) -> Draft | None:
    """The live draft of a study: the one nothing supersedes."""
    query = (
        sa.select(draft)
        .where(draft.c.study_instance_uid == study_instance_uid, draft.c.superseded_by.is_(None))
        .order_by(draft.c.created_at.desc())
        .limit(1)
    )
    if model is not None:
        query = query.where(draft.c.model == model)
    row = connection.execute(query).mappings().one_or_none()
    return _draft(row) if row else None


def find(connection: Connection, sop_instance_uid: str) -> Draft | None:
    """The draft with that SOP Instance UID."""
    row = connection.execute(sa.select(draft).where(draft.c.sop_instance_uid == sop_instance_uid))
    found = row.mappings().one_or_none()
    return _draft(found) if found else None


def texts(connection: Connection, *, digest: str, limit: int) -> Sequence[str]:
    """What the model with these weights wrote lately, the oldest first; superseded drafts too."""
    newest = (
        sa.select(draft.c.text, draft.c.created_at)
        .where(draft.c.record["algorithm"]["digest"].astext == digest)
        .order_by(draft.c.created_at.desc())
        .limit(limit)
        .subquery()
    )
    return connection.scalars(sa.select(newest.c.text).order_by(newest.c.created_at)).all()


def of_study(connection: Connection, study_instance_uid: str) -> list[Draft]:
    """All drafts of a study, oldest first."""
    rows = connection.execute(
        sa.select(draft)
        .where(draft.c.study_instance_uid == study_instance_uid)
        .order_by(draft.c.created_at)
    )
    return [_draft(row) for row in rows.mappings()]
