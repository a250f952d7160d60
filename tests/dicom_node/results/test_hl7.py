from __future__ import annotations

import datetime
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import hl7
import pydicom
import pytest
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.core import Message
from hl7apy.parser import parse_message
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_charset_files
from pydicom.sr.coding import Code
from pydicom.uid import SecondaryCaptureImageStorage

from dicom_node.results import hl7 as ours
from dicom_node.results import objects
from dicom_node.results.header import code_item
from dicom_node.results.record import DraftRecord
from tests.dicom_node.results.samples import (
    ALGORITHM,
    FRONTAL,
    ODD,
    SERIES,
    STUDY,
    bare_header,
    header,
    record,
    reread,
    second_record,
)

# What pydicom says on reading our misspelt source.
pytestmark = pytest.mark.filterwarnings("ignore:Incorrect value for Specific Character Set")

BANNER = (
    "AI-GENERATED DRAFT - NOT FOR DIAGNOSIS. Unverified output of LLaVA-Rad. "
    "A radiologist must review, correct and sign before any use."
)
TEXTS = st.text(st.characters(codec="utf-8"))
# Those of them that the text SR keeps too: no control characters but line ends and TAB.
CLEAN = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]) | st.just("\t"))


def message_of(of: DraftRecord) -> str:
    return ours.encode(replace(of, kind="hl7")).file.decode("utf-8")


def parsed(of: DraftRecord) -> hl7.Message:
    return hl7.parse(message_of(of))


def field(of: DraftRecord, segment: str, number: int) -> str:
    """The field as it stands in the message, nothing unescaped."""
    return str(parsed(of).segment(segment)(number)) if _has(of, segment, number) else ""


def _has(of: DraftRecord, segment: str, number: int) -> bool:
    return len(parsed(of).segment(segment)) > number


def plain(text: str) -> str:
    """An unescaper of our own making, by HL7 2.5, 2.7; a line break is a line feed here."""
    names = {"E": "\\", "F": "|", "S": "^", "T": "&", "R": "~", ".br": "\n", "X09": "\t"}
    return re.sub(r"\\([^\\]+)\\", lambda match: names[match[1]], text)


def observations(of: DraftRecord) -> list[tuple[str, str, str]]:
    """OBX-2, OBX-3 and OBX-5, unescaped."""
    segments = parsed(of).segments("OBX")
    return [(str(one(2)), str(one(3)), plain(str(one(5)))) for one in segments]


# --- the message ---------------------------------------------------------------------------------


def test_the_message_is_an_observation_result_of_version_2_5_in_utf8() -> None:
    msh = parsed(record()).segment("MSH")
    assert [str(msh(n)) for n in (1, 2, 3, 9, 11, 12, 18)] == [
        *("|", "^~\\&", "DICOMNODE", "ORU^R01^ORU_R01", "P", "2.5", "UNICODE UTF-8")
    ]


def test_the_receiver_is_left_to_the_destination() -> None:
    msh = parsed(record()).segment("MSH")
    assert [str(msh(n)) for n in (5, 6)] == ["", ""]


def test_times_are_the_study_s_and_the_analysis_s_in_the_site_s_zone() -> None:
    of = record(timezone_offset="+0100")
    assert field(of, "MSH", 7) == field(of, "OBR", 22) == "20240311102030+0100"
    assert field(of, "OBR", 7) == "20240311101203+0100"


def test_without_a_zone_the_study_s_time_has_none_and_ours_is_utc() -> None:
    of = record(timezone_offset=None)
    assert field(of, "OBR", 7) == "20240311101203"
    assert field(of, "OBR", 22) == "20240311092030+0000"


def test_a_study_without_a_time_has_its_day() -> None:
    assert field(record(header(StudyTime="")), "OBR", 7) == "20240311"
    assert field(record(header(StudyDate="", StudyTime="1012")), "OBR", 7) == ""


def test_the_patient_is_the_source_s() -> None:
    of = record()
    assert field(of, "PID", 3) == "MRN0012345^^^GENHOSP^MR"
    assert [field(of, "PID", n) for n in (5, 7, 8)] == ["Doe^Jane^Quincy", "19580214", "F"]


def test_prefix_and_suffix_change_places() -> None:
    of = record(header(PatientName="Doe^Jane^Quincy^Dr^Jr"))
    assert field(of, "PID", 5) == "Doe^Jane^Quincy^Jr^Dr"


def test_a_name_without_letters_is_given_in_its_own_script() -> None:
    image = header(SpecificCharacterSet="ISO_IR 192", PatientName="=王^小東")
    assert field(record(image), "PID", 5) == "王^小東"


def test_a_patient_who_is_nobody_leaves_empty_fields() -> None:
    of = record(bare_header())
    assert [field(of, "PID", n) for n in (3, 5, 7, 8)] == [""] * 4
    assert field(of, "OBR", 3) == ""


def test_the_order_is_found_by_accession_number_and_procedure() -> None:
    of = record()
    assert [field(of, "OBR", n) for n in (3, 18, 24)] == ["ACC1", "ACC1", "RAD"]
    assert field(of, "OBR", 4) == "36643-5^XR Chest 2 Views^LN"


def test_an_unknown_procedure_is_imaging() -> None:
    of = record(header(ProcedureCodeSequence=[]))
    assert field(of, "OBR", 4) == "18748-4^Diagnostic imaging study^LN"


def test_separators_in_a_procedure_s_meaning_do_not_part_it() -> None:
    image = header()
    image.ProcedureCodeSequence = [code_item(Code("XR|1", "99LOCAL", "Chest ^ & ~"))]
    assert field(record(reread(image)), "OBR", 4) == r"XR\F\1^Chest \S\ \T\ \R\^99LOCAL"


def test_the_banner_comes_first_and_the_study_last() -> None:
    of = second_record()
    findings, impressions = "59776-5^Findings^LN", "19005-8^Impressions^LN"
    assert observations(of) == [
        ("TX", findings, BANNER),
        ("TX", findings, of.findings),
        ("TX", impressions, "Mild cardiomegaly."),
        ("ST", "113014^DICOM Study^DCM", STUDY),
    ]


def test_observations_of_one_name_are_told_apart() -> None:
    segments = parsed(second_record()).segments("OBX")
    named = [(str(one(3)), str(one(4))) for one in segments]
    assert len(set(named)) == len(named)
    assert [str(one(1)) for one in segments] == ["1", "2", "3", "4"]


def test_an_impression_that_the_model_did_not_write_is_not_there() -> None:
    assert [name for _, name, _ in observations(record(impression=None))] == [
        *["59776-5^Findings^LN"] * 2,
        "113014^DICOM Study^DCM",
    ]


@pytest.mark.parametrize("status", ["R", "P"])
def test_every_result_has_the_configured_status(status: str) -> None:
    of = record(hl7_status=status)
    assert field(of, "OBR", 25) == status
    assert {str(one(11)) for one in parsed(of).segments("OBX")} == {status}


def test_results_are_stored_but_not_verified_unless_somebody_says_otherwise() -> None:
    assert field(record(), "OBR", 25) == "R"


def test_a_demo_model_is_named_in_the_banner() -> None:
    demo = replace(ALGORITHM, name="DEMO MODEL (phantoms only)", demo=True)
    assert "DEMO MODEL" in observations(record(algorithm=demo))[0][2]


# --- identity ------------------------------------------------------------------------------------


def test_equal_records_give_equal_bytes() -> None:
    of = second_record(kind="hl7")
    assert ours.encode(of) == ours.encode(DraftRecord.from_json(of.to_json()))


def test_the_control_id_is_derived_and_short() -> None:
    first, again = field(record(), "MSH", 10), field(record(), "MSH", 10)
    assert first == again != field(record(findings="Other."), "MSH", 10)
    assert re.fullmatch(r"[0-9A-F]{20}", first)


def test_the_message_is_a_result_of_its_own() -> None:
    made = objects.encode(record(kind="hl7"))
    assert made.suffix == ".hl7"
    assert made.sop_instance_uid.startswith("2.25.")
    assert made.sop_instance_uid != objects.encode(record(kind="text_sr")).sop_instance_uid
    assert (made.series_instance_uid, made.sop_class_uid) == ("", "")


# --- escaping ------------------------------------------------------------------------------------


@given(CLEAN)
def test_a_text_comes_back_through_python_hl7(text: str) -> None:
    assert parsed(record()).unescape(ours.escaped(text)) == text


@given(TEXTS)
def test_a_text_comes_back_but_for_control_characters(text: str) -> None:
    kept = re.sub(r"\r\n|\r", "\n", text)
    kept = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", kept)
    assert plain(ours.escaped(text)) == kept


@given(TEXTS)
def test_no_text_can_end_a_field_a_segment_or_a_frame(text: str) -> None:
    assert not set(ours.escaped(text)) & set("|^&~\r\n\x0b\x1c")


@given(TEXTS.filter(lambda text: any(c.isprintable() and c != " " for c in text)))
def test_any_findings_leave_the_message_whole(findings: str) -> None:
    of = record(findings=findings)
    assert [str(one[0]) for one in parsed(of)] == ["MSH", "PID", "OBR", "OBX", "OBX", "OBX"]
    assert str(parsed(of).segments("OBX")[-1](5)) == STUDY


def test_line_ends_of_every_kind_are_one_line_break() -> None:
    assert ours.escaped("a\nb\r\nc\rd\n\ne") == r"a\.br\b\.br\c\.br\d\.br\\.br\e"


def test_a_hostile_header_stays_in_its_fields() -> None:
    image = header(PatientID="1|2^3&4~5", IssuerOfPatientID="A&B^ISO", AccessionNumber="A|OBX|9")
    of = record(image)
    pid = parsed(of).segment("PID")
    assert plain(str(pid(3)(1)(1))) == "1|2^3&4~5"
    assert plain(str(pid(3)(1)(4))) == "A&B^ISO"
    assert plain(field(of, "OBR", 18)) == "A|OBX|9"


# --- odd sources, and a second judge -------------------------------------------------------------


def name_of(image: pydicom.Dataset) -> list[str]:
    """Family, given, middle, suffix and prefix, as pydicom decodes the first group."""
    with warnings.catch_warnings():  # that a name is too long
        warnings.simplefilter("ignore")
        group = str(image.get("PatientName", "")).split("=")[0]
    family, given_, middle, prefix, suffix = (*group.split("^"), "", "", "", "")[:5]
    return [family, given_, middle, suffix, prefix]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_source_gives_a_good_message(name: str) -> None:
    image = ODD[name]()
    of = record(image)
    assert patient_name(of) == name_of(image)
    assert observations(of)[1][2] == of.findings
    assert judged(of).obr.obr_25.value == "R"


def patient_name(of: DraftRecord) -> list[str]:
    parts = [plain(part) for part in field(of, "PID", 5).split("^")]
    return [*parts, "", "", "", ""][:5]


@pytest.mark.parametrize("file", get_charset_files("*.dcm"), ids=lambda f: Path(f).stem)
def test_names_in_every_character_set_are_decoded(file: str) -> None:
    image = pydicom.dcmread(file, stop_before_pixels=True)
    image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID = STUDY, SERIES, FRONTAL
    image.SOPClassUID = SecondaryCaptureImageStorage
    wanted = name_of(image)
    assert patient_name(record(reread(image))) == wanted


def test_undeclared_bytes_do_not_stop_a_message() -> None:
    image = reread(
        header(SpecificCharacterSet="ISO_IR 192"), old=b"Jane^Quincy", new=b"J\xe4ne^Quincy"
    )
    with pytest.warns(UserWarning, match="Failed to decode"):
        made = field(record(image), "PID", 5)
    assert made == "Doe^J\N{REPLACEMENT CHARACTER}ne^Quincy"


def judged(of: DraftRecord) -> Message:
    """Let hl7apy read it; groups off, for a draft has no visit."""
    return parse_message(
        message_of(of), validation_level=VALIDATION_LEVEL.TOLERANT, find_groups=False
    )


@pytest.mark.parametrize("make", [record, second_record], ids=["first", "second"])
def test_hl7apy_reads_the_same(make: Callable[..., DraftRecord]) -> None:
    of = make(findings="Opacity ≥ 3 cm | 5 & 7.\nNo \\effusion\\ ^ ~.")
    message = judged(of)
    assert message.msh.msh_9.to_er7() == "ORU^R01^ORU_R01"
    assert message.pid.pid_3.to_er7() == "MRN0012345^^^GENHOSP^MR"
    assert message.obr.obr_18.value == "ACC1"
    # It takes the backslashes of a line break for the text's, and escapes them when asked.
    values = [plain(one.obx_5.value) for one in message.children.get("OBX")]
    texts = [value.replace("\\.br\\", "\n") for value in values]
    impression = [of.impression] if of.impression else []
    assert texts == [BANNER, of.findings, *impression, STUDY]


def test_hl7apy_finds_the_structure_of_an_oru_r01() -> None:
    message = parse_message(message_of(record()), validation_level=VALIDATION_LEVEL.TOLERANT)
    assert message.oru_r01_patient_result.oru_r01_order_observation.obr.obr_24.value == "RAD"


def test_time_is_never_now() -> None:
    later = record(started_at=datetime.datetime(1999, 1, 2, 3, 4, 5, tzinfo=datetime.UTC))
    assert field(later, "MSH", 7) == "19990102040405+0100"
