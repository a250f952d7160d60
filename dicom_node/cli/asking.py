"""reconcile, priors: the verbs that ask other nodes what they have."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from typing import Any

from dicom_node import fetches, heartbeats, priors, queries, reconciliation
from dicom_node.audit.auditor import Asking, Auditor
from dicom_node.cli import tables, wiring
from dicom_node.config import Peer, Settings
from dicom_node.db import Database
from dicom_node.errors import ConfigurationError, NodeError, PeerError
from dicom_node.priors import EarlierStudy
from dicom_node.reconciliation import Comparison, Prior
from dicom_node.storage import Storage

#: Earlier studies that are looked for by hand where the settings say none.
PRIORS = 3


def reconcile(
    settings: Settings, *, day: str | None, peer: str | None, fetch: bool, as_json: bool
) -> None:
    """Print what peers have and we have not; queue it, where a person wants that."""
    database = wiring.database(settings)
    days = [day] if day else _last_days(database, settings)
    found: list[Comparison] = []
    faults: list[PeerError] = []
    for one in _asked(settings, peer):
        try:
            found += _compare(database, settings, one, days)
        except PeerError as error:
            faults.append(error)
    queued = _queue(database, found) if fetch else 0
    if as_json:
        print(json.dumps({"days": [_day(one) for one in found], "queued": queued}, indent=2))
    else:
        tables.show_missing(found)
    _end(faults, queued if fetch else None)


def _last_days(database: Database, settings: Settings) -> list[str]:
    with database.transaction() as connection:
        return reconciliation.last_days(connection, max(1, settings.reconciliation.days))


def _asked(settings: Settings, name: str | None) -> tuple[Peer, ...]:
    asked = settings.asked("query")
    chosen = tuple(one for one in asked if name in (None, one.name))
    if not chosen:
        known = ", ".join(one.name for one in asked) or "none"
        which = f"peer {name} is not asked" if name else "nobody is asked"
        raise ConfigurationError(f'{which}: set roles = ["source", "query"] (asked: {known})')
    return chosen


def _heard(settings: Settings, database: Database) -> Callable[[Peer], Asking]:
    auditor = Auditor(settings, heartbeats.process_name("cli"))
    return lambda peer: auditor.asking(database, peer)


def _compare(
    database: Database, settings: Settings, peer: Peer, days: Sequence[str]
) -> list[Comparison]:
    heard = _heard(settings, database)(peer)
    title, tls = settings.node.ae_title, settings.tls
    with queries.inquiry(peer, title, tls, asking=heard) as asked:
        return [reconciliation.compare(database, settings, asked, peer, day) for day in days]


def _queue(database: Database, found: Sequence[Comparison]) -> int:
    missed = [one.study.study_instance_uid for day in found for one in day.missed]
    with database.transaction() as connection:
        new = sum(reconciliation.queue(connection, day) for day in found)
        return new + fetches.requeue(connection, study_instance_uids=missed)


def _day(one: Comparison) -> dict[str, Any]:
    return {
        "peer": one.peer,
        "study_date": one.study_date,
        "found": one.found,
        "missing": [
            {
                "study_instance_uid": missing.study.study_instance_uid,
                "modalities": list(missing.study.modalities),
                "instances": missing.study.instances,
                "absent": missing.absent,
                "fetch": missing.state,
            }
            for missing in one.missed
        ],
    }


def show_priors(settings: Settings, study_uid: str, *, fetch: bool, as_json: bool) -> None:
    """Print a patient's earlier chest studies, here and at peers; queue those we have not."""
    _asked(settings, None)
    database = wiring.database(settings)
    of = reconciliation.header_of(database, Storage(settings.node.data), study_uid)
    count, heard = settings.reconciliation.priors or PRIORS, _heard(settings, database)
    found, faults = reconciliation.priors(settings, of, count, heard)
    queued = _queue_priors(database, settings, study_uid, found) if fetch else 0
    listed = _merged(database, study_uid, found)
    if as_json:
        rows = [asdict(one) for one in listed]
        document = {"study_instance_uid": study_uid, "priors": rows, "queued": queued}
        print(json.dumps(document, indent=2))
    else:
        tables.show_priors(listed)
    _end(faults, queued if fetch else None)


def _queue_priors(
    database: Database, settings: Settings, study_uid: str, found: Sequence[Prior]
) -> int:
    with database.transaction() as connection:
        new = reconciliation.queue_priors(connection, settings, found, study_uid)
        return new + fetches.requeue(connection, study_instance_uids=_uids(found))


def _merged(database: Database, study_uid: str, found: Sequence[Prior]) -> list[EarlierStudy]:
    with database.transaction() as connection:
        known = fetches.known(connection, _uids(found))
        here = {one.study_instance_uid: one for one in priors.of_study(connection, study_uid)}
    theirs = {
        one.study.study_instance_uid: EarlierStudy(
            study_instance_uid=one.study.study_instance_uid,
            study_date=one.study.study_date,
            state=known.get(one.study.study_instance_uid, "not here"),
            peer=one.peer,
            reason=None,
        )
        for one in found
    }
    return sorted((theirs | here).values(), key=lambda one: one.study_date, reverse=True)


def _uids(found: Sequence[Prior]) -> Collection[str]:
    return [one.study.study_instance_uid for one in found]


def _end(faults: Sequence[PeerError], queued: int | None) -> None:
    """What was done, for people; exit code 1 where a peer could not be asked."""
    if queued is not None:
        print(f"queued: {queued} studies", file=sys.stderr)
    if faults:
        raise NodeError("; ".join(str(one) for one in faults))
