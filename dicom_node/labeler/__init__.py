"""Finding labels from the text of a chest X-ray report: English, by rule, standard library only.

It knows negation and doubt. Nothing here raises for any text. Figures, and what it can't do:
docs/decisions/labeler.md.
"""

from __future__ import annotations

from dicom_node.labeler.reports import (
    DIGEST,
    NAME,
    VERSION,
    Mention,
    findings,
    labels,
    mentions,
)
from dicom_node.labeler.scope import Presence
from dicom_node.labeler.vocabulary import Finding, Label

__all__ = [
    "DIGEST",
    "NAME",
    "VERSION",
    "Finding",
    "Label",
    "Mention",
    "Presence",
    "findings",
    "labels",
    "mentions",
]
