"""The labeler against the gold labels of real reports: gold.py says what is counted."""

from __future__ import annotations

import pytest

from dicom_node.labeler import Label, Presence, labels
from tests.dicom_node.labeler import gold

pytestmark = pytest.mark.skipif(not gold.REPORTS.is_dir(), reason=gold.MISSING)

NEEDED = 0.90


@pytest.mark.parametrize("half", gold.HALVES)
def test_present_findings_agree_with_the_gold(half: str) -> None:
    assert gold.micro(gold.positive(gold.reports(half))).f1 >= NEEDED


@pytest.mark.parametrize("half", gold.HALVES)
def test_absent_findings_agree_with_the_gold(half: str) -> None:
    assert gold.micro(gold.negated(gold.reports(half))).f1 >= NEEDED


def test_labels_agree_with_the_chexpert_labelers_sample() -> None:
    values = {"1.0": Presence.PRESENT, "0.0": Presence.ABSENT, "-1.0": Presence.UNDETERMINED}
    for text, row in gold.sample():
        wanted = {label: values[row[label]] for label in Label if row[label]}
        # Clear lungs say nothing of opacities there, and deny them here.
        said = {Label.LUNG_OPACITY: Presence.ABSENT, **labels(text)}
        assert said == {Label.LUNG_OPACITY: Presence.ABSENT, **wanted}
