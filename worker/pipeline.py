"""The study's way through the worker, top to bottom, as plain functions; runs without Celery."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy import Connection

from dicom_node import __version__, db, deliveries, drafts, jobs, retrieval, scu, studies
from dicom_node.config import Settings
from dicom_node.db import Database
from dicom_node.deliveries import Delivery
from dicom_node.drafts import Draft
from dicom_node.errors import Unreadable
from dicom_node.jobs import Job
from dicom_node.results import record, source, text_sr, uids
from dicom_node.results.record import DraftRecord, Input, Reference
from dicom_node.storage import Storage
from dicom_node.studies import Instance, Study
from inference import indication, pixels, selection
from inference.findings import Embedding, Findings, Image, ModelFailure, UnreadablePixels
from inference.indication import Indication
from inference.selection import Candidate, Choice, Fault, Refusal
from worker.host import ModelHost

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    """What the model gets: the image, and the indication if its header has one."""

    held: _Held
    choice: Choice
    image: Image
    indication: Indication | None

    @property
    def history(self) -> str | None:
        """The indication's words."""
        return self.indication.text if self.indication else None

    def as_json(self) -> dict[str, str]:
        """How ``study --json`` names the choice."""
        return {"sop_instance_uid": self.choice.sop_instance_uid, "rule": self.choice.rule}


# -- analyse ---------------------------------------------------------------------------------------


def analyse(node: Node, host: ModelHost, job: Job) -> None:
    """Read one revision of a study; ends the job in every case it can explain.

    Raises
    ------
    ModelFailure
        The device gave out; a second attempt may work.
    Unreadable
        A stored file is gone.
    LeaseLost, OutOfResources
        Nothing was changed; the job will be claimed again.
    """
    study, instances = _snapshot(node, job)
    held = _readable_headers(node, instances)
    chosen = _choose(node, host, held)
    if isinstance(chosen, Refusal):
        _refuse(node, job, study, chosen)
        return
    present = _present(node, job)
    if present is not None and _stands(present, chosen, host):
        reason = f"the input is unchanged: draft {present.sop_instance_uid} stands"
        with node.database.transaction() as connection:
            jobs.drafted(connection, job, chosen.as_json(), reason)
        return
    findings = host.read([chosen.image], chosen.history)
    if not findings.text.strip() or "\0" in findings.text:  # Postgres takes no NUL
        raise ModelFailure("the model wrote nothing, or no text")
    draft_record = _record(node, job, held, chosen, findings, present)
    _commit(node, job, _Result(chosen, findings, _file(node, job, chosen, draft_record)), present)


def _snapshot(node: Node, job: Job) -> tuple[Study, tuple[Instance, ...]]:
    with node.database.transaction() as connection:
        found = studies.snapshot(connection, job.study_instance_uid)
    if found is None:
        raise Unreadable(f"study {job.study_instance_uid} has no row")
    return found


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


def _choose(node: Node, host: ModelHost, held: Sequence[_Held]) -> _Input | Refusal:
    """The best image whose pixels can really be read."""
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
            why = indication.find(chosen.candidate.header)
            return _Input(held=chosen, choice=choice, image=image, indication=why)
        refused[choice.sop_instance_uid] = image


def _image(node: Node, host: ModelHost, chosen: _Held) -> Image | Fault:
    if not host.model.accepts(chosen.candidate.header):
        return Fault(code="NOT_IMAGE", text="not a kind of image this model was made for")
    try:
        return pixels.read(node.storage.path(chosen.instance.path))
    except UnreadablePixels as error:
        return Fault(code=error.code, text=str(error))


def _refuse(node: Node, job: Job, study: Study, refusal: Refusal) -> None:
    with node.database.transaction() as connection:
        if study.state == "receiving":  # the image may still be on its way
            jobs.defer(connection, job, study.settle_at, f"not yet: {refusal.code}")
        else:
            jobs.refuse(connection, job, refusal.code, refusal.text)


def _present(node: Node, job: Job) -> Draft | None:
    with node.database.transaction() as connection:
        return drafts.current(connection, job.study_instance_uid, model=job.model)


def _stands(present: Draft, chosen: _Input, host: ModelHost) -> bool:
    same_input = list(present.inputs) == _inputs_json(chosen)
    before = DraftRecord.from_json(json.dumps(present.record)).algorithm
    return same_input and uids.device_uid(before) == uids.device_uid(host.model.algorithm)


def _inputs_json(chosen: _Input) -> list[dict[str, str]]:
    instance = chosen.held.instance
    return [{"sop_instance_uid": instance.sop_instance_uid, "sha256": instance.sha256}]


def _record(
    node: Node,
    job: Job,
    held: Sequence[_Held],
    chosen: _Input,
    findings: Findings,
    present: Draft | None,
) -> DraftRecord:
    if job.started_at is None:
        raise ValueError(f"job {job.id} was never claimed")
    images = [one.instance for one in held if one.candidate.pixel_bytes is not None]
    used = Input(
        reference=_reference(chosen.held.instance),
        sha256=chosen.image.sha256,
        rule=chosen.choice.rule,
    )
    return DraftRecord(
        study_instance_uid=job.study_instance_uid,
        source_header=source.source_header(chosen.held.candidate.header),
        node=node.identity,
        algorithm=findings.algorithm,
        # Without an offset in the object, PS3.5 6.2 DA/TM are local time: the machine's zone.
        started_at=job.started_at.astimezone(),
        findings=findings.text,
        impression=findings.impression,
        history=findings.history,
        history_source=_history_source(chosen, findings),
        inputs=(used,),
        evidence=tuple(_reference(instance) for instance in images),
        warnings=(*chosen.choice.warnings, *chosen.image.warnings),
        institution_name=node.settings.node.institution or None,
        version=present.version + 1 if present else 1,
        predecessor=_predecessor(present) if present else None,
    )


def _history_source(chosen: _Input, findings: Findings) -> str | None:
    """Only of what the model was given: it may take none."""
    if chosen.indication is None or findings.history is None:
        return None
    return chosen.indication.source


def _reference(instance: Instance) -> Reference:
    return Reference(
        study_instance_uid=instance.study_instance_uid,
        series_instance_uid=instance.series_instance_uid,
        sop_class_uid=instance.sop_class_uid,
        sop_instance_uid=instance.sop_instance_uid,
    )


def _predecessor(present: Draft) -> Reference:
    return Reference(
        study_instance_uid=present.study_instance_uid,
        series_instance_uid=present.series_instance_uid,
        sop_class_uid=present.sop_class_uid,
        sop_instance_uid=present.sop_instance_uid,
    )


@dataclass(frozen=True, slots=True)
class _Result:
    """What is committed together."""

    chosen: _Input
    findings: Findings
    draft: Draft


def _file(node: Node, job: Job, chosen: _Input, draft_record: DraftRecord) -> Draft:
    """Encode the draft and make its bytes durable; the row that names them comes after."""
    document = text_sr.encode(draft_record)
    kept = node.storage.keep_draft(
        study_instance_uid=job.study_instance_uid,
        sop_instance_uid=str(document.SOPInstanceUID),
        file=text_sr.to_bytes(document),
    )
    return Draft(
        sop_instance_uid=str(document.SOPInstanceUID),
        series_instance_uid=str(document.SeriesInstanceUID),
        sop_class_uid=str(document.SOPClassUID),
        study_instance_uid=job.study_instance_uid,
        job_id=job.id,
        model=job.model,
        kind=draft_record.kind,
        version=draft_record.version,
        text=draft_record.findings,
        inputs=_inputs_json(chosen),
        record=json.loads(draft_record.to_json()),
        path=kept.path,
        sha256=kept.sha256,
    )


def _commit(node: Node, job: Job, result: _Result, present: Draft | None) -> None:
    """Draft, index, deliveries and job in one transaction: all of it, or none."""
    draft, study_uid = result.draft, job.study_instance_uid
    with node.database.transaction() as connection:
        studies.snapshot(connection, study_uid)  # locks the study: one draft of it at a time
        live = drafts.current(connection, study_uid, model=job.model)
        if (live and live.sop_instance_uid) != (present and present.sop_instance_uid):
            # Two revisions were read at once. Look again: mostly the other's draft stands.
            reason = "another draft of this study was kept meanwhile"
            jobs.retry_later(connection, job, timedelta(0), reason)
            return
        jobs.drafted(connection, job, result.chosen.as_json())  # raises if the lease was lost
        for old in drafts.keep(connection, draft):
            deliveries.drop_unsent(connection, old, f"superseded by {draft.sop_instance_uid}")
        destinations = node.settings.destinations()
        deliveries.create(connection, study_uid, draft.sop_instance_uid, destinations)
        _index(connection, draft, result.findings)


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


# -- deliver ---------------------------------------------------------------------------------------


def deliver(node: Node, held: Delivery) -> None:
    """Send one draft to one destination and ask for the proof its configuration wants.

    Raises
    ------
    PeerError
        Not now, or (``PeerRefused``) never.
    OutOfResources
        The database is away; the delivery will be claimed again.
    """
    peer = node.settings.peer(held.peer)
    if peer is None or not peer.is_destination:
        reason = "the peer is no longer a destination in the configuration"
        with node.database.transaction() as connection:
            deliveries.fail(connection, held, reason)
        return
    with node.database.transaction() as connection:
        draft = drafts.find(connection, held.draft_uid)
    if draft is None:
        raise Unreadable(f"draft {held.draft_uid} has no row")
    destination = scu.DicomPeer(peer, node.settings.node.ae_title)
    if held.sent_at is None:
        if draft.superseded_by is not None:
            with node.database.transaction() as connection:
                deliveries.drop(connection, held, f"superseded by {draft.superseded_by}")
            return
        _send(node, held, draft, destination)
    _prove(node, held, draft, destination, peer.proof)


def _send(node: Node, held: Delivery, draft: Draft, destination: scu.Destination) -> None:
    status = destination.send(node.storage.path(draft.path))
    reason = None if status == 0 else f"the peer stored it with status 0x{status:04X}"
    with node.database.transaction() as connection:
        deliveries.sent(connection, held, reason)


def _prove(
    node: Node, held: Delivery, draft: Draft, destination: scu.Destination, proof: str
) -> None:
    proven = destination.prove(
        scu.Reference(
            study_instance_uid=draft.study_instance_uid,
            series_instance_uid=draft.series_instance_uid,
            sop_instance_uid=draft.sop_instance_uid,
        )
    )
    with node.database.transaction() as connection:
        if proven:
            deliveries.delivered(connection, held, proof)
        elif is_overdue(node, held):
            hours = node.settings.jobs.give_up_hours
            deliveries.fail(connection, held, f"not proven by {proof} within {hours:g} hours")
        else:
            delay = node.settings.jobs.back_off(held.attempts)
            deliveries.unproven(connection, held, delay, f"not yet proven by {proof}")


def is_overdue(node: Node, held: Delivery) -> bool:
    """Has this delivery been tried for as long as the site wants?"""
    patience = timedelta(hours=node.settings.jobs.give_up_hours)
    return held.age > patience
