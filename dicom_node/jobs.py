"""Analyse jobs: the only writer of ``job``.

    queued -> running -> drafted | refused(code) | failed(reason)      lease over: claimable again

A job is one model's reading of one revision of one study. Whoever claims it holds a lease and a
token (how often the job was ever claimed); every later step names the token, so that a worker which
lost its lease can change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping, func
from sqlalchemy.dialects import postgresql

from dicom_node import events, nudges, priorities
from dicom_node.db import job
from dicom_node.errors import NodeError

#: A state nobody has left yet, or whose holder is gone.
_CLAIMABLE = sa.or_(
    sa.and_(job.c.state == "queued", job.c.due_at <= func.now()),
    sa.and_(job.c.state == "running", job.c.lease_until < func.now()),
)


class LeaseLost(NodeError):
    """Another worker has taken the job since; what this one did is dropped."""

    code = "lease-lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One model's reading of one revision of one study."""

    id: int
    study_instance_uid: str
    revision: int
    model: str
    state: str
    attempts: int  #: since it was last queued from scratch
    claims: int  #: ever; never reset: the token of this claim
    choice: Mapping[str, Any] | None  #: {"sop_instance_uid", "rule"} or {"refusal": {...}}
    reason: str | None
    started_at: datetime | None  #: first claim; the draft's content date (PS3.3 C.17.2)
    due_at: datetime


def _job(row: RowMapping) -> Job:
    return Job(**{name: row[name] for name in Job.__dataclass_fields__})


def create(
    connection: Connection,
    study_instance_uid: str,
    revision: int,
    model: str,
    priority: int = priorities.ROUTINE,
) -> int | None:
    """Queue a job; ``None`` when this revision already has one for the model."""
    job_id: int | None = connection.scalar(
        postgresql.insert(job)
        .values(
            study_instance_uid=study_instance_uid,
            revision=revision,
            model=model,
            state="queued",
            priority=priority,
        )
        .on_conflict_do_nothing()
        .returning(job.c.id)
    )
    if job_id is not None:
        events.append(connection, study_instance_uid, f"job {job_id}", None, "queued")
    return job_id


def exists_for(study_instance_uid: sa.Column[str], revision: sa.Column[int]) -> sa.Exists:
    """SQL: there is a job for the study and revision of the outer query's row."""
    return sa.exists().where(
        job.c.study_instance_uid == study_instance_uid, job.c.revision == revision
    )


def claim_next(connection: Connection, job_id: int, *, lease: timedelta, worker: str) -> Job | None:
    """Take the most urgent job that is due, and of equally urgent ones the one that is named.

    A worker is told of jobs one by one, as they come; what is urgent overtakes those it was told
    of before, and each of them is taken in the end, for it is told of each.
    """
    first = (job.c.priority.desc(), job.c.id != job_id, job.c.due_at)
    query = sa.select(job.c.id).where(_CLAIMABLE).order_by(*first).limit(1)
    chosen = connection.scalar(query.with_for_update(skip_locked=True))
    return None if chosen is None else claim(connection, chosen, lease=lease, worker=worker)


def claim(connection: Connection, job_id: int, *, lease: timedelta, worker: str) -> Job | None:
    """Take the job if it is free; ``None`` means another worker has it, or it is done."""
    row = (
        connection.execute(
            sa.update(job)
            .where(job.c.id == job_id, _CLAIMABLE)
            .values(
                state="running",
                attempts=job.c.attempts + 1,
                claims=job.c.claims + 1,
                worker=worker,
                lease_until=func.now() + lease,
                started_at=func.coalesce(job.c.started_at, func.now()),
                reason=None,
            )
            .returning(job)
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        return None
    claimed = _job(row)
    events.append(
        connection,
        claimed.study_instance_uid,
        f"job {job_id}",
        "queued" if claimed.attempts == 1 else "queued again",
        "running",
        f"attempt {claimed.attempts}",
    )
    return claimed


def renew(connection: Connection, held: Job, *, lease: timedelta) -> bool:
    """Keep the lease; False: it was lost."""
    return bool(
        connection.execute(
            sa.update(job).where(*_held(held)).values(lease_until=func.now() + lease)
        ).rowcount
    )


def drafted(
    connection: Connection, held: Job, choice: Mapping[str, Any], reason: str | None = None
) -> None:
    """The job has its draft (or the study's present draft still stands: ``reason`` says so)."""
    _end(connection, held, "drafted", reason, choice)


def refuse(connection: Connection, held: Job, code: str, text: str) -> None:
    """Nothing here to read: pixel-pipeline 2.1 code and the sentence that explains it."""
    choice = {"refusal": {"code": code, "text": text}}
    _end(connection, held, "refused", f"{code}: {text}", choice)


def fail(connection: Connection, held: Job, code: str, text: str) -> None:
    """The job can't be done; a person must look (``dicom-node retry`` queues it again)."""
    _end(connection, held, "failed", f"{code}: {text}", None)


def retry_later(connection: Connection, held: Job, delay: timedelta, reason: str) -> None:
    """Try again after ``delay``; the attempt counts."""
    _requeue(connection, held, func.now() + delay, reason, attempts=held.attempts)


def defer(connection: Connection, held: Job, until: datetime, reason: str) -> None:
    """Not ready yet: look again at ``until``; the attempt does not count."""
    _requeue(connection, held, until, reason, attempts=0)


def _requeue(
    connection: Connection, held: Job, due_at: object, reason: str, *, attempts: int
) -> None:
    values = {"state": "queued", "due_at": due_at, "nudged_at": None, "attempts": attempts}
    _advance(connection, held, "queued", reason, values)


def _end(
    connection: Connection,
    held: Job,
    state: str,
    reason: str | None,
    choice: Mapping[str, Any] | None,
) -> None:
    values: dict[str, object] = {"state": state, "choice": choice, "ended_at": func.now()}
    _advance(connection, held, state, reason, values)


def _advance(
    connection: Connection, held: Job, state: str, reason: str | None, values: dict[str, object]
) -> None:
    changed = connection.execute(
        sa.update(job).where(*_held(held)).values(**values, reason=reason, lease_until=None)
    ).rowcount
    if not changed:
        raise LeaseLost(f"job {held.id}: claim {held.claims} no longer holds it")
    events.append(connection, held.study_instance_uid, f"job {held.id}", "running", state, reason)


def _held(held: Job) -> tuple[sa.ColumnElement[bool], ...]:
    return (job.c.id == held.id, job.c.state == "running", job.c.claims == held.claims)


def give_up(connection: Connection, *, max_attempts: int) -> list[int]:
    """Fail the jobs whose workers died ``max_attempts`` times (a decoder that eats the process)."""
    reason = f"crashed: the worker died {max_attempts} times on this job"
    rows = connection.execute(
        sa.update(job)
        .where(
            job.c.state == "running",
            job.c.lease_until < func.now(),
            job.c.attempts >= max_attempts,
        )
        .values(state="failed", reason=reason, lease_until=None, ended_at=func.now())
        .returning(job.c.id, job.c.study_instance_uid)
    ).all()
    for job_id, study_instance_uid in rows:
        events.append(connection, study_instance_uid, f"job {job_id}", "running", "failed", reason)
    return [job_id for job_id, _ in rows]


def nudge(connection: Connection, *, every: timedelta) -> list[int]:
    """The due jobs nobody was told of within ``every``, the longest due first.

    Tell a worker: a lost nudge heals here.
    """
    return nudges.mark(connection, job, _CLAIMABLE, every=every)


def requeue_ended(connection: Connection, *, study_instance_uid: str | None) -> list[int]:
    """Queue ended jobs again: the latest of one study, or every failed one (``None``)."""
    chosen = sa.select(func.max(job.c.id)).group_by(job.c.study_instance_uid, job.c.model)
    which: list[sa.ColumnElement[bool]] = [job.c.id.in_(chosen.scalar_subquery())]
    if study_instance_uid is None:
        which.append(job.c.state == "failed")
    else:
        which.append(job.c.study_instance_uid == study_instance_uid)
        which.append(job.c.state.in_(("failed", "refused", "drafted")))
    rows = connection.execute(
        sa.update(job)
        .where(*which)
        .values(
            state="queued",
            attempts=0,
            started_at=None,  # a person asked for a new analysis: its draft is of that time
            due_at=func.now(),
            nudged_at=None,
            reason=None,
            choice=None,
        )
        .returning(job.c.id, job.c.study_instance_uid)
    ).all()
    for job_id, uid in rows:
        events.append(connection, uid, f"job {job_id}", "ended", "queued", "retry")
    return [job_id for job_id, _ in rows]


def of_study(connection: Connection, study_instance_uid: str) -> list[Job]:
    """All jobs of a study, oldest first."""
    rows = connection.execute(
        sa.select(job).where(job.c.study_instance_uid == study_instance_uid).order_by(job.c.id)
    )
    return [_job(row) for row in rows.mappings()]
