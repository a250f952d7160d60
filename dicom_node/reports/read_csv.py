"""Final reports as a table: one row each, from a site's archive or an export of its RIS."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence

from dicom_node.errors import Unreadable
from dicom_node.reports import sections
from dicom_node.reports.final import Claim, FinalReport, Section, Verdict, order_key
from dicom_node.reports.timestamps import day

STUDY_COLUMNS = (
    "study_instance_uid",
    "accession_number",
    "accession_issuer",
    "patient_id",
    "patient_issuer",
    "study_date",
)
TEXT_COLUMNS: Mapping[str, Section] = {
    "findings": "findings",
    "impression": "impression",
    "text": "other",  #: the whole report; headings in it are found
}

_COLUMNS = (*STUDY_COLUMNS, *TEXT_COLUMNS)
_DATE = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})")


def read(text: str) -> Iterator[FinalReport]:
    """Read a table with a header line; pure. Rows are numbered from 1, the header is none.

    A study is named by ``study_instance_uid``, ``accession_number`` (and ``accession_issuer``), or
    ``patient_id`` (and ``patient_issuer``) with ``study_date`` (YYYYMMDD or YYYY-MM-DD). A row that
    names none or has no text is ignored, with a reason.

    Raises
    ------
    Unreadable
        The header lacks what is needed or has unknown columns; later on, a row is no CSV.
    """
    rows = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    header = [name.strip().lower() for name in next(_numbered(rows), (0, []))[1]]
    _check(header)
    return (_report(number, header, row) for number, row in _numbered(rows) if any(row))


def _numbered(rows: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Count rows; csv's own errors name the row and none of its content."""
    number = 0
    while True:
        number += 1
        try:
            yield number, next(rows)
        except StopIteration:
            return
        except csv.Error:
            raise Unreadable(f"CSV row {number} can't be parsed: are its quotes closed?") from None


def _check(header: Sequence[str]) -> None:
    unknown = [number for number, name in enumerate(header, 1) if name not in _COLUMNS]
    if unknown:
        # Its name is not told: a table without a header has a patient's there.
        raise Unreadable(
            f"CSV column {unknown[0]} has an unknown name in line 1. Known: {', '.join(_COLUMNS)}"
        )
    if len(set(header)) < len(header):
        raise Unreadable("CSV has two columns of one name")
    if not {"study_instance_uid", "accession_number"}.intersection(header) and not {
        "patient_id",
        "study_date",
    }.issubset(header):
        raise Unreadable(
            "CSV names no studies: it needs a column study_instance_uid or accession_number, "
            "or patient_id and study_date"
        )
    if not set(TEXT_COLUMNS).intersection(header):
        raise Unreadable(f"CSV has no report text: it needs one of {', '.join(TEXT_COLUMNS)}")


def _report(number: int, header: Sequence[str], row: Sequence[str]) -> FinalReport:
    if len(row) != len(header):
        raise Unreadable(f"CSV row {number} has {len(row)} cells, the header {len(header)}")
    cells = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
    claim = _claim(cells)
    texts = sections.gathered(
        piece
        for column, section in TEXT_COLUMNS.items()
        for piece in sections.split(sections.clean(cells.get(column, "")), section)
    )
    reason = _why_ignored(cells, claim, texts)
    verdict: Verdict = "addendum" if sections.is_addendum(texts) else "final"
    return FinalReport(
        source="csv",
        source_uid=f"row {number}",
        order_key=_order_key(claim),
        verdict="ignored" if reason else verdict,
        reason=reason,
        claim=claim,
        sections=texts,
    )


def _claim(cells: Mapping[str, str]) -> Claim:
    date = _DATE.fullmatch(cells.get("study_date", ""))
    values = {name: cells.get(name, "") for name in STUDY_COLUMNS}
    return Claim(**{**values, "study_date": day("".join(date.groups())) if date else ""})


def _why_ignored(cells: Mapping[str, str], claim: Claim, texts: Mapping[Section, str]) -> str:
    if cells.get("study_date") and not claim.study_date:
        return "study_date is no day as YYYYMMDD or YYYY-MM-DD"
    by_day = claim.patient_id and claim.study_date
    if not (claim.study_instance_uid or claim.accession_number or by_day):
        return "names no study"
    return "" if texts else "no text"


def _order_key(claim: Claim) -> str:
    if claim.study_instance_uid:
        return order_key("study", claim.study_instance_uid)
    if claim.accession_number:
        return order_key("accession", claim.accession_number, claim.accession_issuer)
    return order_key("day", claim.patient_id, claim.patient_issuer, claim.study_date)
