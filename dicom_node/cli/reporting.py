"""reports, evaluate feedback: the radiologists' final reports, and what they made of our drafts."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dicom_node.cli import tables, wiring
from dicom_node.config import Settings
from dicom_node.db import installation_id
from dicom_node.errors import NodeError, NotFound, Unreadable
from dicom_node.reports import feedback, intake, pairs, store
from dicom_node.reports.store import Report
from dicom_node.results import uids
from dicom_node.storage import Storage


def take(settings: Settings, files: list[Path]) -> None:
    """Take in files; a line for each, exit code 1 if one of them could not be read."""
    database, storage = wiring.database(settings), Storage(settings.node.data)
    with database.transaction() as connection:
        node_uid = uids.node_uid(installation_id(connection))
    unread = 0
    for file in files:
        try:
            filed = intake.take_file(database, storage, node_uid, file)
        except (NotFound, Unreadable) as error:
            unread += 1
            print(f"dicom-node: {error}", file=sys.stderr)
        else:
            print(f"{file}: {tables.counts(filed)}")
    if unread:
        raise NodeError(f"{unread} of {len(files)} files were not taken")


def show(settings: Settings, *, parked: bool, limit: int, as_json: bool) -> None:
    """List reports; of what they say nothing is shown."""
    with wiring.database(settings).transaction() as connection:
        found = store.newest(connection, state="parked" if parked else None, limit=limit)
    if as_json:
        print(json.dumps({"reports": [_row(one) for one in found]}, indent=2))
    else:
        tables.show_reports(found)


def _row(one: Report) -> dict[str, Any]:
    return {
        "id": one.id,
        "source": one.source,
        "source_uid": one.source_uid,
        "state": one.state,
        "verdict": one.verdict,
        "reason": one.reason,
        "study_instance_uid": one.study_instance_uid,
        "verified_at": one.verified_at.isoformat() if one.verified_at else None,
        "received_at": one.received_at.isoformat(),
        "indexed": one.indexed_at is not None,
    }


def show_feedback(settings: Settings, *, weeks: int | None, as_json: bool) -> None:
    """What radiologists made of the drafts, by model version and week."""
    since = datetime.now(UTC) - timedelta(weeks=weeks) if weeks else None
    with wiring.database(settings).transaction() as connection:
        rows = feedback.summarise(
            pair for pair in pairs.feedback(connection) if since is None or pair.at >= since
        )
    if as_json:
        print(json.dumps({"rows": [asdict(one) for one in rows]}, indent=2))
    else:
        tables.show_feedback(rows)
