"""Sends files that no decent toolkit would send: the bytes as they are, under the UIDs they claim.

Nothing is decoded or mended; where a file says nothing, a plausible claim is made for it.
"""

from __future__ import annotations

import gzip
import hashlib
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom.filereader import read_dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from tests.dicom_node.network import DIGITAL_X_RAY, associate, send_raw

_PREAMBLE, _PREFIX = 128, b"DICM"  # PS3.10 7.1
_META_GROUP = b"\x02\x00"
_LONG_VRS = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UR", b"UT", b"UN")
_SOP_CLASS_UID, _SOP_INSTANCE_UID = 0x00080016, 0x00080018
_STUDY_INSTANCE_UID = 0x0020000D
_FALLBACK = (DIGITAL_X_RAY, ImplicitVRLittleEndian)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a sender would say of a file."""

    sop_class_uid: UID
    sop_instance_uid: str
    study_instance_uid: str  #: "" where it names none
    transfer_syntax: UID
    data_set: bytes


def claim_of(path: Path) -> Claim:
    """Take a file apart as far as it goes."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    meta, data_set = _split(content)
    syntax = UID(meta.get(0x0010) or _guess(data_set))
    inside = _identity(data_set, syntax)
    invented = f"2.25.{int(hashlib.sha256(content).hexdigest()[:30], 16)}"
    return Claim(
        # A sender that reads its data set, as modalities do, overrides a file meta that lies.
        sop_class_uid=UID(inside.get(_SOP_CLASS_UID) or meta.get(0x0002) or DIGITAL_X_RAY),
        sop_instance_uid=inside.get(_SOP_INSTANCE_UID) or meta.get(0x0003) or invented,
        study_instance_uid=inside.get(_STUDY_INSTANCE_UID, ""),
        transfer_syntax=syntax,
        data_set=data_set,
    )


def send(path: Path, port: int) -> int | None:
    """C-STORE a file's bytes; the status, ``None`` where the association was aborted.

    Where the node accepts no context of the file's own, another one is claimed.
    """
    claim = claim_of(path)
    association = associate(port, (claim.sop_class_uid, claim.transfer_syntax))
    if not association.is_established:
        association = associate(port, _FALLBACK)
    assert association.is_established, f"{path.name}: no association"
    try:
        return send_raw(
            association,
            claim.data_set,
            sop_class_uid=claim.sop_class_uid,
            sop_instance_uid=claim.sop_instance_uid,
        )
    finally:
        if association.is_established:
            association.release()


def _split(content: bytes) -> tuple[dict[int, str], bytes]:
    """File meta elements by number, and the rest; explicit VR little endian (PS3.10 7.1)."""
    at = _PREAMBLE + len(_PREFIX) if content[_PREAMBLE:].startswith(_PREFIX) else 0
    meta = {}
    while content[at : at + 2] == _META_GROUP:
        number = int.from_bytes(content[at + 2 : at + 4], "little")
        long = content[at + 4 : at + 6] in _LONG_VRS  # PS3.5 7.1.2
        first, size = (at + 12, 4) if long else (at + 8, 2)
        length = int.from_bytes(content[first - size : first], "little")
        meta[number] = _text(content[first : first + length])
        at = first + length
    return meta, content[at:]


def _guess(data_set: bytes) -> UID:
    if not data_set[4:6].isalpha():
        return ImplicitVRLittleEndian
    return ExplicitVRBigEndian if data_set[:1] == b"\0" else ExplicitVRLittleEndian


def _identity(data_set: bytes, syntax: UID) -> dict[int, str]:
    """The UIDs that the data set names, raw, if it can be read so far."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom finds much to say of these
            found = read_dataset(
                BytesIO(_inflated(data_set) if syntax.is_deflated else data_set),
                syntax.is_implicit_VR,
                syntax.is_little_endian,
                stop_when=lambda tag, vr, length: tag > _STUDY_INSTANCE_UID,
            )
    except (ValueError, LookupError, EOFError, NotImplementedError, OSError, zlib.error):
        return {}
    tags = (_SOP_CLASS_UID, _SOP_INSTANCE_UID, _STUDY_INSTANCE_UID)
    return {tag: _text(found.get_item(tag).value) for tag in tags if tag in found}


def _text(value: bytes | None) -> str:
    return (value or b"").decode("latin-1").rstrip("\0 ")


def _inflated(data_set: bytes) -> bytes:
    return zlib.decompress(data_set, wbits=-zlib.MAX_WBITS)  # PS3.5 A.5
