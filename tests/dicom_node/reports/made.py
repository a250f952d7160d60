"""Final reports made up, as readers give them and as rows, and what images say of a study."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

from dicom_node.db import Database
from dicom_node.reports import matching, store
from dicom_node.reports.final import Claim, FinalReport, order_key
from dicom_node.reports.matching import Outcome
from dicom_node.reports.store import Arrived, Report
from dicom_node.storage import Identity, identity_key

MORNING = datetime(2024, 3, 11, 9, tzinfo=UTC)
HOUR = timedelta(hours=1)

_numbers = itertools.count(1)


def identity(
    patient: str = "", *, issuer: str = "", accession: str = "", ris: str = "", day: str = ""
) -> Identity:
    """What an image says of its study."""
    return Identity(
        patient_id_key=identity_key(patient),
        patient_issuer_key=identity_key(issuer),
        accession_key=identity_key(accession),
        accession_issuer_key=identity_key(ris),
        study_date=day,
    )


def final(text: str = "Small effusion.", **changes: object) -> FinalReport:
    """A report as a reader gives it."""
    values: dict[str, object] = {
        "source": "hl7",
        "source_uid": f"M{next(_numbers)}",
        "order_key": order_key("F1"),
        "verdict": "final",
        "claim": Claim(),
        "sections": {"findings": text},
        "verified_at": MORNING,
        **changes,
    }
    return FinalReport(**values)  # type: ignore[arg-type]


def arrived(report: FinalReport, **changes: object) -> Arrived:
    """A report whose bytes were kept."""
    number = next(_numbers)
    values: dict[str, object] = {
        "final": report,
        "sha256": f"{number:064x}",
        "path": f"reports/00/{number}.hl7",
        **changes,
    }
    return Arrived(**values)  # type: ignore[arg-type]


def keep(database: Database, report: FinalReport, **changes: object) -> int | None:
    """File a report as intake does: looked for by what it claims."""
    with database.transaction() as connection:
        outcome = matching.find(connection, matching.claimed(report.claim))
        return store.keep(connection, arrived(report, **changes), outcome)


def kept(database: Database, report: FinalReport, **changes: object) -> Report:
    """The row of a report that was not here before."""
    report_id = keep(database, report, **changes)
    assert report_id is not None
    return row(database, report_id)


def row(database: Database, report_id: int) -> Report:
    """A report that must be here."""
    with database.transaction() as connection:
        found = store.find(connection, report_id)
    assert found is not None
    return found


def matched(uid: str) -> Outcome:
    """The outcome of a report whose study was found."""
    return Outcome(state="matched", study_instance_uid=uid)
