"""From a report's text to its findings and labels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from dicom_node.labeler import vocabulary
from dicom_node.labeler.scope import Presence, Scope, sentences
from dicom_node.labeler.vocabulary import LABELS, Finding, Label

NAME = "dicom-node rule labeler"
VERSION = "1"


def _digest() -> str:
    """SHA-256 over the rules as they are here: the labeler's "weights"."""
    rules = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in rules)).hexdigest()


DIGEST = _digest()

_Key = TypeVar("_Key")

_STRONGEST = (Presence.PRESENT, Presence.UNDETERMINED, Presence.ABSENT)


class Mention(NamedTuple):
    """One place where a text speaks of a finding."""

    span: tuple[int, int]  #: start and end in the text
    finding: Finding
    presence: Presence


def mentions(text: str) -> tuple[Mention, ...]:
    """Find what a text says of findings, in its order. History and conditions are left out."""
    plain, places = _collapsed(text)
    found = (mention for start, part in sentences(plain) for mention in _mentions(part, start))
    return tuple(
        mention._replace(span=(places[mention.span[0]], places[mention.span[1] - 1] + 1))
        for mention in sorted(found)
    )


def findings(text: str) -> Mapping[Finding, Presence]:
    """Say of each finding that is spoken of: present once outweighs doubt, doubt absence."""
    return _merged((mention.finding, mention.presence) for mention in mentions(text))


def labels(text: str) -> Mapping[Label, Presence]:
    """Say the same of each label; a label that is not spoken of is not there."""
    said = findings(text).items()
    return _merged((LABELS[finding], presence) for finding, presence in said if finding in LABELS)


def _collapsed(text: str) -> tuple[str, list[int]]:
    """Make a run of blanks one blank or line break; tell where each character was."""
    runs = list(re.finditer(r"\s+|\S", text))
    return "".join(_character(run[0]) for run in runs), [run.start() for run in runs]


def _character(run: str) -> str:
    if run.isspace():
        return "\n" if "\n" in run or "\r" in run else " "
    return run


def _mentions(sentence: str, start: int) -> Iterator[Mention]:
    named = list(vocabulary.named(sentence))
    scope = Scope(sentence if named else "")  # most sentences need no look at their cues
    for found in named:
        presence = scope.presence(found.start, found.end)
        if presence:
            yield _mention(found, presence, start)
    for found in vocabulary.normals(sentence):
        yield _mention(found, Presence.ABSENT, start)
    for found in vocabulary.borders(sentence):
        yield _mention(found, Presence.UNDETERMINED, start)


def _mention(found: vocabulary.Found, presence: Presence, start: int) -> Mention:
    return Mention((start + found.start, start + found.end), found.finding, presence)


def _merged(said: Iterable[tuple[_Key, Presence]]) -> dict[_Key, Presence]:
    merged: dict[_Key, Presence] = {}
    for key, presence in said:
        merged[key] = min(merged.get(key, presence), presence, key=_STRONGEST.index)
    return merged
