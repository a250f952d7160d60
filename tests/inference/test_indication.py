"""The indication: the sender's own words, the nearest to the examination, or nothing."""

from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import DataElement, Dataset, dcmread
from pydicom.filewriter import dcmwrite

from inference import headers, indication

REQUEST = "RequestAttributesSequence > ReasonForTheRequestedProcedure"
OF_THE_STUDY = ("ReasonForStudy", "ReasonForVisit", "AdmittingDiagnosesDescription")


def header(*requests: object, **attributes: object) -> Dataset:
    """A header with one request for each reason, and other attributes as they are."""
    ds = Dataset()
    with headers.tolerant():
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)
        items = [Dataset() for _ in requests]
        for item, reason in zip(items, requests, strict=True):
            item.ReasonForTheRequestedProcedure = reason
    if items:
        ds.RequestAttributesSequence = items
    return ds


def found(ds: Dataset) -> tuple[str, str] | None:
    """Text and source."""
    one = indication.find(ds)
    return None if one is None else (one.text, one.source)


def stored(ds: Dataset, *, implicit: bool = False) -> Dataset:
    """The data set as a reader gets it: values still raw."""
    buffer = BytesIO()
    dcmwrite(buffer, ds, implicit_vr=implicit, little_endian=True)
    buffer.seek(0)
    return dcmread(buffer, force=True)


# -- where it is looked for ------------------------------------------------------------------------


def test_the_request_comes_first_then_study_visit_and_admission() -> None:
    ds = header("request", **{keyword: keyword for keyword in OF_THE_STUDY})
    assert found(ds) == ("request", REQUEST)
    del ds.RequestAttributesSequence
    for keyword in OF_THE_STUDY:
        assert found(ds) == (keyword, keyword)
        delattr(ds, keyword)
    assert found(ds) is None


def test_the_reasons_of_several_requests_are_all_told_once() -> None:
    assert found(header("cough", None, "fever", "cough")) == ("cough; fever", REQUEST)


def test_several_diagnoses_are_all_told() -> None:
    ds = header(AdmittingDiagnosesDescription=["pneumonia", "", "heart failure"])
    assert found(ds) == ("pneumonia; heart failure", "AdmittingDiagnosesDescription")


@pytest.mark.parametrize("blank", [None, "", "   ", "-", "?", " . ", "\0", "\r\n", [], ["", "--"]])
def test_a_blank_says_nothing_so_the_next_is_taken(blank: object) -> None:
    ds = header(blank, ReasonForStudy=blank, ReasonForVisit="dyspnoea")
    assert found(ds) == ("dyspnoea", "ReasonForVisit")


def test_codes_comments_and_other_sequences_are_no_indication() -> None:
    code = Dataset()
    code.CodeMeaning = "Cough"
    ds = header(ImageComments="cough", StudyDescription="cough")
    ds.AdmittingDiagnosesCodeSequence = [code]
    assert found(ds) is None


# -- what is taken of it ---------------------------------------------------------------------------


def test_lines_become_one_line_and_control_characters_blanks() -> None:
    ds = header(ReasonForVisit="Cough\r\nsince\tMonday,\x1bfever\x00 ")
    assert found(ds) == ("Cough since Monday, fever", "ReasonForVisit")


@pytest.mark.parametrize(
    "endless",
    [
        header(ReasonForVisit="cough " * 100_000),
        header(AdmittingDiagnosesDescription=[f"diagnosis {i}" for i in range(10_000)]),
    ],
    ids=["one value", "many values"],
)
def test_what_has_no_end_is_cut(endless: Dataset) -> None:
    one = indication.find(endless)
    assert one is not None
    assert 1900 < len(one.text) <= indication.LONGEST
    assert one.text == one.text.strip()


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("character_set", "text"),
    [
        pytest.param("ISO_IR 100", "Husten, Lungenödem?", id="Latin-1"),
        pytest.param("ISO_IR 192", "咳、発熱", id="UTF-8"),
        pytest.param(["", "ISO 2022 IR 87"], "咳と熱", id="Japanese"),
        pytest.param("ISO_IR 144", "Кашель", id="Cyrillic"),
    ],
)
def test_the_text_is_read_in_the_senders_character_set(
    character_set: object, text: str, implicit: bool
) -> None:
    ds = header(text, SpecificCharacterSet=character_set)
    assert found(stored(ds, implicit=implicit)) == (text, REQUEST)


def test_an_items_own_character_set_is_respected() -> None:
    ds = header("Кашель", SpecificCharacterSet="ISO_IR 100")
    ds.RequestAttributesSequence[0].SpecificCharacterSet = "ISO_IR 144"
    assert found(stored(ds)) == ("Кашель", REQUEST)


def test_a_value_of_a_wrong_kind_is_passed_over() -> None:
    ds = header(ReasonForVisit="cough")
    for keyword, vr, value in (
        ("ReasonForStudy", "US", 7),
        ("RequestAttributesSequence", "LO", "no sequence"),
    ):
        ds[keyword] = DataElement(keyword, vr, value)
    assert found(ds) == ("cough", "ReasonForVisit")


def test_the_words_are_not_shown_where_the_object_is() -> None:
    one = indication.find(header("JANE DOE fell"))
    assert one is not None
    assert "JANE" not in repr(one)
    assert "JANE" not in str(one)


# -- whatever a sender writes ----------------------------------------------------------------------

_raw = st.binary(max_size=40).map(lambda value: value + b" " * (len(value) % 2))
_sets = st.sampled_from(
    [b"", b"ISO_IR 100", b"ISO_IR 192", b"\\ISO 2022 IR 87", b"NONSENSE", b"\\"]
)


def _element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    length = len(value).to_bytes(2, "little")
    if vr in (b"UT", b"SQ", b"UN"):
        length = b"\0\0" + len(value).to_bytes(4, "little")
    tag = group.to_bytes(2, "little") + number.to_bytes(2, "little")
    return tag + vr + length + value


def _padded(value: bytes) -> bytes:
    return value + b" " * (len(value) % 2)


@settings(deadline=None)  # the machine may be busy
@given(
    character_set=_sets.map(_padded),
    diagnoses=_raw,
    study=_raw,
    visit=_raw,
    request=_raw,
    vrs=st.lists(
        st.sampled_from([b"LO", b"UT", b"UN", b"US", b"PN", b"DS"]), min_size=3, max_size=3
    ),
)
def test_no_header_makes_it_fail_or_give_more_than_one_clean_line(
    character_set: bytes,
    diagnoses: bytes,
    study: bytes,
    visit: bytes,
    request: bytes,
    vrs: list[bytes],
) -> None:
    data_set = b"".join(
        [
            _element(0x0008, 0x0005, b"CS", character_set),
            _element(0x0008, 0x1080, vrs[0], diagnoses),
            _element(0x0032, 0x1030, vrs[1], study),
            _element(0x0032, 0x1066, vrs[2], visit),
            _element(0x0040, 0x0275, b"SQ", request),
        ]
    )
    with headers.tolerant():
        ds = dcmread(BytesIO(data_set), force=True)
        one = indication.find(ds)
    assert one is None or (
        one.source in (REQUEST, *OF_THE_STUDY)
        and one.text == " ".join(one.text.split())
        and any(c.isalnum() for c in one.text)
        and not any(c < " " or "\x7f" <= c < "\xa0" for c in one.text)
        and one.text.encode()  # no lone surrogate
    )


@settings(deadline=None)  # the machine may be busy
@given(st.text())
def test_whatever_is_written_is_kept_but_for_blanks_and_control_characters(text: str) -> None:
    ds = Dataset()
    with headers.tolerant():
        ds.ReasonForVisit = text
    one = indication.find(ds)
    kept = [c for c in text if c.isalnum()]
    assert kept == ([c for c in one.text if c.isalnum()] if one else [])


def test_an_orders_indication_is_cleaned_as_a_headers() -> None:
    found = indication.of_order("Cough\r\n and\0 fever ", "HL7 ORM RIS > OBR-31")
    assert found == indication.Indication(text="Cough and fever", source="HL7 ORM RIS > OBR-31")
    assert indication.of_order(" - ", "HL7 ORM RIS > OBR-31") is None
    assert len(getattr(indication.of_order("x" * 9999, ""), "text", "")) == indication.LONGEST


@pytest.mark.parametrize("in_the_request", [True, False])
def test_the_header_may_say_how_urgent_it_is(in_the_request: bool) -> None:
    ds = Dataset()
    ds.RequestAttributesSequence = [Dataset()]
    said = ds.RequestAttributesSequence[0] if in_the_request else ds
    said.RequestedProcedurePriority = "STAT"
    assert indication.priority(ds) == "STAT"


def test_a_header_that_says_nothing_of_urgency_is_not_urgent() -> None:
    assert indication.priority(Dataset()) == ""
