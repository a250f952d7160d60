"""How far a peer's clock is from ours, by whatever it shows of it; most DICOM peers show nothing.

Three witnesses: SNTP at its host (RFC 4330), the Date of an HTTP answer, and objects that came from
it and say that they were made after they arrived. Each says that the two clocks differ, and none
says which one is right.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import SplitResult

import sqlalchemy as sa
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from dicom_node.config import Peer, Settings
from dicom_node.db import Database, instance
from dicom_node.doctor.checks import Fault, Finding, NotTried

#: Seconds; a network and a filing PACS are slower than clocks that are set by NTP are wrong.
TOLERANCE = 60.0

_SNTP_PORT = 123
_SNTP_SECONDS = 1.0
_SNTP = struct.Struct(">BBBb11I")  # RFC 4330 4: 48 bytes
_CLIENT = 0b00_100_011  # no warning, version 4, client
_SERVER = 4
_UNSYNCHRONISED = 3
_ERA = 2208988800  # RFC 4330 3: seconds from 1900 to 1970

_NEWEST = 20  # objects that are looked at, ...
_RECENT = timedelta(days=1)  # ... and how long one counts: a clock may have been set since


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What one witness says."""

    seconds: float  #: how far the peer's clock is ahead of ours
    witness: str


def judge(differences: Sequence[Difference]) -> Finding:
    """No two clocks of one hospital may differ by more than :data:`TOLERANCE`.

    Raises
    ------
    Fault
        They do.
    NotTried
        There is no witness.
    """
    if not differences:
        raise NotTried("it tells no time (SNTP, HTTP), and nothing came today from the future")
    worst = max(differences, key=lambda one: abs(one.seconds))
    if abs(worst.seconds) <= TOLERANCE:
        return Finding(text=f"{abs(worst.seconds):.0f} s from ours at most ({worst.witness})")
    ahead = "ahead of" if worst.seconds > 0 else "behind"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    raise Fault(
        f"its clock is {abs(worst.seconds):.0f} s {ahead} ours ({worst.witness})",
        f"set both clocks by NTP; that of this machine says {now}",
    )


def by_sntp(addresses: Sequence[str], port: int = _SNTP_PORT) -> Iterator[Difference]:
    """Ask the peer's host; one that is silent or has no time of its own says nothing."""
    for address in addresses[:1]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.settimeout(_SNTP_SECONDS)
            asking.connect((address, port))
            ahead = _asked(asking)
            if ahead is not None:
                yield Difference(seconds=ahead, witness=f"SNTP at {address}")


def by_http(
    base: SplitResult, context: ssl.SSLContext | None, seconds: float
) -> Iterator[Difference]:
    """The Date of the answer to HEAD (RFC 9110 6.6.1), whatever the answer is."""
    with (
        suppress(OSError, HTTPException, ValueError),
        closing(_http(base, context, seconds)) as asking,
    ):
        asking.request("HEAD", base.path or "/")
        date = asking.getresponse().headers["Date"]
        if date:
            ahead = parsedate_to_datetime(date).timestamp() - time.time()
            yield Difference(seconds=ahead, witness="Date of its HTTP answer")


def by_objects(settings: Settings, database: Database, peer: Peer) -> Iterator[Difference]:
    """Objects of the last day that were made after they arrived: only a clock ahead shows so."""
    data = settings.node.data
    zone = settings.node.timezone_offset
    leads = [_lead(data / path, at, zone) for path, at in _arrivals(database, peer)]
    known = [lead for lead in leads if lead is not None and lead > 0]
    if known:
        witness = "Instance Creation Time of what came, in its own or this node's time zone"
        yield Difference(seconds=max(known), witness=witness)


def _asked(asking: socket.socket) -> float | None:
    """RFC 4330 5: half of what both ways differ by."""
    sent = time.time()
    # What comes back says that this is the answer; it need not be our time.
    token = int.from_bytes(os.urandom(8))
    asking.send(_SNTP.pack(_CLIENT, 0, 0, 0, *[0] * 9, *divmod(token, 2**32)))
    answer = asking.recv(512)
    received = time.time()
    if len(answer) < _SNTP.size:
        return None
    first, stratum, _, _, *words = _SNTP.unpack_from(answer)
    usable = first & 0b111 == _SERVER and first >> 6 != _UNSYNCHRONISED and stratum
    if not usable or words[5] * 2**32 + words[6] != token:
        return None
    there = (_ahead(words[7:9], sent) + _ahead(words[9:11], received)) / 2
    return there


def _ahead(stamp: Sequence[int], ours: float) -> float:
    """Seconds; eras of 136 years are told apart by the nearest (RFC 4330 3)."""
    theirs = stamp[0] + stamp[1] / 2**32
    return (theirs - (ours + _ERA) + 2**31) % 2**32 - 2**31


def _http(base: SplitResult, context: ssl.SSLContext | None, seconds: float) -> HTTPConnection:
    host = base.hostname or ""
    if context is None:
        return HTTPConnection(host, base.port, timeout=seconds)
    return HTTPSConnection(host, base.port, timeout=seconds, context=context)


def _arrivals(database: Database, peer: Peer) -> list[tuple[str, datetime]]:
    with database.transaction() as connection:
        rows = connection.execute(
            sa.select(instance.c.path, instance.c.received_at)
            .where(
                instance.c.calling_ae_title.in_(peer.calling_ae_titles),
                instance.c.pixels_deleted_at.is_(None),
                instance.c.received_at > sa.func.now() - _RECENT,
            )
            .order_by(instance.c.received_at.desc())
            .limit(_NEWEST)
        )
        return [(row.path, row.received_at) for row in rows]


_MADE = ["InstanceCreationDate", "InstanceCreationTime", "TimezoneOffsetFromUTC"]


def _lead(file: Path, received_at: datetime, zone: str) -> float | None:
    """Seconds from its arrival to when it says it was made."""
    try:
        made = _made(dcmread(file, stop_before_pixels=True, specific_tags=_MADE), zone)
    except (OSError, InvalidDicomError, ValueError, LookupError, EOFError, NotImplementedError):
        return None  # gone by now, or something that says no time
    return (made - received_at).total_seconds()


def _made(header: Dataset, offset: str) -> datetime:
    """PS3.3 C.12.1, C.12.1.1.8; raises ValueError where it says nothing that can be read."""
    date, clock = (str(header[keyword].value) for keyword in _MADE[:2])
    made = datetime.strptime(f"{date}{clock[:6]:0<6}", "%Y%m%d%H%M%S")
    stated = str(header.get("TimezoneOffsetFromUTC") or offset).strip()
    return made.replace(tzinfo=_zone(stated)) if stated else made.astimezone()


def _zone(offset: str) -> timezone:
    minutes = int(offset[1:3]) * 60 + int(offset[3:5])
    return timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))
