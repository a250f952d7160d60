"""What a peer must accept of us, from the settings: objects, queries, commitment.

Only what the configuration makes us ask for: a PACS without a worklist is no fault where nobody
asks it for one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydicom.uid import (
    UID,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from dicom_node.config import Peer, Results, Settings
from dicom_node.doctor.checks import Fault, Finding
from dicom_node.doctor.negotiation import Answer

VERIFICATION = UID("1.2.840.10008.1.1")  # PS3.4 A.4
COMMITMENT = UID("1.2.840.10008.1.20.1")  # PS3.4 J.3.5, Storage Commitment Push Model
FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")  # PS3.4 C.6.2.1.3, Study Root
MOVE = UID("1.2.840.10008.5.1.4.1.2.2.2")
GET = UID("1.2.840.10008.5.1.4.1.2.2.3")
WORKLIST = UID("1.2.840.10008.5.1.4.31")  # PS3.4 K.6.1.4

#: What each kind of proof is asked by.
PROOFS: Mapping[str, UID] = {"commitment": COMMITMENT, "find": FIND}

#: SOP classes that a kind of result can be had in, the configured one first; empty: its own only.
Classes = Callable[[str, Results], Sequence[str]]

_OWN: Mapping[str, UID] = {
    "pdf": EncapsulatedPDFStorage,
    "capture": SecondaryCaptureImageStorage,
    "gsps": GrayscaleSoftcopyPresentationStateStorage,
}
_RESULTS = {  # PS3.8 9.3.3.2
    1: "rejected by its user",
    2: "rejected without a reason",
    3: "abstract syntax not supported",
    4: "transfer syntaxes not supported, neither Explicit nor Implicit VR Little Endian",
}
_SYNTAXES = {ExplicitVRLittleEndian: "Explicit VR", ImplicitVRLittleEndian: "Implicit VR"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Something that we ask of a peer."""

    what: str
    forms: tuple[str, ...]  #: SOP classes that will do, the best first
    fix: str  #: where it takes none of them
    required: bool = True


def wanted(
    settings: Settings, peer: Peer, classes: Classes, *, queries_only: bool
) -> list[Service]:
    """What we ask of the peer at one of its places.

    Parameters
    ----------
    queries_only
        The place where it answers queries, and nothing else.
    """
    found = [Service(what="C-ECHO", forms=(VERIFICATION,), fix="", required=False)]
    if not queries_only and peer.is_destination:
        found += _results(settings, peer, classes)
        found += _commitment(peer)
    if queries_only or peer.for_queries == peer:
        found += _queries(settings, peer)
    return found


def judge(services: Sequence[Service], answer: Answer) -> Finding:
    """What the peer accepts; a fault where we need something that it does not.

    Raises
    ------
    Fault
        Names all that is missing.
    """
    missing = [one for one in services if one.required and not _taken(one, answer)]
    if missing:
        raise Fault(
            "; ".join(f"{one.what}: {_refusal(one, answer)}" for one in missing),
            "; ".join(dict.fromkeys(one.fix for one in missing)),
        )
    said = "; ".join(_said(one, answer) for one in services if _taken(one, answer))
    second = [
        one for one in services if one.forms[0] not in answer.accepted and _taken(one, answer)
    ]
    fix = "; ".join(f"for {UID(one.forms[0]).name}: {one.fix}" for one in second)
    return Finding(text=f"it takes {said or 'nothing that we asked for'}", fix=fix)


def _results(settings: Settings, peer: Peer, classes: Classes) -> Iterator[Service]:
    results = settings.results
    for kind in results.kinds:
        forms = [*(classes(kind, results) or filter(None, [_OWN.get(kind)]))]
        forms += [_OWN[other] for other in results.fallback] if kind == "text_sr" else []
        if forms:  # messages are for other peers
            fix = (
                f"at the peer: accept {UID(forms[0]).name} ({forms[0]}) from"
                f" {settings.node.ae_title} in Explicit or Implicit VR Little Endian"
            )
            yield Service(what=f"results.{kind}", forms=tuple(forms), fix=fix)


def _commitment(peer: Peer) -> Iterator[Service]:
    if peer.proof == "commitment":
        yield Service(
            what='proof = "commitment"',
            forms=(COMMITMENT,),
            fix=f'at the peer: switch Storage Commitment on for us; or {_set(peer)} proof = "find"',
        )


def _queries(settings: Settings, peer: Peer) -> Iterator[Service]:
    place = f"at the peer: let {settings.node.ae_title} query"
    elsewhere = f"or {_set(peer)} query_ae_title and query_port, where its queries are answered"
    if peer.proof == "find":
        fix = f"{place} (C-FIND, Study Root), {elsewhere}"
        yield Service(what='proof = "find"', forms=(FIND,), fix=fix)
    if "query" in peer.roles:
        retrieve = GET if peer.retrieve == "get" else MOVE
        other = "move" if peer.retrieve == "get" else "get"
        fix = f"{place} (C-FIND, Study Root), {elsewhere}"
        yield Service(what='role "query"', forms=(FIND,), fix=fix)
        fix = f'{place} and retrieve ({retrieve.name}), or {_set(peer)} retrieve = "{other}"'
        yield Service(what=f'retrieve = "{peer.retrieve}"', forms=(retrieve,), fix=fix)
    if "worklist" in peer.roles:
        fix = f"{place} its worklist, {elsewhere}"
        yield Service(what='role "worklist"', forms=(WORKLIST,), fix=fix)


def _set(peer: Peer) -> str:
    return f"peer {peer.name}:"


def _taken(one: Service, answer: Answer) -> str:
    """The best form that it takes; empty: none."""
    return next((uid for uid in one.forms if uid in answer.accepted), "")


def _said(one: Service, answer: Answer) -> str:
    uid = _taken(one, answer)
    syntaxes = " or ".join(_SYNTAXES[UID(syntax)] for syntax in answer.accepted[uid])
    instead = "" if uid == one.forms[0] else f" instead of {UID(one.forms[0]).name}"
    return f"{UID(uid).name}{instead} in {syntaxes}"


def _refusal(one: Service, answer: Answer) -> str:
    first, *others = one.forms
    why = _RESULTS.get(answer.refused.get(first, 0), "it gave no answer")
    instead = f", nor what could go instead ({_names(others)})" if others else ""
    return f"it does not take {UID(first).name}: {why}{instead}"


def _names(uids: Sequence[str]) -> str:
    return ", ".join(UID(uid).name for uid in uids)
