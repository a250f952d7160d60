"""Orders as HL7 ORM, OMG and OMI: whose, which, how urgent and why."""

from __future__ import annotations

import contextlib
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.errors import NodeError, Unreadable
from dicom_node.orders import Told, order_key
from dicom_node.priorities import ROUTINE, STAT, URGENT
from dicom_node.reports import read_order
from dicom_node.storage import Identity
from tests.dicom_node.reports.made import identity

STUDY = "1.2.826.0.1.3680043.10.1561.7.2"
PID = "PID|1||9^^^LAB^PI~MRN0012345^^^GENHOSP&1.2.3&ISO^MR||Verysecret^Jane||19010203|F"
ZDS = f"ZDS|{STUDY}^RIS^Application^DICOM"


def msh(kind: str = "ORM^O01", version: str = "2.3.1", charset: str = "") -> str:
    return f"MSH|^~\\&|RIS|HOSP|||20260311130000||{kind}|M1|P|{version}||||||{charset}"


def segment(name: str, fields: dict[int, str]) -> str:
    """A segment with these fields."""
    return "|".join([name, *(fields.get(number, "") for number in range(1, max(fields) + 1))])


def orc(control: str = "NW", **fields: str) -> str:
    """``orc("NW", f7="...")``: with ORC-7."""
    values = {1: control, 2: "P1^HIS", 3: "F1^RIS"}
    return segment("ORC", values | {int(name[1:]): text for name, text in fields.items()})


def obr(reason: str = "^Cough and fever", **fields: str) -> str:
    values = {1: "1", 2: "P1^HIS", 3: "F1^RIS", 4: "XRCHEST", 18: "A1", 19: "RP1", 31: reason}
    return segment("OBR", values | {int(name[1:]): text for name, text in fields.items()})


def message(*segments: str, kind: str = "ORM^O01", charset: str = "") -> bytes:
    return "\r".join([msh(kind, charset=charset), PID, *segments, ""]).encode()


def read(*segments: str, kind: str = "ORM^O01", charset: str = "") -> Told:
    """Read a message of one order."""
    (told,) = read_order.read(message(*segments, kind=kind, charset=charset))
    return told


# -- one order -------------------------------------------------------------------------------------


def test_an_order_as_ihe_writes_it() -> None:
    assert read(orc(), obr(), ZDS) == Told(
        source="hl7",
        peer="RIS",
        order_key=order_key("P1^HIS", "RP1"),
        study_instance_uid=STUDY,
        identity=identity("MRN0012345", issuer="GENHOSP", accession="A1"),
        indication="Cough and fever",
        indication_source="HL7 ORM RIS > OBR-31",
    )


def test_an_imaging_order_names_number_procedure_and_study_in_ipc() -> None:
    told = read(
        orc(),
        "TQ1|1||||||||S",
        obr(f18="", f19=""),
        f"IPC|A7^RIS|RP7^RIS|{STUDY}^RIS|SPS1^RIS|DX",
        kind="OMI^O23^OMI_O23",
    )
    assert told.study_instance_uid == STUDY
    assert told.identity == identity("MRN0012345", issuer="GENHOSP", accession="A7", ris="RIS")
    assert told.order_key == order_key("P1^HIS", "RP7")
    assert told.priority == STAT
    assert told.indication_source == "HL7 OMI RIS > OBR-31"


@pytest.mark.parametrize("kind", ["ORM^O01^ORM_O01", "OMG^O19^OMG_O19"])
def test_other_kinds_of_order_are_read_alike(kind: str) -> None:
    assert read(orc(), obr(), kind=kind).indication == "Cough and fever"


def test_neither_name_nor_birth_date_nor_number_is_in_what_is_kept() -> None:
    told = read(orc(), obr(), ZDS)
    kept = [told.peer, told.order_key, *vars_of(told.identity), told.indication_source]
    assert not [one for one in kept if "secret" in one.lower() or "1901" in one or "MRN" in one]


def vars_of(of: Identity) -> list[str]:
    return [getattr(of, name) for name in Identity.__dataclass_fields__]


def test_an_order_without_a_filler_has_its_own_number_for_an_accession_number() -> None:
    told = read(orc(f2="", f3="F9^RIS"), obr(f2="", f3="F9^RIS", f18="", f19=""))
    assert told.identity.accession_key == identity(accession="F9").accession_key
    assert told.order_key == order_key("F9^RIS")


def test_what_is_no_uid_is_no_study() -> None:
    assert read(orc(), obr(), "ZDS|not-a-uid^RIS").study_instance_uid == ""


# -- the reason ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text", "where"),
    [
        pytest.param({"reason": "Cough"}, "Cough", "OBR-31", id="plain"),
        pytest.param({"reason": "R05^Cough^I10"}, "Cough", "OBR-31", id="what a code means"),
        pytest.param({"reason": "^Cough~^Fever~^Cough"}, "Cough; Fever", "OBR-31", id="several"),
        pytest.param({"reason": "a \\T\\ b"}, "a & b", "OBR-31", id="escaped"),
        pytest.param({"reason": "", "f13": "Fall"}, "Fall", "OBR-13", id="clinical information"),
        pytest.param({"reason": "-", "f13": "Fall"}, "Fall", "OBR-13", id="nothing said"),
        pytest.param({"reason": "R05^^I10", "f13": "Fall"}, "Fall", "OBR-13", id="only a code"),
    ],
)
def test_the_reason_is_free_text(fields: dict[str, str], text: str, where: str) -> None:
    told = read(orc(), obr(**fields))
    assert (told.indication, told.indication_source) == (text, f"HL7 ORM RIS > {where}")


def test_a_message_without_a_reason_says_nothing_of_it() -> None:
    assert read(orc(), obr(reason="")).indication is None
    assert read(orc("CA")).indication is None


def test_a_reason_is_taken_back_by_two_quotes() -> None:
    assert read(orc(), obr(reason='""')).indication == ""


def test_notes_and_observations_are_no_reason() -> None:
    told = read(orc(), obr(reason=""), "NTE|1||call ward 3", "OBX|1|NM|WEIGHT||70|kg")
    assert told.indication is None


def test_a_character_set_is_read() -> None:
    assert read(orc(), obr(reason="^咳と熱"), charset="UNICODE UTF-8").indication == "咳と熱"


# -- urgency and state -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segments", "priority"),
    [
        pytest.param([orc(f7="^^^^^S"), obr()], STAT, id="ORC-7"),
        pytest.param([orc(), obr(f27="1^once^^^^A")], URGENT, id="OBR-27"),
        pytest.param([orc(), "TQ1|1||||||||S^Stat", obr(f27="^^^^^R")], STAT, id="TQ1"),
        pytest.param([orc(f7="^^^^^R"), obr()], ROUTINE, id="routine"),
        pytest.param([orc(), obr()], None, id="not said"),
    ],
)
def test_the_urgency_is_read_where_the_version_has_it(
    segments: list[str], priority: int | None
) -> None:
    assert read(*segments).priority == priority


@pytest.mark.parametrize("control", ["CA", "DC", "OC", "CR", "RP"])
def test_an_order_that_is_no_longer_wanted_is_cancelled(control: str) -> None:
    assert read(orc(control)).cancelled
    assert read(orc(control), obr()).cancelled


@pytest.mark.parametrize("control", ["NW", "XO", "SN", "OK", "SC", "RO", ""])
def test_every_other_message_tells_of_an_order_that_stands(control: str) -> None:
    assert not read(orc(control), obr()).cancelled


def test_a_change_of_status_may_cancel() -> None:
    assert read(orc("SC", f5="CA"), obr()).cancelled
    assert not read(orc("SC", f5="CM"), obr()).cancelled


@pytest.mark.parametrize("control", ["UA", "UC", "DE"])
def test_what_could_not_be_done_changes_nothing(control: str) -> None:
    assert read_order.read(message(orc(control), obr())) == ()


# -- several orders --------------------------------------------------------------------------------


def test_every_order_of_a_message_is_read() -> None:
    other = segment("OBR", {2: "P2^HIS", 3: "F2^RIS", 18: "A2", 31: "^Fall"})
    told = read_order.read(message(orc(), obr(), orc(f2="P2^HIS"), other, ZDS))
    assert [one.indication for one in told] == ["Cough and fever", "Fall"]
    assert [one.order_key for one in told] == [order_key("P1^HIS", "RP1"), order_key("P2^HIS")]
    assert {one.study_instance_uid for one in told} == {STUDY}


def test_a_second_procedure_of_an_order_shares_its_urgency() -> None:
    told = read_order.read(message(orc(f7="^^^^^S"), obr(), obr(f19="RP2", reason="^Hand")))
    assert [one.priority for one in told] == [STAT, STAT]
    assert [one.order_key for one in told] == [
        order_key("P1^HIS", "RP1"),
        order_key("P1^HIS", "RP2"),
    ]


def test_a_batch_has_the_patient_of_each_message() -> None:
    second = message(orc(), obr()).replace(b"MRN0012345", b"MRN0099999")
    told = read_order.read(b"FHS|^~\\&|\r" + message(orc(), obr()) + second + b"FTS|2\r")
    keys = [one.identity.patient_id_key for one in told]
    assert keys == [identity(name).patient_id_key for name in ("MRN0012345", "MRN0099999")]


# -- what is none ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        pytest.param(message(orc(), obr(), kind="ORU^R01"), "another type", id="a result"),
        pytest.param(message(), "without an ORC or OBR", id="no order"),
        pytest.param(message("ORC|NW"), "names no order", id="no number"),
        pytest.param(b"hello", "not an HL7 v2 message", id="no message"),
    ],
)
def test_what_is_no_order_is_unreadable(raw: bytes, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        read_order.read(raw)


@given(raw=st.binary(max_size=200), cut=st.integers(0, 300))
def test_whatever_comes_is_read_or_refused_without_a_word_of_it(raw: bytes, cut: int) -> None:
    whole = message(orc(), obr(), ZDS)
    for hostile in (raw, msh().encode() + b"\r" + raw, whole[:cut] + raw + whole[cut:]):
        with contextlib.suppress(NodeError):
            read_order.read(hostile)


def test_nothing_of_a_message_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    read(orc(), obr(reason="^Cough, Verysecret \\Zbad\\"), ZDS)
    assert "ecret" not in caplog.text
