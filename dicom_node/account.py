"""One study's whole way: what came, what was chosen, what was drafted, where it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from dicom_node import deliveries, drafts, events, jobs, studies
from dicom_node.deliveries import Delivery
from dicom_node.drafts import Draft
from dicom_node.errors import NotFound
from dicom_node.events import Event
from dicom_node.jobs import Job
from dicom_node.studies import Instance, Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Everything the node knows of a study."""

    study: Study
    instances: Sequence[Instance]
    jobs: Sequence[Job]
    drafts: Sequence[Draft]
    deliveries: Sequence[Delivery]
    events: Sequence[Event]

    @property
    def choice(self) -> Mapping[str, Any] | None:
        """The latest choice or refusal; ``None`` while no job has ended."""
        return next((one.choice for one in reversed(self.jobs) if one.choice), None)


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
    return Account(
        study=study,
        instances=studies.instances(connection, study_instance_uid),
        jobs=jobs.of_study(connection, study_instance_uid),
        drafts=drafts.of_study(connection, study_instance_uid),
        deliveries=deliveries.of_study(connection, study_instance_uid),
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
        "instances": [_instance(one) for one in account.instances],
        "choice": account.choice,
        "jobs": [_job(one) for one in account.jobs],
        "drafts": [_draft(one, account.deliveries) for one in account.drafts],
        "events": [_event(one) for one in account.events],
    }


def _instance(one: Instance) -> dict[str, Any]:
    return {
        "sop_instance_uid": one.sop_instance_uid,
        "sop_class_uid": one.sop_class_uid,
        "series_instance_uid": one.series_instance_uid,
        "transfer_syntax_uid": one.transfer_syntax_uid,
        "revision": one.revision,
        "path": one.path,
        "sha256": one.sha256,
        "size": one.size,
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


def _draft(one: Draft, deliveries: Sequence[Delivery]) -> dict[str, Any]:
    return {
        "sop_instance_uid": one.sop_instance_uid,
        "series_instance_uid": one.series_instance_uid,
        "kind": one.kind,
        "version": one.version,
        "text": one.text,
        "path": one.path,
        "sha256": one.sha256,
        "superseded_by": one.superseded_by,
        "deliveries": [
            {
                "peer": delivery.peer,
                "state": delivery.state,
                "proof": delivery.proof,
                "attempts": delivery.attempts,
                "reason": delivery.reason,
            }
            for delivery in deliveries
            if delivery.draft_uid == one.sop_instance_uid
        ],
    }


def _event(one: Event) -> dict[str, Any]:
    return {
        "at": one.at.isoformat(),
        "subject": one.subject,
        "from": one.from_state,
        "to": one.to_state,
        "reason": one.reason,
    }
