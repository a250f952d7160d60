"""Cross-modal retrieval in pgvector: the only writer of ``embedding``.

Exact search by cosine (pgvector ``<=>``): 10 ms at 10,000 vectors of 512 (measured). Vectors of
different models are never compared: every row carries its model's digest.

Where the radiologist's final report of a study is indexed, its text stands for the study instead of
the draft's; the image stays the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import sqlalchemy as sa
from sqlalchemy import Connection

from dicom_node.db import draft, embedding, report, study
from dicom_node.reports import store
from inference.findings import Embedding

Kind = Literal["image", "report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One study that matches."""

    study_instance_uid: str
    kind: Kind  #: what matched: the study's image or its report's text
    score: float  #: cosine, -1..1
    text: str  #: the final report, if it is what matched; else the study's draft
    same_patient: bool  #: as the study that was asked about


def write(
    connection: Connection, study_instance_uid: str, draft_uid: str, kind: Kind, vector: Embedding
) -> None:
    """Index one vector of a draft."""
    connection.execute(
        sa.insert(embedding).values(
            study_instance_uid=study_instance_uid,
            draft_uid=draft_uid,
            kind=kind,
            digest=vector.digest,
            vector=vector.vector,
        )
    )


def write_final(
    connection: Connection, study_instance_uid: str, report_id: int, vector: Embedding
) -> None:
    """Index the text of a study's final report; :func:`drop_final` what was it before."""
    connection.execute(
        sa.insert(embedding).values(
            study_instance_uid=study_instance_uid,
            report_id=report_id,
            kind="report",
            digest=vector.digest,
            vector=vector.vector,
        )
    )


def drop_final(connection: Connection, study_instance_uid: str) -> None:
    """Forget the text of a study's final report: its draft's stands again."""
    connection.execute(
        sa.delete(embedding).where(
            embedding.c.study_instance_uid == study_instance_uid,
            embedding.c.report_id.is_not(None),
        )
    )


def stored(connection: Connection, study_instance_uid: str, kind: Kind) -> Embedding | None:
    """The vector of a study's live draft."""
    row = connection.execute(
        sa.select(embedding.c.vector, embedding.c.digest)
        .join(draft, draft.c.sop_instance_uid == embedding.c.draft_uid)
        .where(
            embedding.c.study_instance_uid == study_instance_uid,
            embedding.c.kind == kind,
            draft.c.superseded_by.is_(None),
        )
        .order_by(embedding.c.id.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    return Embedding(vector=np.asarray(row.vector, dtype=np.float32), digest=row.digest)


def nearest(
    connection: Connection,
    query: Embedding,
    *,
    kind: Kind,
    limit: int,
    asked: str | None = None,
) -> list[Hit]:
    """The studies whose ``kind`` vector is nearest to ``query``, best first.

    ``asked`` is the study the query came from: it is left out, and hits of its patient are marked.
    Superseded drafts are left out, and drafts' texts where a final report's is there.
    """
    distance = embedding.c.vector.cosine_distance(query.vector)
    found = (
        sa.select(
            embedding.c.study_instance_uid,
            embedding.c.report_id,
            (1 - distance).label("score"),
            draft.c.text,
            study.c.patient_key,
        )
        .outerjoin(draft, draft.c.sop_instance_uid == embedding.c.draft_uid)
        .outerjoin(report, report.c.id == embedding.c.report_id)
        .join(study, study.c.study_instance_uid == embedding.c.study_instance_uid)
        .where(
            embedding.c.digest == query.digest,
            embedding.c.kind == kind,
            sa.or_(
                report.c.state == "matched",
                sa.and_(draft.c.superseded_by.is_(None), embedding.c.draft_uid.is_not(None)),
            ),
            sa.or_(embedding.c.report_id.is_not(None), ~_has_final(kind, query.digest)),
            embedding.c.study_instance_uid != (asked or ""),
        )
        .order_by(distance, embedding.c.id)
        .limit(limit)
    )
    patient = _patient_key(connection, asked)
    return [
        Hit(
            study_instance_uid=row.study_instance_uid,
            kind=kind,
            score=float(row.score),
            text=row.text if row.report_id is None else _final(connection, row.study_instance_uid),
            same_patient=bool(patient) and row.patient_key == patient,
        )
        for row in connection.execute(found)
    ]


def _has_final(kind: Kind, digest: str) -> sa.ColumnElement[bool]:
    """Is the final report of the draft's study in the same index?"""
    other = embedding.alias()
    return (
        sa.exists()
        .where(
            other.c.study_instance_uid == embedding.c.study_instance_uid,
            other.c.kind == kind,
            other.c.digest == digest,
            other.c.report_id == report.c.id,
            report.c.state == "matched",
        )
        .correlate(embedding)
    )


def _final(connection: Connection, study_instance_uid: str) -> str:
    current = store.current(connection, study_instance_uid)
    return current.text if current else ""  # withdrawn a moment ago


def _patient_key(connection: Connection, study_instance_uid: str | None) -> str:
    query = sa.select(study.c.patient_key).where(study.c.study_instance_uid == study_instance_uid)
    return connection.scalar(query) or ""
