"""Cross-modal retrieval in pgvector: the only writer of ``embedding``.

Exact search by cosine (pgvector ``<=>``): 10 ms at 10,000 vectors of 512 (measured). Vectors of
different models are never compared: every row carries its model's digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import sqlalchemy as sa
from sqlalchemy import Connection

from dicom_node.db import draft, embedding, study
from inference.findings import Embedding

Kind = Literal["image", "report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One study that matches."""

    study_instance_uid: str
    kind: Kind  #: what matched: the study's image or its draft's text
    score: float  #: cosine, -1..1
    text: str  #: the study's draft
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
    Superseded drafts are left out.
    """
    distance = embedding.c.vector.cosine_distance(query.vector)
    found = (
        sa.select(
            embedding.c.study_instance_uid,
            (1 - distance).label("score"),
            draft.c.text,
            study.c.patient_key,
        )
        .join(draft, draft.c.sop_instance_uid == embedding.c.draft_uid)
        .join(study, study.c.study_instance_uid == embedding.c.study_instance_uid)
        .where(
            embedding.c.digest == query.digest,
            embedding.c.kind == kind,
            draft.c.superseded_by.is_(None),
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
            text=row.text,
            same_patient=bool(patient) and row.patient_key == patient,
        )
        for row in connection.execute(found)
    ]


def _patient_key(connection: Connection, study_instance_uid: str | None) -> str:
    query = sa.select(study.c.patient_key).where(study.c.study_instance_uid == study_instance_uid)
    return connection.scalar(query) or ""
