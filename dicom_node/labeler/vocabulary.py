"""What the labeler knows by name: findings, their phrases, and the labels they belong to.

The one place to add a phrase. A phrase is a regular expression in which a blank stands for any
blanks, hyphens or colons and a word in angle brackets for one of ``_SHORT``; case does not matter,
and a phrase begins and ends at a word's edge. A phrase after "!" is another thing's name: where it
stands, the finding is not named. Why what is where: docs/decisions/labeler.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple


class Label(StrEnum):
    """The labels of CheXpert (Irvin et al. 2019) that the SR encodes: sr-draft.md 5.1."""

    ATELECTASIS = "Atelectasis"
    CARDIOMEGALY = "Cardiomegaly"
    CONSOLIDATION = "Consolidation"
    EDEMA = "Edema"
    PLEURAL_EFFUSION = "Pleural Effusion"
    PNEUMOTHORAX = "Pneumothorax"
    PNEUMONIA = "Pneumonia"
    FRACTURE = "Fracture"
    LUNG_OPACITY = "Lung Opacity"
    LUNG_LESION = "Lung Lesion"
    ENLARGED_CARDIOMEDIASTINUM = "Enlarged Cardiomediastinum"
    PLEURAL_OTHER = "Pleural Other"
    SUPPORT_DEVICES = "Support Devices"


class Finding(StrEnum):
    """What a report can name; finer than the labels."""

    ATELECTASIS = "Atelectasis"
    CARDIOMEGALY = "Cardiomegaly"
    ENLARGED_CARDIAC_SILHOUETTE = "Enlarged Cardiac Silhouette"
    ENLARGED_CARDIOMEDIASTINUM = "Enlarged Cardiomediastinum"
    CONSOLIDATION = "Consolidation"
    INFILTRATE = "Infiltrate"
    OPACITY = "Opacity"
    NODULAR_OPACITY = "Nodular Opacity"
    NODULE = "Nodule"
    MASS = "Mass"
    GRANULOMA = "Granuloma"
    PNEUMONIA = "Pneumonia"
    EDEMA = "Edema"
    VASCULAR_CONGESTION = "Vascular Congestion"
    EMPHYSEMA = "Emphysema"
    FIBROSIS = "Fibrosis"
    SCAR = "Scar"
    AIRWAY_THICKENING = "Airway Thickening"
    PLEURAL_EFFUSION = "Pleural Effusion"
    PNEUMOTHORAX = "Pneumothorax"
    PLEURAL_THICKENING = "Pleural Thickening"
    PLEURAL_SCAR = "Pleural Scar"
    PLEURAL_PLAQUE = "Pleural Plaque"
    HERNIA = "Hernia"
    FRACTURE = "Fracture"
    SUPPORT_DEVICE = "Support Device"


#: Emphysema, hernia, granuloma, thick airways and congestion (which is not yet edema) have none.
LABELS: Mapping[Finding, Label] = {
    Finding.ATELECTASIS: Label.ATELECTASIS,
    Finding.CARDIOMEGALY: Label.CARDIOMEGALY,
    Finding.ENLARGED_CARDIAC_SILHOUETTE: Label.CARDIOMEGALY,
    Finding.ENLARGED_CARDIOMEDIASTINUM: Label.ENLARGED_CARDIOMEDIASTINUM,
    Finding.CONSOLIDATION: Label.CONSOLIDATION,
    Finding.INFILTRATE: Label.LUNG_OPACITY,
    Finding.OPACITY: Label.LUNG_OPACITY,
    Finding.FIBROSIS: Label.LUNG_OPACITY,
    Finding.SCAR: Label.LUNG_OPACITY,
    Finding.NODULAR_OPACITY: Label.LUNG_LESION,
    Finding.NODULE: Label.LUNG_LESION,
    Finding.MASS: Label.LUNG_LESION,
    Finding.PNEUMONIA: Label.PNEUMONIA,
    Finding.EDEMA: Label.EDEMA,
    Finding.PLEURAL_EFFUSION: Label.PLEURAL_EFFUSION,
    Finding.PNEUMOTHORAX: Label.PNEUMOTHORAX,
    Finding.PLEURAL_THICKENING: Label.PLEURAL_OTHER,
    Finding.PLEURAL_SCAR: Label.PLEURAL_OTHER,
    Finding.PLEURAL_PLAQUE: Label.PLEURAL_OTHER,
    Finding.FRACTURE: Label.FRACTURE,
    Finding.SUPPORT_DEVICE: Label.SUPPORT_DEVICES,
}

_SHORT = {
    # Words between a subject and what is said of it: none that turns the sense, no new subject.
    "<gap>": r"(?:(?!(?:not|no|normal|without|and|with|but|or|upper)\b)\w+ ){0,5}",
    # Between a subject and "normal" or "clear".
    "<state>": r"(?:(?:is|are|was|were|appears?|remains?|seems?|has|been|of|to be|again|within|"
    r"both|in|sizes?|contours?|configuration|and|otherwise|\w+ly|XXXX) ){0,6}",
    "<normal>": r"(?:normal|unremarkable|not (?:\w+ )?(?:enlarged|widened))"
    r"(?! (?:to|or) (?:\w+ )?(?:enlarged|large))",
    "<silhouette>": r"(?:cardio pericardial|cardiac|heart) (?:silhouette|shadow|contours?)",
    "<mediastinum>": r"(?:cardio ?mediastin(?:al (?:silhouette|contours?|structures)|um))",
}

PHRASES: Mapping[Finding, tuple[str, ...]] = {
    Finding.ATELECTASIS: (
        r"atelecta\w+",
        r"(?:lung|lob(?:e|ar)) collapse",
        r"collapsed? (?:of )?(?:the )?(?:\w+ ){0,3}(?:lungs?|lobes?)",
    ),
    Finding.CARDIOMEGALY: (
        r"cardiomegal\w+",
        r"(?:cardiac|heart) enlargement",
        r"(?:enlarged|large|borderline) (?:heart|cardiac)(?: size)?(?! (?:silhouette|shadow|cont))",
        r"enlargement of (?:the )?(?:heart|cardiac size)(?! (?:silhouette|shadow|cont))",
        r"(?:heart|cardiac size) (?!silhouette|shadow|cont)<gap>(?:enlarged|large|borderline)",
    ),
    Finding.ENLARGED_CARDIAC_SILHOUETTE: (
        r"(?:enlarged|large|prominent|borderline) <silhouette>",
        r"(?:enlargement|prominence) of (?:the )?<silhouette>",
        r"<silhouette> <gap>(?:enlarged|large|prominent|borderline)",
    ),
    Finding.ENLARGED_CARDIOMEDIASTINUM: (
        r"mediastinal (?:widening|enlargement)",
        r"(?:widen(?:ed|ing)|enlarge(?:d|ment)|prominen(?:t|ce)) (?:of )?(?:the )?(?:upper )?"
        r"(?:superior )?(?:mediastin(?:um|al contours?)|<mediastinum>)",
        r"(?:mediastin(?:um|al contours?)|<mediastinum>) <gap>(?:widened|enlarged|prominent|wide)",
    ),
    Finding.CONSOLIDATION: (r"consolidat(?:ions?|ive|ed|ing)",),
    Finding.INFILTRATE: (r"infiltrat(?:es?|ions?|ive)",),
    Finding.OPACITY: (
        r"opaci(?:ty|ties|fications?|fied)",
        r"air ?space (?:disease|process|change)s?",
        r"(?:lung|pulmonary|basilar|retrocardiac|lobe|patchy|hazy|streaky|linear) densit(?:y|ies)",
        r"ground glass",
        r"haz(?:iness|y)",
    ),
    Finding.NODULAR_OPACITY: (
        r"(?:\w+ ?)?nodular (?:\w+ ){0,2}(?:opacit(?:y|ies)|densit(?:y|ies)|patterns?|changes?)",
        r"(?:\w+ ?)?nodular(?:ity)?",
    ),
    Finding.NODULE: (r"(?:micro)?nodules?",),
    Finding.MASS: (r"mass(?:es)?(?! (?:effect|like))",),
    Finding.GRANULOMA: (r"granulomas?", r"granulomat(?:a|ous disease)"),
    Finding.PNEUMONIA: (r"(?:broncho ?)?pneumon(?:ias?|itis|ic)",),
    Finding.EDEMA: (r"!(?:soft tissue|subcutaneous) o?edema", r"o?edema(?:tous)?"),
    Finding.VASCULAR_CONGESTION: (
        r"(?:vascular|venous|pulmonary) congestion",
        r"congestion",
    ),
    Finding.EMPHYSEMA: (
        r"!(?:subcutaneous|mediastinal|soft tissue) emphysema",
        r"emphysema(?:tous)?",
    ),
    Finding.FIBROSIS: (r"!cystic fibrosis", r"fibro(?:sis|tic)"),
    Finding.SCAR: (r"scar(?:s|ring)?", r"cicatri\w+"),
    Finding.AIRWAY_THICKENING: (
        r"(?:bronchial|peribronchial|airways?|interstitial)(?: wall)? (?:thickening|cuffing)",
    ),
    Finding.PLEURAL_EFFUSION: (
        r"!(?:pericardial|joint|knee) effusions?",
        r"effusions?",
        r"pleural fluid",
        r"hydro ?pneumothora(?:x|ces)",
        r"ha?emothorax",
    ),
    Finding.PNEUMOTHORAX: (
        r"(?:hydro ?)?pneumothora(?:x|ces|xes)",
        r"pleural air",
    ),
    Finding.PLEURAL_THICKENING: (
        r"(?:pleural|pleuro ?parenchymal|fissur(?:al|e)|apical) (?:\w+ ){0,2}thickening",
        r"thickening of the (?:\w+ ){0,2}(?:pleura|fissures?)",
        r"(?:bi ?)?apical cap(?:s|ping)?",
    ),
    Finding.PLEURAL_SCAR: (r"(?:pleural|pleuro ?parenchymal) (?:\w+ ){0,2}scar(?:s|ring)?",),
    Finding.PLEURAL_PLAQUE: (r"pleural (?:based )?(?:plaques?|calcifications?)",),
    Finding.HERNIA: (r"(?:hiatal|hiatus|diaphragmatic|bochdalek|morgagni) hernias?", r"hernias?"),
    Finding.FRACTURE: (r"fractur(?:es?|ed)",),
    Finding.SUPPORT_DEVICE: (
        r"(?:cardiac )?pace ?makers?",
        r"(?:picc|central venous|central|subclavian|jugular|ij|arterial|dialysis|port) "
        r"(?:\w+ )?(?:line|catheter)s?",
        r"catheters?",
        r"picc",
        r"port ?a ?cath|mediport|port",
        r"(?:endotracheal|et|tracheostomy|nasogastric|ng|enteric|orogastric|feeding|chest|"
        r"thoracostomy|dobhoff) (?:\w+ )?tubes?",
        r"tracheostomy",
        r"(?:aicd|icd|defibrillator)s?",
        r"(?:pacer|pacing|pacemaker) (?:lead|wire)s?",
        r"(?:sternotomy|sternal) wires?",
        r"(?:prosthetic|mechanical|artificial) (?:\w+ )?valves?",
        r"stents?",
        r"pigtail",
    ),
}

#: Words for what is as it should be, and the findings that they deny.
NORMALS: tuple[tuple[tuple[Finding, ...], tuple[str, ...]], ...] = (
    (
        (Finding.CARDIOMEGALY,),
        (
            r"(?:heart|cardiac)(?: size| silhouette| shadow| contours?)? <state><normal>",
            r"(?:normal|unremarkable) (?:sized? )?heart",
            r"(?:normal|unremarkable) cardiac (?:size|silhouette|shadow|contours?)",
            r"heart and mediastin(?:um|al contours?) <state><normal>",
        ),
    ),
    (
        (Finding.CARDIOMEGALY, Finding.ENLARGED_CARDIOMEDIASTINUM),
        (r"<mediastinum> <state><normal>", r"(?:normal|unremarkable) <mediastinum>"),
    ),
    (
        (Finding.ENLARGED_CARDIOMEDIASTINUM,),
        (
            r"mediastin(?:um|al (?:silhouette|contours?)) <state><normal>",
            r"heart and mediastin(?:um|al contours?) <state><normal>",
            r"(?:normal|unremarkable) mediastin(?:um|al (?:silhouette|contours?))",
        ),
    ),
    ((Finding.OPACITY,), (r"lungs <state>clear", r"clear lungs", r"both lungs clear")),
)

#: Neither here nor there: the words name a normal heart and doubt it.
BORDERS: tuple[str, ...] = (
    r"(?:heart|cardiac)(?: size| silhouette| shadow)? <state>(?:the )?(?:at )?(?:the )?"
    r"upper (?:limits?|range) (?:of )?normal",
    r"(?:heart|cardiac)(?: size| silhouette| shadow)? <state>normal (?:to|or) (?:\w+ )?"
    r"(?:enlarged|large)",
)


class Found(NamedTuple):
    """A phrase of the vocabulary in a text."""

    finding: Finding
    start: int
    end: int


def named(sentence: str) -> Iterator[Found]:
    """Find the phrases that name a finding."""
    for finding, pattern in _PHRASES.items():
        for match in pattern.finditer(sentence):
            if match.lastgroup != "other":
                yield Found(finding, *match.span())


def normals(sentence: str) -> Iterator[Found]:
    """Find the phrases that say that something is normal, once per finding that they deny."""
    for denied, pattern in _NORMALS:
        for match in pattern.finditer(sentence):
            yield from (Found(finding, *match.span()) for finding in denied)


def borders(sentence: str) -> Iterator[Found]:
    """Find the phrases that put the heart between normal and enlarged."""
    for match in _BORDERS.finditer(sentence):
        yield Found(Finding.CARDIOMEGALY, *match.span())


def compiled(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Make one pattern of phrases; where two begin at one place, the first written wins."""
    joined = "|".join(f"(?P<other>{p[1:]})" if p.startswith("!") else p for p in phrases)
    for short, meaning in _SHORT.items():
        joined = joined.replace(short, meaning)
    spaced = joined.replace(" ?", r"[\s:-]*").replace(" ", r"[\s:-]+")
    return re.compile(rf"(?<!\w(?=\w))(?:{spaced})(?!(?<=\w)\w)", re.IGNORECASE)


_PHRASES = {finding: compiled(phrases) for finding, phrases in PHRASES.items()}
_NORMALS = [(denied, compiled(phrases)) for denied, phrases in NORMALS]
_BORDERS = compiled(BORDERS)
