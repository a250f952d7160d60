"""Which section of a report a text belongs to: by code, by a name's words, by headings in it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

from dicom_node.reports.final import Section

# PS3.16 CID 7001 (headings, LOINC's and the retired ones) and CID 7002 (elements).
_CODES: Mapping[tuple[str, str], Section] = {
    ("59776-5", "LN"): "findings",
    ("121070", "DCM"): "findings",
    ("121071", "DCM"): "findings",
    ("19005-8", "LN"): "impression",
    ("121072", "DCM"): "impression",
    ("121073", "DCM"): "impression",
    ("55110-1", "LN"): "conclusion",
    ("121076", "DCM"): "conclusion",
    ("121077", "DCM"): "conclusion",
    ("11329-0", "LN"): "history",
    ("121060", "DCM"): "history",
    ("55107-7", "LN"): "addendum",
    ("121078", "DCM"): "addendum",
}

_WORDS: Mapping[Section, str] = {
    "findings": "findings?|所見",
    "impression": "impressions?|診断|印象",
    "conclusion": "conclusions?|結論",
    "history": "history|indications?|臨床情報",
    "addendum": "addend(?:um|a)|追記",
    "other": "comparisons?|techniques?|examinations?|procedures?|検査",
}
_ANY = "|".join(f"(?P<{section}>{words})" for section, words in _WORDS.items())

_NAMED = re.compile(rf"(?<![a-z])(?:{_ANY})(?![a-z])", re.IGNORECASE)
# A heading is alone on its line or ends with a colon: "Findings are normal." is none.
_HEADING = re.compile(
    rf"^[ \t]*[【\[]?(?:(?:clinical|patient)[ ])?(?:{_ANY})(?:[ ]?(?:and|&|/)[ ]?\w+)?[】\]]?"
    r"[ \t]*(?:[:\uff1a]|$)",
    re.IGNORECASE | re.MULTILINE,
)


def of_code(value: str, scheme: str, meaning: str) -> Section | None:
    """Tell the section that a code names, or else the words of its meaning do."""
    return _CODES.get((value, scheme)) or _of_match(_NAMED.search(meaning))


def split(text: str, section: Section) -> Iterator[tuple[Section, str]]:
    """Cut a text at the headings in it; what precedes the first one is ``section``'s."""
    start = 0
    for heading in _HEADING.finditer(text):
        yield section, text[start : heading.start()]
        section, start = _of_match(heading) or section, heading.end()
    yield section, text[start:]


def gathered(pieces: Iterable[tuple[Section, str]]) -> dict[Section, str]:
    """Join the pieces of each section by line breaks; what is blank is left out."""
    lines: dict[Section, list[str]] = {}
    for section, text in pieces:
        if text.strip():
            lines.setdefault(section, []).append(text.strip())
    return {section: "\n".join(parts) for section, parts in lines.items()}


def is_addendum(sections: Mapping[Section, str]) -> bool:
    """Is it nothing but an addendum, which is appended to the report and never replaces it?"""
    return bool(sections.get("addendum")) and not {
        "findings",
        "impression",
        "conclusion",
    }.intersection(sections)


def clean(text: str) -> str:
    """Make line ends LF and drop the control characters that are neither those nor TAB."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c for c in lines if c in "\n\t" or unicodedata.category(c) != "Cc")


def _of_match(match: re.Match[str] | None) -> Section | None:
    if match is None:
        return None
    return next(section for section in _WORDS if match[section])
