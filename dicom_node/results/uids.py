"""UIDs derived from what they name (PS3.5 B.2: 2.25. and a UUID), so that a re-run repeats them."""

from __future__ import annotations

import hashlib
import json
from uuid import UUID, uuid5

from pydicom.uid import UID

from dicom_node.results.record import DraftRecord
from inference.findings import Algorithm

_NAMESPACE = UUID("6f1c6d1e-1f0b-4a67-9a35-0c5a8e1f7b42")  # random, ours; never to be changed


def _derive(kind: str, *name: object) -> UID:
    # JSON keeps ("a", "b|c") and ("a|b", "c") apart, which a plain join would not.
    return UID(f"2.25.{uuid5(_NAMESPACE, json.dumps([kind, *name])).int}")


def node_uid(installation_id: str) -> UID:
    """Return the Device UID of this installation (PS3.16 TID 1004, Device Observer UID)."""
    return _derive("node", installation_id)


def device_uid(algorithm: Algorithm) -> UID:
    """Return the Device UID of a model: another one for other weights, quantisation or prompt."""
    parameters = sorted(algorithm.parameters.items())
    return _derive("algorithm", algorithm.name, algorithm.version, algorithm.digest, parameters)


def sop_instance_uid(record: DraftRecord, sop_class_uid: str) -> UID:
    """Return the SOP Instance UID of the document made of ``record`` in that SOP class."""
    return _derive(record.kind, *_name(record, sop_class_uid))


def series_instance_uid(record: DraftRecord, sop_class_uid: str) -> UID:
    """Return the UID of the series that holds this document and no other.

    OHIF shows one document of a series only: the one with the lowest instance number.
    """
    return _derive(f"series of {record.kind}", *_name(record, sop_class_uid))


def tracking_uid(record: DraftRecord, name: str) -> UID:
    """Return the UID of what ``name`` is said about (PS3.16 TID 1501); one for all SOP classes."""
    return _derive(f"tracking of {record.kind}", name, *_name(record, ""))


def _name(record: DraftRecord, sop_class_uid: str) -> tuple[object, ...]:
    # The version is part of it: should the choice of images go back to an earlier one, the new
    # document must not get that one's UID, for its predecessor differs (PS3.5 9).
    content: list[object] = [record.findings, record.impression, record.history, record.version]
    content += [[one.label, one.presence, _number(one.certainty)] for one in record.labels]
    content += [device_uid(record.labeler)] if record.labeler else []
    content += [[record.refusal.code, record.refusal.text]] if record.refusal else []
    return (
        sop_class_uid,
        record.study_instance_uid,
        device_uid(record.algorithm),
        sorted(image.reference.sop_instance_uid for image in record.inputs),
        hashlib.sha256(json.dumps(content).encode()).hexdigest(),
    )


def _number(value: float | None) -> float | None:
    # 91 comes back from the stored record as 91.0, which JSON writes as another text.
    return None if value is None else float(value)
