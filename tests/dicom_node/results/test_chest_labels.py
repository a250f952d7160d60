from __future__ import annotations

import pytest
from pydicom.sr.codedict import Collection

from dicom_node.errors import ConfigurationError
from dicom_node.labeler import Label
from dicom_node.results.chest_labels import NO_FINDING, chest_label
from tests.dicom_node.results.acceptance import meanings
from tests.dicom_node.results.acceptance_coded import LABELS

CID_CHEST_SITES = "CID6100"


@pytest.mark.parametrize("label", Label)
def test_every_label_has_the_code_and_the_site_of_the_specification(label: Label) -> None:
    known = chest_label(label)
    assert (tuple(known.code)[:3], known.site and tuple(known.site)[:3]) == LABELS[label]


def test_no_two_labels_share_a_code() -> None:
    assert len({chest_label(label).code for label in Label}) == len(Label)


@pytest.mark.parametrize(
    "label", [Label.EDEMA, Label.PLEURAL_EFFUSION, Label.PNEUMOTHORAX, Label.LUNG_OPACITY]
)
def test_a_code_that_the_standard_lists_means_what_it_says_there(label: Label) -> None:
    code = chest_label(label).code
    assert code.meaning in meanings(code.scheme_designator)[code.value]


@pytest.mark.parametrize("label", [Label.PLEURAL_EFFUSION, Label.ENLARGED_CARDIOMEDIASTINUM])
def test_a_site_is_one_of_the_standard_s_chest_sites(label: Label) -> None:
    site = chest_label(label).site
    assert site in Collection(CID_CHEST_SITES).concepts.values()


@pytest.mark.parametrize("label", Label)
def test_a_code_fits_its_sequence_and_is_plain_ascii(label: Label) -> None:
    value, scheme, meaning = chest_label(label).code[:3]
    assert 0 < len(value) <= 16  # SH (PS3.3 8.8)
    assert 0 < len(scheme) <= 16
    assert 0 < len(meaning) <= 64  # LO
    assert (value + scheme + meaning).isascii()


@pytest.mark.parametrize("label", ["Lung Cancer", "", NO_FINDING])
def test_a_label_without_a_code_is_refused_by_name(label: str) -> None:
    with pytest.raises(ConfigurationError, match=f"the label {label} has no code"):
        chest_label(label)
