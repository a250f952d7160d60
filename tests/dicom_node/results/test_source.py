from __future__ import annotations

import struct
from io import BytesIO

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import DataElement, Dataset
from pydicom.config import IGNORE
from pydicom.data import get_charset_files, get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.results import source
from tests.dicom_node.results.acceptance import raw
from tests.dicom_node.results.samples import header, reread

CHARACTER_SETS = [
    pytest.param([], "A\xe9", False, id="none is ASCII only"),
    pytest.param(["ISO_IR 100"], "d\xe9j\xe0 vu", True, id="Latin-1"),
    pytest.param(["ISO_IR 100"], "\u2013", False, id="a dash is not Latin-1"),
    pytest.param(["ISO_IR 144"], "Привет", True, id="Cyrillic"),
    pytest.param(["ISO_IR 144"], "d\xe9j\xe0", False, id="French is not Cyrillic"),
    pytest.param(["ISO_IR 192"], "咳 é", True, id="UTF-8"),
    pytest.param(["GB18030"], "咳嗽", True, id="GB18030"),
    pytest.param(["ISO_IR 13"], "咳", False, id="half-width katakana has no kanji"),
    pytest.param(["", "ISO 2022 IR 87"], "咳と熱", True, id="kanji"),
    pytest.param(["", "ISO 2022 IR 87"], "咳\n熱", False, id="kanji on two lines"),
    pytest.param(["", "ISO 2022 IR 87"], "38\xb0", False, id="pydicom would write Latin-1"),
    pytest.param(["", "ISO 2022 IR 149"], "기침", True, id="hangul"),
]


@pytest.mark.parametrize("file", get_charset_files("*.dcm"))
def test_identity_keeps_its_bytes_in_every_character_set(file: str) -> None:
    image = pydicom.dcmread(file, stop_before_pixels=True)
    kept = source.read(source.source_header(image))
    again = pydicom.dcmread(file, stop_before_pixels=True)
    assert [raw(kept, k) for k in source.IDENTITY] == [raw(again, k) for k in source.IDENTITY]


@pytest.mark.parametrize(
    "name", ["ExplVR_BigEnd.dcm", "CT_small.dcm", "MR_small_implicit.dcm", "image_dfl.dcm"]
)
def test_any_transfer_syntax_will_do(name: str) -> None:
    file = get_testdata_file(name)
    assert isinstance(file, str)
    image = pydicom.dcmread(file, stop_before_pixels=True)
    kept = source.read(source.source_header(image))
    assert str(kept.PatientName) == str(image.PatientName) != ""
    assert kept.get("PatientID") == image.get("PatientID")
    assert kept.get("StudyTime") == image.get("StudyTime")


def test_only_what_results_need_is_kept() -> None:
    kept = source.read(source.source_header(header()))
    assert "ImageType" not in kept
    assert "SOPInstanceUID" not in kept
    assert not any(tag.is_private for tag in kept.keys())  # noqa: SIM118 - keys are tags
    item = kept.RequestAttributesSequence[0]
    assert item.RequestedProcedureID == "RP1"
    assert not any(tag.is_private for tag in item.keys())  # noqa: SIM118


def test_values_that_were_decoded_already_are_kept_too() -> None:
    image = header(SpecificCharacterSet="ISO_IR 192", PatientName="山田^太郎")
    before = source.source_header(image)
    assert str(image.PatientName) == "山田^太郎"
    str(image)  # decodes everything
    assert source.source_header(image) == before


def test_an_item_s_own_character_set_goes_with_it() -> None:
    other = Dataset()
    other.SpecificCharacterSet = "ISO_IR 144"
    other.PatientID = "Привет"
    other.TypeOfPatientID = "TEXT"
    image = header()
    image.OtherPatientIDsSequence = [other]
    text = source.source_header(reread(image))
    assert source.read(text).OtherPatientIDsSequence[0].PatientID == "Привет"
    kept = source.read(text)
    source.to_utf8(kept)
    assert kept.OtherPatientIDsSequence[0].get_item("PatientID").value.strip() == "Привет".encode()
    assert "SpecificCharacterSet" not in kept.OtherPatientIDsSequence[0]


@pytest.mark.parametrize(
    ("declared", "name", "understood"),
    [
        pytest.param("ISO-IR 100", b"D\xf6e^Jane^Quincy", "ISO_IR 100", id="hyphen"),
        pytest.param("ISO IR 144", b"\xbf\xe0e^Jane^Quincy", "ISO_IR 144", id="blank"),
        pytest.param("NONSENSE", b"D\xf6e^Jane^Quincy", "ISO_IR 100", id="unknown, Latin-1"),
        pytest.param("NONSENSE", b"\xc3\xb6e^Jane^Quincy", "ISO_IR 192", id="unknown, UTF-8"),
        pytest.param(["ISO_IR 192", "ISO 2022 IR 87"], b"Doe^Jane^Quincy", "ISO_IR 192", id="two"),
        pytest.param(["", "ISO_IR 192"], b"Doe^Jane^Quincy", "", id="UTF-8 does not come second"),
    ],
)
def test_a_wrong_character_set_is_understood_and_no_byte_is_changed(
    declared: object, name: bytes, understood: str
) -> None:
    image = reread(header(), old=b"Doe^Jane^Quincy", new=name)
    element = DataElement("SpecificCharacterSet", "CS", declared, validation_mode=IGNORE)
    image[element.tag] = element
    kept = source.read(source.source_header(image))
    assert "\\".join(source.character_set(kept)) == understood
    assert raw(kept, "PatientName") == name


@pytest.mark.parametrize(("terms", "text", "can"), CHARACTER_SETS)
def test_a_character_set_is_trusted_with_what_it_can_write(
    terms: list[str], text: str, can: bool
) -> None:
    assert source.encodes(terms, text) is can


@settings(deadline=None, max_examples=50)  # the machine may be busy
@given(
    terms=st.sampled_from([case.values[0] for case in CHARACTER_SETS]),
    text=st.text("aé\u2013Я咳기ｱ\n", min_size=1).filter(lambda t: t == t.strip()),
)
def test_what_a_character_set_can_write_is_read_again(terms: list[str], text: str) -> None:
    if not source.encodes(terms, text):
        return
    image = header(SpecificCharacterSet=terms or None, TextValue=text)
    assert image.TextValue == text


def test_text_moves_to_utf8_with_its_meaning() -> None:
    image = header(
        SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎"
    )
    kept = source.read(source.source_header(image))
    source.to_utf8(kept)
    assert raw(kept, "PatientName") == "Yamada^Tarou=山田^太郎".encode()
    assert kept.SpecificCharacterSet == "ISO_IR 192"


def test_a_sequence_where_a_name_belongs_counts_as_absent() -> None:
    image = header()
    image["PatientName"] = DataElement(0x00100010, "SQ", Sequence([Dataset()]))
    assert "PatientName" not in source.read(source.source_header(image))


def test_a_broken_sequence_counts_as_absent() -> None:
    image = header()
    elem = image.get_item("ProcedureCodeSequence")
    assert isinstance(elem, RawDataElement)
    image[elem.tag] = elem._replace(value=b"ab")
    assert "ProcedureCodeSequence" not in source.read(source.source_header(image))


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_sizes_and_tables_keep_their_numbers_in_every_transfer_syntax(syntax: UID) -> None:
    image = header(VOILUTSequence=[_table(256), _table(512)])
    image.LongitudinalTemporalOffsetFromEvent = 1.5
    image.file_meta.TransferSyntaxUID = syntax
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, image, enforce_file_format=True)
    sent = pydicom.dcmread(BytesIO(buffer.getvalue()))
    kept = source.read(source.source_header(sent))
    assert (kept.Rows, kept.Columns) == (96, 80)
    assert kept.LongitudinalTemporalOffsetFromEvent == 1.5
    (table,) = kept.VOILUTSequence  # the first, the other is for the viewer's user to choose
    assert list(table.LUTDescriptor) == [256, 0, 16]
    assert raw(table, "LUTData") == struct.pack("<256H", *range(1000, 1256))


def _table(entries: int) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [entries, 0, 16]
    item.add_new("LUTData", "US", list(range(1000, 1000 + entries)))
    return item


def test_half_a_number_counts_as_absent() -> None:
    image = header()
    elem = image.get_item("Rows")
    assert isinstance(elem, RawDataElement)
    image[elem.tag] = elem._replace(value=b"abc")
    assert "Rows" not in source.read(source.source_header(image))


def test_overlays_are_known_by_their_type() -> None:
    image = header()
    image.add_new((0x601E, 0x0040), "CS", "G")
    kept = source.read(source.source_header(reread(image)))
    assert [tag for tag in source.OVERLAY_TYPES if tag in kept] == [(0x601E, 0x0040)]
