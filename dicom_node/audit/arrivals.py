"""What came of a study since it was complete the last time, by who sent it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby
from typing import Literal

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping, func

from dicom_node.db import event, instance

Quiet = Callable[[str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """Instances of one study that one sender sent."""

    calling_ae_title: str
    address: str
    action: Literal["C", "U"]  #: U: other bytes under a SOP Instance UID that was here
    at: datetime  #: the last of them
    path: str  #: of one of them, relative to the data folder
    sop_classes: Counter[str] = field(default_factory=Counter)


def since_last_completion(
    connection: Connection, study_instance_uid: str, quiet_seconds: Quiet
) -> Iterator[Arrival]:
    """What is told of at this completion, which has no event yet.

    An instance is of the completion before when it was silently waited out then. Comparing times
    alone would lose one whose transaction began before that completion and ended after it.

    Parameters
    ----------
    quiet_seconds
        How long a study from a sender of this title must be silent.
    """
    before = _last_completion(connection, study_instance_uid)
    rows = (
        row
        for row in _instances(connection, study_instance_uid)
        if before is None
        or row["received_at"] + timedelta(seconds=quiet_seconds(row["calling_ae_title"])) > before
    )
    for _, group in groupby(rows, _sender):
        yield _arrival(list(group))


def _arrival(rows: list[RowMapping]) -> Arrival:
    title, address, changed = _sender(rows[0])
    return Arrival(
        calling_ae_title=title,
        address=address,
        action="U" if changed else "C",
        at=max(row["received_at"] for row in rows),
        path=rows[0]["path"],
        sop_classes=Counter(row["sop_class_uid"] for row in rows),
    )


def _sender(row: RowMapping) -> tuple[str, str, bool]:
    return row["calling_ae_title"], row["address"], row["changed"]


def _last_completion(connection: Connection, study_instance_uid: str) -> datetime | None:
    last: datetime | None = connection.scalar(
        sa.select(func.max(event.c.at)).where(
            event.c.study_instance_uid == study_instance_uid,
            event.c.subject == "study",
            event.c.to == "complete",
        )
    )
    return last


def _instances(connection: Connection, study_instance_uid: str) -> Iterator[RowMapping]:
    changed = (instance.c.revision > 1).label("changed")
    titles = (instance.c.calling_ae_title, instance.c.address)
    query = (
        sa.select(
            *titles, changed, instance.c.path, instance.c.sop_class_uid, instance.c.received_at
        )
        .where(instance.c.study_instance_uid == study_instance_uid)
        .order_by(*titles, changed, instance.c.received_at, instance.c.sop_instance_uid)
    )
    return iter(connection.execute(query).mappings())
