"""The annexes of the statement: what our objects hold, and what of received ones is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pydicom.datadict import dictionary_description
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from dicom_node import filing
from dicom_node.config import Results
from dicom_node.conformance.created import CreatedObject, Module
from dicom_node.conformance.markdown import bullets, section, table
from dicom_node.conformance.samples import Samples
from dicom_node.results import source

_TITLES = {
    "text_sr": "Text SR (TID 2000, Basic Diagnostic Imaging Report)",
    "coded_sr": "Coded SR (TID 1500, Measurement Report)",
    "pdf": "Encapsulated PDF",
    "capture": "Secondary Capture",
    "gsps": "Grayscale Softcopy Presentation State",
}
_CAPITALS = {word.lower(): word for word in ("SR", "SOP", "SC", "LUT", "VOI")}
_NO_MODULE = "Attributes of no module of the IOD (Standard Extended SOP Class)"

_KEY = [
    "Presence: ALWAYS, always there with a value; VNAP, always there, the value may be empty; "
    "ANAP, not always there; EMPTY, always there without a value.",
    "Source: FIXED, the same in every object; IMAGE, copied or derived from the image that was "
    "read; CONFIG, from this node's configuration; AUTO, made here (the model's text, times, UIDs, "
    "versions). Where several are named the value depends on all of them.",
    "Type is the Standard's for this module, M, C and U are the module's usage in the IOD (PS3.3).",
    "`>` is one level of a sequence. Items of sequences that are copied as a whole, and codes, "
    "are not unfolded.",
]


def title(kind: str) -> str:
    """Return what a kind of result is called."""
    return _TITLES[kind]


def annexes(objects: Sequence[CreatedObject], results: Results, samples: Samples) -> str:
    """Return all annexes."""
    return "\n\n".join(
        [
            _created(objects, results),
            _used(samples),
            section(2, "Annex C: Attribute mapping and coercion", *_MAPPING),
            section(2, "Annex D: Private attributes and SOP classes", *_PRIVATE),
            _terminology(objects),
            section(2, "Annex F: Grayscale image consistency", "Not applicable: nothing is shown."),
        ]
    )


# -- A: objects that we create ---------------------------------------------------------------------


def _created(objects: Sequence[CreatedObject], results: Results) -> str:
    shared = _shared(objects)
    places = {module: "A.1" for module in shared}
    parts = [_module(module) for module in shared]
    for number, one in enumerate(objects, start=2):
        parts.append(_object(f"A.{number}", one, places, results))
        places = {**{module: f"A.{number}" for module in one.modules}, **places}
    return "\n\n".join(
        [
            section(2, "Annex A: Objects that are created", bullets(_KEY)),
            section(3, "A.1 Modules that are the same in all objects"),
            *parts,
        ]
    )


def _shared(objects: Iterable[CreatedObject]) -> list[Module]:
    """Modules that are the same in every object, in the first one's order."""
    everywhere = list(objects)
    counted = Counter(module for one in everywhere for module in one.modules)
    return [module for module, times in counted.items() if times == len(everywhere)]


def _object(number: str, of: CreatedObject, places: Mapping[Module, str], results: Results) -> str:
    own = [_module(module) for module in of.modules if module not in places]
    elsewhere: dict[str, list[str]] = {}
    for module in of.modules:
        if module in places:
            elsewhere.setdefault(places[module], []).append(_name(module.key))
    facts = _facts(of, results)
    facts += [f"Modules as in {place}: {', '.join(names)}." for place, names in elsewhere.items()]
    content = [_content(of)] if of.content else []
    return "\n\n".join([section(3, f"{number} {title(of.kind)}", bullets(facts)), *own, *content])


def _facts(of: CreatedObject, results: Results) -> list[str]:
    first, *others = [f"{UID(uid).name} ({uid})" for uid in of.sop_class_uids]
    made = "made of every draft" if of.kind in results.kinds else "not made"
    facts = [
        f"SOP class: {first}.",
        f"Transfer syntax: {UID(of.transfer_syntax_uid).name}.",
        f"With this configuration: {made} (`results.{of.kind}`).",
    ]
    if others:
        facts.append(
            f"A peer that does not take it gets the same as {' or '.join(others)}, under a SOP "
            "Instance UID of its own."
        )
    if of.kind in results.fallback:
        facts.append("Made for a peer that takes no SR (`results.fallback`).")
    return facts


def _module(module: Module) -> str:
    heading = f"{_name(module.key)} module ({module.usage})" if module.key else _NO_MODULE
    rows = [
        (one.name, one.tag, one.vr, one.type, one.presence, one.source, one.value)
        for one in module.attributes
    ]
    headings = ["Attribute", "Tag", "VR", "Type", "Presence", "Source", "Value"]
    return section(4, heading, table(headings, rows))


def _content(of: CreatedObject) -> str:
    rows = [
        (one.nesting, one.relationship, one.value_type, one.concept, one.multiplicity, one.value)
        for one in of.content
    ]
    headings = ["", "Relationship", "Value type", "Concept name", "Times", "Value"]
    return section(4, "Content tree", table(headings, rows))


def _name(key: str) -> str:
    words = key.split("-")
    return " ".join(_CAPITALS.get(word, word.capitalize()) for word in words)


# -- B: what is used of received objects -----------------------------------------------------------


def _used(samples: Samples) -> str:
    return section(
        2,
        "Annex B: Attributes of received objects that are used",
        "For filing; nothing else is decoded on receipt. An object without the UIDs is refused; "
        "of the patient's and the order's identifiers only hashes are kept in the database.",
        table(["Attribute", "Tag"], _described(filing._NEEDED)),
        "For our objects, of the image that was read (its identity goes into them unchanged):",
        table(["Attribute", "Tag"], _described(_kept(samples))),
        "Which image of a study is read is decided by its SOP class, transfer syntax, view, body "
        "part, presentation intent, pixel format, burned-in annotation and descriptions. A study "
        "without a usable image gets no draft; `dicom-node study UID` shows the refusal's code.",
    )


def _kept(samples: Samples) -> list[BaseTag]:
    headers = [source.read(record.source_header) for record in samples.records]
    return sorted({tag for header in headers for tag in list(header.keys())})


def _described(tags: Iterable[int]) -> list[tuple[str, str]]:
    return [(dictionary_description(tag), str(Tag(tag))) for tag in tags]


# -- C and D ---------------------------------------------------------------------------------------

_MAPPING = (
    "Received objects are stored byte for byte; no attribute is coerced. In created objects, dates "
    "that are no DA or TM values are rewritten where their meaning is plain (1958.02.14, 10:12:03) "
    "and left empty otherwise, Patient's Sex other than M, F or O is left empty, and attributes of "
    "the image that are of no use here are not copied. Patient's Name, Patient ID and Accession "
    "Number keep the image's bytes, whatever its character set.",
)
_PRIVATE = (
    "Private attributes and private SOP classes of received objects are kept as they are. Created "
    "objects have no private attribute and belong to no private SOP class.",
)


# -- E: codes --------------------------------------------------------------------------------------


def _terminology(objects: Sequence[CreatedObject]) -> str:
    users: dict[tuple[str, str, str], list[str]] = {}
    for one in objects:
        for code in one.codes:
            users.setdefault(code, []).append(one.kind)
    rows = [
        (scheme, value, meaning, ", ".join(users[value, scheme, meaning]))
        for scheme, value, meaning in sorted((s, v, m) for v, s, m in users)
    ]
    return section(
        2,
        "Annex E: Coded terminology",
        "All codes that this node puts into an object by itself; the procedure's code is the "
        "image's. Schemes that begin with 99 are private, and are identified in the object.",
        table(["Scheme", "Value", "Meaning", "In"], rows),
    )
