"""One study's whole way: what came, what was chosen, what was drafted, where it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from dicom_node import deliveries, drafts, events, jobs, priors, retention, studies
from dicom_node.deliveries import Delivery
from dicom_node.drafts import Draft
from dicom_node.errors import NotFound
from dicom_node.events import Event
from dicom_node.jobs import Job
from dicom_node.priors import EarlierStudy
from dicom_node.reports import pairs, store
from dicom_node.reports.store import Report
from dicom_node.studies import Instance, Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Everything the node knows of a study."""

    study: Study
    instances: Sequence[Instance]
    deleted: Mapping[str, datetime]  #: instances whose file retention deleted, and when
    jobs: Sequence[Job]
    drafts: Sequence[Draft]  #: oldest first
    alternatives: Sequence[Draft]  #: what peers got that do not take the draft itself
    deliveries: Sequence[Delivery]
    reports: Sequence[Report]  #: the radiologist's, every version, in the order of arrival
    priors: Sequence[EarlierStudy]  #: of the same patient, newest first
    events: Sequence[Event]

    @property
    def choice(self) -> Mapping[str, Any] | None:
        """The latest choice or refusal; ``None`` while no job has ended."""
        return next((one.choice for one in reversed(self.jobs) if one.choice), None)

    @property
    def indication(self) -> Mapping[str, str] | None:
        """Where the latest draft's indication was found; ``None``: its model was given none."""
        source = self.drafts[-1].record.get("history_source") if self.drafts else None
        return {"source": source} if source else None


def of(connection: Connection, study_instance_uid: str) -> Account:
    """Gather a study's account.

    Raises
    ------
    NotFound
        No such study was received.
    """
    study = studies.find(connection, study_instance_uid)
    if study is None:
        raise NotFound(f"no study {study_instance_uid} was received")
    kept = drafts.of_study(connection, study_instance_uid)
    return Account(
        study=study,
        instances=studies.instances(connection, study_instance_uid),
        deleted=retention.deleted(connection, study_instance_uid),
        jobs=jobs.of_study(connection, study_instance_uid),
        drafts=[one for one in kept if one.alternative_of is None],
        alternatives=[one for one in kept if one.alternative_of is not None],
        deliveries=deliveries.of_study(connection, study_instance_uid),
        reports=store.of_study(connection, study_instance_uid),
        priors=priors.of_study(connection, study_instance_uid),
        events=events.of_study(connection, study_instance_uid),
    )


def to_json(account: Account) -> dict[str, Any]:
    """The document of ``study --json`` (interface.md)."""
    study = account.study
    return {
        "study_instance_uid": study.study_instance_uid,
        "state": study.state,
        "revision": study.revision,
        "received_at": study.received_at.isoformat(),
        "instances": [
            _instance(one, account.deleted.get(one.sop_instance_uid)) for one in account.instances
        ],
        "choice": account.choice,
        "indication": account.indication,
        "jobs": [_job(one) for one in account.jobs],
        "drafts": [_draft(one, account) for one in account.drafts],
        "reports": _reports(account),
        "priors": [asdict(one) for one in account.priors],
        "events": [_event(one) for one in account.events],
    }


def _instance(one: Instance, deleted_at: datetime | None) -> dict[str, Any]:
    return {
        "sop_instance_uid": one.sop_instance_uid,
        "sop_class_uid": one.sop_class_uid,
        "series_instance_uid": one.series_instance_uid,
        "transfer_syntax_uid": one.transfer_syntax_uid,
        "revision": one.revision,
        "path": one.path,
        "sha256": one.sha256,
        "size": one.size,
        "pixels_deleted_at": deleted_at.isoformat() if deleted_at else None,
    }


def _job(one: Job) -> dict[str, Any]:
    return {
        "id": one.id,
        "revision": one.revision,
        "model": one.model,
        "state": one.state,
        "attempts": one.attempts,
        "choice": one.choice,
        "reason": one.reason,
    }


def _draft(one: Draft, account: Account) -> dict[str, Any]:
    return {
        "sop_instance_uid": one.sop_instance_uid,
        "series_instance_uid": one.series_instance_uid,
        "sop_class_uid": one.sop_class_uid,
        "kind": one.kind,
        "version": one.version,
        "text": one.text,
        "path": one.path,
        "sha256": one.sha256,
        "superseded_by": one.superseded_by,
        "predecessor": (one.record.get("predecessor") or {}).get("sop_instance_uid"),
        "alternatives": [
            {
                "sop_instance_uid": other.sop_instance_uid,
                "sop_class_uid": other.sop_class_uid,
                "kind": other.kind,
                "path": other.path,
                "sha256": other.sha256,
            }
            for other in account.alternatives
            if other.alternative_of == one.sop_instance_uid
        ],
        "deliveries": [
            {
                "peer": delivery.peer,
                "state": delivery.state,
                "proof": delivery.proof,
                "attempts": delivery.attempts,
                "reason": delivery.reason,
                "sent_as": delivery.sent_uid,
            }
            for delivery in account.deliveries
            if delivery.draft_uid == one.sop_instance_uid
        ],
    }


def _reports(account: Account) -> list[dict[str, Any]]:
    """Every version; the one that stands also against the draft that was live when it came."""
    found = pairs.compared(account.drafts, account.reports)
    stands = found[0].report.id if found else None
    rows = [{**_report(one), "current": one.id == stands} for one in account.reports]
    for row, one in zip(rows, account.reports, strict=True):
        if found and one.id == stands and found[1]:
            latest = found[1][-1]
            row["comparison"] = {
                "draft_uid": latest.draft.sop_instance_uid,
                **asdict(latest.comparison),
            }
    return rows


def _report(one: Report) -> dict[str, Any]:
    return {
        "id": one.id,
        "source": one.source,
        "source_uid": one.source_uid,
        "state": one.state,
        "verdict": one.verdict,
        "verified_at": one.verified_at.isoformat() if one.verified_at else None,
        "received_at": one.received_at.isoformat(),
        "indexed": one.indexed_at is not None,
        "author_role": one.author_role,
        "sections": dict(one.sections),
        "text": one.text,
    }


def _event(one: Event) -> dict[str, Any]:
    return {
        "at": one.at.isoformat(),
        "subject": one.subject,
        "from": one.from_state,
        "to": one.to_state,
        "reason": one.reason,
    }
