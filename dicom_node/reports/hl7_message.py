"""An HL7 v2 message in its parts: whoever reads reports or orders from one begins here.

python-hl7 cuts a message into its parts. Escapes are undone here: its ``unescape`` knows no bytes
of other character sets, and writes what it can't read, a report's text, into the log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import hl7

from dicom_node.errors import Unreadable

MAX_DELIMITERS = 100_000  #: each becomes an object of some hundred bytes; a report has a thousand

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

#: What a field must look like to be taken for a UID (PS3.5 9.1).
UID = re.compile(r"(?=.{5,64}$)[0-9]+(?:\.[0-9]+)+")


def header(raw: bytes) -> list[bytes] | None:
    """The fields of MSH as they were sent, [1] the separator; ``None``: it begins otherwise."""
    segment = raw.lstrip(b"\r\n").replace(b"\n", b"\r").partition(b"\r")[0]
    if segment[:3] != b"MSH" or len(segment) < 8:
        return None
    separator = segment[3:4]
    return [b"MSH", separator, *segment[4:].split(separator)]


def kind(raw: bytes) -> tuple[str, str]:
    """Message code and trigger event (MSH-9) of the first message; empty where it says none."""
    msh = header(raw)
    if msh is None or len(msh) < 10:
        return "", ""
    code, event, *_ = *msh[9].split(msh[2][:1]), b""
    return code.decode("latin-1"), event.decode("latin-1")


def parse(raw: bytes) -> list[Message]:
    """Read a message, or a batch of them, without MLLP framing; pure.

    Segments may end with CR, LF or both; a line that begins none belongs to the segment above it.

    Raises
    ------
    Unreadable
        It is no HL7 v2 message, or larger than any report.
    """
    text, syntax = _decoded(raw.removeprefix(_BYTE_ORDER_MARK).strip())
    return [Message(segments, syntax) for segments in _messages(text, syntax)]


@dataclass(frozen=True, slots=True)
class Syntax:
    """How a message is written: MSH-1, MSH-2, and the encoding of its bytes."""

    delimiters: str  #: field, component, repetition, escape, subcomponent
    encoding: str

    @property
    def escape(self) -> str:
        """The character that begins and ends an escape sequence."""
        return self.delimiters[3]

    def component(self, value: str, number: int = 1, subcomponent: int = 1) -> str:
        """Return a component of a field's first repetition, unescaped and stripped."""
        _, component, repetition, _, below = tuple(self.delimiters)
        part = _nth(value.split(repetition)[0].split(component), number)
        return self.unescaped(_nth(part.split(below), subcomponent)).strip()

    def repetitions(self, value: str) -> list[str]:
        """Return the repetitions of a field, still escaped."""
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


class Message:
    """One parsed message; fields are as they were sent, empty where there is none."""

    def __init__(self, segments: list[str], syntax: Syntax) -> None:
        self.syntax = syntax
        try:
            self.segments: hl7.Message = hl7.parse("\r".join(segments))
        except (hl7.HL7Exception, AssertionError, LookupError, ValueError):
            # "from None": python-hl7 quotes the message.
            raise Unreadable("HL7 message can't be parsed") from None

    def field(self, segment: hl7.Segment, number: int) -> str:
        """Return a field with all its repetitions, as it was sent; empty where there is none."""
        return str(segment(number)) if number < len(segment) else ""

    def component(self, segment: hl7.Segment, number: int, component: int = 1) -> str:
        """Return a component of a field's first repetition, unescaped and stripped."""
        return self.syntax.component(self.field(segment, number), component)

    def identifier(self, patient: hl7.Segment | None) -> str:
        """Return the medical record number among PID-3's repetitions, or else the first one."""
        if patient is None:
            return ""
        syntax = self.syntax
        all_of_them = syntax.repetitions(self.field(patient, 3))
        named = [one for one in all_of_them if syntax.component(one)]
        records = [one for one in named if syntax.component(one, 5) == "MR"]  # HL7 table 0203
        return next(iter([*records, *named]), "")


# -- from bytes to segments ------------------------------------------------------------------------


def _decoded(raw: bytes) -> tuple[str, Syntax]:
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
            return raw.decode(encoding), Syntax(delimiters, encoding)
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1"), Syntax(delimiters, "latin-1")


def _encoding(names: Iterable[str]) -> str:
    """Return the encoding that MSH-18 names; a second character set contains the first."""
    plain = (re.sub(r"ISO[ _-]?IR[ _-]?", "ISO IR", name.strip().upper()) for name in names)
    known = [_ENCODINGS[name] for name in plain if name in _ENCODINGS]
    return known[-1] if known else "utf-8"


def _messages(text: str, syntax: Syntax) -> list[list[str]]:
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


# -- parts -----------------------------------------------------------------------------------------


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
