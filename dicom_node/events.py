"""The history of every study: the only writer of ``event``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy import Connection

from dicom_node.db import event


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One transition."""

    at: datetime
    subject: str  #: "study", "instance UID", "job 7", "delivery 3"
    from_state: str | None
    to_state: str
    reason: str | None


def append(
    connection: Connection,
    study_instance_uid: str,
    subject: str,
    from_state: str | None,
    to_state: str,
    reason: str | None = None,
) -> None:
    """Write down that ``subject`` went from one state to another."""
    connection.execute(
        sa.insert(event).values(
            {
                "study_instance_uid": study_instance_uid,
                "subject": subject,
                "from": from_state,
                "to": to_state,
                "reason": reason,
            }
        )
    )


def of_study(connection: Connection, study_instance_uid: str) -> list[Event]:
    """Everything that happened to a study, oldest first."""
    rows = connection.execute(
        sa.select(event)
        .where(event.c.study_instance_uid == study_instance_uid)
        .order_by(event.c.id)
    ).mappings()
    return [
        Event(
            at=row["at"],
            subject=row["subject"],
            from_state=row["from"],
            to_state=row["to"],
            reason=row["reason"],
        )
        for row in rows
    ]
