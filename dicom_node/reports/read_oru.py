"""The final report in an HL7 v2 message ORU^R01: one for each order (OBR) in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby

import hl7

from dicom_node.errors import Unreadable
from dicom_node.reports import hl7_message, sections
from dicom_node.reports.final import OUR_OWN, Claim, FinalReport, Section, Verdict, order_key
from dicom_node.reports.hl7_message import UID, Message
from dicom_node.reports.timestamps import day, moment

#: MSH-9: unsolicited observation (HL7 v2.5 7.3.1)
KIND = ("ORU", "R01")

_BANNER = "AI-GENERATED DRAFT"  # first words of what the node sends
_TEXT_TYPES = ("TX", "FT", "ST")  # HL7 table 0125
_VERDICTS: Mapping[str, Verdict] = {"F": "final", "C": "corrected", "X": "withdrawn"}  # 0123
_NO_RESULT = ("D", "N", "W", "X")  # table 0085: deleted, not asked for, wrong, can't be obtained

# OBX-3 whose value is the Study Instance UID: two codes of PS3.16, and IHE's words.
_STUDY_CODES = ("113014", "110180")
_STUDY_WORDS = "study instance uid"
# HL7 v2.5 7.2.4: what a suffix of OBX-3 says.
_SUFFIXES: Mapping[str, Section] = {"GDT": "findings", "IMP": "impression", "ADT": "addendum"}


def read(raw: bytes) -> tuple[FinalReport, ...]:
    """Read a message, or a batch of them, without MLLP framing; pure.

    Segments may end with CR, LF or both; a line that begins none belongs to the segment above it.

    Raises
    ------
    Unreadable
        It is no HL7 v2 message ORU, has no OBR, or is larger than any report.
    """
    digest = hashlib.sha256(raw).hexdigest()
    messages = hl7_message.parse(raw)
    return tuple(report for message in messages for report in _reports(message, digest))


@dataclass(slots=True)
class _Order:
    """One OBR, whose patient it is, and what was observed for it."""

    patient: hl7.Segment | None
    request: hl7.Segment
    observations: list[hl7.Segment] = field(default_factory=list)


# -- from segments to reports ----------------------------------------------------------------------


def _reports(message: Message, digest: str) -> Iterator[FinalReport]:
    header = message.segments[0]
    if message.component(header, 9) != "ORU":
        raise Unreadable("HL7 message of another type than ORU")
    orders = _orders(message)
    if not orders:
        raise Unreadable("HL7 message ORU without an OBR segment")
    control = message.component(header, 10) or digest
    for number, order in enumerate(orders, start=1):
        yield _report(message, order, control if number == 1 else f"{control}#{number}")


def _orders(message: Message) -> list[_Order]:
    """Return the orders; each is of the patient whose PID comes before it."""
    patient: hl7.Segment | None = None
    found: list[_Order] = []
    for segment in message.segments:
        kind = str(segment(0))
        if kind == "PID":
            patient = segment
        elif kind == "OBR":
            found.append(_Order(patient, segment))
        elif kind == "OBX" and found and found[-1].patient is patient:
            found[-1].observations.append(segment)
    return found


def _report(message: Message, order: _Order, uid: str) -> FinalReport:
    observations = _in_order(message, order.observations)
    texts = sections.gathered(_texts(message, observations))
    verdict, reason = _verdict(message.component(order.request, 25), texts)
    if any(_text(message, one).startswith(_BANNER) for one in observations):
        verdict, reason = "ignored", OUR_OWN
    claim = _claim(message, order)
    written = message.component(order.request, 22), message.component(message.segments[0], 7)
    return FinalReport(
        source="hl7",
        source_uid=uid,
        order_key=_order_key(message, order.request) or order_key("message", uid),
        verdict=verdict,
        reason=reason,
        claim=claim,
        sections=texts,
        verified_at=next(filter(None, map(moment, written)), None),
        author_role="radiologist" if message.component(order.request, 32) else "",
    )


def _verdict(status: str, texts: Mapping[Section, str]) -> tuple[Verdict, str]:
    """Judge OBR-25 (HL7 table 0123) and what there is to read."""
    verdict = _VERDICTS.get(status, "ignored")
    if verdict == "ignored":
        is_code = len(status) == 1 and "A" <= status <= "Z"
        return "ignored", f"OBR-25 {status if is_code else 'is no result status'}"
    if verdict == "withdrawn":
        return verdict, ""
    if not texts:
        return "ignored", "no text in an OBX of type TX, FT or ST"
    return "addendum" if sections.is_addendum(texts) else verdict, ""


def _order_key(message: Message, request: hl7.Segment) -> str:
    """Name the order: by filler order number, accession number or placer order number."""
    for number in (3, 18, 2):
        name = message.component(request, number)
        if name:
            return order_key(f"OBR-{number}", name, message.component(request, number, 2))
    return ""


def _claim(message: Message, order: _Order) -> Claim:
    accession = 18 if message.component(order.request, 18) else 3
    patient = message.identifier(order.patient)
    syntax = message.syntax
    return Claim(
        study_instance_uid=_study_instance_uid(message, order.observations),
        accession_number=message.component(order.request, accession),
        accession_issuer=message.component(order.request, accession, 2),
        patient_id=syntax.component(patient, 1),
        patient_issuer=syntax.component(patient, 4) or syntax.component(patient, 4, 2),
        study_date=day(message.component(order.request, 7)),
    )


def _study_instance_uid(message: Message, observations: Iterable[hl7.Segment]) -> str:
    """Return the Study Instance UID that the observations give, if it is only one."""
    found = {
        message.component(one, 5, number)
        for one in observations
        if _names_the_study(message, one)
        for number in range(1, 5)  # RP and HD have it in another component than ST
    }
    uids = [value for value in found if UID.fullmatch(value)]
    return uids[0] if len(uids) == 1 else ""


def _names_the_study(message: Message, observation: hl7.Segment) -> bool:
    names = [message.component(observation, 3, number) for number in (1, 2)]
    return names[0] in _STUDY_CODES or _STUDY_WORDS in [name.lower() for name in names]


# -- texts -----------------------------------------------------------------------------------------


def _in_order(message: Message, observations: list[hl7.Segment]) -> list[hl7.Segment]:
    """Sort by OBX-1, unless some has none or one occurs twice: then they are as they came."""
    numbers = [message.component(one, 1) for one in observations]
    if not all(re.fullmatch("[0-9]{1,9}", number) for number in numbers):
        return observations
    if len({int(number) for number in numbers}) < len(numbers):
        return observations
    return sorted(observations, key=lambda one: int(message.component(one, 1)))


def _texts(message: Message, observations: Iterable[hl7.Segment]) -> Iterator[tuple[Section, str]]:
    """Yield texts by section: a heading within one holds on until OBX-3 names another section."""
    spoken = ((_section(message, one), _text(message, one)) for one in observations)
    filled = ((section, text) for section, text in spoken if text)
    for section, run in groupby(filled, key=lambda pair: pair[0]):
        yield from sections.split("\n".join(text for _, text in run), section)


def _text(message: Message, observation: hl7.Segment) -> str:
    """Return OBX-5 as text, or nothing where it is no text or no result."""
    is_text = message.component(observation, 2) in _TEXT_TYPES
    if (
        not is_text
        or message.component(observation, 11) in _NO_RESULT
        or _names_the_study(message, observation)
    ):
        return ""
    lines = message.syntax.repetitions(message.field(observation, 5))
    return sections.clean(message.syntax.unescaped("\n".join(lines))).strip()


def _section(message: Message, observation: hl7.Segment) -> Section:
    """Tell the section of OBX-3's code, or of its alternate one (HL7 v2.5 2.A.13, CE)."""
    for first in (1, 4):
        value, meaning, scheme = (
            message.component(observation, 3, first + number) for number in range(3)
        )
        for one in (scheme,) if scheme else ("LN", "DCM"):
            section = sections.of_code(value, one, meaning)
            if section:
                return section
    suffix = message.syntax.component(message.field(observation, 3), 1, 2)
    return _SUFFIXES.get(suffix, "other")
