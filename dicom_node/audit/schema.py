"""An audit message as XML, by the schema of PS3.15 A.5.1.

The text is ASCII; every other character is written as a character reference. So it needs neither a
byte order mark in syslog (RFC 5424 6.4) nor a collector that knows UTF-8 (PS3.15 A.6, note).
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from xml.etree.ElementTree import Element, SubElement, tostring

_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>'
#: XML 1.0 2.2: what is no Char has no way into a document, not even as a reference. Nor have tabs
#: and line ends here: a message is one line of syslog.
_NO_CHARACTER = re.compile("[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_APPLICATION_SERVER = "4"  # PS3.15 A.5.1.2.1


@dataclass(frozen=True, slots=True)
class Code:
    """CodedValueType."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """ActiveParticipant: who took part, a person or a process."""

    user_id: str
    alternative_user_id: str = ""
    user_name: str = ""
    is_requestor: bool = False
    roles: tuple[Code, ...] = ()
    network_access_point: str = ""  #: a machine's name or IP address, or a URI
    media_type: Code | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantObject:
    """ParticipantObjectIdentification: what it was done with."""

    id: str
    id_type: Code
    type_code: Literal["1", "2"]  #: person, system object
    role: Literal["1", "3", "13"]  #: patient, report, security resource (PS3.15 A.5.1.2.2)
    name: str = ""  #: the schema wants name or query; an empty name says nothing
    query: bytes | None = None
    details: tuple[tuple[str, bytes], ...] = ()  #: type and value
    sop_classes: Mapping[str, int] = field(default_factory=dict)  #: UID -> NumberOfInstances


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditMessage:
    """One event."""

    event: Code
    types: tuple[Code, ...] = ()
    action: Literal["C", "R", "U", "D", "E"]
    at: datetime  #: with its zone (PS3.15 A.5.2.5)
    outcome: Literal["0", "4", "8", "12"] = "0"  #: success, minor, serious, major failure
    participants: tuple[Participant, ...]
    objects: tuple[ParticipantObject, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """AuditSourceIdentification: who reports."""

    id: str
    enterprise_site_id: str = ""


def encode(message: AuditMessage, source: Source) -> str:
    """The message as XML."""
    root = Element("AuditMessage")
    _event(root, message)
    for participant in message.participants:
        _participant(root, participant)
    _source(root, source)
    for one in message.objects:
        _object(root, one)
    written: bytes = tostring(root, encoding="us-ascii")
    return _DECLARATION + written.decode("ascii")


def _event(root: Element, message: AuditMessage) -> None:
    event = _add(
        root,
        "EventIdentification",
        EventActionCode=message.action,
        EventDateTime=message.at.isoformat(timespec="milliseconds"),
        EventOutcomeIndicator=message.outcome,
    )
    _code(event, "EventID", message.event)
    for one in message.types:
        _code(event, "EventTypeCode", one)


def _participant(root: Element, one: Participant) -> None:
    point = one.network_access_point
    element = _add(
        root,
        "ActiveParticipant",
        UserID=one.user_id,
        AlternativeUserID=one.alternative_user_id or None,
        UserName=one.user_name or None,
        UserIsRequestor="true" if one.is_requestor else "false",
        NetworkAccessPointID=point or None,
        NetworkAccessPointTypeCode=_type_code(point) if point else None,
    )
    for role in one.roles:
        _code(element, "RoleIDCode", role)
    if one.media_type is not None:
        _code(_add(element, "MediaIdentifier"), "MediaType", one.media_type)


def _source(root: Element, source: Source) -> None:
    element = _add(
        root,
        "AuditSourceIdentification",
        AuditEnterpriseSiteID=source.enterprise_site_id or None,
        AuditSourceID=source.id,
    )
    _add(element, "AuditSourceTypeCode", **{"csd-code": _APPLICATION_SERVER})


def _object(root: Element, one: ParticipantObject) -> None:
    element = _add(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=one.id,
        ParticipantObjectTypeCode=one.type_code,
        ParticipantObjectTypeCodeRole=one.role,
    )
    _code(element, "ParticipantObjectIDTypeCode", one.id_type)
    if one.query is None:
        _add(element, "ParticipantObjectName").text = _legal(one.name)
    else:
        _add(element, "ParticipantObjectQuery").text = _base64(one.query)
    for kind, value in one.details:
        _add(element, "ParticipantObjectDetail", type=kind, value=_base64(value))
    if one.sop_classes:
        description = _add(element, "ParticipantObjectDescription")
        for uid, count in sorted(one.sop_classes.items()):
            _add(description, "SOPClass", UID=uid, NumberOfInstances=str(count))


def _add(parent: Element, name: str, **attributes: str | None) -> Element:
    given = {key: _legal(value) for key, value in attributes.items() if value is not None}
    return SubElement(parent, name, given)


def _code(parent: Element, name: str, code: Code) -> None:
    values = {"csd-code": code.value, "codeSystemName": code.scheme, "originalText": code.meaning}
    _add(parent, name, **values)


def _legal(text: str) -> str:
    return _NO_CHARACTER.sub("", text)


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _type_code(point: str) -> str:
    """PS3.15 A.5.1: machine name, IP address or URI."""
    if "://" in point:
        return "5"
    try:
        ipaddress.ip_address(point)
    except ValueError:
        return "1"
    return "2"
