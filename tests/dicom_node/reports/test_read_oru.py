"""Final reports as HL7 ORU^R01: status, texts, character sets, and whose they are."""

from __future__ import annotations

import contextlib
import logging
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.errors import NodeError, Unreadable
from dicom_node.reports import hl7_message, read_oru
from dicom_node.reports.final import FinalReport
from dicom_node.results import text_sr
from tests.dicom_node.results import samples

STUDY = "1.2.826.0.1.3680043.10.1561.7.2"

MSH = "MSH|^~\\&|RIS|HOSP|||20240311130000||ORU^R01^ORU_R01|M1|P|2.5"
PID = "PID|1||9^^^LAB^PI~MRN0012345^^^GENHOSP&1.2.3&ISO^MR||Doe^Jane"
FINDINGS = "59776-5^Findings^LN"
IMPRESSION = "19005-8^Impression^LN"
UID = f"OBX|9|ST|113014^DICOM Study^DCM||{STUDY}||||||F"


def msh(charset: str = "") -> str:
    return f"{MSH}||||||{charset}" if charset else MSH


def obr(
    status: str = "F", filler: str = "F1^RIS", accession: str = "ACC1", reader: str = ""
) -> str:
    fields = ["OBR", "1", "", filler, "36643-5^XR Chest^LN", "", "", "20240311101500"]
    fields += [""] * 10 + [accession, "", "", "", "20240311120000", "", "RAD", status]
    return "|".join([*fields, *[""] * 6, reader])


def obx(value: str, code: str = FINDINGS, *, number: int | str = 1, kind: str = "TX") -> str:
    return f"OBX|{number}|{kind}|{code}||{value}||||||F"


def message(*segments: str, end: str = "\r", charset: str = "", encoding: str = "utf-8") -> bytes:
    return end.join([msh(charset), PID, *segments, ""]).encode(encoding)


def read(*segments: str, **how: str) -> FinalReport:
    """Read a message of one order."""
    (final,) = read_oru.read(message(*segments, **how))
    return final


def findings(value: str, *, kind: str = "TX", **how: str) -> str:
    return read(obr(), obx(value, kind=kind), **how).sections["findings"]


# -- status ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "verdict"), [("F", "final"), ("C", "corrected"), ("X", "withdrawn")]
)
def test_a_final_status_is_a_verdict(status: str, verdict: str) -> None:
    final = read(obr(status), obx("Small effusion."))
    assert (final.verdict, final.reason) == (verdict, "")


@pytest.mark.parametrize("status", list("PRASIO"))
def test_a_status_that_is_not_final_is_ignored_by_its_name(status: str) -> None:
    final = read(obr(status), obx("Small effusion."))
    assert (final.verdict, final.reason) == ("ignored", f"OBR-25 {status}")


@pytest.mark.parametrize("status", ["", "Doe^Jane"])
def test_what_is_no_status_is_not_quoted(status: str) -> None:
    final = read(obr(status), obx("Small effusion."))
    assert (final.verdict, final.reason) == ("ignored", "OBR-25 is no result status")


def test_a_withdrawal_needs_no_text_and_shares_the_order_key() -> None:
    final, withdrawn = read(obr("F"), obx("Effusion.")), read(obr("X"))
    assert withdrawn.verdict == "withdrawn"
    assert withdrawn.order_key == final.order_key
    assert read(obr("X", filler="F2^RIS")).order_key != final.order_key


@pytest.mark.parametrize(
    ("filler", "accession"), [("F1^RIS", "ACC1"), ("F1^RIS", ""), ("", "ACC1"), ("", "")]
)
def test_an_order_key_names_nobody(filler: str, accession: str) -> None:
    key = read(obr("F", filler, accession), obx("Effusion.")).order_key
    assert len(key) == 64
    assert "ACC1" not in key


def test_a_final_report_without_text_is_ignored() -> None:
    final = read(obr(), obx("JVBERi0x", kind="ED"), obx("", kind="TX"))
    assert (final.verdict, final.reason) == ("ignored", "no text in an OBX of type TX, FT or ST")


@pytest.mark.parametrize("status", ["F", "C"])
def test_nothing_but_an_addendum_never_replaces(status: str) -> None:
    final = read(obr(status), obx("Rib fracture.", "55107-7^Addendum^LN"))
    assert (final.verdict, final.text) == ("addendum", "Rib fracture.")


def test_our_own_draft_is_ignored_whatever_status_someone_gave_it() -> None:
    banner = text_sr.banner(samples.record())
    final = read(obr("F"), obx(banner, number=1), obx("Small effusion.", number=2))
    assert (final.verdict, final.reason) == ("ignored", "our own object")


# -- texts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["TX", "FT", "ST"])
def test_text_types_are_read(kind: str) -> None:
    assert findings("Small effusion.", kind=kind) == "Small effusion."


def test_sections_are_of_the_codes() -> None:
    final = read(
        obr(),
        obx("Cough.", "11329-0^History^LN", number=1),
        obx("Small effusion.", FINDINGS, number=2),
        obx("Heart failure.", "X^x^L^121073^Impression^DCM", number=3),
        obx("Seen again.", "36643-5&ADT^XR Chest^LN", number=4),
        obx("Call us.", "RIS1^Remark^L", number=5),
    )
    assert final.sections == {
        "history": "Cough.",
        "findings": "Small effusion.",
        "impression": "Heart failure.",
        "addendum": "Seen again.",
        "other": "Call us.",
    }
    assert final.text == "Small effusion.\n\nHeart failure.\n\nSeen again."


def test_a_code_without_a_scheme_and_a_code_in_words_are_known() -> None:
    final = read(
        obr(), obx("Clear.", "59776-5", number=1), obx("Normal.", "I^IMPRESSION^L", number=2)
    )
    assert final.sections == {"findings": "Clear.", "impression": "Normal."}


def test_headings_hold_for_the_lines_below_them() -> None:
    lines = ["FINDINGS:", "Lungs clear.", "No effusion.", "IMPRESSION: Normal.", "Thank you."]
    final = read(obr(), *(obx(line, "R^Report^L", number=n) for n, line in enumerate(lines, 1)))
    assert final.sections == {
        "findings": "Lungs clear.\nNo effusion.",
        "impression": "Normal.\nThank you.",
    }


def test_a_sentence_that_begins_like_a_heading_is_none() -> None:
    assert read(obr(), obx("Findings are normal.", "R^Report^L")).sections == {
        "other": "Findings are normal."
    }


def test_the_order_is_obx_1s() -> None:
    lines = [(10, "third"), (2, "second"), (1, "first")]
    final = read(obr(), *(obx(line, number=number) for number, line in lines))
    assert final.text == "first\nsecond\nthird"


@pytest.mark.parametrize("numbers", [("", "", ""), (1, 1, 1), (3, "x", 1)])
def test_without_a_usable_obx_1_the_order_is_the_messages(numbers: tuple[int | str, ...]) -> None:
    lines = zip(numbers, ("first", "second", "third"), strict=True)
    final = read(obr(), *(obx(line, number=number) for number, line in lines))
    assert final.text == "first\nsecond\nthird"


def test_deleted_and_wrong_results_are_left_out() -> None:
    final = read(obr(), "OBX|1|TX|R^Report^L||Old.||||||D", obx("New.", "R^Report^L", number=2))
    assert final.text == "New."


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("one~two", "one\ntwo"),
        (r"one\.br\two", "one\ntwo"),
        (r"one\.sp\two", "one\ntwo"),
        (r"one\.sp3\two", "one\n\n\ntwo"),
        (r"one\.sp+2\two", "one\n\ntwo"),
        (r"one\.sk 3\two", "one   two"),
        (r"\.in+4\one\.ti-2\ \.nf\two\.fi\.", "one two."),
        (r"a\F\b\S\c\T\d\R\e\E\f", "a|b^c&d~e\\f"),
        (r"a \H\bold\N\ word", "a bold word"),
        (r"one\X0D0A\two", "one\ntwo"),
        (r"caf\XC3\\XA9\ \XC3A9\tage", "café étage"),
        (r"\Zabc\one\C2842\ two\M2442AB\ ", "one two"),
        (r"C:\dir and 1\2", r"C:\dir and 1\2"),
        ("a^b&c", "a^b&c"),
    ],
)
def test_escapes_are_undone(sent: str, meant: str) -> None:
    assert findings(sent, kind="FT") == meant


def test_nothing_of_a_text_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        findings(r"Doe\Q1\Jane\\ \X0\ \.spx\ ")
    assert caplog.text == ""


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", "\r\r"])
def test_any_line_end_ends_a_segment(end: str) -> None:
    assert read(obr(), obx("Clear."), UID, end=end).claim.study_instance_uid == STUDY


def test_a_line_within_a_text_belongs_to_it() -> None:
    assert findings("Lungs clear.\nNo effusion.\nPA: done") == (
        "Lungs clear.\nNo effusion.\nPA: done"
    )


def test_other_delimiters_are_honoured() -> None:
    text = message(obr(), obx(r"a\F\b")).decode()
    other = text.translate(str.maketrans({"|": "!", "^": "*", "~": "+", "\\": "/", "&": "%"}))
    (final,) = read_oru.read(other.encode())
    assert final.sections == {"findings": "a!b"}
    assert final.claim.patient_issuer == "GENHOSP"


# -- character sets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("charset", "encoding", "text"),
    [
        ("UNICODE UTF-8", "utf-8", "Pleuraerguß 右肺"),
        ("8859/1", "latin-1", "Pleuraerguß"),
        ("8859/2", "iso8859_2", "płuco"),
        ("8859/15", "iso8859_15", "œdème"),
        ("ASCII", "ascii", "Effusion"),
        ("~ISO IR87", "iso2022_jp", "右下肺野に浸潤影。"),
        ("ISO IR14~ISO IR87", "iso2022_jp", "胸水なし。"),
        ("ISO IR13", "shift_jis", "ｷｮｳｽｲ"),
        ("GB 18030-2000", "gb18030", "右肺"),
        ("KS X 1001", "euc_kr", "우폐"),
        ("BIG-5", "big5", "右肺"),
        ("", "utf-8", "Pleuraerguß"),
        ("", "latin-1", "Pleuraerguß"),
        ("SOMETHING", "utf-8", "Pleuraerguß"),
        ("ASCII", "utf-8", "Pleuraerguß"),
        ("UNICODE UTF-8", "latin-1", "Pleuraerguß"),
    ],
)
def test_text_is_read_in_its_character_set(charset: str, encoding: str, text: str) -> None:
    assert findings(text, charset=charset, encoding=encoding) == text


def test_a_byte_order_mark_is_no_obstacle() -> None:
    (final,) = read_oru.read(b"\xef\xbb\xbf" + message(obr(), obx("Clear.")))
    assert final.text == "Clear."


# -- whose, and when -------------------------------------------------------------------------------


def test_it_says_whose_report_it_is_and_shows_it_to_nobody() -> None:
    final = read(obr(), obx("Small effusion."), UID)
    claim = final.claim
    assert (final.source, final.source_uid) == ("hl7", "M1")
    assert (claim.study_instance_uid, claim.study_date) == (STUDY, "20240311")
    assert (claim.accession_number, claim.patient_id) == ("ACC1", "MRN0012345")
    assert claim.patient_issuer == "GENHOSP"
    for hidden in ("MRN0012345", "ACC1", "effusion"):
        assert hidden not in repr(final)


@pytest.mark.parametrize(
    ("observation", "text"),
    [
        (f"OBX|1|ST|X^Study Instance UID^L||{STUDY}||||||F", "Clear."),
        (f"OBX|1|HD|Study Instance UID||^{STUDY}^ISO||||||F", "Clear."),
        (f"OBX|1|RP|110180^Study Instance UID^DCM||{STUDY}^RIS^DICOM||||||F", "Clear."),
        (f"OBX|1|TX|113014^DICOM Study^DCM||{STUDY}||||||F", "Clear."),
    ],
)
def test_the_study_instance_uid_is_found_and_is_no_text(observation: str, text: str) -> None:
    final = read(obr(), observation, obx(text, number=2))
    assert final.claim.study_instance_uid == STUDY
    assert final.text == text


def test_two_studies_or_something_else_are_no_study() -> None:
    other = UID.replace(STUDY, "1.2.3")
    assert read(obr(), obx("Clear."), UID, other).claim.study_instance_uid == ""
    junk = UID.replace(STUDY, "Doe^Jane")
    assert read(obr(), obx("Clear."), junk).claim.study_instance_uid == ""


def test_without_obr_18_the_filler_order_number_is_the_accession_number() -> None:
    claim = read(obr(accession=""), obx("Clear.")).claim
    assert (claim.accession_number, claim.accession_issuer) == ("F1", "RIS")


def test_the_first_identifier_counts_where_none_is_a_medical_record_number() -> None:
    raw = message(obr(), obx("Clear.")).replace(b"^MR|", b"^XX|")
    (final,) = read_oru.read(raw)
    assert (final.claim.patient_id, final.claim.patient_issuer) == ("9", "LAB")


def test_a_reader_makes_it_a_radiologists_and_obr_22_gives_the_time() -> None:
    final = read(obr(reader="R1&Reader&Rosa"), obx("Clear."))
    assert final.author_role == "radiologist"
    assert final.verified_at == datetime(2024, 3, 11, 12, tzinfo=UTC)
    assert read(obr(), obx("Clear.")).author_role == ""


def test_every_order_is_a_report_of_the_patient_before_it() -> None:
    other = "PID|1||M2^^^GENHOSP^MR"
    raw = message(obr(), obx("One."), obr(), obx("Two."), other, obr(), obx("Three."))
    finals = read_oru.read(raw)
    assert [final.text for final in finals] == ["One.", "Two.", "Three."]
    assert [final.claim.patient_id for final in finals] == ["MRN0012345", "MRN0012345", "M2"]
    assert [final.source_uid for final in finals] == ["M1", "M1#2", "M1#3"]


def test_an_observation_after_another_patient_belongs_to_no_order_before() -> None:
    raw = message(obr(), obx("One."), "PID|1||M2^^^GENHOSP^MR", obx("Not one's."))
    (final,) = read_oru.read(raw)
    assert final.text == "One."


def test_a_batch_is_all_its_messages() -> None:
    batch = b"FHS|^~\\&\rBHS|^~\\&\r" + message(obr(), obx("One.")) + message(obr(), obx("Two."))
    finals = read_oru.read(batch + b"BTS|2\rFTS|1\r")
    assert [final.text for final in finals] == ["One.", "Two."]


def test_a_message_without_a_control_id_is_known_by_its_bytes() -> None:
    raw = message(obr(), obx("Clear.")).replace(b"|M1|", b"||")
    first, again = read_oru.read(raw), read_oru.read(raw)
    assert first[0].source_uid == again[0].source_uid != ""


# -- what is no report -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        pytest.param(b"", "not an HL7 v2 message", id="empty"),
        pytest.param(b"Doe^Jane has an effusion", "not an HL7 v2 message", id="text"),
        pytest.param(b"MSH||||||RIS", "not an HL7 v2 message", id="one delimiter for all"),
        pytest.param(b"\x0bMSH", "not an HL7 v2 message", id="cut"),
        pytest.param(message(obr()).replace(b"ORU", b"ADT"), "another type", id="ADT"),
        pytest.param(message(), "without an OBR", id="no order"),
        pytest.param(
            message(obr(), obx("~" * (hl7_message.MAX_DELIMITERS + 1))), "delimiters", id="too many"
        ),
    ],
)
def test_what_is_no_report_is_refused_and_not_quoted(raw: bytes, said: str) -> None:
    with pytest.raises(Unreadable, match=said) as caught:
        read_oru.read(raw)
    assert "Doe" not in str(caught.value)
    assert caught.value.__cause__ is None


WHOLE = message(obr(), obx(r"one\.br\two \XC3A9\ ~ three", kind="FT"), UID, charset="~ISO IR87")


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=8)
)
def test_bytes_gone_wrong_raise_nothing_else(changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for place, value in changes:
        data[place] = value
    with contextlib.suppress(NodeError):
        read_oru.read(bytes(data))


@settings(deadline=None, max_examples=200)
@given(st.text(st.sampled_from("MSHOBXRPID|^~\\&\r\n .X09Fé"), max_size=120))
def test_garbage_behind_a_header_raises_nothing_else(garbage: str) -> None:
    with contextlib.suppress(NodeError):
        read_oru.read(f"{MSH}\r{garbage}".encode())
