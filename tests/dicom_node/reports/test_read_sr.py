"""Final reports as SR: whose, final or not, and the words, whatever shape the tree has."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    KeyObjectSelectionDocumentStorage,
)

from dicom_node.errors import NodeError, Unreadable
from dicom_node.reports import read_sr
from dicom_node.reports.final import FinalReport
from dicom_node.results import text_sr, uids
from tests.dicom_node.reports import documents as d
from tests.dicom_node.results import samples

OTHER = Path(__file__).parents[4] / "shared" / "data" / "other"
SHARED = pytest.mark.skipif(not OTHER.is_dir(), reason=f"no SR documents of others in {OTHER}")
QUIET = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

NODE_UID = "2.25.1"
TEXT = Code("T", "99RIS", "Report Text")
BODY = d.container(d.FINDINGS, d.text(d.FINDING, "Small effusion."))


def read(ds: Dataset, ours: Callable[[str], bool] = lambda uid: False) -> FinalReport:
    return read_sr.read(ds, ours, NODE_UID)


def sections(*below: Dataset, **changes: object) -> dict[str, str]:
    return dict(read(d.document(*below, **changes)).sections)


# -- final or not ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sop_class",
    [BasicTextSRStorage, EnhancedSRStorage, ComprehensiveSRStorage, Comprehensive3DSRStorage],
)
def test_a_verified_document_of_each_class_is_final(sop_class: str) -> None:
    final = read(d.document(BODY, SOPClassUID=sop_class))
    assert (final.verdict, final.reason) == ("final", "")
    assert final.text == "Small effusion."
    assert final.author_role == "radiologist"


def test_a_document_of_another_class_is_ignored() -> None:
    final = read(d.document(BODY, SOPClassUID=KeyObjectSelectionDocumentStorage))
    assert (final.verdict, final.text) == ("ignored", "")


UNVERIFIED = {"VerificationFlag": "UNVERIFIED", "VerifyingObserverSequence": None}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"AuthorObserverSequence": [d.author()]}, id="author is a person"),
        pytest.param({"VerifyingObserverSequence": [d.verifier("")]}, id="verifier is named"),
        pytest.param(
            {"AuthorObserverSequence": [d.author()], "PreliminaryFlag": "FINAL"}, id="final"
        ),
    ],
)
def test_a_complete_document_of_a_person_is_final(changes: dict[str, object]) -> None:
    assert read(d.document(BODY, **{**UNVERIFIED, **changes})).verdict == "final"


def test_a_complete_document_with_a_person_observer_in_its_tree_is_final() -> None:
    person = d.item("PNAME", d.PERSON, "HAS OBS CONTEXT", PersonName="Reader^Rosa")
    assert read(d.document(person, BODY, **UNVERIFIED)).verdict == "final"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param(UNVERIFIED, "no person", id="nobody is named"),
        pytest.param(
            {**UNVERIFIED, "AuthorObserverSequence": [d.author("DEV")]}, "no person", id="a device"
        ),
        pytest.param(
            {**UNVERIFIED, "AuthorObserverSequence": [d.author()], "CompletionFlag": "PARTIAL"},
            "not COMPLETE",
            id="partial",
        ),
        pytest.param(
            {
                **UNVERIFIED,
                "AuthorObserverSequence": [d.author()],
                "PreliminaryFlag": "PRELIMINARY",
            },
            "PRELIMINARY",
            id="preliminary",
        ),
        pytest.param({"PreliminaryFlag": "PRELIMINARY"}, "PRELIMINARY", id="verified preliminary"),
        pytest.param({"ContentSequence": None}, "no text", id="no text"),
    ],
)
def test_what_is_not_final_is_ignored_with_a_reason(
    changes: dict[str, object], reason: str
) -> None:
    final = read(d.document(BODY, **changes))
    assert final.verdict == "ignored"
    assert reason in final.reason


# -- never our own objects -------------------------------------------------------------------------


def test_our_own_draft_is_ignored_even_if_someone_verified_it() -> None:
    draft = text_sr.document(samples.record())
    draft.VerificationFlag, draft.CompletionFlag = "VERIFIED", "COMPLETE"
    del draft.PreliminaryFlag
    final = read_sr.read(draft, lambda uid: False, uids.node_uid("install-0001"))
    assert (final.verdict, final.reason) == ("ignored", "our own object")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"ManufacturerModelName": "dicom-node"}, id="model name"),
        pytest.param(
            {"AuthorObserverSequence": [d.dataset(ObserverType="DEV", DeviceUID=NODE_UID)]},
            id="author observer",
        ),
        pytest.param(
            {
                "ContentSequence": [
                    d.item(
                        "UIDREF",
                        Code("121012", "DCM", "Device Observer UID"),
                        "HAS OBS CONTEXT",
                        UID=NODE_UID,
                    ),
                    BODY,
                ]
            },
            id="device observer in the tree",
        ),
    ],
)
def test_one_mark_of_ours_is_enough(changes: dict[str, object]) -> None:
    assert read(d.document(**changes)).reason == "our own object"


def test_a_known_sop_instance_uid_is_ours() -> None:
    final = read(d.document(BODY), ours=lambda uid: uid == d.DOCUMENT)
    assert (final.verdict, final.reason) == ("ignored", "our own object")


# -- versions --------------------------------------------------------------------------------------


def test_a_document_with_a_predecessor_is_a_correction() -> None:
    changes = {"PredecessorDocumentsSequence": d.predecessor("1.2.9", purpose=d.REPLACED)}
    final = read(d.document(BODY, **changes))
    assert (final.verdict, final.predecessors) == ("corrected", ("1.2.9",))


def test_a_document_that_says_that_it_adds_to_another_is_an_addendum() -> None:
    changes = {"PredecessorDocumentsSequence": d.predecessor("1.2.9", purpose=d.ADDENDED)}
    assert read(d.document(BODY, **changes)).verdict == "addendum"


@pytest.mark.parametrize("code", [d.ADDENDUM, d.OLD_ADDENDUM])
def test_a_document_of_nothing_but_an_addendum_is_one(code: Code) -> None:
    changes = {"PredecessorDocumentsSequence": d.predecessor("1.2.9")}
    addendum = d.container(code, d.container(d.FINDINGS, d.text(d.FINDING, "Rib fracture.")))
    final = read(d.document(addendum, **changes))
    assert (final.verdict, final.text) == ("addendum", "Rib fracture.")


def test_a_report_with_an_addendum_has_it_behind_the_rest() -> None:
    final = read(d.document(d.container(d.ADDENDUM, d.text(TEXT, "Seen again.")), BODY))
    assert (final.verdict, final.text) == ("final", "Small effusion.\n\nSeen again.")


def test_versions_of_a_study_share_an_order_key_that_names_nobody() -> None:
    first, second = read(d.document(BODY)), read(d.document(BODY, SOPInstanceUID="1.2.77"))
    other = read(d.document(BODY, StudyInstanceUID="1.2.78"))
    assert first.order_key == second.order_key != other.order_key
    assert d.STUDY not in first.order_key


# -- the tree --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heading", "element", "section"),
    [
        (d.FINDINGS, d.FINDING, "findings"),
        (d.OLD_FINDINGS, d.FINDING, "findings"),
        (d.IMPRESSIONS, d.IMPRESSION, "impression"),
        (d.OLD_IMPRESSIONS, d.IMPRESSION, "impression"),
        (d.CONCLUSIONS, d.CONCLUSION, "conclusion"),
        (d.OLD_CONCLUSIONS, d.CONCLUSION, "conclusion"),
        (d.HISTORY, TEXT, "history"),
        (d.OLD_HISTORY, TEXT, "history"),
        (d.FINDINGS, TEXT, "findings"),
        (d.IMPRESSIONS, d.FINDING, "impression"),
        (Code("X1", "99RIS", "Radiological findings"), TEXT, "findings"),
        (Code("X2", "99RIS", "IMPRESSION"), TEXT, "impression"),
        (Code("X3", "99RIS", "Clinical History"), TEXT, "history"),
        (Code("X4", "99RIS", "所見"), TEXT, "findings"),
        (Code("X5", "99RIS", "Comparison"), d.FINDING, "other"),
    ],
)
def test_a_sections_code_or_else_its_words_name_it(
    heading: Code, element: Code, section: str
) -> None:
    assert sections(d.container(heading, d.text(element, "Words."))) == {section: "Words."}


@pytest.mark.parametrize(
    ("element", "section"),
    [(d.FINDING, "findings"), (d.IMPRESSION, "impression"), (d.CONCLUSION, "conclusion")],
)
def test_elements_need_no_section(element: Code, section: str) -> None:
    assert sections(d.text(element, "Words.")) == {section: "Words."}


def test_a_title_says_nothing() -> None:
    title = Code("11528-7", "LN", "Radiology Report")  # dcm4chee's, without a template id
    below = (
        d.container(d.OLD_FINDINGS, d.text(d.FINDING, "Clear lungs.")),
        d.container(d.OLD_CONCLUSIONS, d.text(d.CONCLUSION, "Normal.")),
    )
    final = read(d.document(*below, title=title))
    assert final.text == "Clear lungs.\n\nNormal."
    assert sections(d.text(TEXT, "Words."), title=d.IMPRESSIONS) == {"other": "Words."}


def test_a_document_without_sections_is_its_whole_text() -> None:
    final = read(d.document(d.text(TEXT, "Clear lungs."), d.text(None, "No effusion.")))
    assert final.sections == {"other": "Clear lungs.\nNo effusion."}
    assert final.text == "Clear lungs.\nNo effusion."


def test_headings_within_a_text_are_sections_too() -> None:
    whole = "HISTORY: cough\r\nFINDINGS:\r\nClear lungs.\r\n\r\nIMPRESSION\r\nNormal."
    assert sections(d.text(TEXT, whole)) == {
        "history": "cough",
        "findings": "Clear lungs.",
        "impression": "Normal.",
    }


def test_unnamed_parts_are_left_out_where_sections_are_named() -> None:
    assert read(d.document(d.text(TEXT, "Dictated at 10."), BODY)).text == "Small effusion."


def test_running_text_is_read_as_one_line_with_its_values() -> None:
    length = d.dataset(
        NumericValue="3.5", MeasurementUnitsCodeSequence=d.coded(Code("mm", "UCUM", "millimetre"))
    )
    number = d.item("NUM", Code("N", "99RIS", "Diameter"), MeasuredValueSequence=[length])
    place = d.item(
        "CODE", Code("P", "99RIS", "Place"), ConceptCodeSequence=d.coded(Code("L", "99RIS", "apex"))
    )
    parts = (d.text(TEXT, "A nodule of"), number, d.text(TEXT, "in the"), place)
    running = d.container(d.FINDINGS, *parts, continuity="CONTINUOUS")
    separate = d.container(d.FINDINGS, *parts)
    assert sections(running) == {"findings": "A nodule of 3.5 mm in the apex"}
    assert sections(separate) == {"findings": "A nodule of\nDiameter: 3.5 mm\nin the\nPlace: apex"}


def test_texts_that_a_text_is_inferred_from_are_read_and_context_is_not() -> None:
    said = d.text(
        d.CONCLUSION,
        "Pneumonia.",
        d.text(d.FINDING, "Opacity.", relationship="INFERRED FROM"),
        d.text(TEXT, "Left.", relationship="HAS CONCEPT MOD"),
        d.text(TEXT, "A device.", relationship="HAS OBS CONTEXT"),
    )
    assert sections(said) == {"conclusion": "Pneumonia.", "findings": "Opacity."}


def test_subsections_and_references_are_no_obstacle() -> None:
    reference = d.dataset(RelationshipType="CONTAINS", ReferencedContentItemIdentifier=[1, 1])
    inner = d.container(Code("LU", "99RIS", "Lungs"), d.text(TEXT, "Clear."), reference)
    assert sections(d.container(d.FINDINGS, inner, d.text(TEXT, "No effusion."))) == {
        "findings": "Clear.\nNo effusion."
    }


@pytest.mark.parametrize("term", ["\\ISO 2022 IR 87", "ISO_IR 192"])
def test_text_is_read_in_the_documents_character_set(term: str) -> None:
    said = "右下肺野に浸潤影。\n胸水なし。"
    names = term.split("\\")
    ds = d.document(d.container(d.FINDINGS, d.text(d.FINDING, said)), SpecificCharacterSet=names)
    assert read(ds).sections == {"findings": said}


def test_latin_1_is_read_and_so_is_what_has_no_character_set() -> None:
    below = d.container(d.FINDINGS, d.text(d.FINDING, "Pleuraerguß."))
    assert read(d.document(below, SpecificCharacterSet="ISO_IR 100")).text == "Pleuraerguß."
    plain = d.container(d.FINDINGS, d.text(d.FINDING, "Effusion."))
    assert read(d.document(plain, SpecificCharacterSet=None)).text == "Effusion."


# -- whose, and when -------------------------------------------------------------------------------


def test_it_says_whose_report_it_is_and_shows_it_to_nobody() -> None:
    final = read(d.document(BODY))
    claim = final.claim
    assert (claim.study_instance_uid, claim.study_date) == (d.STUDY, "20240311")
    assert (claim.accession_number, claim.accession_issuer) == ("ACC1", "RIS")
    assert (claim.patient_id, claim.patient_issuer) == ("MRN0012345", "GENHOSP")
    for hidden in ("MRN0012345", "ACC1", "effusion", "Reader"):
        assert hidden not in repr(final)


def test_the_latest_verification_counts() -> None:
    several = [d.verifier("20240311120000"), d.verifier("20240311140000+0200")]
    final = read(d.document(BODY, VerifyingObserverSequence=several, TimezoneOffsetFromUTC="+0200"))
    assert final.verified_at == datetime(2024, 3, 11, 14, tzinfo=timezone(timedelta(hours=2)))


def test_what_nobody_verified_has_the_time_it_was_written() -> None:
    final = read(d.document(BODY, AuthorObserverSequence=[d.author()], **UNVERIFIED))
    assert final.verified_at == datetime(2024, 3, 11, 11, 30, tzinfo=UTC)


# -- documents of others ---------------------------------------------------------------------------


@SHARED
@pytest.mark.parametrize(
    ("name", "verdict", "words"),
    [
        ("sr-basic-text", "ignored", "Enter text"),
        ("sr-comprehensive", "corrected", "A mass of 3 cm was detected."),
        ("sr-tid1500", "ignored", "Spinal cord"),
        ("sr-ai-mdai", "final", "Bad Exposure"),  # COMPLETE, and it names a person
    ],
)
def test_documents_of_others_are_read(name: str, verdict: str, words: str) -> None:
    final = read(pydicom.dcmread(OTHER / f"{name}.dcm"))
    assert final.verdict == verdict
    assert words in final.text


# -- hostile ones ----------------------------------------------------------------------------------


def test_a_tree_without_end_is_refused_by_its_uid() -> None:
    deep = d.text(d.FINDING, "Deep.")
    for _ in range(read_sr.MAX_DEPTH):
        deep = d.container(None, deep)
    ds = d.document()
    ds.ContentSequence = [deep]
    with pytest.raises(Unreadable, match=d.DOCUMENT):
        read(ds)


def test_a_tree_of_too_many_items_is_refused() -> None:
    ds = d.document()
    ds.ContentSequence = [d.container(None)] * read_sr.MAX_ITEMS
    with pytest.raises(Unreadable, match="items"):
        read(ds)


@pytest.mark.parametrize("uid", [None, "Doe^Jane"])
def test_a_document_without_a_uid_is_refused_and_not_quoted(uid: str | None) -> None:
    ds = d.document(BODY)
    del ds.SOPInstanceUID
    if uid:
        ds.add_new("SOPInstanceUID", "LO", uid)
    with pytest.raises(Unreadable, match=r"without a valid SOP Instance UID$"):
        read(ds)


def test_an_element_that_cannot_be_parsed_is_not_quoted() -> None:
    ds = d.document(BODY)
    del ds.ContentSequence
    ds.add_new("ContentSequence", "LO", "Doe^Jane")
    with pytest.raises(Unreadable, match=f"SR {d.DOCUMENT} is malformed") as caught:
        read(ds)
    assert caught.value.__cause__ is None


def test_a_failing_lookup_is_not_taken_for_a_malformed_document() -> None:
    def broken(uid: str) -> bool:
        raise RuntimeError("database")

    with pytest.raises(RuntimeError, match="database"):
        read(d.document(BODY), ours=broken)


def _file() -> bytes:
    buffer = BytesIO()
    history = d.container(d.HISTORY, d.text(None, "Cough."))
    changes = {"PredecessorDocumentsSequence": d.predecessor("1.2.9", purpose=d.REPLACED)}
    pydicom.dcmwrite(buffer, d.document(history, BODY, **changes), enforce_file_format=True)
    return buffer.getvalue()


FILE = _file()


@QUIET
@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.tuples(st.integers(132, len(FILE) - 1), st.integers(0, 255)), min_size=1, max_size=8
    )
)
def test_bytes_gone_wrong_raise_nothing_else(changes: list[tuple[int, int]]) -> None:
    data = bytearray(FILE)
    for place, value in changes:
        data[place] = value
    try:
        ds = pydicom.dcmread(BytesIO(bytes(data)), force=True)
    except Exception:  # pydicom's reading of the file is its caller's affair
        return
    with contextlib.suppress(NodeError):
        read(ds)
