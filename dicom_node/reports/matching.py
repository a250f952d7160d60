"""Whose study a report is of: found by what it claims, or left for a person to find.

A report under the wrong patient's picture does harm, one that nobody finds does little. So
whatever is not sure is parked: two studies that could be meant, a patient that is not the study's.
Only keys are compared (``storage.Identity``), never names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping

from dicom_node.db import study
from dicom_node.identity import differ, is_another_patient, is_same_order
from dicom_node.reports.final import Claim
from dicom_node.storage import Identity, identity_key

#: With so many studies of the same keys it is not sure which is meant; more need not be read.
_ENOUGH = 20

ANOTHERS = "the study is another patient's: patient id or its issuer differ"
_NO_IMAGE = "no image of the study is here yet"
_NOTHING_NAMED = "it names neither study, order nor patient and day"
_NOT_HERE = "no such study is here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """Whose report it says it is, as keys."""

    study_instance_uid: str
    identity: Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A study that may be meant."""

    study_instance_uid: str
    identity: Identity | None  #: None: no image of the study has told it yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a report."""

    state: Literal["matched", "parked", "ignored"]
    study_instance_uid: str | None = None  #: exactly when it is matched
    reason: str | None = None  #: never patient data


def claimed(claim: Claim) -> Claimed:
    """Return what a report claims, as keys."""
    return Claimed(
        study_instance_uid=claim.study_instance_uid.strip(" \0"),
        identity=Identity(
            patient_id_key=identity_key(claim.patient_id),
            patient_issuer_key=identity_key(claim.patient_issuer),
            accession_key=identity_key(claim.accession_number),
            accession_issuer_key=identity_key(claim.accession_issuer),
            study_date=claim.study_date,
        ),
    )


def find(connection: Connection, report: Claimed) -> Outcome:
    """Look for the study of a report among those that are here."""
    return match(report, candidates(connection, report))


def candidates(connection: Connection, report: Claimed) -> list[Candidate]:
    """The studies that share a key with the report."""
    said = report.identity
    named = study.c.study_instance_uid == report.study_instance_uid
    shared = [named]
    if said.accession_key:
        shared.append(study.c.accession_key == said.accession_key)
    if _names_day(said):
        same_day = study.c.study_date == said.study_date
        shared.append(sa.and_(study.c.patient_id_key == said.patient_id_key, same_day))
    query = sa.select(study).where(sa.or_(*shared)).order_by(named.desc()).limit(_ENOUGH)
    return [_candidate(row) for row in connection.execute(query).mappings()]


def candidate(connection: Connection, study_instance_uid: str) -> Candidate | None:
    """One study; ``None``: it is not here."""
    query = sa.select(study).where(study.c.study_instance_uid == study_instance_uid)
    row = connection.execute(query).mappings().one_or_none()
    return _candidate(row) if row else None


def _candidate(row: RowMapping) -> Candidate:
    names = Identity.__dataclass_fields__
    told = row["patient_id_key"] is not None
    return Candidate(
        study_instance_uid=row["study_instance_uid"],
        identity=Identity(**{name: row[name] or "" for name in names}) if told else None,
    )


def match(report: Claimed, studies: Sequence[Candidate]) -> Outcome:
    """Decide whose study a report is of (sr-draft 8); pure.

    By Study Instance UID; else by accession number; else by patient and day, if exactly one study
    could be meant. Where both sides name an issuer, the two must agree.
    """
    for one in studies:
        if one.study_instance_uid == report.study_instance_uid:
            return _by_uid(report, one)
    said = report.identity
    if not said.accession_key and not _names_day(said):
        return _parked(_NOT_HERE if report.study_instance_uid else _NOTHING_NAMED)
    told = [(one.study_instance_uid, one.identity) for one in studies if one.identity]
    ordered = [(uid, one) for uid, one in told if is_same_order(said, one)]
    if ordered:
        return _by_order(report, ordered)
    if report.study_instance_uid:
        return _parked(_NOT_HERE)  # another study of that patient on that day is not the one
    day = [uid for uid, one in told if _same_day(said, one)]
    return _only(day, "the patient has {} studies of that day")


def is_anothers(report: Claimed, one: Candidate) -> bool:
    """Is the study known to be of another patient than the report?"""
    return one.identity is not None and is_another_patient(report.identity, one.identity)


def _by_uid(report: Claimed, one: Candidate) -> Outcome:
    if one.identity is None:
        return _parked(_NO_IMAGE)
    if is_another_patient(report.identity, one.identity):
        return _parked(ANOTHERS)
    return Outcome(state="matched", study_instance_uid=one.study_instance_uid)


def _by_order(report: Claimed, ordered: Sequence[tuple[str, Identity]]) -> Outcome:
    said = report.identity
    his = [(uid, one) for uid, one in ordered if not is_another_patient(said, one)]
    if not his or (not said.patient_id_key and len(his) < len(ordered)):
        return _parked(ANOTHERS)
    if report.study_instance_uid:  # not here under that UID: the patient must confirm the order
        his = [(uid, one) for uid, one in his if said.patient_id_key == one.patient_id_key != ""]
    return _only([uid for uid, _ in his], "{} studies have this accession number")


def _only(uids: Sequence[str], several: str) -> Outcome:
    if len(uids) == 1:
        return Outcome(state="matched", study_instance_uid=uids[0])
    return _parked(several.format(len(uids)) if uids else _NOT_HERE)


def _parked(reason: str) -> Outcome:
    return Outcome(state="parked", reason=reason)


def _names_day(said: Identity) -> bool:
    return bool(said.patient_id_key and said.study_date)


def _same_day(said: Identity, one: Identity) -> bool:
    """The same patient and day, and not known to be of another order."""
    same = said.patient_id_key == one.patient_id_key and said.study_date == one.study_date
    if not same or not _names_day(said) or is_another_patient(said, one):
        return False
    return not differ(said.accession_key, one.accession_key)
