"""Final reports as a table."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.errors import NodeError, Unreadable
from dicom_node.reports import read_csv


def test_a_row_is_a_final_report() -> None:
    table = (
        'study_instance_uid,findings,impression\n1.2.3,"Small, left\neffusion.",Heart failure.\n'
    )
    (final,) = read_csv.read(table)
    assert (final.source, final.source_uid, final.verdict) == ("csv", "row 1", "final")
    assert final.claim.study_instance_uid == "1.2.3"
    assert final.sections == {"findings": "Small, left\neffusion.", "impression": "Heart failure."}


def test_every_way_to_name_a_study_is_read() -> None:
    header = "Accession_Number,accession_issuer,patient_id,patient_issuer,study_date,text"
    (final,) = read_csv.read(f"\ufeff{header}\r\nACC1,RIS,M1,GENHOSP,2024-03-11,Clear.\r\n")
    claim = final.claim
    assert (claim.accession_number, claim.accession_issuer) == ("ACC1", "RIS")
    assert (claim.patient_id, claim.patient_issuer) == ("M1", "GENHOSP")
    assert (claim.study_date, final.text) == ("20240311", "Clear.")


def test_headings_in_a_whole_report_are_its_sections() -> None:
    (final,) = read_csv.read('accession_number,text\nA1,"FINDINGS: Clear.\nIMPRESSION: Normal."\n')
    assert final.sections == {"findings": "Clear.", "impression": "Normal."}


def test_nothing_but_an_addendum_never_replaces() -> None:
    (final,) = read_csv.read("accession_number,text\nA1,Addendum: rib fracture.\n")
    assert final.verdict == "addendum"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (",,,Clear.", "names no study"),
        (",M1,,Clear.", "names no study"),
        ("A1,,,", "no text"),
        (",M1,11.3.2024,Clear.", "study_date is no day as YYYYMMDD or YYYY-MM-DD"),
        (",M1,20241399,Clear.", "study_date is no day as YYYYMMDD or YYYY-MM-DD"),
    ],
)
def test_a_row_that_says_too_little_is_ignored_and_the_next_is_read(row: str, reason: str) -> None:
    table = f"accession_number,patient_id,study_date,text\n{row}\nA2,,,Clear.\n"
    first, second = read_csv.read(table)
    assert (first.verdict, first.reason) == ("ignored", reason)
    assert second.verdict == "final"


def test_blank_lines_are_no_rows_but_count() -> None:
    finals = read_csv.read("accession_number,text\n\nA1,Clear.\n")
    assert [final.source_uid for final in finals] == ["row 2"]


def test_rows_of_one_study_share_an_order_key_that_names_nobody() -> None:
    table = "patient_id,study_date,text\nM1,20240311,One.\nM1,2024-03-11,Two.\nM2,20240311,Three.\n"
    first, second, other = read_csv.read(table)
    assert first.order_key == second.order_key != other.order_key
    assert "M1" not in first.order_key


@pytest.mark.parametrize(
    ("table", "said"),
    [
        pytest.param("", "names no studies", id="empty"),
        pytest.param("Doe,Jane\n1,2\n", "column 1 has an unknown name.*findings", id="no header"),
        pytest.param("text,text\n", "two columns", id="twice"),
        pytest.param("patient_id,text\nM1,Clear.\n", "names no studies", id="patient alone"),
        pytest.param("accession_number\nA1\n", "no report text", id="no text"),
    ],
)
def test_a_header_that_will_not_do_is_refused_at_once(table: str, said: str) -> None:
    with pytest.raises(Unreadable, match=said) as caught:
        read_csv.read(table)
    assert "Doe" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [("A2,Doe,3", "row 2 has 3 cells"), ('A2,"Doe', "row 2 can't be parsed")],
)
def test_a_row_gone_wrong_is_named_and_not_quoted(row: str, said: str) -> None:
    finals = read_csv.read(f"accession_number,text\nA1,Clear.\n{row}")
    assert next(finals).text == "Clear."
    with pytest.raises(Unreadable, match=said) as caught:
        next(finals)
    assert "Doe" not in str(caught.value)
    assert caught.value.__cause__ is None


@settings(deadline=None, max_examples=200)
@given(st.text(st.sampled_from('a1,"\n\r\0 é;'), max_size=60))
def test_garbage_raises_nothing_else(garbage: str) -> None:
    with contextlib.suppress(NodeError):
        list(read_csv.read(f"accession_number,text\n{garbage}"))
