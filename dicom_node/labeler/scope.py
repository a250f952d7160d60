"""Sentences, and what the words around a place in one say about it: there, not there, perhaps.

A cue acts on what follows it or on what precedes it, as far as its clause reaches. The idea is
NegEx's (Chapman et al. 2001); the cues and the rules are our own.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from dicom_node.labeler.vocabulary import compiled


class Presence(StrEnum):
    """What a text says about a finding, in the words of PS3.16 CID 240."""

    PRESENT = "Present"
    ABSENT = "Absent"
    UNDETERMINED = "Undetermined"


class Effect(StrEnum):
    """What a cue does to a finding in its reach."""

    AFFIRMS = "affirms"  #: looks like a denial and is none
    DOUBTS = "doubts"
    DENIES = "denies"
    SETS_ASIDE = "sets aside"  #: history or condition: nothing is said of this image


_SEEN = (
    r"(?:seen|identified|visuali[sz]ed|present|evident|noted|appreciated|demonstrated|detected|"
    r"apparent|found|observed|visible|shown|suggested|suspected)"
)
_BE = r"(?:is|are|was|were|has been|have been|can be|could be)"
_CHANGE = (
    r"(?:change|changes in|increase|decrease|progression|improvement|worsening|difference|"
    r"alteration|resolution)"
)
# What may stand between "no" and "change": no noun, or "no effusion or change" would deny nothing.
_ANY = (
    r"(?:(?:significant|interval|appreciable|definite|substantial|further|radiographic|new|obvious|"
    r"apparent|overall|acute|other|important|relevant|measurable|(?:evidence|suggestion|sign) of|"
    r"\w+ly) ){0,4}"
)

#: Cues that act on what follows.
AHEAD: Mapping[Effect, tuple[str, ...]] = {
    Effect.AFFIRMS: (
        rf"(?:no|without) {_ANY}{_CHANGE}(?: in| of| from| since)?",
        r"not? (?:only|just|further|significantly changed|changed|resolved|well)",
        r"no doubt",
        r"most (?:suggestive of|consistent with|compatible with|likely)",
    ),
    Effect.DOUBTS: (
        r"(?:can ?not|can't|could not|unable to|difficult to|not) (?:be )?"
        r"(?:completely |entirely |definitely )?(?:exclude|excluded|rule out|ruled out)",
        r"may|maybe|might|could|can (?:represent|reflect|be)",
        r"possib(?:le|ly|ility of)|potential(?:ly)?|perhaps|conceivably",
        r"question(?:able|ed)?(?: of)?|equivocal(?: for)?|indeterminate(?: for)?",
        r"(?:suspicious|suspicion|concern(?:ing)?|worrisome) (?:for|of)|suspect(?:ed)?",
        r"suggest(?:s|ed|ing|ive of)|(?:findings|changes|features|opacities|and) suggest",
        r"(?:un|less |not )likely",
        r"(?<!\w)\?",
        r"rather than|as opposed to|instead of",
        r"rule out|r/o|to exclude|exclude|excluding",
        r"(?:evaluat(?:e|ion)|assess(?:ment)?|query) (?:for|of)?",
        r"differential(?: \w+){0,4} includes?|differential|considerations? (?:would )?includes?",
    ),
    Effect.DENIES: (
        r"no longer",
        r"no|not|nor|neither|none|without|w/o|never|cannot (?:see|identify)|don't|doesn't|isn't",
        r"(?:free|clear|devoid) of|negative for|(?:absence|lack) of|^absent|denies",
        r"(?:resolution|clearing|disappearance) of|^resolved|(?:interval|now) resolved",
        r"(?:have|has) been removed|(?:removal|extubation) of",
        r"exclud(?:es|ed)|rul(?:es|ed) out",
    ),
    Effect.SETS_ASIDE: (
        r"(?:history|hx|h/o|history is|indications?) (?:of|for)|h/o|known history",
        r"(?:prior|previous|remote|past|recent|treated) (?:\w+ )?"
        r"(?=pneumon|effusion|pneumothora|atelecta|infiltrat|consolidat|edema)",
        r"if",
    ),
}

#: Cues that act on what precedes.
BACK: Mapping[Effect, tuple[str, ...]] = {
    Effect.AFFIRMS: (
        rf"(?:{_BE} )?not (?:\w+ly )?(?:changed|resolved|improved|cleared|well {_SEEN})",
        rf"(?:{_BE} )?not (?:\w+ )?{_SEEN} on (?:the )?(?:\w+ )?(?:lateral|frontal|pa|ap)",
        rf"(?:{_BE} )?not (?:\w+ )?{_SEEN} on (?:the )?(?:\w+ )?(?:prior|previous)",
    ),
    Effect.DOUBTS: (
        r"(?:can ?not|can't|could not|not) be (?:\w+ly )?(?:excluded|ruled out)",
        rf"(?:{_BE} )?(?:not (?:\w+ly )?(?:excluded|ruled out))",
        rf"(?:{_BE}|be|felt|considered|appears?|seems?) (?:(?:\w+ly|also|still) )?"
        r"(?:possible|questionable|suspected|questioned|considered|unlikely|less likely|doubtful|"
        r"difficult to exclude)",
        r"(?:should|must|may|might|could) be considered",
        r"(?<=\w)\?",
    ),
    Effect.DENIES: (
        rf"(?:{_BE} )?(?:not|no longer) (?:\w+ly )?(?:been )?{_SEEN}",
        rf"(?:{_BE}|has|have) (?:since |now |(?:\w+ly )?)(?:resolved|cleared|disappeared|gone)",
        r"(?!^)(?:resolved|cleared|absent)",
        rf"{_BE} (?:now )?(?:absent|excluded|ruled out|negative(?! for)|removed)",
        r":\s*(?:none|no|absent|negative)(?=\s*(?:[.,;]|$))",
        r"(?:have|has) been removed|removed",
    ),
    Effect.SETS_ASIDE: (r"by history",),
}

#: Cues that stand between two: each side is as doubtful as the other.
BOTH: Mapping[Effect, tuple[str, ...]] = {Effect.DOUBTS: (r"versus|vs",)}

# Between a cue and what it acts on: from here on something else is spoken of.
_BREAK = re.compile(
    r";|[\u2013\u2014]|\b(?:but|however|although|though|except|aside from|apart from|besides|yet|"
    r"whereas|other than|while|because|despite|in spite of|now with)\b"
    r"|,\s*(?:with|which|there|the|an?)\b"
    r"|\band\s+(?:an?|the|there|with)\b|\bwith\s+(?:an?|small|mild|moderate|large|stable)\b"
    r"|\b(?:after|following|status\s+post|s/p)\b"
    r"|,\s*(?:and\s+)?(?:stable|unchanged|persistent|persisting|again|minimal|moderate|mild|"
    r"borderline|improved)\b"
    r"|\b(?:is|are|was|were)\b[^,;]*(?:,|\band\b)|\bthere\s+(?:is|are|has|have)\b",
    re.IGNORECASE,
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|remains?|shows?|persists?|appears?|demonstrates?)\b|\.",
    re.IGNORECASE,
)
_COMMA = re.compile(",")
_NEXT = re.compile(r",|\b(?:and|with|or)\b", re.IGNORECASE)

_ABBREVIATED = r"(?<!\bvs)(?<!\be\.g)(?<!\bi\.e)(?<!\bdr)(?<!\bmr)(?<!\bms)(?<!\bapprox)(?<!\bca)"
# A line that goes on in small letters, or after a comma or a word like "no", is the same sentence.
_END = re.compile(
    rf"{_ABBREVIATED}(?<!\b[a-z])(?:[.!]|(?<=\w)\?)+(?=\s|$)|(?-i:(?<=[a-z)])[.!?](?=[A-Z]))"
    r"|(?<!,)(?<!\bno)(?<!\bor)(?<!\band)(?<!\bof)(?<!\bthe)(?<!\bwith)(?<!\bwithout)"
    r"\n(?=(?-i:[A-WYZ])|X(?!XX)|\d+[.)]|[-*•])",
    re.IGNORECASE,
)

REACH = 400  #: characters that a cue acts over at most; keeps a text without full stops cheap


class Cue(NamedTuple):
    """A cue in a sentence."""

    effect: Effect
    ways: str  #: "AHEAD", "BACK" or "BOTH"
    start: int
    end: int


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Split a text whose runs of blanks are one character each; give each part's start too."""
    starts = [0, *(end.end() for end in _END.finditer(text))]
    for start, end in pairwise([*starts, len(text)]):
        sentence = text[start:end].lstrip()
        yield end - len(sentence), sentence


class Scope:
    """What the cues of one sentence say about places in it."""

    def __init__(self, sentence: str) -> None:
        self._sentence = sentence
        cues = list(_cues(sentence))
        self._ahead = [cue for cue in cues if cue.ways != "BACK"]
        self._back = [cue for cue in cues if cue.ways != "AHEAD"]

    def presence(self, start: int, end: int) -> Presence | None:
        """Judge the finding at a place; None where nothing is said of the image at hand."""
        effects = {self._from_before(start), self._from_behind(end)}
        if Effect.DENIES in effects:
            return Presence.ABSENT
        if Effect.SETS_ASIDE in effects:
            return None
        return Presence.UNDETERMINED if Effect.DOUBTS in effects else Presence.PRESENT

    def _from_before(self, start: int) -> Effect:
        """The nearest cue decides, but a denied doubt is a denial ("no sign suspicious for")."""
        last = bisect_right(self._ahead, start, key=lambda cue: cue.end) - 1
        if last < 0 or not self._reaches(self._ahead[last].end, start):
            return Effect.AFFIRMS
        nearest, further = self._ahead[last], self._ahead[max(0, last - 1)]
        doubted = nearest.effect is Effect.DOUBTS and further.effect is Effect.DENIES
        denied = doubted and self._reaches(further.end, nearest.start, stop=_COMMA)
        return Effect.DENIES if denied else nearest.effect

    def _from_behind(self, end: int) -> Effect:
        first = bisect_left(self._back, end, key=lambda cue: cue.start)
        if first == len(self._back):
            return Effect.AFFIRMS
        cue = self._back[first]
        reaches = self._reaches(end, cue.start, stop=_VERB if cue.ways == "BACK" else _NEXT)
        return cue.effect if reaches else Effect.AFFIRMS

    def _reaches(self, start: int, end: int, stop: re.Pattern[str] | None = None) -> bool:
        if end - start > REACH or _BREAK.search(self._sentence, start, end):
            return False
        return not (stop and stop.search(self._sentence, start, end))


def _cues(sentence: str) -> Iterator[Cue]:
    for match in _CUES.finditer(sentence):
        ways, _, effect = (match.lastgroup or "").partition("_")
        yield Cue(Effect[effect], ways, *match.span())


def _all_cues() -> re.Pattern[str]:
    """One pattern, so that words belong to one cue: what only looks like a denial goes first."""
    kinds = [
        (f"{ways}_{effect.name}", cues[effect])
        for effect in (Effect.AFFIRMS, Effect.DOUBTS, Effect.SETS_ASIDE, Effect.DENIES)
        for ways, cues in (("BACK", BACK), ("BOTH", BOTH), ("AHEAD", AHEAD))
        if effect in cues
    ]
    return compiled(tuple(f"(?P<{name}>{'|'.join(cues)})" for name, cues in kinds))


_CUES = _all_cues()
