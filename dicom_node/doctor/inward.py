"""What came from peers: who sent, who was turned away and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import sqlalchemy as sa

from dicom_node import associations, remedies
from dicom_node.associations import Refused, RefusedAssociation
from dicom_node.config import Peer, Settings
from dicom_node.db import Database, instance, report
from dicom_node.doctor.checks import Check

_LOOKED_AT = 1000  # objects; enough to see every kind that a peer sends
_NAMED = 8  # kinds of object


def inward(settings: Settings, database: Database, peer: Peer) -> Check:
    """Did this source ever reach us, and was it turned away since?"""
    ask = _inward_hl7 if peer.protocol == "hl7" else _inward
    return ask(settings, database, peer)


def sent(database: Database, peer: Peer) -> Check:
    """What this source proposed that we took: classes and transfer syntaxes of its last objects."""
    newest = (
        sa.select(instance.c.sop_class_uid, instance.c.transfer_syntax_uid)
        .where(instance.c.calling_ae_title.in_(peer.calling_ae_titles))
        .order_by(instance.c.received_at.desc())
        .limit(_LOOKED_AT)
        .subquery()
    )
    count = sa.func.count()
    query = sa.select(newest, count).group_by(*newest.c).order_by(count.desc()).limit(_NAMED)
    with database.transaction() as connection:
        kinds = connection.execute(query).all()
    text = "; ".join(f"{_uid(one)} in {_uid(syntax)} ({number})" for one, syntax, number in kinds)
    return Check(name=f"objects from {peer.name}", passed=True, text=text or "none yet")


def _inward(settings: Settings, database: Database, peer: Peer) -> Check:
    name = f"from {peer.name}"
    with database.transaction() as connection:
        last = connection.scalar(
            sa.select(sa.func.max(instance.c.received_at)).where(
                instance.c.calling_ae_title.in_(peer.calling_ae_titles)
            )
        )
        refused = associations.latest(connection, associations.KEPT)
    text = f"last instance {_when(last)}" if last else "nothing sent yet"
    for one in refused:
        fix = _fault(settings, peer, one, last)
        if fix:
            said = f"turned away {_caller(one)} at {_when(one.last)}: {one.text}; {text}"
            return Check(name=name, passed=False, text=said, fix=fix)
    return Check(name=name, passed=True, text=text)


def _fault(
    settings: Settings, peer: Peer, one: RefusedAssociation, last: datetime | None
) -> str | None:
    """What lets this caller in, where it was this peer and nothing came from it since."""
    theirs = remedies.peer_of(settings, one) == peer and not (last and _another(peer, one))
    if not theirs or one.reason.expected or (last and last > one.last):
        return None
    return remedies.fix(settings, one)


def _another(peer: Peer, one: Refused) -> bool:
    """Did it call under a title that is not this peer's? One that sends has the right title."""
    return bool(one.calling_ae_title) and one.calling_ae_title not in peer.calling_ae_titles


def strangers(settings: Settings, database: Database) -> Iterator[Check]:
    """Those who are no peer's: no fault of this node, and perhaps a modality that is new."""
    with database.transaction() as connection:
        refused = associations.latest(connection)
    for one in refused:
        peer = remedies.peer_of(settings, one)
        fix = remedies.fix(settings, one)
        if fix and (peer is None or one.reason.expected or _another(peer, one)):
            text = (
                f"turned away {one.count} times, last {_when(one.last)}: {one.text}{_wanted(one)}"
            )
            yield Check(name=f"caller {_caller(one)}", passed=True, text=text, fix=fix)


def _wanted(one: Refused) -> str:
    names = [_uid(uid) for uid in one.contexts]
    more = f" and {len(names) - 1} more" if names[1:] else ""
    return f"; it asked for {names[0]}{more}" if names else ""


def _caller(one: Refused) -> str:
    way = " by TLS" if one.tls else ""
    return f"{one.calling_ae_title or '(no title)'} at {one.address}{way}"


def _when(at: datetime) -> str:
    return at.isoformat(timespec="seconds")


def _uid(uid: str) -> str:
    from pydicom.uid import UID  # costs 0.7 s: only where there is something to name

    return str(UID(uid).name)


def _inward_hl7(settings: Settings, database: Database, peer: Peer) -> Check:
    """HL7 names no caller: what came from anybody counts."""
    name = f"from {peer.name}"
    if not settings.reports.hl7_port:
        fix = "set reports.hl7_port, where this peer sends its reports"
        return Check(name=name, passed=False, text="nobody listens for HL7", fix=fix)
    with database.transaction() as connection:
        latest = sa.select(sa.func.max(report.c.received_at)).where(report.c.source == "hl7")
        last = connection.scalar(latest)
    text = f"last report {_when(last)}" if last else "nothing sent yet"
    return Check(name=name, passed=True, text=text)
