"""What we create, read off the objects themselves: encode samples, walk them, compare them.

Nothing is said of an object that was not seen in one: which attributes are always there, where a
value comes from, which codes are used. Modules and types are the Standard's, from the tables that
highdicom carries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO

# Not public, and the only machine-readable PS3.3 among what we install; used nowhere else.
from highdicom._standard_utils import (
    get_iod_module_map,
    get_module_attribute_map,
    get_sop_class_iod_map,
)
from pydicom import DataElement, Dataset, dcmread
from pydicom.datadict import dictionary_description, dictionary_keyword
from pydicom.tag import BaseTag

from dicom_node.config import KINDS, Results
from dicom_node.conformance.samples import IMAGE_CODES, Change, Samples
from dicom_node.results import objects, source
from dicom_node.results.record import PAGES, DraftRecord

#: SOP classes that a kind of result can be had in, the configured one first; empty: its own only.
Classes = Callable[[str, Results], Sequence[str]]

_Path = tuple[str, ...]
_Code = tuple[str, str, str]  # value, scheme, meaning

#: Copied from the image as a whole: what is inside its items is the image's affair.
_COPIED = {*source.IF_PRESENT, *source.DISPLAY}
_REFUSABLE = ("text_sr", *PAGES)
_LONGEST = 80  # characters of a value that is shown
_IMAGE_CODES = {tuple(code[:3]) for code in IMAGE_CODES.values()}
_AUTO, _CONFIG, _IMAGE = "AUTO", "CONFIG", "IMAGE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One attribute as we send it."""

    name: str  #: with a > for each sequence that it is in, as in PS3.3
    tag: str
    vr: str
    type: str  #: the Standard's
    presence: str  #: ALWAYS, VNAP, ANAP, EMPTY (PS3.2)
    source: str  #: FIXED, or what it depends on: IMAGE, CONFIG, AUTO
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A module of an IOD with the attributes of it that we send."""

    key: str
    usage: str  #: M, C, U (PS3.3 A.1.3); empty: no module of the IOD
    attributes: tuple[Attribute, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentItem:
    """A content item of an SR document."""

    nesting: str
    relationship: str
    value_type: str
    concept: str
    multiplicity: str  #: 1, 1-n, 0-1, 0-n
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedObject:
    """One kind of result."""

    kind: str
    sop_class_uids: tuple[str, ...]  #: the one that is made first, then what a peer may get instead
    transfer_syntax_uid: str
    modules: tuple[Module, ...]
    content: tuple[ContentItem, ...]
    codes: tuple[_Code, ...]


def created(samples: Samples, results: Results, classes: Classes) -> tuple[CreatedObject, ...]:
    """Return every kind of DICOM object that can be made, in the order of ``KINDS``."""
    found = (_created(kind, samples, classes(kind, results)) for kind in KINDS)
    return tuple(one for one in found if one is not None)


def _created(kind: str, samples: Samples, classes: Sequence[str]) -> CreatedObject | None:
    def encoded(record: DraftRecord) -> Dataset:
        sop_class_uid = classes[0] if classes else ""
        result = objects.encode(replace(record, kind=kind, sop_class_uid=sop_class_uid))
        return dcmread(BytesIO(result.file)) if result.sop_class_uid else Dataset()

    refused = [samples.refused] if kind in _REFUSABLE else []
    made = {id(record): encoded(record) for record in (*samples.records, *refused)}
    documents = list(made.values())
    if not documents[0]:  # a message of another protocol
        return None
    sources = _sources(samples.changes, lambda record: made[id(record)])
    sop_class_uid = str(documents[0].SOPClassUID)
    return CreatedObject(
        kind=kind,
        sop_class_uids=tuple(classes) or (sop_class_uid,),
        transfer_syntax_uid=str(documents[0].file_meta.TransferSyntaxUID),
        modules=tuple(_modules(sop_class_uid, documents, sources)),
        content=tuple(_content(documents)),
        codes=tuple(sorted(set(_codes(documents)))),
    )


# -- attributes ------------------------------------------------------------------------------------


def _modules(
    sop_class_uid: str, documents: Sequence[Dataset], sources: Mapping[_Path, Sequence[str]]
) -> Iterator[Module]:
    """Each attribute in the first module of the IOD that has it."""
    usages = _usages(sop_class_uid)
    homes: dict[str, list[BaseTag]] = {}
    for tag in _tags(documents):
        homes.setdefault(_home(usages, dictionary_keyword(tag)), []).append(tag)
    for key in [*usages, ""]:
        if key in homes:
            rows = _rows(_Walk(_types(key), sources), documents, homes[key], ())
            yield Module(key=key, usage=usages.get(key, ""), attributes=tuple(rows))


def _usages(sop_class_uid: str) -> dict[str, str]:
    iod = get_sop_class_iod_map()[sop_class_uid]
    return {module["key"]: module["usage"] for module in get_iod_module_map()[iod]}


def _home(modules: Iterable[str], keyword: str) -> str:
    return next((key for key in modules if ((), keyword) in _types(key)), "")


def _types(module: str) -> dict[tuple[_Path, str], str]:
    rows = get_module_attribute_map().get(module, ())
    return {(tuple(row["path"]), row["keyword"]): row["type"] for row in rows}


@dataclass(frozen=True, slots=True)
class _Walk:
    """What is known of attributes beside the documents themselves."""

    types: Mapping[tuple[_Path, str], str]
    sources: Mapping[_Path, Sequence[str]]


def _rows(
    walk: _Walk, items: Sequence[Dataset], tags: Iterable[BaseTag], path: _Path
) -> Iterator[Attribute]:
    for tag in tags:
        elements = [item[tag] for item in items if tag in item]
        yield _attribute(walk, items, elements, path)
        inner = [item for element in elements for item in _below(element)]
        if inner:
            yield from _rows(walk, inner, _tags(inner), (*path, _name(elements[0])))


def _attribute(
    walk: _Walk, items: Sequence[Dataset], elements: Sequence[DataElement], path: _Path
) -> Attribute:
    first, presence = elements[0], _presence(items, elements)
    plain = not _is_descended(first) and presence != "EMPTY"
    depends = walk.sources.get((*path, _name(first)), ()) if plain else ()
    return Attribute(
        name=">" * len(path) + dictionary_description(first.tag),
        tag=str(first.tag),
        vr=first.VR,
        type=walk.types.get((path, _name(first)), ""),
        presence=presence,
        source=", ".join(depends) or ("FIXED" if plain else ""),
        value=_value(elements, depends),
    )


def _presence(items: Sequence[Dataset], elements: Sequence[DataElement]) -> str:
    """PS3.2's words: is the attribute always there, and has it always a value?"""
    filled = [not element.is_empty for element in elements]
    if len(elements) < len(items):
        return "ANAP"
    if all(filled):
        return "ALWAYS"
    return "VNAP" if any(filled) else "EMPTY"


def _value(elements: Sequence[DataElement], depends: Sequence[str]) -> str:
    """What is sent, where that is ours to say: fixed values, and those of the configuration."""
    first = elements[0]
    if first.keyword == "ContentSequence":
        return "see the content tree"
    if _is_descended(first) or first.VR in ("OB", "OW") or set(depends) - {_CONFIG}:
        return ""
    shown = [_shown(element) for element in (elements[:1] if depends else elements)]
    text = " or ".join(dict.fromkeys(filter(None, shown)))
    return text if len(text) <= _LONGEST else ""


def _shown(element: DataElement) -> str:
    if element.VR == "SQ":
        return ", ".join(_told(_code(item)) for item in element.value)
    values = element.value if element.VM > 1 else [element.value]
    return "\\".join(str(value) for value in values if value is not None)


def _tags(items: Iterable[Dataset]) -> list[BaseTag]:
    return sorted({tag for item in items for tag in list(item.keys())})


def _name(element: DataElement) -> str:
    return dictionary_keyword(element.tag)  # the element's own is empty in repeating groups


def _is_descended(element: DataElement) -> bool:
    whole = element.keyword in _COPIED or element.keyword.endswith("CodeSequence")
    return element.VR == "SQ" and not whole and element.keyword != "ContentSequence"


def _below(element: DataElement) -> Sequence[Dataset]:
    return element.value if _is_descended(element) else ()


# -- where values come from ------------------------------------------------------------------------


def _sources(
    changes: Iterable[Change], encoded: Callable[[DraftRecord], Dataset]
) -> dict[_Path, Sequence[str]]:
    """Change one thing and look which attributes follow."""
    found: dict[_Path, set[str]] = {}
    for change in changes:
        before, after = (_leaves(encoded(one)) for one in (change.before, change.after))
        for path in before:
            if path in after and before[path] != after[path]:
                found.setdefault(path, set()).add(change.source)
    return {
        path: [one for one in (_AUTO, _IMAGE, _CONFIG) if one in sources]
        for path, sources in found.items()
    }


def _leaves(ds: Dataset) -> dict[_Path, list[object]]:
    """The values below each path, each once: how many items there are is another question."""
    values: dict[_Path, list[object]] = {}
    for path, element in _elements(ds, ()):
        found = values.setdefault(path, [])
        if element.value not in found:
            found.append(element.value)
    return values


def _elements(ds: Dataset, path: _Path) -> Iterator[tuple[_Path, DataElement]]:
    for element in ds:
        here = (*path, _name(element))
        yield here, element
        for item in _below(element):
            yield from _elements(item, here)


# -- content of SR documents -----------------------------------------------------------------------


def _content(documents: Sequence[Dataset]) -> Iterator[ContentItem]:
    """The documents' trees laid upon each other, the first one's order first."""
    if "ContentSequence" in documents[0]:
        yield _content_item(documents, 0, "1")
        yield from _children(documents, 1)


def _children(parents: Sequence[Dataset], depth: int) -> Iterator[ContentItem]:
    groups: dict[tuple[str, ...], list[list[Dataset]]] = {}
    for number, parent in enumerate(parents):
        for item in parent.get("ContentSequence", ()):
            counts = groups.setdefault(_what(item), [[] for _ in parents])
            counts[number].append(item)
    for found in groups.values():
        items = [item for of_parent in found for item in of_parent]
        yield _content_item(items, depth, _multiplicity(found))
        yield from _children(items, depth + 1)


def _what(item: Dataset) -> tuple[str, ...]:
    name = _code(item.ConceptNameCodeSequence[0]) if "ConceptNameCodeSequence" in item else ()
    return (str(item.RelationshipType), str(item.ValueType), *name)


def _multiplicity(found: Sequence[Sequence[Dataset]]) -> str:
    least = "1" if all(found) else "0"
    most = "n" if any(len(of_parent) > 1 for of_parent in found) else "1"
    return most if least == most else f"{least}-{most}"


def _content_item(items: Sequence[Dataset], depth: int, multiplicity: str) -> ContentItem:
    first = items[0]
    named = "ConceptNameCodeSequence" in first
    return ContentItem(
        nesting=">" * depth,
        relationship=str(first.get("RelationshipType", "")),
        value_type=str(first.ValueType),
        concept=_told(_code(first.ConceptNameCodeSequence[0])) if named else "",
        multiplicity=multiplicity,
        value=_said(items),
    )


def _said(items: Sequence[Dataset]) -> str:
    value_type = items[0].ValueType
    if value_type == "CODE":
        codes = [_code(item.ConceptCodeSequence[0]) for item in items]
        known = [_told(code) for code in codes if code not in _IMAGE_CODES]
        own = ["the image's"] if any(code in _IMAGE_CODES for code in codes) else []
        return " or ".join([*dict.fromkeys(known), *own])
    if value_type == "IMAGE":
        return "an image that was read"
    texts = {str(item.get("TextValue", item.get("UID", ""))) for item in items}
    alone = texts.pop() if len(texts) == 1 else ""
    return alone if len(alone) <= _LONGEST and "SAMPLE" not in alone else ""


# -- codes -----------------------------------------------------------------------------------------


def _codes(datasets: Iterable[Dataset]) -> Iterator[_Code]:
    """Every code of ours, wherever it stands."""
    for ds in datasets:
        if ("CodeValue" in ds) and _code(ds) not in _IMAGE_CODES:
            yield _code(ds)
        for element in ds:
            if element.VR == "SQ" and element.keyword not in _COPIED:
                yield from _codes(element.value)


def _code(item: Dataset) -> _Code:
    return (str(item.CodeValue), str(item.CodingSchemeDesignator), str(item.CodeMeaning))


def _told(code: _Code) -> str:
    return f'({code[0]}, {code[1]}, "{code[2]}")' if code not in _IMAGE_CODES else "the image's"
