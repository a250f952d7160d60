"""Dates and times as DICOM (PS3.5 6.2, DT) and HL7 (v2.5 2.A.77, TS) write them: alike."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

_TIMESTAMP = re.compile(r"(\d{8})(?:(\d{2})(\d{2})?(\d{2})?)?(\.\d{1,6})?([+-]\d{4})?")
_OFFSET = re.compile(r"([+-])(\d{2})(\d{2})")


def moment(text: str, offset: str = "") -> datetime | None:
    """Return a time of a day's precision or better, or None where there is none.

    Parameters
    ----------
    text
        ``YYYYMMDD[HH[MM[SS[.F]]]][&ZZXX]``.
    offset
        ``&ZZXX`` of the object, for a text without one. UTC where neither has one: times of one
        sender keep their order, and nothing depends on this machine's zone.
    """
    match = _TIMESTAMP.fullmatch(text.strip())
    if match is None:
        return None
    day, hour, minute, second, fraction, zone = match.groups()
    plain = f"{day}{hour or '00'}{minute or '00'}{second or '00'}{fraction or '.0'}"
    try:
        return datetime.strptime(plain, "%Y%m%d%H%M%S.%f").replace(tzinfo=_zone(zone or offset))
    except (ValueError, OverflowError):
        return None


def day(text: str) -> str:
    """Return the day of a timestamp as YYYYMMDD, or an empty string."""
    return text.strip()[:8] if moment(text) else ""


def _zone(offset: str) -> timezone:
    match = _OFFSET.fullmatch(offset.strip())
    if match is None:
        return UTC
    minutes = int(match[2]) * 60 + int(match[3])
    return timezone(timedelta(minutes=-minutes if match[1] == "-" else minutes))
