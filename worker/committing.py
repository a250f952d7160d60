"""Storage commitment by the queue ``net``: ask destinations, report to sources (PS3.4 J.3)."""

from __future__ import annotations

from datetime import timedelta

from dicom_node import commitment_calls, commitments
from dicom_node.commitment_service import Ledger
from dicom_node.commitments import (
    CLASS_INSTANCE_CONFLICT,
    NO_SUCH_INSTANCE,
    Copy,
    Held,
    Item,
    Report,
    Request,
)
from dicom_node.config import Peer, Settings
from dicom_node.deliveries import Delivery
from dicom_node.drafts import Draft
from dicom_node.errors import OutOfResources, PeerRefused
from dicom_node.scu import DicomPeer
from worker.pipeline import Node


def ask(node: Node, held: Delivery, draft: Draft, peer: Peer) -> timedelta:
    """Ask a destination to commit to what it was sent, unless its report is still waited for.

    Returns
    -------
    timedelta
        How long to wait for the report until it is asked again. Whoever takes the report tells
        the delivery.

    Raises
    ------
    PeerError
        It did not take the request, or (``PeerRefused``) never will.
    OutOfResources
        The database is away.
    """
    patience = timedelta(seconds=node.settings.delivery.commitment_seconds)
    with node.database.transaction() as connection:
        wait = commitments.pending(connection, held.id, draft.sop_instance_uid, patience)
    if wait is not None:
        return wait
    _ask(node, held, Item(draft.sop_class_uid, draft.sop_instance_uid), peer)
    return patience


def _ask(node: Node, held: Delivery, item: Item, peer: Peer) -> None:
    with node.database.transaction() as connection:
        transaction_uid = commitments.ask(connection, peer.name, item, delivery_id=held.id)

    def accepted() -> None:
        with node.database.transaction() as connection:
            commitments.accepted(connection, transaction_uid)

    def answered() -> bool:
        with node.database.transaction() as connection:
            found = commitments.asked(connection, transaction_uid)
        return found is not None and found.outcome is not None

    commitment_calls.request(
        _called(node.settings, peer),
        Request(transaction_uid=transaction_uid, references=(item,)),
        Ledger(node.database, node.settings.jobs, (peer,), peer.address),
        answered,
        accepted=accepted,
    )


def silence(settings: Settings, peer: str, hours: float) -> str:
    """What to do about a peer that takes requests and never reports."""
    node = settings.node
    port = settings.tls.port if (found := settings.peer(peer)) and found.tls else node.port
    return (
        f"has not committed to it for {hours:g} hours: let {peer} send its storage commitment"
        f" reports to {node.ae_title}, port {port}, on this machine"
    )


def report(node: Node, held: Held) -> None:
    """Tell a source which of the objects it asked about are safe here.

    Raises
    ------
    PeerError
        It can't be told now, or (``PeerRefused``) is no longer a source.
    OutOfResources
        Database or disk are away.
    """
    peer = node.settings.peer(held.peer)
    if peer is None or not peer.is_source:
        raise PeerRefused(f"{held.peer} is no longer a source in the configuration")
    if "/" in peer.address:  # a network: it is where it asked from
        peer = peer.model_copy(update={"host": (held.address,)})
    commitment_calls.report(_called(node.settings, peer), _judged(node, held))
    with node.database.transaction() as connection:
        commitments.reported(connection, held)


def _judged(node: Node, held: Held) -> Report:
    if not node.storage.path("instances").is_dir():  # or nothing would seem to be here
        raise OutOfResources("data folder: instances is away")
    with node.database.transaction() as connection:
        copies = commitments.copies(connection, held.references)
    reasons = {
        item: _failure(node, item, copies.get(item.sop_instance_uid, []))
        for item in held.references
    }
    return Report(
        transaction_uid=held.transaction_uid,
        committed=tuple(item for item, reason in reasons.items() if reason is None),
        failed={item: reason for item, reason in reasons.items() if reason is not None},
    )


def _failure(node: Node, item: Item, copies: list[Copy]) -> int | None:
    """PS3.3 C.14.1.1; ``None``: a whole file of it is here."""
    whole = [copy for copy in copies if _is_whole(node, copy)]
    if not whole:
        return NO_SUCH_INSTANCE
    if all(copy.sop_class_uid != item.sop_class_uid for copy in whole):
        return CLASS_INSTANCE_CONFLICT
    return None


def _is_whole(node: Node, copy: Copy) -> bool:
    try:
        return node.storage.path(copy.path).stat().st_size == copy.size
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutOfResources(f"data folder: {error.strerror}") from error


def _called(settings: Settings, peer: Peer) -> DicomPeer:
    return DicomPeer(peer, settings.node.ae_title, tls=settings.tls)
