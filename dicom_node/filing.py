"""What filing needs of a received data set: whose it is, and that it is what the command said.

Whoever receives, our SCP or our SCU of C-GET, files by :func:`file`. Values are taken raw and
compared by keys: nothing of a patient is decoded further or logged.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO, cast

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from dicom_node.errors import CannotUnderstand, WrongSopClass
from dicom_node.malformed import MALFORMED
from dicom_node.storage import Identity, Incoming, StoredInstance, checked_uid, identity_key

#: Bytes that are read to find the UIDs, those of values that are skipped left out, ...
MAXIMUM_HEADER = 1024 * 1024
#: ... and bytes that are inflated for it: bounds what a hostile data set costs.
MAXIMUM_INFLATED = 16 * 1024 * 1024

_STUDY_INSTANCE_UID = Tag(0x0020, 0x000D)
_SERIES_INSTANCE_UID = Tag(0x0020, 0x000E)
_SOP_CLASS_UID = Tag(0x0008, 0x0016)
_SOP_INSTANCE_UID = Tag(0x0008, 0x0018)
_STUDY_DATE = Tag(0x0008, 0x0020)
_ACCESSION_NUMBER = Tag(0x0008, 0x0050)
_ISSUER_OF_ACCESSION_NUMBER = Tag(0x0008, 0x0051)
_LOCAL_NAMESPACE_ENTITY_ID = Tag(0x0040, 0x0031)
_UNIVERSAL_ENTITY_ID = Tag(0x0040, 0x0032)
_PATIENT_ID = Tag(0x0010, 0x0020)
_ISSUER_OF_PATIENT_ID = Tag(0x0010, 0x0021)
_NEEDED = [
    _SOP_CLASS_UID,
    _SOP_INSTANCE_UID,
    _STUDY_DATE,
    _ACCESSION_NUMBER,
    _ISSUER_OF_ACCESSION_NUMBER,
    _PATIENT_ID,
    _ISSUER_OF_PATIENT_ID,
    _STUDY_INSTANCE_UID,
    _SERIES_INSTANCE_UID,
]
_WANTED = frozenset(int(tag) for tag in _NEEDED)
_TAG = {True: struct.Struct("<HH"), False: struct.Struct(">HH")}  # little endian?
_LONG = {True: struct.Struct("<L"), False: struct.Struct(">L")}
_SHORT = {True: struct.Struct("<H"), False: struct.Struct(">H")}
_UNDEFINED = 0xFFFFFFFF
# PS3.5 7.1.2, tables 7.1-1 and 7.1-2: how long the length is.
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What filing needs of a data set; "" where it says nothing."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    patient_key: str
    identity: Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What the C-STORE command said of a data set, and who sent it."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax: UID
    calling_ae_title: str
    address: str


def file(incoming: Incoming, origin: Origin) -> StoredInstance:
    """A whole data set was written: what it is and where its file will be; PS3.4 B.2.3.

    ``incoming.settle`` puts the file there.

    Raises
    ------
    NodeError
        It can't be filed.
    """
    header = scan(incoming.head, origin.transfer_syntax)
    if header is None:
        with incoming.data_set() as data_set:
            header = read_header(data_set, origin.transfer_syntax)
    check(header, origin.sop_class_uid, origin.sop_instance_uid)
    kept = incoming.place(header.study_instance_uid)
    return StoredInstance(
        study_instance_uid=header.study_instance_uid,
        series_instance_uid=header.series_instance_uid,
        sop_instance_uid=header.sop_instance_uid,
        sop_class_uid=header.sop_class_uid,
        transfer_syntax_uid=origin.transfer_syntax,
        path=kept.path,
        sha256=kept.sha256,
        size=kept.size,
        calling_ae_title=origin.calling_ae_title,
        address=origin.address,
        patient_key=header.patient_key,
        identity=header.identity,
    )


def read_header(data_set: BinaryIO, transfer_syntax: UID) -> Header:
    """Read what filing needs from an encoded data set, up to Series Instance UID.

    Values are taken raw: nothing else is decoded, converted or logged.

    Raises
    ------
    CannotUnderstand
        The bytes are no data set of this transfer syntax.
    """
    try:
        stream = _Bounded(_inflated(data_set) if transfer_syntax.is_deflated else data_set)
        found = read_dataset(
            cast(BinaryIO, stream),
            transfer_syntax.is_implicit_VR,
            transfer_syntax.is_little_endian,
            stop_when=lambda tag, vr, length: tag > _SERIES_INSTANCE_UID,
            specific_tags=[*_NEEDED],
        )
        values = {int(tag): _raw(found, tag) for tag in _NEEDED}
        return _header(values, _accession_issuer_key(found))
    except MALFORMED as error:
        # "from None": pydicom puts values of elements into its messages
        why = f"data set can't be parsed: {type(error).__name__}"
        raise CannotUnderstand(why) from None


def scan(head: bytes, transfer_syntax: UID) -> Header | None:
    """:func:`read_header` from the first bytes, many times as fast.

    ``None`` wherever that is not plain: an element is of undefined length or not of a known form,
    or the head is too short. The tests hold the two to the same answer.
    """
    if transfer_syntax.is_deflated:
        return None
    little = transfer_syntax.is_little_endian
    values = _scan(head, _elements(head, transfer_syntax.is_implicit_VR, little))
    return None if values is None else _header(values, "")


def _scan(head: bytes, elements: Iterator[tuple[int, int, int]]) -> dict[int, bytes] | None:
    values: dict[int, bytes] = {}
    last = 0
    for tag, begin, end in elements:
        if tag > _SERIES_INSTANCE_UID:
            return values
        if tag <= last or end > len(head) or tag == _ISSUER_OF_ACCESSION_NUMBER:
            return None
        if tag in _WANTED:
            values[tag] = head[begin:end].strip(b" \0")
        last = tag
    return None


def _elements(head: bytes, implicit: bool, little: bool) -> Iterator[tuple[int, int, int]]:
    """Tag, begin and end of value of each element, as long as their form is plain."""
    tags, longs, shorts = _TAG[little], _LONG[little], _SHORT[little]
    position = 0
    while position + 12 <= len(head):
        group, element = tags.unpack_from(head, position)
        vr = head[position + 4 : position + 6]
        if implicit:
            length, begin = longs.unpack_from(head, position + 4)[0], position + 8
        elif vr in _SHORT_VRS:
            length, begin = shorts.unpack_from(head, position + 6)[0], position + 8
        elif vr in _LONG_VRS:
            length, begin = longs.unpack_from(head, position + 8)[0], position + 12
        else:
            return
        if length == _UNDEFINED:
            return
        position = begin + length
        yield group << 16 | element, begin, position


def _header(values: Mapping[int, bytes], accession_issuer_key: str) -> Header:
    def text(tag: BaseTag) -> str:
        return values.get(tag, b"").decode("ascii", "replace")

    day = text(_STUDY_DATE).replace(".", "").replace("-", "")  # ACR-NEMA 2.0: YYYY.MM.DD
    return Header(
        study_instance_uid=text(_STUDY_INSTANCE_UID),
        series_instance_uid=text(_SERIES_INSTANCE_UID),
        sop_instance_uid=text(_SOP_INSTANCE_UID),
        sop_class_uid=text(_SOP_CLASS_UID),
        patient_key=_patient_key(values),
        identity=Identity(
            patient_id_key=_key(values.get(_PATIENT_ID, b"")),
            patient_issuer_key=_key(values.get(_ISSUER_OF_PATIENT_ID, b"")),
            accession_key=_key(values.get(_ACCESSION_NUMBER, b"")),
            accession_issuer_key=accession_issuer_key,
            study_date=day if len(day) == 8 and day.isdigit() else "",
        ),
    )


def check(header: Header, affected_sop_class_uid: str, affected_sop_instance_uid: str) -> None:
    """PS3.4 B.2.3: the data set is what the command says, and can be filed."""
    said = (affected_sop_class_uid, affected_sop_instance_uid)
    if (header.sop_class_uid, header.sop_instance_uid) != said:
        raise WrongSopClass("SOP Class or Instance UID differ between command and data set")
    for keyword, value in (
        ("StudyInstanceUID", header.study_instance_uid),
        ("SeriesInstanceUID", header.series_instance_uid),
    ):
        checked_uid(value, keyword)


class _Bounded:
    """A file of which no more is read than a header may take; what is skipped does not count."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._read = file.read
        self._left = MAXIMUM_HEADER

    def read(self, size: int) -> bytes:
        self._left -= size
        if size < 0 or self._left < 0:
            raise ValueError("longer than a header may be")
        return self._read(size)


def _inflated(data_set: BinaryIO) -> BytesIO:
    """PS3.5 A.5: RFC 1951 without zlib's header; only as much as a header may take."""
    deflated = data_set.read(MAXIMUM_INFLATED)
    return BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(deflated, MAXIMUM_INFLATED))


def _raw(found: Dataset, tag: BaseTag) -> bytes:
    if tag not in found:
        return b""
    value = found.get_item(tag).value
    return value.strip(b" \0") if isinstance(value, bytes) else b""


def _patient_key(values: Mapping[int, bytes]) -> str:
    patient_id = values.get(_PATIENT_ID, b"")
    if not patient_id:
        return ""
    issuer = values.get(_ISSUER_OF_PATIENT_ID, b"")
    return hashlib.sha256(issuer + b"|" + patient_id).hexdigest()


def _accession_issuer_key(found: Dataset) -> str:
    """Of PS3.3 10.17, HL7v2 Hierarchic Designator; empty too where it can't be parsed."""
    try:
        (item,) = found[_ISSUER_OF_ACCESSION_NUMBER].value
        local = _key(_raw(item, _LOCAL_NAMESPACE_ENTITY_ID))
        return local or _key(_raw(item, _UNIVERSAL_ENTITY_ID))
    except MALFORMED:  # an image is not refused for it
        return ""


def _key(raw: bytes) -> str:
    """The key of an identifier.

    Of other character sets than these two none is decoded here: a report that names such an
    identifier finds no study by it, which is safe.
    """
    try:
        return identity_key(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return identity_key(raw.decode("latin-1"))
