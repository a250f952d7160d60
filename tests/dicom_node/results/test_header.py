from __future__ import annotations

import datetime
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import (
    EncapsulatedPDFStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    SecondaryCaptureImageStorage,
)

from dicom_node.results.header import (
    SeriesKind,
    description,
    header,
    printable,
    short_name,
    sr_document,
    subject,
)
from tests.dicom_node.results import samples
from tests.dicom_node.results.samples import ALGORITHM, record

SERIES = SeriesKind(modality="SR", number=1, title="AI DRAFT")
BASIC_TEXT = "1.2.840.10008.5.1.4.1.1.88.11"


def made(image: Dataset | None = None, **changes: object) -> Dataset:
    return header(subject(record(image, **changes)), BASIC_TEXT, SERIES)


@pytest.mark.parametrize(
    ("sop_class", "series"),
    [
        (EncapsulatedPDFStorage, SeriesKind(modality="DOC", number=3, title="AI DRAFT")),
        (SecondaryCaptureImageStorage, SeriesKind(modality="OT", number=4, title="AI DRAFT")),
        (
            GrayscaleSoftcopyPresentationStateStorage,
            SeriesKind(modality="PR", number=5, title="AI DRAFT"),
        ),
    ],
    ids=["PDF", "Secondary Capture", "GSPS"],
)
def test_the_header_serves_every_kind_of_result(sop_class: str, series: SeriesKind) -> None:
    ds = header(subject(record(kind=series.modality)), sop_class, series)
    assert ds.SOPClassUID == ds.file_meta.MediaStorageSOPClassUID == sop_class
    assert (ds.Modality, ds.SeriesNumber) == (series.modality, 9900 + series.number)
    assert ds.PatientName == "Doe^Jane^Quincy"
    assert "CompletionFlag" not in ds


@pytest.mark.parametrize(
    ("keyword", "sent", "given"),
    [
        pytest.param("PatientSex", "F", "F", id="female"),
        pytest.param("PatientSex", "U", "", id="sex U"),
        pytest.param("PatientSex", "f", "", id="small letter"),
        pytest.param("PatientBirthDate", "1958.02.14", "19580214", id="ACR-NEMA date"),
        pytest.param("PatientBirthDate", "1958-02-14", "19580214", id="ISO date"),
        pytest.param("PatientBirthDate", "19580231", "", id="no such day"),
        pytest.param("PatientBirthDate", "unknown", "", id="word for a date"),
        pytest.param("PatientBirthDate", "1958-02.14", "", id="mixed date"),
        pytest.param("StudyDate", "2024", "", id="a year"),
        pytest.param("StudyTime", "10:12:03", "101203", id="colons"),
        pytest.param("StudyTime", "101203.123456", "101203.123456", id="microseconds"),
        pytest.param("StudyTime", "1012", "1012", id="minutes"),
        pytest.param("StudyTime", "251203", "", id="no such hour"),
        pytest.param("StudyTime", "10h12", "", id="junk time"),
        pytest.param("PatientAge", "066Y", "066Y", id="age"),
        pytest.param("PatientAge", "62", None, id="age without unit"),
        pytest.param("PatientBirthTime", "09:30", "0930", id="birth time"),
        pytest.param("PatientBirthTime", "dawn", None, id="junk birth time"),
    ],
)
def test_values_that_are_no_identity_are_copied_only_when_legal(
    keyword: str, sent: str, given: str | None
) -> None:
    assert made(samples.header(**{keyword: sent})).get(keyword) == given


@settings(deadline=None, max_examples=50)  # the machine may be busy
@given(st.text("0123456789.:-+ ", max_size=16))
def test_no_date_or_time_can_make_an_illegal_header(sent: str) -> None:
    ds = made(samples.header(StudyDate=sent, StudyTime=sent, TimezoneOffsetFromUTC=sent))
    if ds.StudyDate:
        datetime.datetime.strptime(ds.StudyDate, "%Y%m%d")
    assert len(ds.StudyTime) in (0, 2, 4, 6, *range(8, 14))
    assert len(ds.TimezoneOffsetFromUTC) == 5


@pytest.mark.parametrize(
    ("source", "site", "offset", "time"),
    [
        pytest.param("+0900", "+0100", "+0900", "182030", id="the source's first"),
        pytest.param(None, "+0100", "+0100", "102030", id="then the site's"),
        pytest.param("JST", "-0330", "-0330", "055030", id="the site's for a wrong one"),
        pytest.param(None, None, None, "092030", id="neither: the record's own zone"),
    ],
)
def test_our_times_are_in_the_zone_that_the_object_names(
    source: str | None, site: str | None, offset: str | None, time: str
) -> None:
    image = samples.header(TimezoneOffsetFromUTC=source)
    ds = made(image, timezone_offset=site)
    assert ds.get("TimezoneOffsetFromUTC") == offset
    assert ds.SeriesTime == ds.InstanceCreationTime == time


def test_a_removed_identity_without_a_method_says_so() -> None:
    ds = made(samples.header(PatientIdentityRemoved="YES"))
    assert ds.DeidentificationMethod == "not stated by the source"
    ds = made(samples.header(PatientIdentityRemoved="YES", DeidentificationMethod="by hand"))
    assert ds.DeidentificationMethod == "by hand"


def test_the_site_s_name_stands_in_for_a_missing_or_too_long_institution() -> None:
    assert made().InstitutionName == "General Hospital"
    assert made(samples.header(InstitutionName=None)).InstitutionName == "Our Hospital"
    assert made(samples.header(InstitutionName="x" * 65)).InstitutionName == "Our Hospital"
    author = sr_document(subject(record(samples.header(InstitutionName=None))))
    assert author.AuthorObserverSequence[0].InstitutionName == "Our Hospital"


def test_acquisition_equipment_without_a_manufacturer_is_still_legal() -> None:
    ds = made(samples.bare_header())
    assert [item.Manufacturer for item in ds.ContributingEquipmentSequence] == [
        "Microsoft Research",
        "unknown",
    ]


def test_a_request_takes_the_item_s_accession_number_before_the_study_s() -> None:
    image = samples.header()
    image.RequestAttributesSequence[0].AccessionNumber = "ACC-OF-ITEM"
    document = sr_document(subject(record(image)))
    assert document.ReferencedRequestSequence[0].AccessionNumber == "ACC-OF-ITEM"
    document = sr_document(subject(record()))
    assert document.ReferencedRequestSequence[0].AccessionNumber == "ACC1"


def test_evidence_is_named_once_though_it_came_twice() -> None:
    twice = record().evidence * 2
    document = sr_document(subject(record(evidence=twice)))
    (study,) = document.CurrentRequestedProcedureEvidenceSequence
    assert [len(s.ReferencedSOPSequence) for s in study.ReferencedSeriesSequence] == [1, 1]


@pytest.mark.parametrize(
    "name",
    [
        "LLaVA-Rad",
        "DEMO MODEL (phantoms only)",
        "LLaVA-Rad in a special edition for one hospital, DEMO MODEL, phantoms only",
        "a name of many words without any meaning that goes on for far longer than it should",
    ],
)
def test_titles_fit_and_a_demo_model_s_still_says_so(name: str) -> None:
    algorithm = replace(ALGORITHM, name=name, demo="DEMO MODEL" in name)
    title = made(algorithm=algorithm).SeriesDescription
    assert len(title) <= 64
    assert ("DEMO MODEL" in title) == algorithm.demo


@settings(deadline=None, max_examples=50)  # the machine may be busy
@given(st.text(max_size=100), st.integers(12, 64))
def test_a_short_name_is_one_legal_line(name: str, limit: int) -> None:
    short = short_name(replace(ALGORITHM, name=f"{name}DEMO MODEL"), limit)
    assert len(short) <= limit
    assert "DEMO MODEL" in short
    assert "\\" not in short
    assert short.isprintable() or printable(short) == short


def test_the_description_has_every_parameter_and_the_hash() -> None:
    assert description(ALGORITHM, digits=4) == (
        "decoding=greedy; preprocess=mimic-jpg-v1; prompt=findings-v1; quantisation=nf4; "
        "weights=sha256:0123"
    )


@pytest.mark.parametrize(
    ("terms", "findings", "used", "said"),
    [
        pytest.param("ISO_IR 100", "Plain.", "ISO_IR 100", "Plain.", id="kept"),
        pytest.param("ISO_IR 100", "1 \u2013 2", "ISO_IR 100", "1 - 2", id="dash folded"),
        pytest.param("ISO_IR 192", "1 \u2013 2", "ISO_IR 192", "1 \u2013 2", id="dash kept"),
        pytest.param("ISO_IR 100", "\u2265 1 \u2013 2", "ISO_IR 192", "\u2265 1 \u2013 2", id="8"),
        pytest.param(None, "Plain.", None, "Plain.", id="none kept"),
        pytest.param(None, "d\xe9j\xe0", "ISO_IR 192", "d\xe9j\xe0", id="none is not enough"),
    ],
)
def test_the_character_set_is_the_source_s_if_it_can_write_the_draft(
    terms: str | None, findings: str, used: str | None, said: str
) -> None:
    of = subject(record(samples.header(SpecificCharacterSet=terms), findings=findings))
    assert header(of, BASIC_TEXT, SERIES).get("SpecificCharacterSet") == used
    assert of.record.findings == said


def test_a_name_moves_with_the_object_to_utf8() -> None:
    image = samples.header(SpecificCharacterSet="ISO_IR 100", PatientName="M\xfcller^J\xf6rg")
    ds = made(image, findings="\u2265 1")
    assert ds.get_item("PatientName").value.rstrip() == "M\xfcller^J\xf6rg".encode()
