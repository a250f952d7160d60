"""How to let in who was turned away: the lines to paste, the key to change, what the sender sets.

Pure: a refusal and the settings of now in, text out. Titles and addresses come from the network:
a value is written as a TOML string or not at all, and the name of a peer is made of letters,
digits and hyphens.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping

from pydantic import TypeAdapter, ValidationError

from dicom_node.associations import Reason, Refused
from dicom_node.config import AeTitle, Peer, Settings

_MOST_ASSOCIATIONS = 1024  # the highest that [listener] takes
_AE_TITLE: TypeAdapter[str] = TypeAdapter(AeTitle)


def fix(settings: Settings, one: Refused) -> str:
    """One line that says what to do, or lines of TOML to paste; "": let in by now."""
    return _FIXES[one.reason](settings, one)


def is_block(text: str) -> bool:
    """Is this fix lines to paste?"""
    return text.startswith("[[peers]]")


def peer_of(settings: Settings, one: Refused) -> Peer | None:
    """Which configured peer it was: by its title, else by an address that no other peer has.

    An address inside a peer's network says nothing: other machines call from there.
    """
    if titled := _titled(settings, one):
        here = [peer for peer in titled if peer.may_call_from({one.address})]
        return (here or titled)[0]
    protocol = "hl7" if one.reason is Reason.HL7 else "dicom"
    at_address = [
        peer for peer in settings.peers if peer.protocol == protocol and one.address in peer.host
    ]
    return at_address[0] if len(at_address) == 1 else None


def _titled(settings: Settings, one: Refused) -> list[Peer]:
    return [
        peer
        for peer in settings.peers
        if peer.protocol == "dicom" and one.calling_ae_title in peer.calling_ae_titles
    ]


def _let_in(settings: Settings, one: Refused) -> str:
    """By what the settings say now: they may have changed since."""
    if not _is_ae_title(one.calling_ae_title):
        return "at the sender: set a calling AE title of 1 to 16 characters of ASCII, no backslash"
    peer = peer_of(settings, one)
    if peer is not None and one.calling_ae_title in peer.calling_ae_titles:
        return _changes(peer, one)
    if peer is None or peer.is_destination:  # of a destination the title is what we call
        return _block(settings, one)
    return (
        f"peer {peer.name}: ae_title = {_toml(one.calling_ae_title)};"
        " another system at its address needs [[peers]] of its own"
    )


def _changes(peer: Peer, one: Refused) -> str:
    changes = []
    if not peer.calls_us:
        changes.append(f"roles = {_toml(['source', *peer.roles])}")
    if not peer.may_call_from({one.address}):
        changes.append(f"host = {_toml([*peer.host, one.address])}")
    return f"peer {peer.name}: {', '.join(changes)}" if changes else ""


def _block(settings: Settings, one: Refused) -> str:
    lines = {
        "name": _free_name(settings, one.calling_ae_title),
        "ae_title": one.calling_ae_title,
        "host": one.address,
        "roles": ["source"],
        **({"tls": True} if one.tls else {}),
    }
    return _pasted(lines)


def _hl7(settings: Settings, one: Refused) -> str:
    callers = [peer for peer in settings.peers if peer.protocol == "hl7" and peer.is_source]
    if any(peer.may_call_from({one.address}) for peer in callers):
        return "at the sender: keep one connection open, not one for each message"
    name = _free_name(settings, f"hl7 {one.address}")
    return _pasted({"name": name, "protocol": "hl7", "host": one.address, "roles": ["source"]})


def _pasted(lines: Mapping[str, object]) -> str:
    return "\n".join(["[[peers]]", *(f"{key} = {_toml(value)}" for key, value in lines.items())])


def _call_us_right(settings: Settings, one: Refused) -> str:
    ours = settings.node.ae_title
    if one.called_ae_title == ours:
        return ""
    return f"at the sender: called AE title {_toml(ours)} (that of this node), not {_said(one)}"


def _said(one: Refused) -> str:
    return _toml(one.called_ae_title) if one.called_ae_title else "none"


def _call_by_tls(settings: Settings, one: Refused) -> str:
    peer = peer_of(settings, one)
    if peer is None or not peer.tls:
        return ""
    return (
        f"at the sender: call port {settings.tls.port} by TLS;"
        f" or, in a trusted network, peer {peer.name}: tls = false"
    )


def _shake_hands(settings: Settings, _: Refused) -> str:
    return (
        f"at the sender: TLS 1.2 or 1.3 on port {settings.tls.port}, trust in our certificate, and"
        " a valid one of its own from an authority in tls.authorities"
        f" ({settings.tls.authorities}); without TLS port {settings.node.port}"
    )


def _raise(key: str) -> Callable[[Settings, Refused], str]:
    def line(settings: Settings, _: Refused) -> str:
        doubled = min(_MOST_ASSOCIATIONS, 2 * int(getattr(settings.listener, key)))
        return f"[listener] {key} = {doubled}, if so many are meant to call; they may try again"

    return line


def _free_space(settings: Settings, _: Refused) -> str:
    return (
        f"free space below {settings.node.data}, or lower [retention] pixels_days;"
        " senders may then try again"
    )


def _always(text: str) -> Callable[[Settings, Refused], str]:
    return lambda settings, one: text


_FIXES: Mapping[Reason, Callable[[Settings, Refused], str]] = {
    Reason.UNKNOWN_TITLE: _let_in,
    Reason.WRONG_ADDRESS: _let_in,
    Reason.WRONG_CALLED_TITLE: _call_us_right,
    Reason.TLS_REQUIRED: _call_by_tls,
    Reason.TLS_HANDSHAKE: _shake_hands,
    Reason.LIMIT: _raise("associations"),
    Reason.LIMIT_PER_ADDRESS: _raise("associations_per_address"),
    Reason.DISK_FULL: _free_space,
    Reason.NOT_DICOM: _always(
        "nothing to set here: a scanner or a monitor, or a sender that is set to a wrong port"
    ),
    Reason.TIMEOUT: _always(
        "nothing to set here: a monitor that only connects, or a firewall between that drops data"
    ),
    Reason.PDU_TOO_LONG: _always(
        "at the sender: keep to the maximum length that we answer (PS3.8 D.1), or call its vendor"
    ),
    Reason.HL7: _hl7,
}


def _is_ae_title(text: str) -> bool:
    try:
        _AE_TITLE.validate_python(text)
    except ValidationError:
        return False
    return True


def _free_name(settings: Settings, text: str) -> str:
    """A name for a new peer: of the title, and nobody else's."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "peer"
    taken = {peer.name for peer in settings.peers}
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(one for one in names if one not in taken)


def _toml(value: object) -> str:
    """Strings, lists and booleans are written in TOML as in JSON (TOML 1.0.0)."""
    return json.dumps(value, ensure_ascii=False)
