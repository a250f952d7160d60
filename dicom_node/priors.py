"""A patient's earlier studies as we have them: those fetched to compare with, those read before."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from dicom_node import fetches, studies
from dicom_node.db import fetch, job, study
from dicom_node.identity import MIXED

HERE = "here"
#: So many are listed.
_LISTED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierStudy:
    """An earlier study of a study's patient."""

    study_instance_uid: str
    study_date: str  #: YYYYMMDD; empty: not said
    state: str  #: here; or of its fetch: due, fetching, failed
    peer: str | None  #: where it was or will be fetched; ``None``: it was sent to us
    reason: str | None  #: why it is not here


def of_study(connection: Connection, study_instance_uid: str) -> list[EarlierStudy]:
    """The patient's earlier studies, newest first; of the chest as far as we know."""
    found = {one.study_instance_uid: one for one in _received(connection, study_instance_uid)}
    for row in fetches.priors_of(connection, study_instance_uid):
        came = row.state == fetches.FETCHED
        found[row.study_instance_uid] = EarlierStudy(
            study_instance_uid=row.study_instance_uid,
            study_date=row.study_date,
            state=HERE if came else row.state,
            peer=row.peer,
            reason=None if came else row.reason,
        )
    return sorted(found.values(), key=lambda one: one.study_date, reverse=True)


def _received(connection: Connection, study_instance_uid: str) -> list[EarlierStudy]:
    """Of surely the same patient: the issuer of the id is the same too, or nobody names one."""
    of = studies.identity(connection, study_instance_uid)
    if not (of.patient_id_key and of.study_date) or MIXED in (
        of.patient_id_key,
        of.patient_issuer_key,
    ):
        return []
    uid = study.c.study_instance_uid
    read = sa.exists().where(job.c.study_instance_uid == uid, job.c.state == "drafted")
    fetched = sa.exists().where(fetch.c.study_instance_uid == uid, fetch.c.state == fetches.FETCHED)
    rows = connection.execute(
        sa.select(uid, study.c.study_date)
        .where(
            study.c.patient_id_key == of.patient_id_key,
            study.c.patient_issuer_key == of.patient_issuer_key,
            study.c.study_date < of.study_date,
            study.c.study_date != "",
            sa.or_(read, fetched),
        )
        .order_by(study.c.study_date.desc())
        .limit(_LISTED)
    )
    return [
        EarlierStudy(study_instance_uid=uid, study_date=day, state=HERE, peer=None, reason=None)
        for uid, day in rows
    ]
