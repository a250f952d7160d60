"""The draft as an HL7 v2.5 message: ORU^R01, an unsolicited observation result.

Its status is R, "results stored; not yet verified" (HL7 tables 0123 and 0085), and not P: that one
says that somebody has verified an early result, and archives make a verified report of it.

Receiving application and facility (MSH-5, MSH-6) stay empty: one message goes to every peer that
wants it, and only the destination knows what a peer calls itself (``dicom_node.mllp``).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from datetime import datetime

from pydicom import Dataset
from pydicom.sr.coding import Code

from dicom_node.results import message, source
from dicom_node.results.header import Subject
from dicom_node.results.objects import ResultObject
from dicom_node.results.record import DraftRecord

DICOM_STUDY = Code("113014", "DCM", "DICOM Study")

_CONTROL_ID_LENGTH = 20  # HL7 2.5, 2.15.9.10: MSH-10 is ST of 20

# HL7 2.5, 2.7.1, 2.7.4 (line break) and 2.7.5 (hexadecimal). python-hl7's escape() would also
# write every letter beyond ASCII as a hexadecimal code point, which is not its UTF-8.
_ESCAPES = {
    character: f"\\{name}\\"
    for character, name in {
        **{"\\": "E", "|": "F", "^": "S", "&": "T", "~": "R"},
        **{"\n": ".br", "\r": ".br", "\t": "X09"},
    }.items()
}


def encode(record: DraftRecord) -> ResultObject:
    """Return the draft as an ORU^R01 message in UTF-8, without MLLP's frame; pure."""
    of = message.subject(record)
    ds = message.described(of)
    segments = [_msh(of, ds), _pid(ds), _obr(of, ds), *_obx(record)]
    return message.result(ds, ".hl7", "".join(f"{segment}\r" for segment in segments))


def escaped(text: str) -> str:
    """Return ``text`` as a field may hold it (HL7 2.5, 2.7).

    Line ends of all three kinds become one line break; other control characters but TAB are
    dropped, as in the text SR.
    """
    lines = text.replace("\r\n", "\n")
    return "".join(_ESCAPES.get(c, "" if unicodedata.category(c) == "Cc" else c) for c in lines)


def _msh(of: Subject, ds: Dataset) -> str:
    fields = {
        2: "^~\\&",
        3: escaped(of.record.node.ae_title),
        7: _time_stamp(of.started_at),
        9: "ORU^R01^ORU_R01",
        10: message.uuid(ds.SOPInstanceUID).hex[-_CONTROL_ID_LENGTH:].upper(),
        11: "P",
        12: "2.5",
        18: "UNICODE UTF-8",
    }
    return _segment("MSH", fields, first=2)  # MSH-1 is the separator itself


def _pid(ds: Dataset) -> str:
    return _segment(
        "PID",
        {
            1: "1",
            3: _identifier(message.text(ds, "PatientID"), message.text(ds, "IssuerOfPatientID")),
            5: _name(message.text(ds, "PatientName")),
            7: source.plain(ds, "PatientBirthDate"),
            8: source.plain(ds, "PatientSex"),
        },
    )


def _obr(of: Subject, ds: Dataset) -> str:
    accession = escaped(message.text(ds, "AccessionNumber"))
    return _segment(
        "OBR",
        {
            1: "1",
            3: accession,
            4: _coded(message.procedure(ds)),
            7: _study_time(ds, of.timezone_offset),
            18: accession,
            22: _time_stamp(of.started_at),
            24: "RAD",  # HL7 table 0074
            25: of.record.hl7_status,
        },
    )


def _obx(record: DraftRecord) -> Iterator[str]:
    """Yield the banner, the findings, the impression if there is one, and whose study it is."""
    said = [("TX", heading, text) for heading, text in message.sections(record)]
    said.append(("ST", DICOM_STUDY, record.study_instance_uid))
    for number, (value_type, name, text) in enumerate(said, start=1):
        fields = {
            1: str(number),
            2: value_type,
            3: _coded(name),
            4: str(number),  # tells the two that are named Findings apart
            5: escaped(text),
            11: record.hl7_status,
        }
        yield _segment("OBX", fields)


def _segment(name: str, fields: Mapping[int, str], first: int = 1) -> str:
    """Return a segment; fields by number, already escaped, those not given empty."""
    return "|".join([name, *(fields.get(n, "") for n in range(first, max(fields) + 1))])


def _coded(code: Code) -> str:
    """CE: identifier^text^name of coding system; DICOM's designators are HL7's (table 0396)."""
    return "^".join(escaped(part) for part in (code.value, code.meaning, code.scheme_designator))


def _identifier(number: str, issuer: str) -> str:
    """CX: id^^^assigning authority^identifier type (table 0203: medical record number)."""
    return f"{escaped(number)}^^^{escaped(issuer)}^MR" if number else ""


def _name(text: str) -> str:
    """XPN of the first group of a PN that says something, as a rule the alphabetic one.

    DICOM has prefix before suffix, HL7 has suffix before prefix (PS3.5 6.2.1.1).
    """
    group = next((group for group in text.split("=") if group.strip("^ ")), "")
    family, given, middle, prefix, suffix = (*group.split("^", 4), "", "", "", "")[:5]
    parts = (family, given, middle, suffix, prefix)
    return "^".join(escaped(part.strip()) for part in parts).rstrip("^")


def _study_time(ds: Dataset, offset: str) -> str:
    date = source.plain(ds, "StudyDate")
    time = source.plain(ds, "StudyTime").partition(".")[0]
    return f"{date}{time}{offset}" if date and time else date


def _time_stamp(at: datetime) -> str:
    return at.strftime("%Y%m%d%H%M%S%z")
