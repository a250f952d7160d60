"""What was asked for, and why: imaging orders, and which of them a study answers.

    open -> cancelled -> open (placed again)

The only writer of ``imaging_order``. Worklists and HL7 messages tell of orders before the images
come; whoever needs one looks here, so that nothing that reads a study ever waits for a peer. Of the
patient only keys are kept (``storage.Identity``); the indication may name or describe the patient
and goes into the prompt and the draft, never into a log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Literal

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping, func
from sqlalchemy.dialects import postgresql

from dicom_node.db import imaging_order, study
from dicom_node.identity import is_same_order, is_same_patient
from dicom_node.priorities import ROUTINE
from dicom_node.storage import Identity

#: Where they come from; of two that tell of the same study the first is believed.
SOURCES = ("worklist", "hl7")
#: An order nothing was heard of for so long is forgotten.
KEPT = timedelta(days=365)
#: Characters of an indication; no prompt holds more than some hundred words.
LONGEST = 2000
#: More orders with the same keys than this are not one patient's; which is meant is not sure.
_ENOUGH = 50

#: Compared and kept as they are; ``study_date`` is of images, not of orders.
_KEYS = ("patient_id_key", "patient_issuer_key", "accession_key", "accession_issuer_key")

Source = Literal["worklist", "hl7"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a peer says of one order now; ``None`` or empty: nothing, so what it said stands."""

    source: Source
    peer: str  #: who says it: the worklist peer's name, or the message's sending application
    order_key: str  #: see :func:`order_key`
    study_instance_uid: str = ""
    identity: Identity = field(default_factory=Identity)
    indication: str | None = field(default=None, repr=False)  #: "": there is none any more
    indication_source: str = ""  #: as it is printed in the draft
    priority: int | None = None  #: see ``priorities``
    cancelled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One order as we know it."""

    source: Source
    study_instance_uid: str
    identity: Identity
    indication: str = field(repr=False)
    indication_source: str
    priority: int
    state: str  #: open, cancelled


def order_key(number: str, procedure: str = "") -> str:
    """What tells the orders of one peer apart, without saying their numbers.

    One order may ask for several procedures; named without one, it is all of them.
    """
    return f"{_digest(number)}/{_digest(procedure) if procedure else ''}"


def says_something(text: str) -> bool:
    """Is it more than the "-", "." or "?" that is typed where a field must not be empty?"""
    return any(c.isalnum() for c in text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


# -- writing ---------------------------------------------------------------------------------------


def keep(connection: Connection, told: Iterable[Told]) -> None:
    """Write down what a peer says of its orders; the same again changes nothing."""
    # Always in the same order, or two who tell of the same orders could wait for each other.
    for one in sorted(told, key=lambda one: (one.source, one.peer, one.order_key)):
        if one.cancelled:
            _cancel(connection, one)
        else:
            _place(connection, one)


def _place(connection: Connection, one: Told) -> None:
    key = {"source": one.source, "peer": one.peer, "order_key": one.order_key}
    said = _said(one)
    nothing: dict[str, object] = dict.fromkeys(("study_instance_uid", *_KEYS), "")
    nothing |= {"indication": "", "indication_source": "", "priority": ROUTINE}
    if "patient_id_key" in said:  # the number was given to another patient: nothing of it stands
        another = imaging_order.c.patient_id_key != said["patient_id_key"]
        connection.execute(sa.delete(imaging_order).where(*_named(one), another))
    insert = postgresql.insert(imaging_order).values({**key, **nothing, **said})
    changed = sa.or_(*(imaging_order.c[name] != value for name, value in said.items()))
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=list(key), set_={**said, "changed_at": func.now()}, where=changed
        )
    )


def _said(one: Told) -> dict[str, object]:
    """The columns that it says something of."""
    keys = {name: getattr(one.identity, name) for name in _KEYS}
    said: dict[str, object] = {name: value for name, value in keys.items() if value}
    if one.study_instance_uid:
        said["study_instance_uid"] = _clean(one.study_instance_uid)
    if one.indication is not None:
        said["indication"] = _clean(one.indication)[:LONGEST]
        said["indication_source"] = _clean(one.indication_source)
    if one.priority is not None:
        said["priority"] = one.priority
    return {**said, "state": "open"}


def _named(one: Told) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        imaging_order.c.source == one.source,
        imaging_order.c.peer == one.peer,
        imaging_order.c.order_key == one.order_key,
    )


def _cancel(connection: Connection, one: Told) -> None:
    """One procedure of the order, or all of them where either side names none."""
    source, peer, named = _named(one)
    number, _, procedure = one.order_key.partition("/")
    if procedure:
        named = imaging_order.c.order_key.in_((one.order_key, f"{number}/"))
    else:
        named = imaging_order.c.order_key.startswith(one.order_key)
    connection.execute(
        sa.update(imaging_order)
        .where(source, peer, named, imaging_order.c.state == "open")
        .values(state="cancelled", changed_at=func.now())
    )


def forget(connection: Connection) -> int:
    """Delete what is older than :data:`KEPT`; how many orders that were."""
    old = imaging_order.c.changed_at < func.now() - KEPT
    return connection.execute(sa.delete(imaging_order).where(old)).rowcount


def erase(connection: Connection, study_instance_uid: str) -> None:
    """Delete the orders of a study of which nothing is kept any more."""
    same_order = sa.and_(
        study.c.accession_key != "", imaging_order.c.accession_key == study.c.accession_key
    )
    its = sa.or_(imaging_order.c.study_instance_uid == study_instance_uid, same_order)
    connection.execute(
        sa.delete(imaging_order).where(
            study.c.study_instance_uid == study_instance_uid,
            imaging_order.c.patient_id_key == study.c.patient_id_key,
            its,
        )
    )


def _clean(text: str) -> str:
    """The text without what Postgres can't hold: NUL and halves of characters."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


# -- reading ---------------------------------------------------------------------------------------


def find(connection: Connection, study_instance_uid: str) -> Order | None:
    """The order that a study answers; ``None``: none is known, or it is not sure which."""
    row = connection.execute(
        sa.select(study).where(study.c.study_instance_uid == study_instance_uid)
    )
    found = row.mappings().one_or_none()
    if found is None or not found["patient_id_key"]:
        return None  # whose study it is, nobody has told
    whose = _identity(found)
    named = imaging_order.c.study_instance_uid == study_instance_uid
    shared = [named]
    if whose.accession_key:
        shared.append(imaging_order.c.accession_key == whose.accession_key)
    query = (
        sa.select(imaging_order)
        .where(sa.or_(*shared), imaging_order.c.patient_id_key == whose.patient_id_key)
        .order_by(named.desc(), imaging_order.c.changed_at.desc(), imaging_order.c.id.desc())
        .limit(_ENOUGH)
    )
    rows = connection.execute(query).mappings()
    return match(study_instance_uid, whose, [_order(one) for one in rows])


def match(study_instance_uid: str, whose: Identity, orders: Sequence[Order]) -> Order | None:
    """Decide which order a study answers; pure.

    By Study Instance UID; else by accession number, if all that have it say the same. The patient
    must agree: an order that names another or none is no study's. What is urgent to one is urgent.

    Parameters
    ----------
    study_instance_uid, whose
        The study, and what its images say of it.
    orders
        Those that may be meant, the newest first.
    """
    his = [one for one in orders if one.state == "open" and is_same_patient(one.identity, whose)]
    found = [one for one in his if one.study_instance_uid == study_instance_uid]
    found = found or _agreeing([one for one in his if is_same_order(one.identity, whose)])
    if not found:
        return None
    # Sorted stably: of one source the newest stays first.
    best = min(found, key=lambda one: (not one.indication, SOURCES.index(one.source)))
    return replace(best, priority=max(one.priority for one in found))


def _agreeing(orders: list[Order]) -> list[Order]:
    """The orders of one accession number, unless two studies or procedures could be meant."""
    studies = {one.study_instance_uid for one in orders if one.study_instance_uid}
    said = [
        {one.indication for one in orders if one.source == source and one.indication}
        for source in SOURCES
    ]
    return orders if len(studies) <= 1 and all(len(one) <= 1 for one in said) else []


def _order(row: RowMapping) -> Order:
    plain = [name for name in Order.__dataclass_fields__ if name != "identity"]
    return Order(**{name: row[name] for name in plain}, identity=_identity(row))


def _identity(row: RowMapping) -> Identity:
    return Identity(**{name: row[name] or "" for name in _KEYS})
