"""The source image's header as results need it: few attributes, values as they were sent.

It is kept as base64 of an Explicit VR Little Endian data set and not as DICOM JSON (PS3.18 F.2),
because JSON is UTF-8: a Japanese or Korean name, or one whose bytes are not what Specific
Character Set promises, would come back as other bytes, and a patient's identity must not change.
"""

from __future__ import annotations

import base64
import re
from array import array
from collections.abc import Iterable, Iterator
from copy import deepcopy
from io import BytesIO

from pydicom import DataElement, Dataset
from pydicom.charset import (
    STAND_ALONE_ENCODINGS,
    convert_encodings,
    decode_bytes,
    python_encoding,
)
from pydicom.datadict import (
    dictionary_has_tag,
    dictionary_keyword,
    dictionary_VR,
    tag_for_keyword,
)
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import CUSTOMIZABLE_CHARSET_VR, PN_DELIMS, TEXT_VR_DELIMS

from dicom_node.malformed import MALFORMED

UTF_8 = "ISO_IR 192"

#: Type 2 and text: who and what the study is. Always there, never touched.
IDENTITY = ("PatientName", "PatientID", "AccessionNumber", "ReferringPhysicianName", "StudyID")

#: Copied as they are when the source has them: PS3.3 C.7.1.1, C.7.1.3, C.7.2.1, C.7.2.3, C.12.1.
IF_PRESENT = (
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "OtherPatientIDsSequence",
    "StudyDescription",
    "ProcedureCodeSequence",
    "IssuerOfAccessionNumberSequence",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "LongitudinalTemporalInformationModified",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "IssuerOfClinicalTrialProtocolID",
    "OtherClinicalTrialProtocolIDsSequence",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "IssuerOfClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "IssuerOfClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "IssuerOfClinicalTrialSubjectReadingID",
    "ClinicalTrialProtocolEthicsCommitteeName",
    "ClinicalTrialProtocolEthicsCommitteeApprovalNumber",
    "ClinicalTrialTimePointID",
    "IssuerOfClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
    "ClinicalTrialTimePointTypeCodeSequence",
    "LongitudinalTemporalOffsetFromEvent",
    "LongitudinalTemporalEventType",
    "ConsentForClinicalTrialUseSequence",
)

#: The machine that took the image (PS3.3 C.7.5.1).
EQUIPMENT = (
    "Manufacturer",
    "InstitutionName",
    "StationName",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
)

#: How the image is shown: a presentation state that left one out would undo it (PS3.4 N.2).
DISPLAY = (
    "Rows",
    "Columns",
    "PhotometricInterpretation",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "PixelAspectRatio",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "WindowCenterWidthExplanation",
    "VOILUTFunction",
    "VOILUTSequence",
    "ShutterShape",
    "ShutterLeftVerticalEdge",
    "ShutterRightVerticalEdge",
    "ShutterUpperHorizontalEdge",
    "ShutterLowerHorizontalEdge",
    "CenterOfCircularShutter",
    "RadiusOfCircularShutter",
    "VerticesOfThePolygonalShutter",
    "ShutterPresentationValue",
)

#: Overlay Type of each of the sixteen overlays that an image may have (PS3.3 C.9.2).
OVERLAY_TYPES = tuple(Tag(group, 0x0040) for group in range(0x6000, 0x6020, 2))

_READ = (
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientSex",
    "PatientAge",
    "StudyDate",
    "StudyTime",
    "TimezoneOffsetFromUTC",
    "RequestAttributesSequence",
    "CodingSchemeIdentificationSequence",
)

# Dictionary's VR -> what an Implicit VR data set means by it, pixel values being unsigned.
_WORDS = {"US": "US", "US or SS": "US", "US or OW": "OW"}

# Further items are alternatives that nobody chose; a table may be 128 KiB.
_FIRST_ONLY = ("ModalityLUTSequence", "VOILUTSequence")


def source_header(ds: Dataset) -> str:
    """Return what results need of an image's header, as base64 text.

    Parameters
    ----------
    ds
        Header of the first input image, in any transfer syntax (PixelData may be left out).
        A sequence in it that can't be parsed counts as absent.
    """
    terms = _usable_terms(ds)
    kept = _blank(terms)
    if terms:
        kept.SpecificCharacterSet = terms
    keywords = (*IDENTITY, *IF_PRESENT, *EQUIPMENT, *DISPLAY, *_READ)
    _keep(ds, (*(_tag(keyword) for keyword in keywords), *OVERLAY_TYPES), kept)
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    write_dataset(buffer, kept)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def read(header: str) -> Dataset:
    """Return the data set that :func:`source_header` wrote, its values still raw."""
    return read_dataset(BytesIO(base64.b64decode(header)), False, True)


def character_set(header: Dataset) -> list[str]:
    """Return the terms of Specific Character Set; none means the default repertoire."""
    return _terms(plain(header, "SpecificCharacterSet"))


def dataset_like(header: Dataset) -> Dataset:
    """Return an empty data set or item that writes ``header``'s raw elements byte by byte."""
    return _blank(character_set(header))


def fill(into: Dataset, keyword: str, *headers: Dataset, origin: str = "") -> None:
    """Give ``into`` the attribute of the first header that has a value for it, else an empty one.

    ``origin`` is the attribute to read, when it is not ``keyword`` itself.
    """
    tag = _tag(keyword)
    for header in headers:
        if has(header, origin or keyword):
            into[tag] = _renamed(header.get_item(origin or keyword), tag)
            return
    into[tag] = DataElement(tag, dictionary_VR(tag), None)


def has(header: Dataset, keyword: str) -> bool:
    """Has the attribute a value, whatever its bytes mean?"""
    elem = header.get_item(keyword)
    return elem is not None and bool(elem.value)


def plain(header: Dataset, keyword: str) -> str:
    """Return an attribute's value as text if it is ASCII, stripped; otherwise an empty string."""
    if not has(header, keyword):
        return ""
    value = header.get_item(keyword).value
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return text.strip(" \0") if text.isascii() else ""


def items(header: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; none when it is absent."""
    return list(header[keyword].value) if keyword in header else []


def scheme_designators(ds: Dataset) -> Iterator[str]:
    """Yield the coding scheme of every code below ``ds``, without decoding other values."""
    for tag in list(ds.keys()):
        if ds.get_item(tag).VR == "SQ":
            for item in ds[tag].value:
                yield plain(item, "CodingSchemeDesignator")
                yield from scheme_designators(item)


def to_utf8(header: Dataset) -> None:
    """Re-encode the header's text in UTF-8, in place, items included (PS3.5 6.1.2.3)."""
    _recode(header, convert_encodings(character_set(header) or None))
    header.SpecificCharacterSet = UTF_8
    header.set_original_encoding(False, True, convert_encodings(UTF_8))


def encodes(terms: list[str], text: str) -> bool:
    """Can ``text`` be written in this character set?

    Says no to some texts that code extensions could write: UTF-8 is the better answer to a mixture
    of scripts, and to lines, where pydicom does not repeat escape sequences (PS3.5 6.1.2.5.3).
    """
    if text.isascii():
        return True
    if len(terms) > 1 and len(text.splitlines()) > 1:
        return False
    for term in terms or [""]:
        encoding = python_encoding[term]
        if term in ("", "ISO_IR 6", "ISO 2022 IR 6"):
            # pydicom takes ISO 646 for Latin-1 and would write bytes that PS3.5 6.1.2 forbids.
            if _python_can("latin-1", text):
                return False
        # ISO_IR 13 is katakana only, what Python calls shift_jis is more.
        elif encoding != "shift_jis" and _python_can(encoding, text):
            return True
    return False


def _python_can(encoding: str, text: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _tag(keyword: str) -> BaseTag:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return Tag(tag)


def _blank(terms: list[str]) -> Dataset:
    return _decoded_as(convert_encodings(terms or None))


def _decoded_as(encodings: list[str]) -> Dataset:
    ds = Dataset(parent_encoding=encodings)
    # pydicom decodes and encodes again unless the data set was "read" as it will be written.
    ds.set_original_encoding(False, True, encodings)
    return ds


def _terms(text: str) -> list[str]:
    terms = [term.strip() for term in text.split("\\")]
    return terms if any(terms) else []


def _usable_terms(ds: Dataset) -> list[str]:
    elem = ds.get_item("SpecificCharacterSet")
    value = None if elem is None else elem.value
    if isinstance(value, bytes):
        value = value.decode("latin-1").strip("\0")
    text = value if isinstance(value, str) else "\\".join(str(v) for v in value or ())
    terms = [_corrected(term) for term in _terms(text)]
    if any(term not in python_encoding for term in terms):
        return [_guessed(ds)]
    if terms and terms[0] in STAND_ALONE_ENCODINGS:  # PS3.3 C.12.1.1.2: no code extensions
        return terms[:1]
    return [term for term in terms if term not in STAND_ALONE_ENCODINGS]


def _corrected(term: str) -> str:
    """ISO-IR 100, ISO IR 100 and iso_ir_100 mean ISO_IR 100; so do their ISO 2022 kin."""
    single = re.fullmatch(r"ISO[ _-]?IR[ _-]?(\d+)", term, re.IGNORECASE)
    extension = re.fullmatch(r"ISO[ _-]?2022[ _-]IR[ _-]?(\d+)", term, re.IGNORECASE)
    if extension:
        return f"ISO 2022 IR {extension[1]}"
    return f"ISO_IR {single[1]}" if single else term


def _guessed(ds: Dataset) -> str:
    """An unknown term says nothing: what is valid UTF-8 is taken for that, all else for Latin-1."""
    values = [ds.get_item(keyword) for keyword in IDENTITY]
    raw = b"".join(e.value for e in values if e is not None and isinstance(e.value, bytes))
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return "ISO_IR 100"
    return UTF_8


def _keep(ds: Dataset, tags: Iterable[BaseTag], into: Dataset) -> None:
    for tag in tags:
        elem = ds.get_item(tag) if tag in ds else None
        kept = None if elem is None else _kept(ds, elem)
        if kept is not None:
            into[tag] = kept


def _kept(ds: Dataset, elem: DataElement | RawDataElement) -> DataElement | RawDataElement | None:
    # The dictionary's VR: the file may be Implicit VR, say UN, or simply be wrong.
    vr = dictionary_VR(elem.tag)
    if vr == "SQ":
        return _kept_sequence(ds, elem.tag)
    if not isinstance(elem, RawDataElement):
        return elem if elem.VR in vr.split(" or ") else None
    if vr in CUSTOMIZABLE_CHARSET_VR or vr in ("AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI"):
        return elem._replace(VR=vr)
    return _kept_numbers(elem, vr) if vr in _WORDS or vr == "FD" else None


def _kept_numbers(elem: RawDataElement, vr: str) -> RawDataElement | None:
    """Sixteen-bit numbers and doubles, in our byte order; others are not needed."""
    value = elem.value or b""
    numbers = array("d" if vr == "FD" else "H")
    if len(value) % numbers.itemsize:
        return None
    if not elem.is_little_endian:
        numbers.frombytes(value)
        numbers.byteswap()
        value = numbers.tobytes()
    ours = elem.VR if elem.VR in vr.split(" or ") else _WORDS.get(vr, vr)
    return elem._replace(VR=ours, value=value, is_little_endian=True)


def _kept_sequence(ds: Dataset, tag: BaseTag) -> DataElement | None:
    kept = []
    keyword = dictionary_keyword(tag)
    try:
        for item in (ds[tag].value or ())[: 1 if keyword in _FIRST_ONLY else None]:
            if not keyword.endswith("CodeSequence") or _is_code(item):
                kept.append(_kept_item(item))
    except MALFORMED:
        return None
    return DataElement(tag, "SQ", kept) if kept else None


def _is_code(item: Dataset) -> bool:
    """Has the item what makes a code (PS3.3 8.8)? Half a code would make our object illegal."""
    value = has(item, "CodeValue") or has(item, "LongCodeValue")
    named = has(item, "CodingSchemeDesignator") if value else has(item, "URNCodeValue")
    return named and has(item, "CodeMeaning")


def _kept_item(item: Dataset) -> Dataset:
    encodings = item.original_character_set or convert_encodings(None)  # its own or inherited
    kept = _decoded_as(list(encodings))
    # Private attributes of a source have no place in our objects.
    public = (tag for tag in list(item.keys()) if not tag.is_private and dictionary_has_tag(tag))
    _keep(item, public, kept)
    return kept


def _renamed(elem: DataElement | RawDataElement, tag: BaseTag) -> DataElement | RawDataElement:
    if isinstance(elem, RawDataElement):
        return elem._replace(tag=tag)
    return DataElement(tag, elem.VR, deepcopy(elem.value))


def _recode(ds: Dataset, encodings: list[str]) -> None:
    for tag in list(ds.keys()):
        elem = ds.get_item(tag)
        if elem.VR == "SQ":
            for item in ds[tag].value:
                own = character_set(item)
                _recode(item, convert_encodings(own) if own else encodings)
                item.pop("SpecificCharacterSet", None)
                item.set_original_encoding(False, True, convert_encodings(UTF_8))
        elif isinstance(elem, RawDataElement) and elem.VR in CUSTOMIZABLE_CHARSET_VR:
            delimiters = PN_DELIMS if elem.VR == "PN" else TEXT_VR_DELIMS
            text = decode_bytes(elem.value or b"", encodings, delimiters)
            ds[tag] = elem._replace(value=_even(text.rstrip(" \0").encode("utf-8")))


def _even(value: bytes) -> bytes:
    return value + b" " * (len(value) % 2)
