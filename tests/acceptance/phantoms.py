"""Phantom studies as files, with what was drawn into them."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom.dataset import Dataset, FileDataset
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from inference.demo import dicom, phantom
from inference.demo.dicom import Photometric, ViewPosition
from inference.demo.evaluate import TEST_SEED

#: Transfer syntaxes a modality may send in.
SYNTAXES: tuple[UID, ...] = (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless)
BITS = range(10, 17)
PHOTOMETRICS: tuple[Photometric, ...] = ("MONOCHROME1", "MONOCHROME2")

_PREAMBLE = 128 + len("DICM")  # PS3.10 7.1
_GROUP_LENGTH = 12  # bytes of (0002,0000) itself, explicit VR


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One instance as a modality has it on disk."""

    path: Path
    study_instance_uid: str
    sop_instance_uid: str
    labels: frozenset[str]

    @property
    def data_set(self) -> bytes:
        """What travels: everything after the file meta information."""
        return data_set_of(self.path)


def data_set_of(path: Path) -> bytes:
    """The data set of a Part 10 file, as it is encoded."""
    length = read_file_meta_info(path).FileMetaInformationGroupLength
    return path.read_bytes()[_PREAMBLE + _GROUP_LENGTH + length :]


def drawn(index: int) -> frozenset[str]:
    """The findings of the ``index``-th test phantom; none was trained on."""
    return phantom.scene(TEST_SEED + index).labels


def make(
    folder: Path,
    index: int,
    labels: frozenset[str],
    *,
    claim_monochrome2: bool = False,
    views: tuple[ViewPosition, ...] = ("PA",),
) -> list[Sent]:
    """Write one phantom study; depth, polarity and transfer syntax go round with ``index``.

    ``claim_monochrome2`` stores MONOCHROME1 pixels and says MONOCHROME2: then the node does not
    invert what it should. ``views`` has one instance each; all show the same frontal.
    """
    radiograph = phantom.render(phantom.scene(TEST_SEED + index, labels))
    made = []
    for view in views:
        # 2, 7 and 3 have no common factor: 42 studies are 42 combinations.
        instance = dicom.to_dx(
            radiograph,
            photometric="MONOCHROME1" if claim_monochrome2 else PHOTOMETRICS[index % 2],
            bits_stored=BITS[index % len(BITS)],
            transfer_syntax=SYNTAXES[index % len(SYNTAXES)],
            study_instance_uid=f"2.25.{TEST_SEED + index}.1" if claim_monochrome2 else None,
            view_position=view,
        )
        if claim_monochrome2:
            instance.PhotometricInterpretation = "MONOCHROME2"
            instance.PresentationLUTShape = "IDENTITY"
        made.append(_write(folder, instance, labels))
    return made


def _write(folder: Path, instance: FileDataset, labels: frozenset[str]) -> Sent:
    path = folder / f"{instance.SOPInstanceUID}.dcm"
    instance.save_as(path, enforce_file_format=True)
    return Sent(
        path=path,
        study_instance_uid=str(instance.StudyInstanceUID),
        sop_instance_uid=str(instance.SOPInstanceUID),
        labels=labels,
    )


def parsed(data_set: bytes) -> Dataset:
    """A draft as it came over the network (the node writes Explicit VR Little Endian)."""
    return read_dataset(BytesIO(data_set), is_implicit_VR=False, is_little_endian=True)


def findings(draft: Dataset) -> str:
    """What the items named (121071, DCM, "Finding") say: PS3.16 TID 2002."""
    return " ".join(
        str(item.TextValue)
        for section in draft.ContentSequence
        for item in section.get("ContentSequence", ())
        if item.ConceptNameCodeSequence[0].CodeValue == "121071"
    )
