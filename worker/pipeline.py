"""A study's way through the worker, top to bottom, as plain functions; runs without Celery.

Drafts are sent in ``worker.sending``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from pydicom import Dataset
from sqlalchemy import Connection

from dicom_node import (
    __version__,
    db,
    deliveries,
    drafts,
    jobs,
    orders,
    priorities,
    retention,
    retrieval,
    studies,
)
from dicom_node.config import Settings
from dicom_node.db import Database
from dicom_node.drafts import Draft
from dicom_node.errors import Unreadable
from dicom_node.jobs import Job
from dicom_node.orders import Order
from dicom_node.results import objects, record, uids
from dicom_node.results.record import DraftRecord
from dicom_node.storage import Storage
from dicom_node.studies import Instance, Study
from inference import indication, pixels, selection
from inference.findings import Algorithm, Embedding, Findings, Image, ModelFailure, UnreadablePixels
from inference.indication import Indication
from inference.selection import Candidate, Fault, Refusal
from worker import records
from worker.host import ModelHost
from worker.records import Chosen, Origin

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Where the pipeline reads and writes."""

    settings: Settings
    database: Database
    storage: Storage
    identity: record.Node


def open_node(settings: Settings, database: Database) -> Node:
    """The node of these settings; its identity is the installation's in the database."""
    with database.transaction() as connection:
        installation_id = connection.scalars(sa.select(db.installation.c.id)).one()
    identity = record.Node(
        ae_title=settings.node.ae_title, version=__version__, installation_id=str(installation_id)
    )
    storage = Storage(settings.node.data)
    return Node(settings=settings, database=database, storage=storage, identity=identity)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """An instance of the study with what the choice needs to know of it."""

    instance: Instance
    candidate: Candidate

    @property
    def is_image(self) -> bool:
        """Has it pixels that a modality made? A page of ours that came back is no evidence."""
        ours = self.candidate.header.get("ManufacturerModelName") == selection.OUR_MODEL_NAME
        return self.candidate.pixel_bytes is not None and not ours


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """One job at work: what the study is, and what it had before."""

    node: Node
    job: Job
    study: Study
    held: Sequence[_Held]
    before: Sequence[Draft]  #: live drafts of the study and model
    order: Order | None  #: that the study answers

    @property
    def origin(self) -> Origin:
        return Origin(
            settings=self.node.settings,
            identity=self.node.identity,
            job=self.job,
            images=[one.instance for one in self.held if one.is_image],
        )

    @property
    def priority(self) -> int:
        """How urgent the draft is: what is urgent to the images or to the order is urgent."""
        said = (indication.priority(one.candidate.header) for one in self.held if one.is_image)
        of_order = self.order.priority if self.order else priorities.ROUTINE
        return max([of_order, *map(priorities.of_dicom, said)])


# -- analyse ---------------------------------------------------------------------------------------


def analyse(node: Node, host: ModelHost, job: Job) -> None:
    """Read one revision of a study; ends the job in every case it can explain.

    Raises
    ------
    ModelFailure
        The device gave out; a second attempt may work.
    Unreadable
        A stored file is gone; ``PixelsDeleted``: because the study was finished.
    LeaseLost, OutOfResources
        Nothing was changed; the job will be claimed again.
    """
    if _is_decided(node, job):
        return
    reading = _begin(node, job)
    chosen = _choose(reading, host)
    if isinstance(chosen, Refusal):
        _refuse(reading, host.model.algorithm, chosen)
        return
    if _stands(reading.before, chosen, host.model.algorithm):
        reason = f"the input is unchanged: draft {reading.before[0].sop_instance_uid} stands"
        with node.database.transaction() as connection:
            jobs.drafted(connection, job, _choice(chosen), reason)
        return
    history = chosen.indication.text if chosen.indication else None
    findings = host.read([chosen.image], history)
    if not findings.text.strip() or "\0" in findings.text:  # Postgres takes no NUL
        raise ModelFailure("the model wrote nothing, or no text")
    made = _make(reading, records.of_findings(reading.origin, chosen, findings), chosen)
    with node.database.transaction() as connection:
        if _is_overtaken(connection, reading):
            return
        jobs.drafted(connection, job, _choice(chosen))  # raises if the lease was lost
        _keep(connection, reading, made)
        _index(connection, made[0], findings)


def _is_decided(node: Node, job: Job) -> bool:
    """Are the images deleted and none came since? Then what was decided of them stands.

    Mostly it is the radiologist's report that came so late.
    """
    uid = job.study_instance_uid
    with node.database.transaction() as connection:
        gone = retention.deleted(connection, uid)
        images = retention.images_of(connection, uid)
        done = [one for one in jobs.of_study(connection, uid) if one.model == job.model]
        before = next((one.choice for one in reversed(done) if one.choice), None)
        kept = [one for one in images if one.sop_instance_uid not in gone]
        if kept or not images or before is None:
            retention.check_images(connection, uid)
            return False
        _decide_again(connection, job, before)
    return True


def _decide_again(connection: Connection, job: Job, choice: Mapping[str, Any]) -> None:
    refusal = choice.get("refusal")
    if refusal:
        jobs.refuse(connection, job, refusal["code"], refusal["text"])
    else:
        jobs.drafted(connection, job, choice, "the images are deleted: the draft of them stands")


def _begin(node: Node, job: Job) -> _Reading:
    study, instances = _snapshot(node, job)
    held = _readable_headers(node, instances)
    with node.database.transaction() as connection:
        before = drafts.live(connection, job.study_instance_uid, model=job.model)
        order = orders.find(connection, job.study_instance_uid)
    return _Reading(node=node, job=job, study=study, held=held, before=before, order=order)


def _snapshot(node: Node, job: Job) -> tuple[Study, tuple[Instance, ...]]:
    with node.database.transaction() as connection:
        found = studies.snapshot(connection, job.study_instance_uid)
        gone = retention.deleted(connection, job.study_instance_uid)
    if found is None:
        raise Unreadable(f"study {job.study_instance_uid} has no row")
    study, instances = found
    return study, tuple(one for one in instances if one.sop_instance_uid not in gone)


def _readable_headers(node: Node, instances: Sequence[Instance]) -> list[_Held]:
    held = []
    for instance in instances:
        try:
            candidate = pixels.read_header(node.storage.path(instance.path))
        except UnreadablePixels:
            # Stored as it came, but no parser gets through it: never an input, nor evidence.
            logger.warning("instance %s can't be parsed", instance.sop_instance_uid)
            continue
        except OSError as error:
            raise Unreadable(f"{instance.path}: {error.strerror}") from error
        held.append(_Held(instance=instance, candidate=candidate))
    return held


def _choose(reading: _Reading, host: ModelHost) -> Chosen | Refusal:
    """The best image whose pixels can really be read."""
    node, held = reading.node, reading.held
    candidates = [one.candidate for one in held]
    refused: dict[str, Fault] = {}
    while True:
        choice = selection.choose(candidates, refused=refused)
        if isinstance(choice, Refusal):
            return choice
        chosen = next(
            one for one in held if one.instance.sop_instance_uid == choice.sop_instance_uid
        )
        image = _image(node, host, chosen)
        if isinstance(image, Image):
            return Chosen(
                instance=chosen.instance,
                header=chosen.candidate.header,
                rule=choice.rule,
                image=image,
                indication=_indication(chosen.candidate.header, reading.order),
                warnings=choice.warnings,
            )
        refused[choice.sop_instance_uid] = image


def _indication(header: Dataset, order: Order | None) -> Indication | None:
    """Why the image was asked for: its own header says it, or else the order that it answers."""
    if found := indication.find(header):
        return found
    return indication.of_order(order.indication, order.indication_source) if order else None


def _image(node: Node, host: ModelHost, chosen: _Held) -> Image | Fault:
    if not host.model.accepts(chosen.candidate.header):
        return Fault(code="NOT_IMAGE", text="not a kind of image this model was made for")
    try:
        return pixels.read(node.storage.path(chosen.instance.path))
    except UnreadablePixels as error:
        return Fault(code=error.code, text=str(error))


def _refuse(reading: _Reading, algorithm: Algorithm, refusal: Refusal) -> None:
    node, job = reading.node, reading.job
    if reading.study.state == "receiving":  # the image may still be on its way
        with node.database.transaction() as connection:
            jobs.defer(connection, job, reading.study.settle_at, f"not yet: {refusal.code}")
        return
    made = _status_documents(reading, algorithm, refusal)
    with node.database.transaction() as connection:
        if made and _is_overtaken(connection, reading):
            return
        jobs.refuse(connection, job, refusal.code, refusal.text)
        if made:
            _keep(connection, reading, made)


def _status_documents(reading: _Reading, algorithm: Algorithm, refusal: Refusal) -> Sequence[Draft]:
    """What tells the radiologist that there is no draft, if the site wants to be told.

    A draft that is there already stays: it was made of an image that could be read.
    """
    wanted = reading.node.settings.results.on_no_input == "status-sr"
    image = next((one for one in reading.held if one.is_image), None)
    said = [_record_of(one).refusal for one in reading.before]
    if not wanted or image is None or any(one is None or one.code == refusal.code for one in said):
        return []
    why = record.Refusal(code=refusal.code, text=refusal.text)
    header = image.candidate.header
    return _make(reading, records.of_refusal(reading.origin, header, algorithm, why), None)


def _stands(before: Sequence[Draft], chosen: Chosen, algorithm: Algorithm) -> bool:
    """Was the same image read by the same model already?"""
    if not before or list(before[0].inputs) != _inputs(chosen):
        return False
    made_by = _record_of(before[0]).algorithm
    return uids.device_uid(made_by) == uids.device_uid(algorithm)


def _record_of(draft: Draft) -> DraftRecord:
    return DraftRecord.from_json(json.dumps(draft.record))


def _inputs(chosen: Chosen | None) -> list[dict[str, str]]:
    if chosen is None:
        return []
    instance = chosen.instance
    return [{"sop_instance_uid": instance.sop_instance_uid, "sha256": instance.sha256}]


def _choice(chosen: Chosen) -> dict[str, str]:
    """How ``study --json`` names the choice."""
    return {"sop_instance_uid": chosen.instance.sop_instance_uid, "rule": chosen.rule}


def _make(reading: _Reading, of: DraftRecord, chosen: Chosen | None) -> Sequence[Draft]:
    """A draft of each kind that the site wants, its bytes durable; their rows come after."""
    node, job, results = reading.node, reading.job, reading.node.settings.results
    before = {one.kind: one for one in reading.before}
    return [
        keep_file(
            node,
            records.as_kind(of, kind, results, before.get(kind)),
            job_id=job.id,
            model=job.model,
            inputs=_inputs(chosen),
        )
        for kind in records.kinds(of, results)
    ]


def keep_file(
    node: Node,
    of: DraftRecord,
    *,
    job_id: int,
    model: str,
    inputs: Sequence[Mapping[str, Any]],
    alternative_of: str | None = None,
) -> Draft:
    """Encode the record and make the bytes durable; the row that names them comes after."""
    made = objects.encode(of)
    kept = node.storage.keep_draft(
        study_instance_uid=of.study_instance_uid,
        sop_instance_uid=made.sop_instance_uid,
        file=made.file,
        suffix=made.suffix,
    )
    return Draft(
        sop_instance_uid=made.sop_instance_uid,
        series_instance_uid=made.series_instance_uid,
        sop_class_uid=made.sop_class_uid,
        study_instance_uid=of.study_instance_uid,
        job_id=job_id,
        model=model,
        kind=of.kind,
        version=of.version,
        text=of.findings,
        inputs=inputs,
        record=json.loads(of.to_json()),
        path=kept.path,
        sha256=kept.sha256,
        alternative_of=alternative_of,
    )


def _is_overtaken(connection: Connection, reading: _Reading) -> bool:
    """Were drafts of this study kept while we read? Then look again: mostly those stand."""
    job = reading.job
    studies.snapshot(connection, job.study_instance_uid)  # locks the study: one draft at a time
    live = drafts.live(connection, job.study_instance_uid, model=job.model)
    if [one.sop_instance_uid for one in live] == [one.sop_instance_uid for one in reading.before]:
        return False
    reason = "another draft of this study was kept meanwhile"
    jobs.retry_later(connection, job, timedelta(0), reason)
    return True


def _keep(connection: Connection, reading: _Reading, made: Sequence[Draft]) -> None:
    """The drafts' rows and their way to every destination."""
    for old in drafts.keep(connection, *made):
        deliveries.drop_unsent(connection, old, f"superseded by {made[0].sop_instance_uid}")
    for one in made:
        peers = reading.node.settings.destinations(one.kind)
        deliveries.create(
            connection,
            one.study_instance_uid,
            one.sop_instance_uid,
            peers,
            priority=reading.priority,
        )


def _index(connection: Connection, draft: Draft, findings: Findings) -> None:
    """Make the draft findable by the vectors that the model has."""
    vectors: tuple[tuple[retrieval.Kind, Embedding | None], ...] = (
        ("image", findings.image_embedding),
        ("report", findings.text_embedding),
    )
    study_uid, uid = draft.study_instance_uid, draft.sop_instance_uid
    for kind, vector in vectors:
        if vector is not None:
            retrieval.write(connection, study_uid, uid, kind, vector)
