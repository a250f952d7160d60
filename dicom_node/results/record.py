"""All that an encoder needs to know, in one frozen record that survives a restart as JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import AwareDatetime, TypeAdapter, ValidationError

from dicom_node.errors import Unreadable
from inference.findings import Algorithm

DEMO = "DEMO MODEL"
PAGES = ("pdf", "capture")  #: kinds that show a page; also sent where a peer takes no SR

# PS3.3 C.12.1.1.8: &ZZXX, from -1200 to +1400.
TIMEZONE_OFFSET = re.compile(r"-(0\d|1[0-2])[0-5]\d|\+(0\d|1[0-4])[0-5]\d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Who we are: PS3.3 C.7.5.1 and the device observer of PS3.16 TID 1004."""

    ae_title: str
    version: str
    installation_id: str  #: made once per installation, never changed
    manufacturer: str = "dicom-node project"
    model_name: str = "dicom-node"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One instance, named so that it can be found again (PS3.3 table 10-4)."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """An image that the model was given, and why."""

    reference: Reference
    sha256: str  #: of the 8-bit pixels that the model saw
    rule: str  #: the rule of the image choice that decided


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledFinding:
    """What is said of one chest label (sr-draft 5.1)."""

    label: str  #: CheXpert's name: Pleural Effusion
    presence: Literal["present", "absent", "undetermined"]
    certainty: float | None = None  #: percent; a classifier's probability, never a labeler's


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a study got no draft (pixel-pipeline 2.1)."""

    code: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftRecord:
    """What a draft says, about which study, made by whom from what."""

    study_instance_uid: str
    #: of the first input image (status SR: of any), see ``dicom_node.results.source``
    source_header: str
    node: Node
    algorithm: Algorithm
    started_at: AwareDatetime  #: start of the analysis; all our dates and times (PS3.3 C.17.2)
    findings: str  #: as the model wrote them; empty in a status SR only
    inputs: tuple[Input, ...]
    evidence: tuple[Reference, ...]  #: every image that we hold of the study, inputs included
    kind: str = "text_sr"  #: which result object: an entry point of ``dicom_node.results``
    sop_class_uid: str = ""  #: where a kind can be had in several SOP classes; empty: its own
    impression: str | None = None  #: only if the model wrote one
    history: str | None = None  #: the indication that the model was given
    history_source: str | None = None  #: where ``history`` was found
    warnings: tuple[str, ...] = ()  #: what a reader should know about the input
    timezone_offset: str | None = None  #: the site's, &ZZXX; the source's goes first
    institution_name: str | None = None  #: the site's; the source's goes first
    content_qualification: Literal["RESEARCH", "PRODUCT"] = "RESEARCH"
    version: int = 1  #: counts the documents of this kind that the study got
    predecessor: Reference | None = None  #: the document that this one replaces
    labels: tuple[LabelledFinding, ...] = ()  #: in the order of CheXpert's list
    labeler: Algorithm | None = None  #: who read ``labels`` in the text; None: the model gave them
    refusal: Refusal | None = None  #: only in a status SR: there is no draft, and this is why
    thumbnail: str = ""  #: base64 of a small grey JPEG of the first input, for pages
    legacy_heading_codes: bool = False  #: the retired DCM section headings (PS3.16 CID 7001)
    series_number_base: int = 9900  #: text SR is base + 1, coded SR base + 2, ...
    hl7_status: Literal["R", "P"] = "R"  #: OBR-25: stored, not verified (HL7 table 0123)

    def __post_init__(self) -> None:
        """Refuse a record that no correct document could be made of.

        Raises
        ------
        ValueError
            Names the field and the rule, never its content.
        """
        problem = next((text for broken, text in self._rules() if broken), None)
        if problem:
            raise ValueError(problem)

    def _rules(self) -> Sequence[tuple[bool, str]]:
        used = [image.reference for image in self.inputs]
        return (
            (self.started_at.tzinfo is None, "started_at: needs a time zone"),
            (
                any(c.isprintable() and c != " " for c in self.findings) == bool(self.refusal),
                "findings: empty, or beside a refusal",
            ),
            (bool(used) == bool(self.refusal), "inputs: none, or beside a refusal"),
            (len(set(used)) < len(used), "inputs: one twice"),
            (
                bool(self.refusal) and (self.kind != "text_sr" and self.kind not in PAGES),
                "refusal: only a text SR or a page says that there is no draft",
            ),
            (not set(used) <= set(self.evidence), "inputs: not all of them are in the evidence"),
            (
                any(image.study_instance_uid != self.study_instance_uid for image in used),
                "inputs: not all of them are of this study",
            ),
            (
                any(
                    not 0 <= one.certainty <= 100
                    for one in self.labels
                    if one.certainty is not None
                ),
                "labels: a certainty is not a percentage",
            ),
            (
                len({one.label for one in self.labels}) < len(self.labels),
                "labels: one twice",
            ),
            (
                self.version < 1 or (self.version > 1) != (self.predecessor is not None),
                "version: a predecessor is named from version 2 on, and only then",
            ),
            (
                self.timezone_offset is not None
                and not TIMEZONE_OFFSET.fullmatch(self.timezone_offset),
                "timezone_offset: not &ZZXX",
            ),
            (
                self.algorithm.demo and DEMO not in self.algorithm.name,
                f"algorithm.name: a demo model's says {DEMO}",
            ),
        )

    def to_json(self) -> str:
        """Return the record as one JSON object; key order carries no meaning."""
        return _RECORD.dump_json(self).decode("utf-8")

    @classmethod
    def from_json(cls, text: str) -> DraftRecord:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        Unreadable
            It is no such record; names the fields, never their content.
        """
        try:
            return _RECORD.validate_json(text)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_input=False, include_context=False)
            where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in faults)
        raise Unreadable(f"stored draft record: {where}")  # outside: no input in the cause


_RECORD = TypeAdapter(DraftRecord)
