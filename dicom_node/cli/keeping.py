"""retention: what will be deleted when, and why not."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from dicom_node import retention
from dicom_node.cli import tables, wiring
from dicom_node.config import Retention, Settings
from dicom_node.disk import Watermarks
from dicom_node.retention import Plan
from dicom_node.storage import Storage

#: What `--now` deletes at most, in studies.
BY_HAND = 10_000


def show(settings: Settings, *, limit: int, as_json: bool) -> None:
    """Print the plan."""
    marks = Watermarks(settings.node.data, settings.disk)
    with wiring.database(settings).transaction() as connection:
        plans = retention.plan(connection, settings.retention, limit=limit)
    if as_json:
        rows = [_row(one, settings.retention) for one in plans]
        print(json.dumps({"disk": _disk(marks, settings), "studies": rows}, indent=2))
        return
    tables.console.print(_sentence(marks, settings))
    tables.show(
        ("study", "state", "MiB", "pixels go", "all goes", "kept because"),
        [
            (
                one.study_instance_uid,
                one.state,
                f"{one.size / 2**20:.1f}",
                f"gone {tables.when(one.pixels_deleted_at)}"
                if one.pixels_deleted_at
                else tables.when(one.pixels_go_at),
                tables.when(one.metadata_goes_at),
                _why(one, settings.retention),
            )
            for one in plans
        ],
    )


def apply(settings: Settings, *, as_json: bool) -> None:
    """Delete what is due now."""
    done = retention.apply(
        wiring.database(settings),
        Storage(settings.node.data),
        settings,
        Watermarks(settings.node.data, settings.disk),
        limit=BY_HAND,
    )
    if as_json:
        print(json.dumps({"deleted": asdict(done)}))
    else:
        print(f"deleted: the pixels of {done.pixels} studies, all of {done.metadata}")


def _row(one: Plan, keep: Retention) -> dict[str, Any]:
    times = ("pixels_deleted_at", "pixels_go_at", "metadata_goes_at")
    row = asdict(one) | {name: _iso(getattr(one, name)) for name in times}
    return row | {"kept_because": _why(one, keep)}


def _why(one: Plan, keep: Retention) -> str | None:
    if one.kept_because or one.state == "deleting":
        return one.kept_because
    if not one.pixels_deleted_at and not keep.pixels_days:
        return "retention.pixels_days = 0"
    return None


def _disk(marks: Watermarks, settings: Settings) -> dict[str, Any]:
    return {
        "state": marks.state,
        "used_percent": marks.usage.used_percent if marks.usage else None,
        "high_percent": settings.disk.high_percent,
        "low_percent": settings.disk.low_percent,
    }


def _sentence(marks: Watermarks, settings: Settings) -> str:
    used = f"{marks.usage.used_percent:.1f} % used" if marks.usage else "away"
    high, low = settings.disk.high_percent, settings.disk.low_percent
    return (
        f"disk {used}: above {high:g} % the pixels of finished studies go, the oldest first,"
        f" until below {low:g} %"
    )


def _iso(at: datetime | None) -> str | None:
    return at.isoformat(timespec="seconds") if at else None
