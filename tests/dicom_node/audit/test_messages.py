"""Messages of every kind: valid by the schema, as the tables ask, whatever the strings are."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest
import xmlschema
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.sr._concepts_dict import concepts

from dicom_node.audit import messages
from dicom_node.audit.messages import Content, application
from dicom_node.audit.schema import AuditMessage, Code, Source, encode
from tests.dicom_node.audit import judge

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
US = application("DICOMNODE", user_id="node@host:7", network_access_point="host")
PACS = application("PACS", network_access_point="10.0.0.7")
CONTENT = Content(study_instance_uid="1.2.3", patient_id="P1", sop_classes={"1.2.840": 2})
SOURCE = Source(id="DICOMNODE", enterprise_site_id="St. Elsewhere")

MESSAGES: dict[str, Callable[[str], AuditMessage]] = {
    "start": lambda text: messages.application_activity(
        application(text, user_id=text), at=AT, started=True
    ),
    "stop": lambda text: messages.application_activity(US, at=AT, started=False),
    "received": lambda text: messages.instances_transferred(
        application(text, network_access_point=text), US, made_of(text), at=AT, action="C"
    ),
    "sent": lambda text: messages.instances_transferred(
        US, application("", user_id=text), made_of(text), at=AT, action="R"
    ),
    "export": lambda text: messages.export(US, f"file:///{text}", made_of(text), at=AT),
    "export by a person": lambda text: messages.export(
        US, "file:///x", made_of(text), at=AT, person=text or "root@host"
    ),
    "query": lambda text: messages.query(
        US,
        application(text),
        sop_class_uid="1.2.840",
        transfer_syntax_uid="1.2",
        data_set=text.encode("utf-8", "replace"),
        at=AT,
    ),
    "alert": lambda text: messages.security_alert(
        US,
        application(text, network_access_point=text),
        text.encode("ascii", "replace").decode(),
        at=AT,
    ),
}


def made_of(text: str) -> Content:
    return Content(study_instance_uid=text, patient_id=text, sop_classes={text: 1, "1.2": 3})


def written(message: AuditMessage) -> str:
    return encode(message, SOURCE)


@pytest.mark.parametrize("kind", MESSAGES)
@settings(max_examples=40)
@given(text=st.text())
def test_whatever_the_strings_are_the_message_is_valid(kind: str, text: str) -> None:
    message = written(MESSAGES[kind](text))
    assert message.isascii()
    assert "\n" not in message  # one line of syslog
    judge.judged(message)


@pytest.mark.parametrize(
    "text", ["\"<&>'", "Ärztin 患者 \U0001f480", "\x00\x1b[2J\r\n\x85\ufffe", " a "]
)
def test_a_value_comes_back_as_it_went_in_but_for_what_xml_has_no_way_to_write(text: str) -> None:
    root = judge.judged(written(MESSAGES["sent"](text)))
    expected = "".join(character for character in text if character not in "\x00\x1b\r\n\ufffe")
    assert judge.patient_ids(root) == [expected]


def test_the_judge_refuses_what_is_no_message() -> None:
    valid = written(MESSAGES["query"]("x"))
    for fault in (
        valid.replace("EventID", "EventId"),
        valid.replace('UserIsRequestor="true"', ""),
        valid.replace('EventOutcomeIndicator="0"', 'EventOutcomeIndicator="1"'),
        valid.replace(
            "<ParticipantObjectQuery>", "<ParticipantObjectName/><ParticipantObjectQuery>"
        ),
        valid.replace('csd-code="4"', 'csd-code="44"'),
    ):
        assert fault != valid
        with pytest.raises((xmlschema.XMLSchemaException, KeyError)):
            judge.judged(fault)
    with pytest.raises(AssertionError):
        judge.judged(valid.replace("110153", "110150"))


def test_codes_are_those_of_the_standard() -> None:
    """Code and meaning of each, as pydicom read them from PS3.16."""
    known = {
        value: meaning
        for by_value in concepts["DCM"].values()
        for value, (meaning, _) in by_value.items()
    }
    codes = [one for one in vars(messages).values() if isinstance(one, Code)]
    dicom = [one for one in codes if one.scheme == "DCM"]
    assert len(dicom) == 16
    assert {one.value: one.meaning for one in dicom} == {
        one.value: known[one.value] for one in dicom
    }


def test_a_transfer_names_both_ends_the_study_and_the_patient() -> None:
    message = messages.instances_transferred(PACS, US, CONTENT, at=AT, action="C")
    root = judge.judged(written(message))
    sender, receiver = judge.player(root, "110153"), judge.player(root, "110152")
    assert sender.attrib == {
        "UserID": "PACS",
        "AlternativeUserID": "AETITLES=PACS",
        "UserIsRequestor": "true",
        "NetworkAccessPointID": "10.0.0.7",
        "NetworkAccessPointTypeCode": "2",
    }
    assert (receiver.attrib["UserID"], receiver.attrib["NetworkAccessPointTypeCode"]) == (
        "node@host:7",
        "1",
    )
    assert judge.instances(root) == {"1.2.840": 2}
    assert judge.patient_ids(root) == ["P1"]


def test_a_query_is_told_byte_by_byte() -> None:
    root = judge.judged(written(MESSAGES["query"]("what we asked")))
    (query,) = root.iter("ParticipantObjectQuery")
    assert base64.b64decode(query.text or "") == b"what we asked"
    (syntax,) = root.iter("ParticipantObjectDetail")
    assert (syntax.attrib["type"], base64.b64decode(syntax.attrib["value"])) == (
        "TransferSyntax",
        b"1.2",
    )


def test_an_alert_says_who_was_turned_away_and_why() -> None:
    root = judge.judged(written(messages.security_alert(US, PACS, "no peer", at=AT)))
    (alert,) = root.iter("ParticipantObjectDetail")
    assert alert.attrib["type"] == "Alert Description"
    assert base64.b64decode(alert.attrib["value"]) == b"no peer"
    assert [one.attrib["UserID"] for one in judge.participants(root)] == ["node@host:7", "PACS"]


def test_an_export_names_the_person_and_the_file() -> None:
    message = messages.export(US, "file:///tmp/x", CONTENT, at=AT, person="root@host")
    root = judge.judged(written(message))
    people = [one.attrib["UserID"] for one in judge.participants(root)]
    assert people == ["root@host", "node@host:7", "file:///tmp/x"]
    assert judge.player(root, "110154").attrib["NetworkAccessPointTypeCode"] == "5"


def test_the_time_has_its_zone() -> None:
    east = AT.astimezone(timezone(timedelta(hours=5, minutes=30)))
    message = written(messages.application_activity(US, at=east, started=True))
    assert 'EventDateTime="2026-01-02T08:34:05.678+05:30"' in message


def test_no_patient_is_named_where_the_name_belongs() -> None:
    root = judge.judged(written(MESSAGES["received"]("P1")))
    patient = next(
        one
        for one in root.iter("ParticipantObjectIdentification")
        if one.attrib["ParticipantObjectTypeCode"] == "1"
    )
    assert patient.findtext("ParticipantObjectName") == ""
