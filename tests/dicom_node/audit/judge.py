"""A judge of audit messages: the schema of PS3.15 A.5.1, and the tables of A.5.3 as data."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import xmlschema

#: Event -> action codes, how often each role may be played, how often each kind of object may be
#: there (type code, role, type of its identifier); PS3.15 tables A.5.3.1-1, 4-1, 7-1, 10-1, 11-1.
_MANY = 10**6
Bounds = dict[str, tuple[int, int]]
TABLES: dict[str, tuple[str, Bounds, Bounds]] = {
    "110100": ("E", {"110150": (1, 1), "110151": (0, _MANY)}, {}),
    "110106": (
        "R",
        {"110152": (0, _MANY), "110153": (1, 2), "110154": (1, 1)},
        {"2 3 110180": (0, _MANY), "1 1 2": (1, _MANY)},
    ),
    "110104": (
        "CRU",
        {"110152": (1, 1), "110153": (1, 1)},
        {"2 3 110180": (1, _MANY), "1 1 2": (1, 1)},
    ),
    "110112": ("E", {"110152": (1, 1), "110153": (1, 1)}, {"2 3 110181": (1, 1)}),
    "110113": ("E", {}, {"2 13 110182": (0, _MANY)}),
}


@cache
def _schema() -> xmlschema.XMLSchema11:
    return xmlschema.XMLSchema11(Path(__file__).with_name("audit-message.xsd"))


def judged(message: str) -> Element:
    """The parsed message, after nothing was found wrong with it."""
    _schema().validate(message)
    root = ElementTree.fromstring(message)
    action, roles, objects = TABLES[event(root)]
    identification = root.find("EventIdentification")
    assert identification is not None
    assert identification.attrib["EventActionCode"] in action
    assert identification.attrib["EventDateTime"][-6] in "+-"  # A.5.2.5: with its zone
    played = [one.attrib["csd-code"] for one in root.iter("RoleIDCode")]
    _within(Counter(played), roles)
    _within(Counter(_kind(one) for one in root.iter("ParticipantObjectIdentification")), objects)
    requestors = [one for one in participants(root) if one.attrib["UserIsRequestor"] == "true"]
    assert len(requestors) <= 1  # A.5.2
    return root


def event(root: Element) -> str:
    """The code of what happened."""
    found = root.find("EventIdentification/EventID")
    assert found is not None
    return found.attrib["csd-code"]


def participants(root: Element) -> list[Element]:
    """Who took part."""
    return root.findall("ActiveParticipant")


def player(root: Element, role: str) -> Element:
    """The one who played that role."""
    (found,) = (
        one
        for one in participants(root)
        if role in [code.attrib["csd-code"] for code in one.findall("RoleIDCode")]
    )
    return found


def patient_ids(root: Element) -> list[str]:
    """Whose data it was."""
    return [
        one.attrib["ParticipantObjectID"]
        for one in root.iter("ParticipantObjectIdentification")
        if one.attrib["ParticipantObjectTypeCode"] == "1"
    ]


def instances(root: Element) -> dict[str, int]:
    """How many instances of each SOP class."""
    return {
        one.attrib["UID"]: int(one.attrib["NumberOfInstances"]) for one in root.iter("SOPClass")
    }


def _kind(one: Element) -> str:
    code = one.find("ParticipantObjectIDTypeCode")
    assert code is not None
    values = [one.attrib[f"ParticipantObjectType{name}"] for name in ("Code", "CodeRole")]
    return " ".join([*values, code.attrib["csd-code"]])


def _within(found: Counter[str], bounds: Bounds) -> None:
    assert found.keys() <= bounds.keys()
    for kind, (least, most) in bounds.items():
        assert least <= found[kind] <= most, kind
