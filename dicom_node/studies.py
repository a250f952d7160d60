"""Studies and their instances: the only writer of ``study`` and ``instance``.

    study: receiving --quiet--> complete --late instance--> receiving (revision + 1)

A study may be read as soon as an image that could be read is there and the sender has paused
(``ready_seconds``); it is complete after ``quiet_seconds`` of silence. The end of an association
completes nothing: senders split studies over associations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping, func
from sqlalchemy.dialects import postgresql

from dicom_node import events, jobs
from dicom_node.db import instance, study
from dicom_node.storage import Identity, StoredInstance

#: Only these can hold the image a report model reads (pixel-pipeline 2.1, NOT_IMAGE): Computed
#: Radiography, Digital X-Ray For Presentation and For Processing, Secondary Capture (PS3.4 B.5).
READABLE = (
    "1.2.840.10008.5.1.4.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.7",
)

#: Basic Text, Enhanced, Comprehensive and Comprehensive 3D SR (PS3.4 B.5): what a report may be.
STRUCTURED_REPORTS = (
    "1.2.840.10008.5.1.4.1.1.88.11",
    "1.2.840.10008.5.1.4.1.1.88.22",
    "1.2.840.10008.5.1.4.1.1.88.33",
    "1.2.840.10008.5.1.4.1.1.88.34",
)

#: In place of a key of the study: its instances name several patients.
MIXED = "mixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One study as we hold it."""

    study_instance_uid: str
    state: str  #: receiving, complete
    revision: int
    patient_key: str
    received_at: datetime  #: the latest instance
    settle_at: datetime  #: complete at this time, unless more arrives


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One stored instance, its newest revision."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    revision: int  #: above 1: other bytes came under the same UID
    path: str  #: relative to the data folder
    sha256: str
    size: int


def _study(row: RowMapping) -> Study:
    return Study(**{name: row[name] for name in Study.__dataclass_fields__})


def _instance(row: RowMapping) -> Instance:
    return Instance(**{name: row[name] for name in Instance.__dataclass_fields__})


def register(
    connection: Connection, stored: StoredInstance, *, quiet: timedelta, ready: timedelta
) -> bool:
    """Write an instance down; False when the same bytes are already here.

    Takes the study's row lock first: what a worker reads under the same lock (:func:`snapshot`)
    either holds this instance, or this instance begins a new revision.
    """
    before = _lock(connection, stored)
    latest = _latest(connection, stored)
    if latest is not None and latest.sha256 == stored.sha256:
        return False
    revision = 1 if latest is None else latest.revision + 1
    connection.execute(
        sa.insert(instance).values(
            **{
                name: getattr(stored, name)
                for name in StoredInstance.__dataclass_fields__
                if name in instance.c
            },
            revision=revision,
        )
    )
    if latest is not None:
        events.append(
            connection,
            stored.study_instance_uid,
            f"instance {stored.sop_instance_uid}",
            f"revision {latest.revision}",
            f"revision {revision}",
            "WARNING: other bytes came under a SOP Instance UID that was already here",
        )
    _receiving(connection, before, quiet, ready)
    return True


def _lock(connection: Connection, stored: StoredInstance) -> Study:
    values = {
        "study_instance_uid": stored.study_instance_uid,
        "state": "new",
        "revision": 1,
        "patient_key": stored.patient_key,
        **_identity(stored),
    }
    insert = postgresql.insert(study).values(values)
    told = _told(insert)
    row = (
        connection.execute(
            insert.on_conflict_do_update(
                index_elements=[study.c.study_instance_uid],
                set_={"study_instance_uid": insert.excluded.study_instance_uid, **told},
            ).returning(study)
        )
        .mappings()
        .one()
    )
    return _study(row)


def _identity(stored: StoredInstance) -> dict[str, str | None]:
    """What an instance says of its study; a report says nothing: it may be of another patient."""
    silent = stored.sop_class_uid in STRUCTURED_REPORTS
    return {
        name: None if silent else getattr(stored.identity, name)
        for name in Identity.__dataclass_fields__
    }


def _told(insert: postgresql.Insert) -> dict[str, sa.ColumnElement[str]]:
    """The study's identity with this instance: the first that says something is believed.

    Two patients in one study are a fault that nobody here can mend: then it has no patient.
    """
    known = {name: study.c[name] for name in Identity.__dataclass_fields__}
    said = {name: insert.excluded[name] for name in known}
    told: dict[str, sa.ColumnElement[str]] = {
        name: func.coalesce(func.nullif(known[name], ""), said[name], known[name]) for name in known
    }
    for name in ("patient_id_key", "patient_issuer_key"):
        differ = func.nullif(known[name], "") != func.nullif(said[name], "")
        told[name] = sa.case((differ, MIXED), else_=told[name])
    return told


def _latest(connection: Connection, stored: StoredInstance) -> Instance | None:
    row = connection.execute(
        sa.select(instance)
        .where(
            instance.c.study_instance_uid == stored.study_instance_uid,
            instance.c.sop_instance_uid == stored.sop_instance_uid,
        )
        .order_by(instance.c.revision.desc())
        .limit(1)
    )
    found = row.mappings().one_or_none()
    return _instance(found) if found else None


def _receiving(connection: Connection, before: Study, quiet: timedelta, ready: timedelta) -> None:
    late = jobs.has_started(connection, before.study_instance_uid, before.revision)
    ready_at = connection.scalar(
        sa.update(study)
        .where(study.c.study_instance_uid == before.study_instance_uid)
        .values(
            state="receiving",
            revision=study.c.revision + int(late),
            received_at=func.now(),
            ready_at=func.now() + ready,
            settle_at=func.now() + quiet,
        )
        .returning(study.c.ready_at)
    )
    assert ready_at is not None  # the row is locked by us
    jobs.hasten(connection, before.study_instance_uid, ready_at)
    if late or before.state != "receiving":
        reason = f"late instance: revision {before.revision + 1}" if late else None
        events.append(
            connection,
            before.study_instance_uid,
            "study",
            None if before.state == "new" else before.state,
            "receiving",
            reason,
        )


def settle(connection: Connection, models: Iterable[str]) -> int:
    """Queue jobs for studies that are ready, complete those that are quiet; how many moved."""
    models = tuple(models)
    moved = 0
    for row in connection.execute(_ready()).mappings():
        moved += sum(_queue(connection, _study(row), model) for model in models)
    for row in connection.execute(_complete()).mappings():
        quiet = _study(row)
        events.append(connection, quiet.study_instance_uid, "study", "receiving", "complete")
        moved += 1 + sum(_queue(connection, quiet, model) for model in models)
    return moved


def _queue(connection: Connection, quiet: Study, model: str) -> bool:
    return jobs.create(connection, quiet.study_instance_uid, quiet.revision, model) is not None


def _ready() -> sa.Select[tuple[object, ...]]:
    readable = sa.exists().where(
        instance.c.study_instance_uid == study.c.study_instance_uid,
        instance.c.sop_class_uid.in_(READABLE),
    )
    return (
        sa.select(study)
        .where(
            study.c.state == "receiving",
            study.c.ready_at <= func.now(),
            study.c.settle_at > func.now(),
            readable,
            ~jobs.exists_for(study.c.study_instance_uid, study.c.revision),
        )
        .with_for_update(skip_locked=True)
    )


def _complete() -> sa.UpdateBase:
    quiet = (
        sa.select(study.c.study_instance_uid)
        .where(study.c.state == "receiving", study.c.settle_at <= func.now())
        .with_for_update(skip_locked=True)
    )
    return (
        sa.update(study)
        .where(study.c.study_instance_uid.in_(quiet.scalar_subquery()))
        .values(state="complete")
        .returning(study)
    )


def snapshot(
    connection: Connection, study_instance_uid: str
) -> tuple[Study, tuple[Instance, ...]] | None:
    """The study and its instances under the study's lock (see :func:`register`)."""
    row = (
        connection.execute(
            sa.select(study)
            .where(study.c.study_instance_uid == study_instance_uid)
            .with_for_update()
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        return None
    return _study(row), instances(connection, study_instance_uid)


def instances(connection: Connection, study_instance_uid: str) -> tuple[Instance, ...]:
    """The newest revision of each instance, by series and SOP Instance UID."""
    query = sa.select(instance).where(instance.c.study_instance_uid == study_instance_uid)
    rows = connection.execute(query.order_by(instance.c.revision)).mappings()
    newest = {row["sop_instance_uid"]: _instance(row) for row in rows}
    place = attrgetter("series_instance_uid", "sop_instance_uid")
    return tuple(sorted(newest.values(), key=place))


def find(connection: Connection, study_instance_uid: str) -> Study | None:
    """The study, without a lock."""
    row = connection.execute(
        sa.select(study).where(study.c.study_instance_uid == study_instance_uid)
    )
    found = row.mappings().one_or_none()
    return _study(found) if found else None


def newest(connection: Connection, *, state: str | None, limit: int) -> list[Study]:
    """Studies, the latest received first."""
    query = sa.select(study).order_by(study.c.received_at.desc()).limit(limit)
    if state is not None:
        query = query.where(study.c.state == state)
    return [_study(row) for row in connection.execute(query).mappings()]
