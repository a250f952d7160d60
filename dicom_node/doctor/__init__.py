"""Checks of each part and each peer: what is wrong, and the one line that mends it.

Without a peer: one quick question each. With one: its whole way, step by step (``ways``), so that
the fault is named where it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from dicom_node import destinations
from dicom_node.config import Peer, Settings
from dicom_node.db import Database
from dicom_node.doctor import clock, inward
from dicom_node.doctor.checks import Check, Step, attempt, document, in_order, to_json
from dicom_node.doctor.parts import missing, parts
from dicom_node.doctor.round_trip import Call, RoundTrip
from dicom_node.doctor.ways import DicomWay, HttpWay, Way

__all__ = ["Call", "Check", "document", "everything", "examine", "peers", "to_json"]


def everything(settings: Settings, database: Database | None) -> list[Check]:
    """All parts of this node, then every peer both ways, then who else called."""
    found = parts(settings, database)
    database = database if database is not None and not missing(database) else None
    found += peers(settings, database, settings.peers)
    return [*found, *(inward.strangers(settings, database) if database is not None else ())]


def peers(settings: Settings, database: Database | None, asked: Sequence[Peer]) -> list[Check]:
    """Each peer: do we reach it, and did it ever reach us?"""
    checks = []
    for peer in asked:
        if peer.is_destination:
            checks.append(_outward(settings, peer))
        if _asked_elsewhere(peer):
            checks.append(_outward(settings, peer.for_queries, "queries to"))
        if peer.is_source and database is not None:
            checks.append(inward.inward(settings, database, peer))
    return checks


def examine(call: Call) -> list[Check]:
    """One peer, both ways, step by step; what makes no sense after a fault is not tried."""
    checks = [] if call.database is None else missing(call.database)
    call = replace(call, database=None) if checks else call
    ways = list(_ways(call))
    checks += [check for way in ways for check in way.checks()]
    checks.append(_clock(call, ways))
    if call.database is not None and call.peer.calls_us:
        checks.append(inward.inward(call.settings, call.database, call.peer))
    if call.database is not None and call.peer in call.settings.sources():
        checks.append(inward.sent(call.database, call.peer))
    return checks


def _ways(call: Call) -> Iterator[Way]:
    peer = call.peer
    if peer.url:
        yield HttpWay(call, f"to {peer.name}")
    elif peer.protocol == "hl7" and peer.is_destination:
        yield Way(call, f"to {peer.name}")
    round_trip = RoundTrip(call)  # it may be stored at one place and proven at the other
    if peer.is_destination and peer.protocol == "dicom":
        yield DicomWay(call, f"to {peer.name}", round_trip)
    if _asked_elsewhere(peer):
        elsewhere = replace(call, peer=peer.for_queries)
        yield DicomWay(elsewhere, f"queries to {peer.name}", round_trip, queries_only=True)


def _asked_elsewhere(peer: Peer) -> bool:
    """Are queries answered at another place than objects are sent to?"""
    if peer.is_destination:
        return peer.for_queries != peer
    return bool({"query", "worklist"} & set(peer.roles))


def _clock(call: Call, ways: Sequence[Way]) -> Check:
    """By whatever shows it; a host that could not be reached is not asked for the time."""

    def differences() -> Iterator[clock.Difference]:
        for way in ways[:1]:  # a second one leads to the same host
            yield from way.times()
        if call.peer.is_source and call.database is not None:
            yield from clock.by_objects(call.settings, call.database, call.peer)

    step = Step(word="clock", ask=lambda: clock.judge(list(differences())))
    return in_order(call.peer.name, [replace(step, name=f"clock of {call.peer.name}")])[0]


def _outward(settings: Settings, peer: Peer, which: str = "to") -> Check:
    def question() -> str:
        destinations.open_destination(peer, settings.node.ae_title, tls=settings.tls).verify()
        return f"{peer.place} answers{' C-ECHO' if peer.protocol == 'dicom' else ''}"

    fix = (
        f"check host, port and ae_title of peer {peer.name}, and that it knows the AE title "
        f"{settings.node.ae_title} at this machine's address"
        if peer.protocol == "dicom"
        else f"check host and port, or url, of peer {peer.name}, and that it lets us in"
    )
    return attempt(f"{which} {peer.name}", question, fix)
