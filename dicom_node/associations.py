"""Refused associations, kept for the administrator: the only writer of ``refused_association``.

Whoever is turned away is counted with titles, address, contexts and reason; ``remedies`` says how
to mend it. All of it comes from the network, so nothing is believed: it is escaped and cut before
it is kept, and neither a port scan nor one busy address fills the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy import Connection, func
from sqlalchemy.dialects import postgresql

from dicom_node.db import refused_association

#: A port scan must not fill the table: the oldest rows beyond this go, ...
KEPT = 200
#: ... and those of one address beyond this, so that it does not drive out the others.
KEPT_PER_ADDRESS = 20
#: Any fixed number: receivers write one after the other, each for about a millisecond a second.
_LOCK = 0xD1C1

_TITLE_LENGTH = 64  # 16 characters (PS3.5 6.2), each escaped as \xNN
_ADDRESS_LENGTH = 64
_DETAIL_LENGTH = 200
_CONTEXTS = 32  # a PACS proposes up to 128; these show what it is
_UID = re.compile(r"[0-9.]{1,64}", re.ASCII)  # PS3.5 9.1
_UNPRINTABLE = re.compile(r"[^ -~]")


class Reason(StrEnum):
    """Why somebody was turned away: a word that stays the same, and its text for people."""

    UNKNOWN_TITLE = "unknown-title"
    WRONG_ADDRESS = "wrong-address"
    WRONG_CALLED_TITLE = "wrong-called-title"
    TLS_REQUIRED = "tls-required"
    TLS_HANDSHAKE = "tls-handshake"
    LIMIT = "limit"
    LIMIT_PER_ADDRESS = "limit-per-address"
    DISK_FULL = "disk-full"
    NOT_DICOM = "not-dicom"
    TIMEOUT = "timeout"
    PDU_TOO_LONG = "pdu-too-long"
    HL7 = "hl7"

    @property
    def text(self) -> str:
        """For people."""
        return _TEXTS[self]

    @property
    def is_alert(self) -> bool:
        """Was somebody turned away for who he is, and not for what we can take?"""
        return self in _ALERTS

    @property
    def expected(self) -> bool:
        """Does every port see this, so that nobody need mend anything?"""
        return self in (Reason.NOT_DICOM, Reason.TIMEOUT)


_TEXTS: Mapping[Reason, str] = {
    Reason.UNKNOWN_TITLE: "no peer with this AE title may send",
    Reason.WRONG_ADDRESS: "the AE title is a peer's, the address is not",
    Reason.WRONG_CALLED_TITLE: "it called an AE title that is not ours",
    Reason.TLS_REQUIRED: "this peer must call by TLS, and called without",
    Reason.TLS_HANDSHAKE: "no TLS connection came about",
    Reason.LIMIT: "too many associations at a time",
    Reason.LIMIT_PER_ADDRESS: "too many associations of one address at a time",
    Reason.DISK_FULL: "the disk is full",
    Reason.NOT_DICOM: "what it sent is not DICOM",
    Reason.TIMEOUT: "it connected and then did not go on in time",
    Reason.PDU_TOO_LONG: "it sent a longer PDU than was agreed",
    Reason.HL7: "an HL7 connection was turned away",
}


_ALERTS = frozenset(
    {
        Reason.UNKNOWN_TITLE,
        Reason.WRONG_ADDRESS,
        Reason.WRONG_CALLED_TITLE,
        Reason.TLS_REQUIRED,
        Reason.TLS_HANDSHAKE,
        Reason.HL7,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Somebody who is turned away; escaped and cut on construction, so safe to log and to keep."""

    calling_ae_title: str  #: "" where none was said
    called_ae_title: str
    address: str  #: as an IP address
    contexts: tuple[str, ...] = field(default=(), compare=False)  #: proposed abstract syntaxes
    reason: Reason
    tls: bool = False  #: came by TLS
    detail: str = ""  #: what else is known, such as the fault of a certificate

    def __post_init__(self) -> None:
        """Trust nothing that came over the network."""
        cleaned = {
            "calling_ae_title": printable(self.calling_ae_title, _TITLE_LENGTH),
            "called_ae_title": printable(self.called_ae_title, _TITLE_LENGTH),
            "address": printable(self.address, _ADDRESS_LENGTH),
            "contexts": _uids(self.contexts),
            "detail": printable(self.detail, _DETAIL_LENGTH),
        }
        for name, value in cleaned.items():
            object.__setattr__(self, name, value)

    @property
    def text(self) -> str:
        """Why, for people."""
        return f"{self.reason.text}: {self.detail}" if self.detail else self.reason.text


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedAssociation(Refused):
    """A refusal as it is kept: how often, and when."""

    count: int
    first: datetime
    last: datetime


def printable(text: str, limit: int) -> str:
    """Printable ASCII only; everything else is escaped as Python does, and it is cut to a limit.

    A terminal then shows what came and obeys none of it. No AE title may hold a backslash (PS3.5
    6.2), so what was escaped can't pass for a real one.
    """
    return _UNPRINTABLE.sub(_escape, text.strip(" "))[:limit].rstrip(" ")


def refused(connection: Connection, one: Refused) -> list[Refused]:
    """Count one refusal; returns as :func:`refused_many`."""
    return refused_many(connection, {one: 1})


def refused_many(connection: Connection, refusals: Mapping[Refused, int]) -> list[Refused]:
    """Count several refusals at once: how often each was seen.

    Returns
    -------
    list of Refused
        The security alerts among them: of each address and reason the first one of the hour.
    """
    if not refusals:
        return []
    table = refused_association
    insert = postgresql.insert(table).values([_row(one, count) for one, count in refusals.items()])
    # One after the other: upserts and deletes of several receivers would wait in a ring.
    connection.execute(sa.select(func.pg_advisory_xact_lock(_LOCK)))
    alerts = _alerts(connection, refusals)
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=list(table.primary_key.columns),
            set_={
                "count": table.c.count + insert.excluded.count,
                "contexts": insert.excluded.contexts,
                "last": func.now(),
            },
        )
    )
    _forget(connection)
    return alerts


def _alerts(connection: Connection, refusals: Iterable[Refused]) -> list[Refused]:
    first: dict[tuple[str, Reason], Refused] = {}
    for one in refusals:
        if one.reason.is_alert:
            first.setdefault((one.address, one.reason), one)
    table = refused_association
    key = sa.tuple_(table.c.address, table.c.reason)
    known = connection.execute(
        sa.select(table.c.address, table.c.reason).where(
            key.in_(list(first)), table.c.last >= func.date_trunc("hour", func.now())
        )
    )
    told = {(address, Reason(reason)) for address, reason in known}
    return [one for place, one in first.items() if place not in told]


def latest(connection: Connection, limit: int = 20) -> list[RefusedAssociation]:
    """The most recent refusals."""
    rows = connection.execute(
        sa.select(refused_association).order_by(refused_association.c.last.desc()).limit(limit)
    ).mappings()
    return [_kept(row) for row in rows]


def _row(one: Refused, count: int) -> dict[str, object]:
    names = [*refused_association.primary_key.columns.keys(), "contexts"]
    return {**{name: getattr(one, name) for name in names}, "count": count}


def _kept(row: sa.RowMapping) -> RefusedAssociation:
    told = {name: row[name] for name in RefusedAssociation.__dataclass_fields__}
    told |= {"reason": Reason(row["reason"]), "contexts": tuple(row["contexts"])}
    return RefusedAssociation(**told)


def _forget(connection: Connection) -> None:
    """Keep the newest: of each address, then of all."""
    table = refused_association
    key = list(table.primary_key.columns)
    newest = table.c.last.desc()
    of_address = func.row_number().over(partition_by=table.c.address, order_by=newest)
    ranked = sa.select(*key, table.c.last, of_address.label("rank")).subquery()
    kept = (
        sa.select(*(ranked.c[column.name] for column in key))
        .where(ranked.c.rank <= KEPT_PER_ADDRESS)
        .order_by(ranked.c.last.desc())
        .limit(KEPT)
    )
    connection.execute(sa.delete(table).where(sa.tuple_(*key).not_in(kept)))


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def _uids(contexts: tuple[str, ...]) -> tuple[str, ...]:
    """Each once, in the order proposed; what is no UID is left out."""
    found = dict.fromkeys(uid for uid in contexts if _UID.fullmatch(uid))
    return tuple(found)[:_CONTEXTS]
