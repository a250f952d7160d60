"""How urgent a study is: what comes first where many wait."""

from __future__ import annotations

ROUTINE, URGENT, STAT = 0, 1, 2

#: PS3.3 C.4.11, Requested Procedure Priority (0040,1003): its defined terms.
_DICOM = {"STAT": STAT, "HIGH": URGENT}
#: HL7 v2.5 table 0485, extended priority codes; preoperative and timing-critical can't wait long.
_HL7 = {"S": STAT, "A": URGENT, "P": URGENT, "T": URGENT}


def of_dicom(value: str) -> int:
    """Return the priority that an order's or image's attribute names; routine where it is none."""
    return _DICOM.get(value.strip().upper(), ROUTINE)


def of_hl7(code: str) -> int:
    """Return the priority that TQ1-9 or OBR-27.6 names; routine where it is none."""
    return _HL7.get(code.strip().upper()[:1], ROUTINE)
