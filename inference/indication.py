"""Why the examination was asked for, and how urgently, as the image's own header tells it.

Only free text is taken: codes are no sentences, and the models were trained on sentences. The text
may name or describe the patient: it goes into the prompt and the draft, never into a log.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pydicom import Dataset

from inference import headers

#: Characters. UT has no limit (PS3.5 6.2), and no prompt holds more than some hundred words.
LONGEST = 2000

#: Outside the request, the nearer to this examination the earlier. PS3.6 6: Reason for Study is
#: retired, but older systems still send it. PS3.3 C.7.2.2 (Patient Study): the other two.
_OF_THE_STUDY = ("ReasonForStudy", "ReasonForVisit", "AdmittingDiagnosesDescription")


@dataclass(frozen=True, slots=True, kw_only=True)
class Indication:
    """What a model may be told about the patient beside the image."""

    text: str = field(repr=False)  #: one line, without control characters
    #: the attribute's keyword, after those of the sequences it is in, or what an order came in
    source: str


def find(header: Dataset) -> Indication | None:
    """Take the indication from an image's header; None when nobody wrote one. Never raises."""
    with headers.tolerant():
        return next((found for found in _written(header) if found.text), None)


def of_order(text: str, source: str) -> Indication | None:
    """Take the indication that an order gives, cleaned as a header's; None when it says nothing."""
    found = Indication(text=_joined([_clean(text[:LONGEST])]), source=source)
    return found if found.text else None


def priority(header: Dataset) -> str:
    """Return Requested Procedure Priority (PS3.3 C.4.11) as the header has it; "" without one."""
    with headers.tolerant():
        requests = (header, *headers.items(header, "RequestAttributesSequence"))
        found = (headers.cs(one, "RequestedProcedurePriority") for one in requests)
        return next(filter(None, found), "")


def _written(header: Dataset) -> Iterator[Indication]:
    # PS3.3 10.6, table 10-9: one item for each request that the image answers.
    requests = headers.items(header, "RequestAttributesSequence")
    reasons = [_line(item, "ReasonForTheRequestedProcedure") for item in requests]
    yield Indication(
        text=_joined(reasons), source="RequestAttributesSequence > ReasonForTheRequestedProcedure"
    )
    for keyword in _OF_THE_STUDY:
        yield Indication(text=_line(header, keyword), source=keyword)


def _line(header: Dataset, keyword: str) -> str:
    """Return an attribute's values as one line; "" when none of them says anything."""
    # A number, a name or bytes stand here only where a sender confused attributes.
    return _joined(
        _clean(v[:LONGEST]) for v in headers.values(header, keyword) if isinstance(v, str)
    )


def _joined(lines: Iterable[str]) -> str:
    said = (line for line in lines if any(c.isalnum() for c in line))  # not "-", "." or "?"
    return "; ".join(dict.fromkeys(said))[:LONGEST].rstrip()


def _clean(text: str) -> str:
    """Turn control characters and lone surrogates into blanks, and runs of blanks into one."""
    plain = (" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    return " ".join("".join(plain).split())
