"""A study's way from a peer to us, and the search for a patient's earlier ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from functools import partial

from sqlalchemy import Connection

from dicom_node import fetches, filing, heartbeats, identity, queries, reconciliation, studies
from dicom_node.audit.auditor import Auditor
from dicom_node.config import Peer
from dicom_node.disk import Watermarks
from dicom_node.errors import (
    CannotUnderstand,
    ConfigurationError,
    OutOfResources,
    PeerError,
    PeerRefused,
)
from dicom_node.fetches import Fetch, Search
from dicom_node.filing import Origin
from dicom_node.queries import Instance
from dicom_node.registering import Registrar
from worker.pipeline import Node

logger = logging.getLogger(__name__)


# -- a study ---------------------------------------------------------------------------------------


def fetch(node: Node, held: Fetch) -> None:
    """Ask the peer which objects the study has, for those that we have not, and look again.

    Raises
    ------
    ConfigurationError
        The peer is not asked any more, or may not send to us.
    PeerError
        Not now; or not all came.
    OutOfResources
        Disk or database are away; the study will be claimed again.
    """
    peer = _peer(node, held)
    wanted = _wanted(node, peer, held.study_instance_uid)
    missing = _missing(node, held, wanted)
    if missing:
        _retrieve(node, peer, held, missing)
        missing = _missing(node, held, wanted)
    if missing:
        raise PeerError(
            f"{peer.name}: {len(missing)} of {len(wanted)} objects of study"
            f" {held.study_instance_uid} did not come"
        )
    with node.database.transaction() as connection:
        _check_patient(connection, held)
        fetches.fetched(connection, held)


def _check_patient(connection: Connection, held: Fetch) -> None:
    """What came says itself whose it is, whatever the peer answered when it was asked."""
    if held.prior_of is None:
        return
    theirs = studies.identity(connection, held.study_instance_uid)
    ours = studies.identity(connection, held.prior_of)
    if not identity.is_same_patient(theirs, ours):
        raise PeerRefused(
            f"{held.peer} lists study {held.study_instance_uid} under the patient of"
            f" {held.prior_of}, and its objects name another: it is no prior"
        )


def _peer(node: Node, held: Fetch) -> Peer:
    peer = node.settings.peer(held.peer)
    if peer is None or "query" not in peer.roles:
        raise ConfigurationError(f"peer {held.peer} is no longer asked: it has no role query")
    titles = peer.calling_ae_titles
    if peer.retrieve == "move" and not any(node.settings.sources(title) for title in titles):
        raise ConfigurationError(
            f"peer {peer.name}: what it is asked to send comes in as from any sender: give it the"
            ' role source too, or retrieve = "get"'
        )
    return peer


def _wanted(node: Node, peer: Peer, study_instance_uid: str) -> list[Instance]:
    """The objects of the series that may be of the chest."""
    settings, uid = node.settings, study_instance_uid
    heard = _auditor(node).asking(node.database, peer)
    title, tls = settings.node.ae_title, settings.tls
    with queries.inquiry(peer, title, tls, asking=heard) as asked:
        wanted = asked.chest_instances(uid, settings.reconciliation.modalities)
    if not wanted:
        raise PeerError(f"{peer.name} lists no object of the chest in study {uid} any more")
    return wanted


def _auditor(node: Node) -> Auditor:
    return Auditor(node.settings, heartbeats.process_name("net"))


def _missing(node: Node, held: Fetch, wanted: Sequence[Instance]) -> list[Instance]:
    with node.database.transaction() as connection:
        kept = studies.instances(connection, held.study_instance_uid)
    here = {one.sop_instance_uid for one in kept}
    return [one for one in wanted if one.sop_instance_uid not in here]


def _retrieve(node: Node, peer: Peer, held: Fetch, missing: Sequence[Instance]) -> None:
    settings, uid = node.settings, held.study_instance_uid
    watermarks = Watermarks(settings.node.data, settings.disk)
    watermarks.look()
    if not watermarks.accepting:
        raise OutOfResources("the disk is full")
    if peer.retrieve == "get":
        said = _get(node, peer, uid, missing)
    else:
        series = dict.fromkeys(one.series_instance_uid for one in missing)
        said = queries.move(peer, settings.node.ae_title, uid, series, settings.tls)
    logger.info(
        "fetch %d from %s: %d objects came, %d did not",
        held.id,
        peer.name,
        said.completed,
        said.failed,
    )


def _get(
    node: Node, peer: Peer, study_instance_uid: str, missing: Sequence[Instance]
) -> queries.Retrieved:
    settings = node.settings
    registrar = Registrar(settings, node.database, node.storage)

    def keep(origin: Origin, data_set: bytes) -> None:
        incoming = node.storage.receive(
            sop_class_uid=origin.sop_class_uid,
            sop_instance_uid=origin.sop_instance_uid,
            transfer_syntax_uid=origin.transfer_syntax,
        )
        try:
            incoming.write(data_set)
            stored = filing.file(incoming, origin)
            if stored.study_instance_uid != study_instance_uid:
                raise CannotUnderstand("of another study than was asked for")
            registrar.register(stored, incoming.settle)
        finally:
            incoming.drop()

    try:
        title, tls = settings.node.ae_title, settings.tls
        return queries.get(peer, title, study_instance_uid, missing, keep, tls)
    finally:
        registrar.close()


def is_overdue(node: Node, age: timedelta) -> bool:
    """Has it been tried for as long as the site wants?"""
    return age > timedelta(hours=node.settings.jobs.give_up_hours)


# -- priors ----------------------------------------------------------------------------------------


def search(node: Node, begun: Search) -> None:
    """Ask who is asked for the patient's earlier chest studies, and queue those we have not.

    Raises
    ------
    NotFound, Unreadable
        Nothing here says whose study it is.
    PeerError
        A peer can't be asked now; what the others have is queued.
    OutOfResources
        The database is away.
    """
    uid, settings = begun.study_instance_uid, node.settings
    of = reconciliation.header_of(node.database, node.storage, uid)
    heard = partial(_auditor(node).asking, node.database)
    found, faults = reconciliation.priors(settings, of, settings.reconciliation.priors, heard)
    with node.database.transaction() as connection:
        queued = reconciliation.queue_priors(connection, settings, found, uid)
        if not faults:
            said = f"{len(found)} earlier studies found, {queued} of them to be fetched"
            fetches.searched(connection, begun, said)
    if faults:
        raise faults[0]
