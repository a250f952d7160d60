"""How long studies are kept: of finished ones the pixels go first, then all that is known of them.

    instance:  kept --finished for pixels_days, or the disk is full--> pixels_deleted_at
    study:     complete --pixels gone, finished for metadata_days--> deleting --> no row

What somebody still works at or must look at is never deleted (:data:`_KEPT_BECAUSE`).

The row says it first: a file goes after the transaction that marks its row, under the study's row
lock. ``kill -9`` in between leaves rows marked whose files are there, and a mark at the study
(``unlinking``, ``deleting``) by which the next call finds them.

A sender may have put the same file in its place again a moment ago, and not registered it yet. It
is not registered by the usual way then, but by :func:`restore`, which takes the same lock and looks
whether the file is still there; that is why the lock is held while files go.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy import Connection, func
from sqlalchemy.dialects import postgresql

from dicom_node import disk, events, orders
from dicom_node.config import Retention, Settings
from dicom_node.db import (
    Database,
    delivery,
    draft,
    embedding,
    event,
    fetch,
    instance,
    job,
    prior_search,
    report,
    study,
)
from dicom_node.disk import Watermarks
from dicom_node.errors import OutOfResources, Unreadable
from dicom_node.storage import Storage, StoredInstance
from dicom_node.studies import READABLE, STRUCTURED_REPORTS, Instance, instances

logger = logging.getLogger(__name__)

#: Studies that one call deletes at most, of each kind.
LIMIT = 50

#: Between the end of the files and that of the rows. Who has put a file in its place before it was
#: deleted finds the marked row when he registers it; none registers an hour later.
APART = timedelta(hours=1)

Condition = sa.ColumnElement[bool]


class PixelsDeleted(Unreadable):
    """The images of the study were deleted when it was finished; they can be sent again."""

    code = "pixels.deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted:
    """What one call did."""

    pixels: int = 0  #: studies whose files went
    metadata: int = 0  #: studies of which nothing is left


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will become of one study."""

    study_instance_uid: str
    state: str
    size: int  #: bytes of the files that are there
    pixels_deleted_at: datetime | None  #: None: they are there
    pixels_go_at: datetime | None  #: earlier, if the disk is full; None: not by age
    metadata_goes_at: datetime | None
    kept_because: str | None  #: None: it is finished


# -- what is finished ------------------------------------------------------------------------------

_document, _later = instance.alias(), job.alias()
_of_study = draft.c.study_instance_uid == study.c.study_instance_uid


def _job(*states: str) -> sa.Exists:
    """There is such a job, and none after it of the same model."""
    return sa.exists().where(
        job.c.study_instance_uid == study.c.study_instance_uid,
        job.c.state.in_(states),
        ~sa.exists().where(
            _later.c.study_instance_uid == job.c.study_instance_uid,
            _later.c.model == job.c.model,
            _later.c.id > job.c.id,
        ),
    )


def _delivery(*conditions: Condition) -> sa.Exists:
    sent = sa.exists().where(delivery.c.draft_uid == draft.c.sop_instance_uid, *conditions)
    return sa.exists().where(_of_study, sent)


#: Why a study is not finished; the first that holds is told.
_REASONS: Sequence[tuple[str, Condition]] = (
    ("images are still arriving", study.c.state == "receiving"),
    ("a job waits or runs", _job("queued", "running")),
    ("a job failed", _job("failed")),
    ("a draft is on its way", _delivery(delivery.c.state.in_(("due", "sending", "sent")))),
    (
        "a draft could not be delivered",
        _delivery(delivery.c.state == "failed", draft.c.superseded_by.is_(None)),
    ),
    (
        "an SR document has not been read",
        sa.exists().where(
            _document.c.study_instance_uid == study.c.study_instance_uid,
            _document.c.sop_class_uid.in_(STRUCTURED_REPORTS),
            _document.c.pixels_deleted_at.is_(None),
            ~sa.exists().where(
                report.c.source == "sr",
                report.c.source_uid == _document.c.sop_instance_uid,
                report.c.sha256 == _document.c.sha256,
            ),
        ),
    ),
    (
        "a final report for it is parked",
        sa.exists().where(
            report.c.claimed_study_uid == study.c.study_instance_uid, report.c.state == "parked"
        ),
    ),
    (
        "a final report is not in the index",
        sa.exists().where(
            report.c.study_instance_uid == study.c.study_instance_uid,
            report.c.state == "matched",
            report.c.indexed_at.is_(None),
        ),
    ),
)
_KEPT_BECAUSE: sa.ColumnElement[str | None] = sa.case(
    *((condition, sa.literal(reason)) for reason, condition in _REASONS), else_=sa.null()
)


def _latest(time: sa.Column[object], *of: Condition) -> sa.ScalarSelect[object]:
    return sa.select(func.max(time)).where(*of).correlate(study).scalar_subquery()


#: When the last thing happened to a study; ``greatest`` leaves out what never did.
_FINISHED_AT: sa.ColumnElement[datetime] = func.greatest(
    study.c.received_at,
    _latest(job.c.ended_at, job.c.study_instance_uid == study.c.study_instance_uid),
    _latest(delivery.c.sent_at, delivery.c.draft_uid == draft.c.sop_instance_uid, _of_study),
    _latest(report.c.received_at, report.c.study_instance_uid == study.c.study_instance_uid),
)
_FINISHED = sa.and_(study.c.state == "complete", _KEPT_BECAUSE.is_(None))
_HAS_PIXELS = sa.and_(_FINISHED, study.c.has_pixels)
_unlinked = instance.alias()
_HAS_ONLY_METADATA = sa.and_(
    _FINISHED,
    ~study.c.has_pixels,
    ~study.c.unlinking,
    ~sa.exists().where(
        _unlinked.c.study_instance_uid == study.c.study_instance_uid,
        _unlinked.c.pixels_deleted_at > func.now() - APART,
    ),
)


def _older_than(days: float) -> Condition:
    return func.now() - timedelta(days=days) >= _FINISHED_AT


# -- deleting --------------------------------------------------------------------------------------


def apply(
    database: Database,
    storage: Storage,
    settings: Settings,
    watermarks: Watermarks,
    *,
    limit: int = LIMIT,
) -> Deleted:
    """Delete what is due, and finish what a process that died has begun; at most ``limit`` of each.

    By age first; then, while the disk is too full, the pixels of finished studies of any age, the
    oldest first. Where ``pixels_days`` is 0 nothing goes, however full the disk is.

    Raises
    ------
    OutOfResources
        Database or disk are away; a later call goes on.
    """
    if not storage.path("instances").is_dir():  # marked as deleted, files would come back with it
        raise OutOfResources("data folder: instances is away")
    keep = settings.retention
    pixels = metadata = 0
    if keep.pixels_days:
        pixels += _delete_aged(database, storage, keep.pixels_days, limit)
        pixels += _make_room(database, storage, watermarks, limit)
    if keep.metadata_days:
        metadata += _forget_aged(database, storage, keep.metadata_days, limit)
    _finish_begun(database, storage, limit)
    watermarks.look()
    return Deleted(pixels=pixels, metadata=metadata)


def _delete_aged(database: Database, storage: Storage, days: float, limit: int) -> int:
    due, reason = sa.and_(_HAS_PIXELS, _older_than(days)), f"finished for {days:g} days"
    found = _oldest(database, due, limit)
    return sum(_delete_pixels(database, storage, uid, due, reason) for uid in found)


def _make_room(database: Database, storage: Storage, watermarks: Watermarks, limit: int) -> int:
    """From the high mark down to the low one, over as many calls as it takes."""
    watermarks.look()
    gone = 0
    for uid in _oldest(database, _HAS_PIXELS, limit) if watermarks.pressing else ():
        gone += _delete_pixels(database, storage, uid, _HAS_PIXELS, "finished, the disk is full")
        watermarks.look()
        if not watermarks.pressing:
            break
    return gone


def _forget_aged(database: Database, storage: Storage, days: float, limit: int) -> int:
    due = sa.and_(_HAS_ONLY_METADATA, _older_than(days))
    return sum(_forget(database, storage, uid, due) for uid in _oldest(database, due, limit))


def _oldest(database: Database, due: Condition, limit: int) -> Sequence[str]:
    query = sa.select(study.c.study_instance_uid).where(due).order_by(study.c.received_at)
    with database.transaction() as connection:
        return connection.scalars(query.limit(limit)).all()


def _finish_begun(database: Database, storage: Storage, limit: int) -> None:
    for uid in _oldest(database, study.c.unlinking, limit):
        _unlink(database, storage, uid)
    for uid in _oldest(database, study.c.state == "deleting", limit):
        _erase(database, storage, uid)


def _delete_pixels(
    database: Database, storage: Storage, uid: str, due: Condition, reason: str
) -> bool:
    with database.transaction() as connection:
        if not _lock(connection, uid, due):
            return False
        connection.execute(
            sa.update(instance)
            .where(instance.c.study_instance_uid == uid, instance.c.pixels_deleted_at.is_(None))
            .values(pixels_deleted_at=func.now())
        )
        _set(connection, uid, has_pixels=False, unlinking=True)
        events.append(connection, uid, "pixels", "kept", "deleted", reason)
    _unlink(database, storage, uid)
    logger.info("study %s: pixels deleted: %s", uid, reason)
    return True


def _unlink(database: Database, storage: Storage, uid: str) -> None:
    """Delete the files of marked instances."""
    with database.transaction() as connection:
        if not _lock(connection, uid, study.c.unlinking):
            return
        marked = (instance.c.study_instance_uid == uid, instance.c.pixels_deleted_at.is_not(None))
        _remove(storage, connection.scalars(sa.select(instance.c.path).where(*marked)))
        disk.remove_if_empty(storage.path(f"instances/{uid}"))
        # The time they went, whenever they were marked: see APART.
        connection.execute(sa.update(instance).where(*marked).values(pixels_deleted_at=func.now()))
        _set(connection, uid, unlinking=False)


def _forget(database: Database, storage: Storage, uid: str, due: Condition) -> bool:
    with database.transaction() as connection:
        if not _lock(connection, uid, due):
            return False
        _set(connection, uid, state="deleting")
    _erase(database, storage, uid)
    logger.info("study %s: nothing of it is kept any more", uid)
    return True


def _erase(database: Database, storage: Storage, uid: str) -> None:
    """Delete the drafts' and reports' files of a study, then all its rows."""
    with database.transaction() as connection:
        if not _lock(connection, uid, study.c.state == "deleting"):
            return
        _park_new_reports(connection, uid)
        _remove(storage, connection.scalars(_own_files(uid)))
        disk.remove_if_empty(storage.path(f"drafts/{uid}"))
        orders.erase(connection, uid)
        for table in _TABLES:
            connection.execute(sa.delete(table).where(_belongs(table, uid)))


#: What a study has rows in, in the order in which they may go.
_TABLES = (embedding, delivery, draft, job, report, event, prior_search, fetch, instance, study)


def _park_new_reports(connection: Connection, uid: str) -> None:
    """A report that was matched since the study was marked is kept, as one without a study."""
    connection.execute(
        sa.update(report)
        .where(report.c.study_instance_uid == uid, report.c.indexed_at.is_(None))
        .values(study_instance_uid=None, state="parked", reason="its study was deleted")
    )


def _own_files(uid: str) -> sa.CompoundSelect[tuple[str]]:
    """Drafts, and the files of reports that hold no other study's report."""
    of_drafts = sa.select(draft.c.path).where(draft.c.study_instance_uid == uid)
    others = report.alias()
    of_reports = sa.select(report.c.path).where(
        report.c.study_instance_uid == uid,
        ~sa.exists().where(
            others.c.path == report.c.path, others.c.study_instance_uid.is_distinct_from(uid)
        ),
    )
    return sa.union(of_drafts, of_reports)


def _belongs(table: sa.Table, uid: str) -> Condition:
    if table is not delivery:
        return table.c.study_instance_uid == uid
    of_drafts = sa.select(draft.c.sop_instance_uid).where(draft.c.study_instance_uid == uid)
    return delivery.c.draft_uid.in_(of_drafts)


def _lock(connection: Connection, uid: str, due: Condition) -> bool:
    """Take the study's row, unless somebody has it or it is no longer ``due``.

    That is asked by a statement of its own: one that locks sees other tables as they were before
    the lock.
    """
    row = sa.select(study.c.study_instance_uid).where(study.c.study_instance_uid == uid)
    # NO KEY UPDATE: a transaction that appends an event for the study need not wait.
    locked = connection.scalar(row.with_for_update(skip_locked=True, key_share=True))
    return locked is not None and connection.scalar(row.where(due)) is not None


def _set(connection: Connection, uid: str, **values: object) -> None:
    connection.execute(sa.update(study).where(study.c.study_instance_uid == uid).values(**values))


def _remove(storage: Storage, paths: Iterable[str]) -> None:
    disk.remove(storage.path(path) for path in paths)


def restore(connection: Connection, storage: Storage, stored: StoredInstance) -> None:
    """The bytes of a deleted instance came again and their file is in its place: it is kept again.

    Its study is kept as long as one that came now.

    Raises
    ------
    OutOfResources
        The file went with the old one, or the whole study goes: they are to be sent again.
    """
    uid = stored.study_instance_uid
    state = sa.select(study.c.state).where(study.c.study_instance_uid == uid)
    if connection.scalar(state.with_for_update(key_share=True)) == "deleting":
        raise OutOfResources(f"study {uid} is being deleted")
    if not storage.path(stored.path).is_file():
        raise OutOfResources(f"{stored.path} was deleted while it came")
    # All revisions of that path: other bytes may have come between, and these once more.
    cleared = connection.execute(
        sa.update(instance)
        .where(
            instance.c.study_instance_uid == uid,
            instance.c.sop_instance_uid == stored.sop_instance_uid,
            instance.c.path == stored.path,
            instance.c.pixels_deleted_at.is_not(None),
        )
        .values(pixels_deleted_at=None)
    ).rowcount
    if cleared:
        _set(connection, uid, has_pixels=True, received_at=func.now())
        subject = f"instance {stored.sop_instance_uid}"
        events.append(connection, uid, subject, "pixels deleted", "kept", "it came again")


# -- looking ---------------------------------------------------------------------------------------


def deleted(connection: Connection, study_instance_uid: str) -> Mapping[str, datetime]:
    """SOP Instance UIDs of the study whose newest bytes are gone, and since when."""
    newest = (
        sa.select(instance.c.sop_instance_uid, instance.c.pixels_deleted_at)
        .ext(postgresql.distinct_on(instance.c.sop_instance_uid))
        .where(instance.c.study_instance_uid == study_instance_uid)
        .order_by(instance.c.sop_instance_uid, instance.c.revision.desc())
    )
    return {uid: at for uid, at in connection.execute(newest) if at is not None}


def check_images(connection: Connection, study_instance_uid: str) -> None:
    """Are all images of the study there that a model could read?

    Raises
    ------
    PixelsDeleted
        Some are not; says how many.
    """
    gone = deleted(connection, study_instance_uid)
    images = [one.sop_instance_uid for one in images_of(connection, study_instance_uid)]
    missing = [uid for uid in images if uid in gone]
    if missing:
        raise PixelsDeleted(
            f"{len(missing)} of {len(images)} images of study {study_instance_uid} were deleted"
            f" since it was finished: send them again, then `dicom-node retry {study_instance_uid}`"
        )


def images_of(connection: Connection, study_instance_uid: str) -> list[Instance]:
    """The instances of a study that a model could read, their newest revisions."""
    found = instances(connection, study_instance_uid)
    return [one for one in found if one.sop_class_uid in READABLE]


def plan(connection: Connection, keep: Retention, *, limit: int) -> list[Plan]:
    """What will go when, the oldest first, without studies of which nothing more will go."""
    size = _sum(instance.c.size, instance.c.pixels_deleted_at.is_(None))
    query = (
        sa.select(
            study.c.study_instance_uid,
            study.c.state,
            study.c.has_pixels,
            size.label("size"),
            _of_instances(func.max(instance.c.pixels_deleted_at)).label("deleted_at"),
            _FINISHED_AT.label("finished_at"),
            _KEPT_BECAUSE.label("kept_because"),
        )
        .where(sa.or_(study.c.has_pixels, sa.literal(keep.metadata_days > 0)))
        .order_by(study.c.received_at)
        .limit(limit)
    )
    return [_plan(row, keep) for row in connection.execute(query).mappings()]


def _sum(column: sa.Column[int], *of: Condition) -> sa.ColumnElement[int]:
    return func.coalesce(_of_instances(func.sum(column), *of), 0)


def _of_instances(value: sa.ColumnElement[object], *of: Condition) -> sa.ScalarSelect[object]:
    mine = instance.c.study_instance_uid == study.c.study_instance_uid
    return sa.select(value).where(mine, *of).correlate(study).scalar_subquery()


def _plan(row: sa.RowMapping, keep: Retention) -> Plan:
    finished = row["kept_because"] is None
    pixels_go_at = metadata_goes_at = None
    if finished and row["has_pixels"] and keep.pixels_days:
        pixels_go_at = row["finished_at"] + timedelta(days=keep.pixels_days)
    if finished and keep.metadata_days and (pixels_go_at or not row["has_pixels"]):
        aged = row["finished_at"] + timedelta(days=keep.metadata_days)
        metadata_goes_at = max(aged, pixels_go_at or aged)
    return Plan(
        study_instance_uid=row["study_instance_uid"],
        state=row["state"],
        size=int(row["size"]),
        pixels_deleted_at=None if row["has_pixels"] else row["deleted_at"],
        pixels_go_at=pixels_go_at,
        metadata_goes_at=metadata_goes_at,
        kept_because=row["kept_because"],
    )
