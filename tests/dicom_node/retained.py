"""What the tests of retention share: a site that receives, finishes and ages studies."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node import db, deliveries, drafts, jobs, retention, studies
from dicom_node.config import Disk, Node, Peer, Retention, Settings
from dicom_node.db import Database
from dicom_node.deliveries import Delivery
from dicom_node.disk import Watermarks
from dicom_node.drafts import Draft
from dicom_node.registering import Registrar
from dicom_node.retention import Deleted
from dicom_node.storage import Storage, StoredInstance
from tests.conftest import BASIC_TEXT_SR, DIGITAL_X_RAY
from tests.dicom_node.network import keep_instance
from tests.dicom_node.states import MINUTE, claimed

PEER = Peer(name="pacs", ae_title="PACS", host=("10.0.0.5",), roles=("destination",))
CHOICE = {"sop_instance_uid": "1.2.3", "rule": "2.2-1/PA+2.3-only"}
KEEP = Retention(pixels_days=30, metadata_days=365)
#: No disk is as full as this, or fuller.
ROOMY = Disk(high_percent=100, low_percent=99.9)

_numbers = itertools.count(1)

Paths = set[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A node without a network."""

    database: Database
    storage: Storage
    settings: Settings
    registrar: Registrar

    def write(
        self,
        uid: str,
        sop_instance_uid: str | None = None,
        *,
        content: bytes = b"pixels",
        sop_class_uid: str = DIGITAL_X_RAY,
    ) -> StoredInstance:
        """Put the file of an instance in its place, as a receiver does before it registers it."""
        instance = sop_instance_uid or f"{uid}.{next(_numbers)}"
        kept = keep_instance(
            self.storage,
            study_instance_uid=uid,
            sop_instance_uid=instance,
            sop_class_uid=sop_class_uid,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            data_set=content,
        )
        return StoredInstance(
            study_instance_uid=uid,
            series_instance_uid=f"{uid}.1",
            sop_instance_uid=instance,
            sop_class_uid=sop_class_uid,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            path=kept.path,
            sha256=kept.sha256,
            size=kept.size,
            calling_ae_title="MODALITY",
            address="127.0.0.1",
            patient_key="patient",
        )

    def receive(
        self,
        uid: str,
        sop_instance_uid: str | None = None,
        *,
        content: bytes = b"pixels",
        sop_class_uid: str = DIGITAL_X_RAY,
    ) -> StoredInstance:
        """Receive an instance: on return it is acknowledged."""
        stored = self.write(uid, sop_instance_uid, content=content, sop_class_uid=sop_class_uid)
        self.register(stored)
        return stored

    def register(self, stored: StoredInstance) -> None:
        """What a receiver does with an instance whose file is in its place."""
        self.registrar.register(stored, lambda: None)

    def settle(self) -> None:
        """Every study that receives is quiet now."""
        with self.database.transaction() as connection:
            connection.execute(sa.update(db.study).values(settle_at=sa.func.now()))
            studies.settle(connection, ["demo"])

    def draft(self, uid: str, state: str = "delivered") -> Draft:
        """Read the study: its job is drafted, the draft's delivery in that state."""
        self.settle()
        with self.database.transaction() as connection:
            job_id = max(one.id for one in jobs.of_study(connection, uid))
        held, sop_instance_uid = claimed(self.database, job_id), f"2.25.4.{next(_numbers)}"
        kept = self.storage.keep_draft(
            study_instance_uid=uid, sop_instance_uid=sop_instance_uid, file=b"draft"
        )
        new = Draft(
            sop_instance_uid=sop_instance_uid,
            series_instance_uid=f"{sop_instance_uid}.1",
            sop_class_uid=BASIC_TEXT_SR,
            study_instance_uid=uid,
            job_id=job_id,
            model="demo",
            kind="text_sr",
            version=1,
            text="Findings.",
            inputs=[],
            record={},
            path=kept.path,
            sha256=kept.sha256,
        )
        with self.database.transaction() as connection:
            jobs.drafted(connection, held, CHOICE)
            for old in drafts.keep(connection, new):
                deliveries.drop_unsent(connection, old, "superseded")
            own = PEER.model_copy(update={"name": f"pacs of {uid}"})  # no study waits for others
            deliveries.create(connection, uid, sop_instance_uid, [own])
        if state != "due":
            self.deliver(uid, state)
        return new

    def deliver(self, uid: str, state: str) -> None:
        """What became of the deliveries of a study that are due."""
        with self.database.transaction() as connection:
            for one in self._due(connection, uid):
                held = deliveries.claim(connection, one.id, at_once=9, lease=MINUTE, worker="net")
                if held is None:
                    continue
                if state == "delivered":
                    deliveries.sent(connection, held, held.draft_uid, None)
                    deliveries.delivered(connection, held, "none")
                elif state == "sent":
                    deliveries.sent(connection, held, held.draft_uid, None)
                    deliveries.unproven(connection, held, MINUTE, "not yet")
                elif state == "failed":
                    deliveries.fail(connection, held, "refused")

    def _due(self, connection: sa.Connection, uid: str) -> list[Delivery]:
        return [one for one in deliveries.of_study(connection, uid) if one.state == "due"]

    def finished(self, uid: str) -> str:
        """A study with a file, a delivered draft and nothing left to do."""
        self.receive(uid)
        self.draft(uid)
        return uid

    def pass_days(self, days: float) -> None:
        """All that was written is so much older."""
        gone = timedelta(days=days)
        with self.database.transaction() as connection:
            for table in (db.study, db.instance, db.job, db.delivery, db.report):
                times = [one for one in table.columns if isinstance(one.type, sa.DateTime)]
                moved = {column: column - gone for column in times}
                connection.execute(sa.update(table).values(moved))

    def apply(self, **marks: float) -> Deleted:
        """What the tick does; ``marks`` are the disk's."""
        return retention.apply(
            self.database,
            self.storage,
            self.settings,
            Watermarks(self.storage.path(""), Disk(**marks) if marks else ROOMY),
        )

    def state(self, uid: str) -> str | None:
        """The study's state; ``None``: no row."""
        with self.database.transaction() as connection:
            found = studies.find(connection, uid)
        return found.state if found else None

    def rows(self, uid: str) -> Iterator[sa.RowMapping]:
        """The rows of its instances, with all revisions."""
        query = sa.select(db.instance).where(db.instance.c.study_instance_uid == uid)
        with self.database.transaction() as connection:
            yield from connection.execute(query.order_by(db.instance.c.revision)).mappings().all()

    def deleted(self, uid: str) -> bool:
        """Are all its files gone, and does every row say so?"""
        gone = {row["pixels_deleted_at"] is not None for row in self.rows(uid)}
        there = {self.storage.path(row["path"]).exists() for row in self.rows(uid)}
        assert len(gone) == 1
        assert there == {not one for one in gone}
        return gone == {True}

    def claimed_files(self) -> tuple[Paths, Paths]:
        """Files that rows say are here: of instances without a mark, of drafts that are kept."""
        instances = sa.select(db.instance.c.path).where(db.instance.c.pixels_deleted_at.is_(None))
        kept = sa.select(db.draft.c.path).join(
            db.study, db.study.c.study_instance_uid == db.draft.c.study_instance_uid
        )
        with self.database.transaction() as connection:
            return (
                set(connection.scalars(instances)),
                set(connection.scalars(kept.where(db.study.c.state != "deleting"))),
            )

    def files(self) -> Paths:
        """The files that are here."""
        data = self.storage.path("")
        found = (
            one for name in ("instances", "drafts", "reports") for one in data.glob(f"{name}/*/*")
        )
        return {str(one.relative_to(data)) for one in found}

    def close(self) -> None:
        """Give back what is open; it never listened."""
        self.registrar.close()


def open_site(database: Database, data: Path, keep: Retention = KEEP) -> Site:
    """A site whose files are below ``data``."""
    settings = Settings(node=Node(data=data, port=1), retention=keep)
    storage = Storage(data)
    return Site(
        database=database,
        storage=storage,
        settings=settings,
        registrar=Registrar(settings, database, storage),
    )
