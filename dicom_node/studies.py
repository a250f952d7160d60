"""Studies and their instances: the only writer of ``study`` and ``instance``.

    study: receiving --quiet--> complete --late instance--> receiving (revision + 1)

A study may be read as soon as an image that could be read is there and the sender has paused
(``ready_seconds``); it is complete after ``quiet_seconds`` of silence. The end of an association
completes nothing: senders split studies over associations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping, func

from dicom_node import events, fetches, jobs, orders, priorities
from dicom_node.db import Database, instance, study
from dicom_node.errors import OutOfResources
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A stored instance, and how long its study may still be looked forward to."""

    stored: StoredInstance
    quiet: timedelta  #: the study is complete after this much silence
    ready: timedelta  #: and may be read after this much


def register(connection: Connection, arrivals: Sequence[Arrival]) -> int:
    """Write instances down; how many of them were not here yet, byte for byte.

    One round trip: the work is done by a function in the database, which takes each study's row
    lock first. What a worker reads under the same lock (:func:`snapshot`) either holds an
    instance, or that instance begins a new revision. tests/dicom_node/registering.py is the same
    in plain Python, and the specification.

    Raises
    ------
    OutOfResources
        The file of one was deleted since it came first: ``retention.restore`` it before.
    """
    found = connection.exec_driver_sql(_REGISTER.format("%s"), (_encoded(arrivals),)).scalar_one()
    if found["gone"]:
        raise OutOfResources("what came again was deleted")
    return int(found["written"])


class Arrivals:
    """:func:`register` over a connection of its own, each call its own transaction.

    For one thread at a time.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept = database.kept_connection()

    def register(
        self, arrivals: Sequence[Arrival], meanwhile: Callable[[], None]
    ) -> Sequence[Arrival]:
        """Write instances down, durably; all but those whose file was deleted since they came.

        Those are returned: ``retention.restore`` looks for their files.

        Parameters
        ----------
        meanwhile
            Puts their files in place; nothing is committed before it has returned.

        Raises
        ------
        OutOfResources
            The database is away.
        """
        # Twice does no harm: the same bytes are here already.
        found = self._kept.run(_REGISTER.format("$1"), (_encoded(arrivals),), meanwhile)
        return [arrivals[place] for place in found["gone"]]

    def cut_if_hung(self, seconds: float) -> None:
        """Give up on a database that does not answer for so long; from any thread."""
        self._kept.cut_if_hung(seconds)

    def close(self) -> None:
        """Close the connection."""
        self._kept.close()


_REGISTER = "SELECT register_instances({}::jsonb)"


def _encoded(arrivals: Sequence[Arrival]) -> str:
    return json.dumps([_arrival(one) for one in arrivals])


def _arrival(arrival: Arrival) -> dict[str, object]:
    stored = arrival.stored
    values = {
        name: getattr(stored, name)
        for name in StoredInstance.__dataclass_fields__
        if name != "identity"
    }
    identity = {name: getattr(stored.identity, name) for name in Identity.__dataclass_fields__}
    return {
        **values,
        **identity,
        # A report says nothing of whose study it is: it may be of another patient.
        "is_report": stored.sop_class_uid in STRUCTURED_REPORTS,
        "quiet": f"{arrival.quiet.total_seconds()} s",
        "ready": f"{arrival.ready.total_seconds()} s",
    }


def settle(
    connection: Connection,
    models: Iterable[str],
    completing: Callable[[Connection, str], None] | None = None,
) -> int:
    """Queue jobs for studies that are ready, complete those that are quiet; how many moved.

    One that we fetched as an earlier study of a patient gets no job: it is not to be read.

    ``completing`` is told each Study Instance UID before the completion has its event.
    """
    models = tuple(models)
    moved = 0
    for row in connection.execute(_ready()).mappings():
        moved += sum(_queue(connection, _study(row), model) for model in models)
    for row in connection.execute(_complete()).mappings():
        quiet = _study(row)
        if completing is not None:
            completing(connection, quiet.study_instance_uid)
        moved += 1 + _completed(connection, quiet, models)
    return moved


def _completed(connection: Connection, quiet: Study, models: Sequence[str]) -> int:
    """How many jobs it got."""
    uid = quiet.study_instance_uid
    is_prior = connection.scalar(sa.select(fetches.is_prior(uid)))
    reason = "an earlier study of its patient, fetched to compare with: not read"
    events.append(connection, uid, "study", "receiving", "complete", reason if is_prior else None)
    return 0 if is_prior else sum(_queue(connection, quiet, model) for model in models)


def _queue(connection: Connection, quiet: Study, model: str) -> bool:
    uid = quiet.study_instance_uid
    order = orders.find(connection, uid)
    priority = order.priority if order else priorities.ROUTINE
    return jobs.create(connection, uid, quiet.revision, model, priority) is not None


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
            ~fetches.is_prior(study.c.study_instance_uid),
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


def identity(connection: Connection, study_instance_uid: str) -> Identity:
    """Whose study it is, in keys; empty where nothing has told yet."""
    names = [*Identity.__dataclass_fields__]
    columns = [study.c[name] for name in names]
    row = connection.execute(
        sa.select(*columns).where(study.c.study_instance_uid == study_instance_uid)
    ).one_or_none()
    return Identity(**{name: value or "" for name, value in zip(names, row or (), strict=False)})


def newest(connection: Connection, *, state: str | None, limit: int) -> list[Study]:
    """Studies, the latest received first."""
    query = sa.select(study).order_by(study.c.received_at.desc()).limit(limit)
    if state is not None:
        query = query.where(study.c.state == state)
    return [_study(row) for row in connection.execute(query).mappings()]
