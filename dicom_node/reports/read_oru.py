"""The final report in an HL7 v2 message ORU^R01: one for each order (OBR) in it.

python-hl7 cuts a message into its parts. Escapes are undone here: its ``unescape`` knows no bytes
of other character sets, and writes what it can't read, a report's text, into the log.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby

import hl7

from dicom_node.errors import Unreadable
from dicom_node.reports import sections
from dicom_node.reports.final import OUR_OWN, Claim, FinalReport, Section, Verdict, order_key
from dicom_node.reports.timestamps import day, moment

MAX_DELIMITERS = 100_000  #: each becomes an object of some hundred bytes; a report has a thousand

_BANNER = "AI-GENERATED DRAFT"  # first words of what the node sends
_TEXT_TYPES = ("TX", "FT", "ST")  # HL7 table 0125
_VERDICTS: Mapping[str, Verdict] = {"F": "final", "C": "corrected", "X": "withdrawn"}  # 0123
_NO_RESULT = ("D", "N", "W", "X")  # table 0085: deleted, not asked for, wrong, can't be obtained

# HL7 table 0211, what others write instead, and Python's names.
_ENCODINGS = {
    "ASCII": "ascii",
    "ISO IR6": "ascii",
    "8859/1": "cp1252",  # its superset, and what is often meant
    "ISO IR100": "cp1252",
    **{f"8859/{part}": f"iso8859_{part}" for part in (2, 3, 4, 5, 6, 7, 8, 9, 15)},
    "ISO IR13": "shift_jis",
    "ISO IR14": "shift_jis",
    "ISO IR87": "iso2022_jp_2",
    "ISO IR159": "iso2022_jp_2",
    "GB 18030-2000": "gb18030",
    "KS X 1001": "euc_kr",
    "BIG-5": "big5",
    "UNICODE": "utf-8",
    "UNICODE UTF-8": "utf-8",
    "UTF-8": "utf-8",
    "ISO IR192": "utf-8",
}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_HEADER = re.compile(rb"(?:\A|[\r\n])MSH([!-/:-@\[-`{-~])([!-/:-@\[-`{-~]{4,5})\1[^\r\n]*")
_ENVELOPE = ("FHS", "BHS", "BTS", "FTS")  # HL7 v2.5 2.10.3, batch protocol

# OBX-3 whose value is the Study Instance UID: two codes of PS3.16, and IHE's words.
_STUDY_CODES = ("113014", "110180")
_STUDY_WORDS = "study instance uid"
_UID = re.compile(r"(?=.{5,64}$)[0-9]+(?:\.[0-9]+)+")
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
    text, syntax = _decoded(raw.removeprefix(_BYTE_ORDER_MARK).strip())
    digest = hashlib.sha256(raw).hexdigest()
    messages = (_Message(segments, syntax) for segments in _messages(text, syntax))
    return tuple(report for message in messages for report in _reports(message, digest))


@dataclass(frozen=True, slots=True)
class _Syntax:
    """How a message is written: MSH-1, MSH-2, and the encoding of its bytes."""

    delimiters: str  #: field, component, repetition, escape, subcomponent
    encoding: str

    @property
    def escape(self) -> str:
        return self.delimiters[3]

    def component(self, value: str, number: int = 1, subcomponent: int = 1) -> str:
        """Return a component of a field's first repetition, unescaped and stripped."""
        _, component, repetition, _, below = tuple(self.delimiters)
        part = _nth(value.split(repetition)[0].split(component), number)
        return self.unescaped(_nth(part.split(below), subcomponent)).strip()

    def repetitions(self, value: str) -> list[str]:
        return value.split(self.delimiters[2])

    def unescaped(self, text: str) -> str:
        """Undo the escape sequences of HL7 v2.5 2.7; what is none of them stays as it is."""
        return _escapes(self.escape).sub(self._meant, text)

    def _meant(self, match: re.Match[str]) -> str:
        if match["bytes"]:
            digits = "".join(re.findall(r"[Xx]([0-9A-Fa-f]+)", match["bytes"]))
            return bytes.fromhex(digits).decode(self.encoding, "replace")
        if match["format"]:
            return _formatted(match["format"].lower(), int(match["count"] or 1))
        marks = dict(zip("FSRET", self.delimiters, strict=True))
        return marks.get(match["mark"] or "", "")


class _Message:
    """One parsed message; fields are as they were sent, empty where there is none."""

    def __init__(self, segments: list[str], syntax: _Syntax) -> None:
        self.syntax = syntax
        try:
            self.segments: hl7.Message = hl7.parse("\r".join(segments))
        except (hl7.HL7Exception, AssertionError, LookupError, ValueError):
            # "from None": python-hl7 quotes the message.
            raise Unreadable("HL7 message can't be parsed") from None

    def component(self, segment: hl7.Segment, number: int, component: int = 1) -> str:
        return self.syntax.component(_field(segment, number), component)


@dataclass(slots=True)
class _Order:
    """One OBR, whose patient it is, and what was observed for it."""

    patient: hl7.Segment | None
    request: hl7.Segment
    observations: list[hl7.Segment] = field(default_factory=list)


# -- from bytes to segments ------------------------------------------------------------------------


def _decoded(raw: bytes) -> tuple[str, _Syntax]:
    header = _HEADER.search(raw)
    delimiters = (header[1] + header[2][:4]).decode("latin-1") if header else ""
    if header is None or len(set(delimiters)) < 5:
        raise Unreadable("not an HL7 v2 message: it has no MSH segment with five delimiters")
    if sum(raw.count(one.encode("latin-1")) for one in (*delimiters, "\r", "\n")) > MAX_DELIMITERS:
        raise Unreadable(f"HL7 message of more than {MAX_DELIMITERS} delimiters and line ends")
    fields = header[0].decode("latin-1").split(delimiters[0])
    declared = _encoding(_nth(fields, 18).split(delimiters[2]))  # MSH-1 is the delimiter itself
    for encoding in (declared, "utf-8"):
        try:
            return raw.decode(encoding), _Syntax(delimiters, encoding)
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1"), _Syntax(delimiters, "latin-1")


def _encoding(names: Iterable[str]) -> str:
    """Return the encoding that MSH-18 names; a second character set contains the first."""
    plain = (re.sub(r"ISO[ _-]?IR[ _-]?", "ISO IR", name.strip().upper()) for name in names)
    known = [_ENCODINGS[name] for name in plain if name in _ENCODINGS]
    return known[-1] if known else "utf-8"


def _messages(text: str, syntax: _Syntax) -> list[list[str]]:
    """Return the segments of each message."""
    begins = re.compile(rf"[A-Z][A-Z0-9]{{2}}{re.escape(syntax.delimiters[0])}")
    found: list[list[list[str]]] = []  # messages of segments of lines
    for line in filter(None, re.split(r"[\r\n]+", text)):
        if line.startswith("MSH"):
            found.append([[line]])
        elif found and not begins.match(line):
            found[-1][-1].append(line)
        elif found and not line.startswith(_ENVELOPE):
            found[-1].append([line])
    line_break = f"{syntax.escape}.br{syntax.escape}"
    return [[line_break.join(lines) for lines in segments] for segments in found]


# -- from segments to reports ----------------------------------------------------------------------


def _reports(message: _Message, digest: str) -> Iterator[FinalReport]:
    header = message.segments[0]
    if message.component(header, 9) != "ORU":
        raise Unreadable("HL7 message of another type than ORU")
    orders = _orders(message)
    if not orders:
        raise Unreadable("HL7 message ORU without an OBR segment")
    control = message.component(header, 10) or digest
    for number, order in enumerate(orders, start=1):
        yield _report(message, order, control if number == 1 else f"{control}#{number}")


def _orders(message: _Message) -> list[_Order]:
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


def _report(message: _Message, order: _Order, uid: str) -> FinalReport:
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


def _order_key(message: _Message, request: hl7.Segment) -> str:
    """Name the order: by filler order number, accession number or placer order number."""
    for number in (3, 18, 2):
        name = message.component(request, number)
        if name:
            return order_key(f"OBR-{number}", name, message.component(request, number, 2))
    return ""


def _claim(message: _Message, order: _Order) -> Claim:
    accession = 18 if message.component(order.request, 18) else 3
    patient = _identifier(message, order.patient)
    syntax = message.syntax
    return Claim(
        study_instance_uid=_study_instance_uid(message, order.observations),
        accession_number=message.component(order.request, accession),
        accession_issuer=message.component(order.request, accession, 2),
        patient_id=syntax.component(patient, 1),
        patient_issuer=syntax.component(patient, 4) or syntax.component(patient, 4, 2),
        study_date=day(message.component(order.request, 7)),
    )


def _identifier(message: _Message, patient: hl7.Segment | None) -> str:
    """Return the medical record number among PID-3's repetitions, or else the first one."""
    if patient is None:
        return ""
    syntax = message.syntax
    all_of_them = syntax.repetitions(_field(patient, 3))
    named = [one for one in all_of_them if syntax.component(one)]
    records = [one for one in named if syntax.component(one, 5) == "MR"]  # HL7 table 0203
    return next(iter([*records, *named]), "")


def _study_instance_uid(message: _Message, observations: Iterable[hl7.Segment]) -> str:
    """Return the Study Instance UID that the observations give, if it is only one."""
    found = {
        message.component(one, 5, number)
        for one in observations
        if _names_the_study(message, one)
        for number in range(1, 5)  # RP and HD have it in another component than ST
    }
    uids = [value for value in found if _UID.fullmatch(value)]
    return uids[0] if len(uids) == 1 else ""


def _names_the_study(message: _Message, observation: hl7.Segment) -> bool:
    names = [message.component(observation, 3, number) for number in (1, 2)]
    return names[0] in _STUDY_CODES or _STUDY_WORDS in [name.lower() for name in names]


# -- texts -----------------------------------------------------------------------------------------


def _in_order(message: _Message, observations: list[hl7.Segment]) -> list[hl7.Segment]:
    """Sort by OBX-1, unless some has none or one occurs twice: then they are as they came."""
    numbers = [message.component(one, 1) for one in observations]
    if not all(re.fullmatch("[0-9]{1,9}", number) for number in numbers):
        return observations
    if len({int(number) for number in numbers}) < len(numbers):
        return observations
    return sorted(observations, key=lambda one: int(message.component(one, 1)))


def _texts(message: _Message, observations: Iterable[hl7.Segment]) -> Iterator[tuple[Section, str]]:
    """Yield texts by section: a heading within one holds on until OBX-3 names another section."""
    spoken = ((_section(message, one), _text(message, one)) for one in observations)
    filled = ((section, text) for section, text in spoken if text)
    for section, run in groupby(filled, key=lambda pair: pair[0]):
        yield from sections.split("\n".join(text for _, text in run), section)


def _text(message: _Message, observation: hl7.Segment) -> str:
    """Return OBX-5 as text, or nothing where it is no text or no result."""
    is_text = message.component(observation, 2) in _TEXT_TYPES
    if (
        not is_text
        or message.component(observation, 11) in _NO_RESULT
        or _names_the_study(message, observation)
    ):
        return ""
    lines = message.syntax.repetitions(_field(observation, 5))
    return sections.clean(message.syntax.unescaped("\n".join(lines))).strip()


def _section(message: _Message, observation: hl7.Segment) -> Section:
    """Tell the section of OBX-3's code, or of its alternate one (HL7 v2.5 2.A.13, CE)."""
    for first in (1, 4):
        value, meaning, scheme = (
            message.component(observation, 3, first + number) for number in range(3)
        )
        for one in (scheme,) if scheme else ("LN", "DCM"):
            section = sections.of_code(value, one, meaning)
            if section:
                return section
    suffix = message.syntax.component(_field(observation, 3), 1, 2)
    return _SUFFIXES.get(suffix, "other")


# -- parts -----------------------------------------------------------------------------------------


def _field(segment: hl7.Segment, number: int) -> str:
    return str(segment(number)) if number < len(segment) else ""


def _nth(parts: list[str], number: int) -> str:
    return parts[number - 1] if number <= len(parts) else ""


@cache
def _escapes(escape: str) -> re.Pattern[str]:
    """HL7 v2.5 2.7: delimiters, bytes, formatting, highlighting, character sets, local ones."""
    mark = re.escape(escape)
    return re.compile(
        rf"(?P<bytes>(?:{mark}[Xx](?:[0-9A-Fa-f]{{2}})+{mark})+)"
        rf"|{mark}(?:(?P<format>\.[A-Za-z]{{2}}) ?[+-]?(?P<count>\d{{1,2}})?"
        rf"|(?P<mark>[FSTREHN])|[CM][0-9A-Fa-f]{{4,6}}|Z\w*){mark}"
    )


def _formatted(command: str, count: int) -> str:
    """HL7 v2.5 2.7.6; indents and filling are nothing that matters to a text's words."""
    if command == ".sk":
        return " " * count
    return "\n" * count if command in (".br", ".sp", ".ce") else ""
