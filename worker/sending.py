"""A draft's way to one destination: sent, in a kind of object that the peer takes, and proven."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

from pydicom.uid import UID
from sqlalchemy import Connection

from dicom_node import circuits, commitments, deliveries, destinations, drafts, heartbeats, scu
from dicom_node.audit.auditor import Auditor
from dicom_node.config import Peer
from dicom_node.deliveries import Delivery
from dicom_node.drafts import Draft
from dicom_node.errors import NotSupported, PeerError, PeerRefused, Unproven, Unreadable
from dicom_node.results import audited
from dicom_node.results.record import DraftRecord, Reference
from worker import committing, records
from worker.pipeline import Node, keep_file

logger = logging.getLogger(__name__)

#: An object that a peer says it stored, and does not list, is sent again after so many attempts.
QUESTIONS = 4
STORED = "the peer answered success"


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
    settings = node.settings
    destination = destinations.open_destination(peer, settings.node.ae_title, tls=settings.tls)
    draft = _find(node, held.sent_uid or held.draft_uid)
    if held.sent_at is None:
        if _is_unwanted(node, held, draft, peer):
            return
        draft = _send(node, held, draft, destination)
    try:
        _prove(node, held, draft, destination, peer)
    except PeerError as error:
        if not error.retry:
            raise
        raise Unproven(f"{STORED}, and can't be asked for it: {error}") from error
    with node.database.transaction() as connection:
        deliveries.answered(connection, held.peer)


def _is_unwanted(node: Node, held: Delivery, draft: Draft, peer: Peer) -> bool:
    """Must the peer not get it, or not any more?"""
    with node.database.transaction() as connection:
        if draft.superseded_by is not None:
            deliveries.drop(connection, held, f"superseded by {draft.superseded_by}")
        elif peer.mode == "shadow":  # since this was queued
            deliveries.withhold(connection, held, "the peer is a shadow in the configuration")
        else:
            return False
    return True


def judge_peer(node: Node, held: Delivery, error: PeerError) -> None:
    """Tell the peer's circuit of a failed attempt; what waited too long for a peer has failed."""
    reason = f"{error.code}: {error}"
    jobs = node.settings.jobs
    with node.database.transaction() as connection:
        if isinstance(error, PeerRefused | NotSupported):
            deliveries.answered(connection, held.peer)
            return
        left_alone = circuits.failed(
            connection,
            held.peer,
            reason,
            open_after=node.settings.delivery.open_after,
            back_off=jobs.back_off,
            counts=not isinstance(error, Unproven),  # it takes objects: let the next ones go
        )
        if left_alone and is_overdue(node, held):
            deliveries.give_up(connection, held.peer, _patience(node), reason)


def _find(node: Node, uid: str) -> Draft:
    with node.database.transaction() as connection:
        found = drafts.find(connection, uid)
    if found is None:
        raise Unreadable(f"draft {uid} has no row")
    return found


def _send(node: Node, held: Delivery, draft: Draft, destination: scu.Destination) -> Draft:
    """Send the draft, or else the first of its alternatives that the peer takes."""
    refused: list[str] = []
    for form in _forms(node, draft):
        try:
            status = destination.send(node.storage.path(form.path))
        except NotSupported as error:
            logger.info("delivery %d: %s", held.id, error)
            refused.append(_name(form))
            continue
        _sent(node, held, form, status, refused)
        return form
    raise NotSupported(f"{held.peer} takes none of: {', '.join(refused)}")


def _forms(node: Node, draft: Draft) -> Iterator[Draft]:
    """The draft, then what else says the same, each made when it is needed (sr-draft 1)."""
    yield draft
    results = node.settings.results
    classes = records.classes(draft.kind, results)
    others = [(draft.kind, uid) for uid in classes if uid != draft.sop_class_uid]
    if draft.kind == "text_sr":
        others += [(kind, "") for kind in results.fallback]
    for kind, sop_class_uid in others:
        yield _alternative(node, draft, kind, sop_class_uid)


def _alternative(node: Node, draft: Draft, kind: str, sop_class_uid: str) -> Draft:
    """Another object of the draft's record, kept before it is sent: the same at each attempt."""
    kept = _kept(node, draft.sop_instance_uid, kind, sop_class_uid)
    if kept is not None:
        return kept
    stored = DraftRecord.from_json(json.dumps(draft.record))
    made = keep_file(
        node,
        replace(
            stored,
            kind=kind,
            sop_class_uid=sop_class_uid,
            predecessor=_replaced(node, stored, kind, sop_class_uid),
        ),
        job_id=draft.job_id,
        model=draft.model,
        inputs=draft.inputs,
        alternative_of=draft.sop_instance_uid,
    )
    with node.database.transaction() as connection:
        drafts.keep_alternative(connection, made)
    return _find(node, made.sop_instance_uid)


def _replaced(node: Node, stored: DraftRecord, kind: str, sop_class_uid: str) -> Reference | None:
    """What such a peer has of the version before: that one's alternative, if one was made."""
    if stored.predecessor is None:
        return None
    kept = _kept(node, stored.predecessor.sop_instance_uid, kind, sop_class_uid)
    return records.reference(kept) if kept else stored.predecessor


def _kept(node: Node, draft_uid: str, kind: str, sop_class_uid: str) -> Draft | None:
    """The draft's alternative of that kind, in that class or (empty) the kind's only one."""
    with node.database.transaction() as connection:
        kept = drafts.alternatives(connection, draft_uid)
    fits = (one for one in kept if one.kind == kind)
    return next((one for one in fits if sop_class_uid in ("", one.sop_class_uid)), None)


def _name(form: Draft) -> str:
    return UID(form.sop_class_uid).name if form.sop_class_uid else form.kind


def _sent(node: Node, held: Delivery, form: Draft, status: int, refused: list[str]) -> None:
    told = [f"sent as {_name(form)}: the peer takes no {', '.join(refused)}"] if refused else []
    told += [f"the peer stored it with status 0x{status:04X}"] if status else []
    with node.database.transaction() as connection:
        deliveries.answered(connection, held.peer)
        deliveries.sent(connection, held, form.sop_instance_uid, "; ".join(told) or None)
        _audit(node, connection, held.peer, form)


def _audit(node: Node, connection: Connection, peer_name: str, form: Draft) -> None:
    auditor = Auditor(node.settings, heartbeats.process_name("net"))
    peer = node.settings.peer(peer_name)
    if auditor.wanted and peer is not None:
        auditor.sent(connection, peer, audited.content(form))


def _prove(
    node: Node, held: Delivery, draft: Draft, destination: scu.Destination, peer: Peer
) -> None:
    proof = peer.proof
    if proof == commitments.PROOF:
        _await_commitment(node, held, committing.ask(node, held, draft, peer))
        return
    proven = destination.prove(
        scu.Reference(
            study_instance_uid=draft.study_instance_uid,
            series_instance_uid=draft.series_instance_uid,
            sop_instance_uid=draft.sop_instance_uid,
        )
    )
    if not proven:
        _not_listed(node, held, draft.sop_instance_uid, proof)
        return
    with node.database.transaction() as connection:
        deliveries.delivered(connection, held, proof)


def _await_commitment(node: Node, held: Delivery, wait: timedelta) -> None:
    """The report tells the rest, whenever it comes; where it came by now, this changes nothing."""
    with node.database.transaction() as connection:
        if is_overdue(node, held):
            hours = node.settings.jobs.give_up_hours
            silence = committing.silence(node.settings, held.peer, hours)
            deliveries.fail(connection, held, f"{Unproven.code}: {STORED}, and {silence}")
        else:
            reason = f"asked for storage commitment, no report yet ({commitments.PROOF})"
            deliveries.unproven(connection, held, wait, reason)


def _not_listed(node: Node, held: Delivery, sent_uid: str, proof: str) -> None:
    """Ask again later; after some questions send it again, and in the end give it up."""
    delay = node.settings.jobs.back_off(held.attempts)
    lie = f"{STORED}, and does not have it ({proof})"
    with node.database.transaction() as connection:
        if is_overdue(node, held):
            hours = node.settings.jobs.give_up_hours
            deliveries.fail(connection, held, f"{Unproven.code}: {lie} for {hours:g} hours")
        elif held.sent_at is not None and held.attempts % QUESTIONS == 0:
            deliveries.missing(connection, held.id, sent_uid, f"{Unproven.code}: {lie}", delay)
        else:
            deliveries.unproven(connection, held, delay, f"not yet proven by {proof}")


def is_overdue(node: Node, held: Delivery) -> bool:
    """Has this delivery been tried for as long as the site wants?"""
    return held.age > _patience(node)


def _patience(node: Node) -> timedelta:
    return timedelta(hours=node.settings.jobs.give_up_hours)
