"""Orders in HL7 v2 messages ORM^O01, OMG^O19 and OMI^O23: whose, which, how urgent and why.

Where IHE says another field than HL7 (accession number and study of RAD-4), both are read. Names
and birth dates are passed over. Notes (NTE) and observations (OBX) are not taken for an indication:
they hold instructions, weights and laboratory values as often as a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import hl7

from dicom_node import orders, priorities
from dicom_node.errors import Unreadable
from dicom_node.orders import Told
from dicom_node.reports import hl7_message
from dicom_node.reports.hl7_message import UID, Message
from dicom_node.storage import Identity, identity_key

#: MSH-9, message code and trigger event
KINDS = (("ORM", "O01"), ("OMG", "O19"), ("OMI", "O23"))

# HL7 v2.5 table 0119, ORC-1. The order is no longer wanted: cancelled, discontinued, replaced.
_CANCELLED = ("CA", "CR", "OC", "DC", "DR", "OD", "RP", "RQ", "RU")
# What was asked for could not be done, or the message itself is in error: the order stands.
_UNCHANGED = ("DE", "UA", "UC", "UD", "UF", "UH", "UM", "UN", "UR", "UX")
# HL7 v2.5 table 0038, ORC-5 in a change of status (ORC-1 SC).
_CANCELLED_STATUS = ("CA", "DC", "RP")

_LONGEST_NAME = 64  # characters of a sending application that are printed
_DELETE = '""'  # HL7 v2.5 2.5.3: the field's value is taken back


def read(raw: bytes) -> tuple[Told, ...]:
    """Read a message, or a batch of them, without MLLP framing; pure.

    Raises
    ------
    Unreadable
        It is no order message, or names no order.
    """
    return tuple(told for message in hl7_message.parse(raw) for told in _all_told(message))


@dataclass(slots=True)
class _Group:
    """What a message says of one order (ORC) and procedure (OBR)."""

    patient: hl7.Segment | None
    segments: dict[str, hl7.Segment] = field(default_factory=dict)


def _all_told(message: Message) -> Iterator[Told]:
    header = message.segments[0]
    if (message.component(header, 9), message.component(header, 9, 2)) not in KINDS:
        raise Unreadable("HL7 message of another type than ORM^O01, OMG^O19 or OMI^O23")
    groups = _groups(message)
    if not groups:
        raise Unreadable("HL7 order message without an ORC or OBR segment")
    for group in groups:
        one = _Order(message, group)
        if one.control not in _UNCHANGED:
            yield one.told()


def _groups(message: Message) -> list[_Group]:
    """One for each OBR, with the ORC before it and what follows; an ORC alone is one too.

    ZDS ends a message and is of all its orders (IHE RAD TF-2 4.4).
    """
    patient: hl7.Segment | None = None
    found: list[_Group] = []
    for segment in message.segments:
        kind = str(segment(0))
        if kind == "PID":
            patient = segment
        elif kind == "ORC" or (kind == "OBR" and (not found or "OBR" in found[-1].segments)):
            found.append(_Group(patient, _order_of(found, kind) | {kind: segment}))
        elif kind == "ZDS":
            for group in found:
                group.segments.setdefault(kind, segment)
        elif found:
            found[-1].segments.setdefault(kind, segment)  # of several TQ1 or IPC the first
    return found


def _order_of(found: list[_Group], kind: str) -> dict[str, hl7.Segment]:
    """The ORC and its timing that an OBR without an ORC of its own belongs to."""
    before = found[-1].segments if found and kind == "OBR" else {}
    return {name: before[name] for name in ("ORC", "TQ1") if name in before}


class _Order:
    """One group's fields; "" where there is none."""

    def __init__(self, message: Message, group: _Group) -> None:
        self._message = message
        self._group = group
        self.control = self._said("ORC", 1).upper()

    def told(self) -> Told:
        """What the peer says of the order."""
        text, where = self._indication()
        application = self._message.component(self._message.segments[0], 3)
        return Told(
            source="hl7",
            peer=application,
            order_key=self._order_key(),
            study_instance_uid=self._study_instance_uid(),
            identity=self._identity(),
            indication=text,
            indication_source=self._source(application, where),
            priority=self._priority(),
            cancelled=self._is_cancelled(),
        )

    def _source(self, application: str, where: str) -> str:
        code = self._message.component(self._message.segments[0], 9)
        name = "".join(c for c in application if c.isprintable())[:_LONGEST_NAME]
        return " ".join(filter(None, ["HL7", code, name, ">", where]))

    def _said(self, segment: str, number: int, component: int = 1, below: int = 1) -> str:
        found = self._group.segments.get(segment)
        if found is None:
            return ""
        value = self._message.field(found, number)
        return "" if value == _DELETE else self._message.syntax.component(value, component, below)

    def _first(self, *fields: tuple[str, int, int]) -> str:
        return next(filter(None, (self._said(*one) for one in fields)), "")

    def _is_cancelled(self) -> bool:
        status = self._said("ORC", 5).upper()
        return self.control in _CANCELLED or (self.control == "SC" and status in _CANCELLED_STATUS)

    def _order_key(self) -> str:
        """By placer or filler order number, or accession number; and by requested procedure.

        The placer's first: an order that is changed or cancelled has it from the beginning.
        """
        for number in (("ORC", 2), ("OBR", 2), ("ORC", 3), ("OBR", 3), ("IPC", 1), ("OBR", 18)):
            name = self._said(*number)
            if name:
                # OBR-19: Requested Procedure ID (IHE RAD TF-2 4.4).
                procedure = self._first(("IPC", 2, 1), ("OBR", 19, 1))
                return orders.order_key("^".join([name, self._said(*number, 2)]), procedure)
        raise Unreadable("HL7 order message that names no order: ORC-2 and ORC-3 are empty")

    def _identity(self) -> Identity:
        syntax, patient = self._message.syntax, self._message.identifier(self._group.patient)
        accession, issuer = self._accession()
        return Identity(
            patient_id_key=identity_key(syntax.component(patient, 1)),
            patient_issuer_key=identity_key(
                syntax.component(patient, 4) or syntax.component(patient, 4, 2)
            ),
            accession_key=identity_key(accession),
            accession_issuer_key=identity_key(issuer),
        )

    def _accession(self) -> tuple[str, str]:
        """OMI: IPC-1. ORM: OBR-18 (IHE RAD TF-2 4.4), else the filler's number."""
        for segment, number in (("IPC", 1), ("OBR", 18), ("OBR", 3), ("ORC", 3)):
            accession = self._said(segment, number)
            if accession:
                return accession, self._said(segment, number, 2)
        return "", ""

    def _study_instance_uid(self) -> str:
        """OMI: IPC-3. ORM: ZDS-1 (IHE RAD TF-2 4.4)."""
        found = (self._said("IPC", 3), self._said("ZDS", 1))
        return next((uid for uid in found if UID.fullmatch(uid)), "")

    def _indication(self) -> tuple[str | None, str]:
        """Reason for Study (OBR-31), else Relevant Clinical Information (OBR-13), as free text."""
        request = self._group.segments.get("OBR")
        if request is None:
            return None, ""
        for number in (31, 13):
            said = filter(orders.says_something, self._texts(request, number))
            text = "; ".join(dict.fromkeys(said))
            if text:
                return text, f"OBR-{number}"
        taken_back = self._message.field(request, 31) == _DELETE
        return ("" if taken_back else None), "OBR-31"

    def _texts(self, request: hl7.Segment, number: int) -> Iterable[str]:
        """Each repetition's text: of a coded one (CE, CWE) what the code means, never the code."""
        syntax = self._message.syntax
        for value in syntax.repetitions(self._message.field(request, number)):
            code, text, scheme = (syntax.component(value, part) for part in (1, 2, 3))
            plain = "" if scheme or value == _DELETE else code
            yield text or plain

    def _priority(self) -> int | None:
        """TQ1-9, or the priority in a field of type TQ (ORC-7, OBR-27): HL7 v2.5 4.5.4, 4.3."""
        code = self._first(("TQ1", 9, 1), ("ORC", 7, 6), ("OBR", 27, 6))
        return priorities.of_hl7(code) if code else None
