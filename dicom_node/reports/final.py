"""A radiologist's final report as every reader gives it, whatever it came as."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

Section = Literal["findings", "impression", "conclusion", "history", "addendum", "other"]
Source = Literal["sr", "hl7", "csv"]
Verdict = Literal["final", "corrected", "addendum", "withdrawn", "ignored"]

OUR_OWN = "our own object"  #: the reason why what we sent ourselves is ignored

_REPORTED: tuple[Section, ...] = ("findings", "impression", "conclusion")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Whose report it says it is: for matching only, never logged."""

    study_instance_uid: str = ""
    accession_number: str = ""
    accession_issuer: str = ""
    patient_id: str = ""
    patient_issuer: str = ""
    study_date: str = ""  #: YYYYMMDD


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalReport:
    """One version of a report, read; pure data."""

    source: Source
    source_uid: str  #: SOP Instance UID, message control ID (MSH-10) or row number
    order_key: str  #: what a later version of the same report shares: see :func:`order_key`
    verdict: Verdict
    reason: str = ""  #: why it is ignored, for people and logs: never patient data
    claim: Claim = field(default_factory=Claim, repr=False)
    sections: Mapping[Section, str] = field(default_factory=dict, repr=False)
    verified_at: datetime | None = None  #: has a time zone: UTC where the report names none
    author_role: str = ""  #: "radiologist" or empty; never a name
    predecessors: tuple[str, ...] = ()  #: SOP Instance UIDs of the documents it replaces

    @property
    def text(self) -> str:
        """Return what is indexed: findings, impression, conclusion, addendum.

        A report that names none of the first three is its unnamed text, if it has any.
        """
        body = [self.sections[name] for name in _REPORTED if self.sections.get(name)]
        if not body:
            body = [self.sections.get("other", "")]
        return "\n\n".join(filter(None, [*body, self.sections.get("addendum", "")]))


def order_key(*names: str) -> str:
    """Return what names an order in any number of columns and logs: a digest, no identifier."""
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()
