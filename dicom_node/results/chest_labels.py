"""The chest labels as codes: what each is called in an SR, and where in the body it is.

SNOMED CT where a pre-coordinated code was verified, otherwise our own scheme (PS3.3 8.2): a wrong
public code would be worse than a private one. Sites are PS3.16 CID 6100's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pydicom.sr.coding import Code

from dicom_node.errors import ConfigurationError
from dicom_node.labeler import Label
from dicom_node.results.header import OWN_SCHEME

#: Never encoded: that no label was found is no clinical statement of a normal chest.
NO_FINDING = "No Finding"

CHEST = Code("816094009", "SCT", "Chest")
LUNG = Code("39607008", "SCT", "Lung")
HEART = Code("80891009", "SCT", "Heart")
PLEURA = Code("3120008", "SCT", "Pleural structure")
MEDIASTINUM = Code("72410000", "SCT", "Mediastinum")


class ChestLabel(NamedTuple):
    """How a label is written."""

    code: Code
    site: Code | None = None  #: none where the label is of no one place


_CHEST_LABELS: Mapping[str, ChestLabel] = {
    Label.ATELECTASIS: ChestLabel(Code("46621007", "SCT", "Atelectasis"), LUNG),
    Label.CARDIOMEGALY: ChestLabel(Code("8186001", "SCT", "Cardiomegaly"), HEART),
    Label.CONSOLIDATION: ChestLabel(Code("95436008", "SCT", "Lung consolidation"), LUNG),
    Label.EDEMA: ChestLabel(Code("19242006", "SCT", "Pulmonary edema"), LUNG),
    Label.PLEURAL_EFFUSION: ChestLabel(Code("60046008", "SCT", "Pleural effusion"), PLEURA),
    Label.PNEUMOTHORAX: ChestLabel(Code("36118008", "SCT", "Pneumothorax"), PLEURA),
    Label.PNEUMONIA: ChestLabel(Code("233604007", "SCT", "Pneumonia"), LUNG),
    Label.FRACTURE: ChestLabel(Code("125605004", "SCT", "Fracture of bone")),
    Label.LUNG_OPACITY: ChestLabel(Code("112001", "DCM", "Opacity"), LUNG),
    Label.LUNG_LESION: ChestLabel(Code("LL", OWN_SCHEME, "Lung lesion"), LUNG),
    Label.ENLARGED_CARDIOMEDIASTINUM: ChestLabel(
        Code("ECM", OWN_SCHEME, "Enlarged cardiomediastinum"), MEDIASTINUM
    ),
    Label.PLEURAL_OTHER: ChestLabel(Code("PO", OWN_SCHEME, "Other pleural abnormality"), PLEURA),
    Label.SUPPORT_DEVICES: ChestLabel(Code("SD", OWN_SCHEME, "Support device")),
}


def chest_label(name: str) -> ChestLabel:
    """Return code and site of a label by CheXpert's name for it.

    Raises
    ------
    ConfigurationError
        A model gave a label that has no code; left out, it would look as if nobody had seen it.
    """
    known = _CHEST_LABELS.get(name)
    if known is None:
        raise ConfigurationError(
            f"results.coded_sr: the label {name} has no code (known: {', '.join(_CHEST_LABELS)})"
        )
    return known
