"""What an SR document says of itself: its language, who observed, which procedure it reports."""

from __future__ import annotations

from highdicom.sr import CodeContentItem, ContentItem, TextContentItem, UIDRefContentItem
from pydicom import Dataset
from pydicom.sr.coding import Code

from dicom_node.results import source, uids
from dicom_node.results.record import Node

PROCEDURE_REPORTED = Code("121058", "DCM", "Procedure reported")
# PS3.16 TID 1204, CID 5000.
LANGUAGE = Code("121049", "DCM", "Language of Content Item and Descendants")
ENGLISH = Code("en-US", "RFC5646", "English (United States)")
# PS3.16 TID 1002 and TID 1004.
OBSERVER_TYPE = Code("121005", "DCM", "Observer Type")
DEVICE = Code("121007", "DCM", "Device")
DEVICE_UID = Code("121012", "DCM", "Device Observer UID")
DEVICE_NAME = Code("121013", "DCM", "Device Observer Name")
DEVICE_MANUFACTURER = Code("121014", "DCM", "Device Observer Manufacturer")
DEVICE_MODEL = Code("121015", "DCM", "Device Observer Model Name")
DEVICE_SERIAL = Code("121016", "DCM", "Device Observer Serial Number")

_RETIRED_SCHEMES = ("SRT", "SNM3", "99SDM")  # PS3.16 8.1: SNOMED-RT identifiers


def language() -> ContentItem:
    """Say that the document is in English (PS3.16 TID 1204)."""
    return CodeContentItem(LANGUAGE, ENGLISH, "HAS CONCEPT MOD")


def observer(node: Node) -> list[ContentItem]:
    """Say that a device observed, and no person did (PS3.16 TID 1001 to 1004)."""
    names = (
        (DEVICE_NAME, node.ae_title),
        (DEVICE_MANUFACTURER, node.manufacturer),
        (DEVICE_MODEL, node.model_name),
        (DEVICE_SERIAL, node.installation_id),
    )
    uid = uids.node_uid(node.installation_id)
    return [
        CodeContentItem(OBSERVER_TYPE, DEVICE, "HAS OBS CONTEXT"),
        UIDRefContentItem(DEVICE_UID, uid, "HAS OBS CONTEXT"),
        *(TextContentItem(name, value, "HAS OBS CONTEXT") for name, value in names),
    ]


def procedure_reported(code: Code) -> ContentItem:
    """Name the procedure that the document reports."""
    return CodeContentItem(PROCEDURE_REPORTED, code, "HAS CONCEPT MOD")


def source_procedure(header: Dataset) -> Code | None:
    """Return the source's first procedure code, if it is a complete and current one."""
    for item in source.items(header, "ProcedureCodeSequence")[:1]:
        value = source.plain(item, "CodeValue")
        scheme = source.plain(item, "CodingSchemeDesignator")
        version = source.plain(item, "CodingSchemeVersion") or None
        meaning = str(item.get("CodeMeaning") or "")
        # PS3.3 8.8: SH and LO; a longer value would be a Long Code Value.
        complete = 0 < len(value) <= 16 and 0 < len(scheme) <= 16 and 0 < len(meaning) <= 64
        writable = source.encodes(source.character_set(header), meaning)
        if complete and writable and scheme not in _RETIRED_SCHEMES:
            return Code(value, scheme, meaning, version)
    return None
