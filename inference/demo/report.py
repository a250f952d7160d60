"""The text of a phantom's findings section, and the parser that reads the findings back.

Sentences come in a fixed order: heart; lungs; effusion and pneumothorax; devices. Each has two
wordings, drawn 65 to 35 in training (demo-model.md section 2).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from inference.demo.scene import LABELS

_FIRST_WORDING = 0.65

_Wordings = tuple[str, str]

_HEART_NORMAL = "The heart size is normal.", "The cardiac silhouette is normal."
_LUNGS_CLEAR = "The lungs are clear.", "Both lungs are clear."
_NO_CONSOLIDATION = "No consolidation is seen.", "There is no consolidation."
_NO_PLEURAL = (
    "There is no pleural effusion or pneumothorax.",
    "No effusion or pneumothorax is seen.",
)
_NO_EFFUSION = "There is no pleural effusion.", "No effusion is seen."
_NO_PNEUMOTHORAX = "There is no pneumothorax.", "No pneumothorax is seen."

_PRESENT: Mapping[str, _Wordings] = {  # {where} is a lobe or zone, {size} is small or large
    "cardiomegaly": ("The heart is enlarged.", "There is cardiomegaly."),
    "consolidation": (
        "There is a consolidation in the {where}.",
        "Consolidation of the {where} is present.",
    ),
    "nodule": ("There is a nodule in the {where}.", "A nodule is seen in the {where}."),
    "effusion": (
        "There is a {size} {where} pleural effusion.",
        "A {size} {where} effusion is seen.",
    ),
    "pneumothorax": (
        "There is a {size} {where} pneumothorax.",
        "A {size} {where} pneumothorax is seen.",
    ),
    "pacemaker": ("A left pacemaker is present.", "There is a left chest wall pacemaker."),
    "endotracheal_tube": ("An endotracheal tube is present.", "There is an endotracheal tube."),
    "central_venous_catheter": (
        "A right central venous catheter is present.",
        "There is a right central venous catheter.",
    ),
}

_SIDE_WORDS = {"L": "left", "R": "right"}
_HEIGHT_WORDS = {"U": "upper", "M": "middle", "L": "lower"}

_NEGATIVE = re.compile(r"\b(no|not|without|normal|clear)\b")
_HEART = re.compile(r"\bcardiomegaly\b|\b(heart|cardiac)\b.*\benlarged\b|\benlarged\b.*\bheart\b")
_NOUNS: Mapping[str, re.Pattern[str]] = {
    "consolidation": re.compile(r"\bconsolidations?\b"),
    "nodule": re.compile(r"\bnodules?\b"),
    "effusion": re.compile(r"\beffusions?\b"),
    "pneumothorax": re.compile(r"\bpneumothora(x|ces)\b"),
}
_DEVICES: Mapping[str, re.Pattern[str]] = {
    "pacemaker": re.compile(r"\bpacemaker\b"),
    "endotracheal_tube": re.compile(r"\bendotracheal\b"),
    "central_venous_catheter": re.compile(r"\bcatheter\b"),
}
_SIDES = {"left": ("left",), "right": ("right",), "bilateral": ("left", "right")}
_HEIGHTS = {"upper": "upper", "middle": "mid", "mid": "mid", "lower": "lower"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Agreement over the finding labels of many reports."""

    precision: float  #: micro: of the findings said, the share that is there
    recall: float  #: micro: of the findings there, the share that is said
    f1: float
    exact: float  #: share of reports with every finding right
    n: int  #: reports


def write(labels: frozenset[str], sizes: Mapping[str, str], *, seed: int | None) -> str:
    """Write the findings section of a phantom.

    Parameters
    ----------
    labels
        The phantom's findings, of ``inference.demo.scene.LABELS``.
    sizes
        ``small`` or ``large`` for every effusion and pneumothorax among them.
    seed
        Draws the wording of each sentence; ``None`` takes the first wording throughout.
    """
    draw = random.Random(seed)
    return " ".join(wordings[_second(draw, seed)] for wordings in _sentences(labels, sizes))


def positive(label: str, size: str | None = None, *, seed: int | None = None) -> str:
    """Write the one sentence that states a finding; without a size it names none."""
    return _present(label, size)[_second(random.Random(seed), seed)]


def parse(text: str) -> frozenset[str]:
    """Read the finding labels out of a report.

    Reads nouns, sides, lobes and zones and not whole templates, because a model that errs blends
    them ("The heart size is enlarged."); a sentence with a negation or "normal" states nothing.
    """
    return frozenset(label for label, _ in _statements(text))


def parse_sizes(text: str) -> dict[str, str]:
    """Read ``small`` or ``large`` of each effusion and pneumothorax a report states."""
    sizes = {}
    for label, sentence in _statements(text):
        words = {"small", "large"} & set(re.findall(r"[a-z]+", sentence))
        if label.startswith(("effusion", "pneumothorax")) and len(words) == 1:
            sizes[label] = words.pop()
    return sizes


def score(pairs: Iterable[tuple[frozenset[str], frozenset[str]]]) -> Score:
    """Compare (expected, found) label sets.

    A ratio without a denominator (nothing said, nothing there) counts as 0.
    """
    pairs = list(pairs)
    both = sum(len(expected & found) for expected, found in pairs)
    there = sum(len(expected) for expected, _ in pairs)
    said = sum(len(found) for _, found in pairs)
    return Score(
        precision=both / max(said, 1),
        recall=both / max(there, 1),
        f1=2 * both / max(said + there, 1),
        exact=sum(expected == found for expected, found in pairs) / max(len(pairs), 1),
        n=len(pairs),
    )


# --- writing ---


def _second(draw: random.Random, seed: int | None) -> bool:
    return seed is not None and draw.random() >= _FIRST_WORDING


def _sentences(labels: frozenset[str], sizes: Mapping[str, str]) -> Iterator[_Wordings]:
    """Both wordings of every sentence of a report, in its order."""
    yield _present("cardiomegaly") if "cardiomegaly" in labels else _HEART_NORMAL
    yield from _lungs(labels)
    yield from _pleura(labels, sizes)
    yield from (_present(label) for label in LABELS if label in labels and label in _DEVICES)


def _lungs(labels: frozenset[str]) -> Iterator[_Wordings]:
    consolidations, nodules = _of("consolidation", labels), _of("nodule", labels)
    if not consolidations:
        yield _NO_CONSOLIDATION if nodules else _LUNGS_CLEAR
    yield from (_present(label) for label in (*consolidations, *nodules))


def _pleura(labels: frozenset[str], sizes: Mapping[str, str]) -> Iterator[_Wordings]:
    effusions, pneumothoraces = _of("effusion", labels), _of("pneumothorax", labels)
    if not effusions and not pneumothoraces:
        yield _NO_PLEURAL
        return
    yield from (_present(label, sizes[label]) for label in effusions)
    if not effusions:
        yield _NO_EFFUSION
    yield from (_present(label, sizes[label]) for label in pneumothoraces)
    if not pneumothoraces:
        yield _NO_PNEUMOTHORAX


def _of(family: str, labels: frozenset[str]) -> list[str]:
    return [label for label in LABELS if label in labels and label.startswith(family)]


def _present(label: str, size: str | None = None) -> _Wordings:
    """Both wordings of the sentence that states a finding."""
    noun, _, place = label.partition("_")
    templates = _PRESENT[label] if label in _PRESENT else _PRESENT[noun]
    words = {"where": _where(noun, place), "size": size or ""}
    first, second = (" ".join(template.format(**words).split()) for template in templates)
    return first, second


def _where(noun: str, place: str) -> str:
    """Turn ``RUL`` into "right upper lobe", ``left_mid`` into "left mid zone"."""
    if noun == "consolidation":
        return f"{_SIDE_WORDS[place[0]]} {_HEIGHT_WORDS[place[1]]} lobe"
    if noun == "nodule":
        return f"{place.replace('_', ' ')} zone"
    return place


#: One sentence per label that states it and nothing else: queries for retrieval.
SENTENCES: Mapping[str, str] = {label: _present(label)[0] for label in LABELS}


# --- reading ---


def _statements(text: str) -> Iterator[tuple[str, str]]:
    """Every finding that a report states, with its sentence in lower case."""
    for sentence in re.split(r"[.;\n]+", text.lower()):
        if not _NEGATIVE.search(sentence):
            yield from ((label, sentence) for label in _stated(sentence))


def _stated(sentence: str) -> Iterator[str]:
    """Labels of one affirmative sentence; a place that no label has is no label."""
    if _HEART.search(sentence):
        yield "cardiomegaly"
    yield from (label for label, noun in _DEVICES.items() if noun.search(sentence))
    words = re.findall(r"[a-z]+", sentence)
    sides = [side for word in words for side in _SIDES.get(word, ())]
    heights = [_HEIGHTS[word] for word in words if word in _HEIGHTS]
    for noun, pattern in _NOUNS.items():
        if pattern.search(sentence):
            yield from (label for label in _placed(noun, sides, heights) if label in LABELS)


def _placed(noun: str, sides: list[str], heights: list[str]) -> Iterator[str]:
    if noun in ("effusion", "pneumothorax"):
        yield from (f"{noun}_{side}" for side in sides)
        return
    for side in sides:
        for height in heights:
            lobe = f"{side[0]}{height[0]}L".upper()
            yield f"nodule_{side}_{height}" if noun == "nodule" else f"{noun}_{lobe}"
