"""What ``register_instances`` does (migration 0004), in plain Python: slow, and the specification.

tests/dicom_node/test_studies.py lets both do the same and compares what is then in the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping, func
from sqlalchemy.dialects import postgresql

from dicom_node import events
from dicom_node.db import instance, job, study
from dicom_node.identity import MIXED
from dicom_node.storage import Identity, StoredInstance
from dicom_node.studies import STRUCTURED_REPORTS, Arrival


def register(connection: Connection, arrivals: Sequence[Arrival]) -> tuple[int, list[int]]:
    """Write instances down: how many were new, and which ones' files may have been deleted."""
    written, gone = 0, []
    by_study = sorted(enumerate(arrivals), key=lambda one: one[1].stored.study_instance_uid)
    for place, arrival in by_study:
        before = _lock(connection, arrival.stored)
        if before["state"] == "deleting" or _is_deleted(connection, arrival.stored):
            gone.append(place)
            continue
        _tell(connection, before, arrival.stored)
        if _add(connection, arrival.stored):
            written += 1
            _receiving(connection, before, arrival)
    return written, gone


def _lock(connection: Connection, stored: StoredInstance) -> RowMapping:
    """The study's row, made where there is none, and nobody else's until the transaction ends."""
    new = {"study_instance_uid": stored.study_instance_uid, "patient_key": stored.patient_key}
    connection.execute(
        postgresql.insert(study).values(**new, state="new", revision=1).on_conflict_do_nothing()
    )
    mine = study.c.study_instance_uid == stored.study_instance_uid
    return connection.execute(sa.select(study).where(mine).with_for_update()).mappings().one()


def _same_instance(stored: StoredInstance) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        instance.c.study_instance_uid == stored.study_instance_uid,
        instance.c.sop_instance_uid == stored.sop_instance_uid,
    )


def _is_deleted(connection: Connection, stored: StoredInstance) -> bool:
    """Was the file of these very bytes deleted?"""
    marked = sa.exists().where(
        *_same_instance(stored),
        instance.c.path == stored.path,
        instance.c.pixels_deleted_at.is_not(None),
    )
    return bool(connection.scalar(sa.select(marked)))


def _tell(connection: Connection, before: RowMapping, stored: StoredInstance) -> None:
    """Whose study it is: the first that says something is believed; a report says nothing.

    Two patients in one study are a fault that nobody here can mend: then it has no patient.
    """
    if stored.sop_class_uid in STRUCTURED_REPORTS:
        return
    told = {}
    for name in Identity.__dataclass_fields__:
        known, said = before[name], getattr(stored.identity, name)
        told[name] = known or said
        if known and said and known != said and name.startswith("patient"):
            told[name] = MIXED
    _change(connection, before, told)


def _change(connection: Connection, before: RowMapping, values: dict[str, object]) -> None:
    mine = study.c.study_instance_uid == before["study_instance_uid"]
    connection.execute(sa.update(study).where(mine).values(values))


def _add(connection: Connection, stored: StoredInstance) -> bool:
    """Write the instance down, unless it is here byte for byte."""
    revisions = sa.select(instance).where(*_same_instance(stored)).order_by(instance.c.revision)
    latest = connection.execute(revisions).mappings().all()[-1:]
    if latest and latest[0]["sha256"] == stored.sha256:
        return False
    revision = latest[0]["revision"] + 1 if latest else 1
    names = [name for name in StoredInstance.__dataclass_fields__ if name in instance.c]
    values = {name: getattr(stored, name) for name in names}
    connection.execute(sa.insert(instance).values(**values, revision=revision))
    if latest:
        events.append(
            connection,
            stored.study_instance_uid,
            f"instance {stored.sop_instance_uid}",
            f"revision {revision - 1}",
            f"revision {revision}",
            "WARNING: other bytes came under a SOP Instance UID that was already here",
        )
    return True


def _receiving(connection: Connection, before: RowMapping, arrival: Arrival) -> None:
    """The study receives; where a worker has begun to read it, its next revision does."""
    late = _has_started(connection, before)
    times = {
        "received_at": func.now(),
        "ready_at": func.now() + arrival.ready,
        "settle_at": func.now() + arrival.quiet,
    }
    revision = before["revision"] + int(late)
    changed = {"state": "receiving", "has_pixels": True, "revision": revision, **times}
    _change(connection, before, changed)
    _hasten(connection, before, arrival.ready)
    if late or before["state"] != "receiving":
        former = None if before["state"] == "new" else before["state"]
        reason = f"late instance: revision {revision}" if late else None
        uid = before["study_instance_uid"]
        events.append(connection, uid, "study", former, "receiving", reason)


def _has_started(connection: Connection, before: RowMapping) -> bool:
    """Does a job for this revision run, or has one ended?"""
    started = sa.exists().where(
        job.c.study_instance_uid == before["study_instance_uid"],
        job.c.revision == before["revision"],
        job.c.state != "queued",
    )
    return bool(connection.scalar(sa.select(started)))


def _hasten(connection: Connection, before: RowMapping, ready: timedelta) -> None:
    """The new image may be what a deferred job lacks; one that failed waits for its device."""
    connection.execute(
        sa.update(job)
        .where(
            job.c.study_instance_uid == before["study_instance_uid"],
            job.c.state == "queued",
            job.c.attempts == 0,
            job.c.due_at > func.now() + ready,
        )
        .values(due_at=func.now() + ready, nudged_at=None)
    )
