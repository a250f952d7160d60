"""Remedies: pasted as they are they let the caller in, whatever it is called."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node import remedies
from dicom_node.associations import Reason, Refused
from dicom_node.config import Peer, Settings

CALL = Refused(
    calling_ae_title="CT1",
    called_ae_title="DICOMNODE",
    address="10.0.0.9",
    reason=Reason.UNKNOWN_TITLE,
)
TLS = {"port": 2762, "certificate": "node.pem", "private_key": "key.pem", "authorities": "ca.pem"}
NODE = Settings.model_validate({"tls": TLS})


def peer(**values: object) -> Peer:
    usual = {"name": "ct", "ae_title": "CT1", "host": "10.0.0.9", "roles": ["source"]}
    return Peer.model_validate({**usual, **values})


def having(*peers: Peer) -> Settings:
    return NODE.model_copy(update={"peers": peers})


def fix(*peers: Peer, **call: Any) -> str:
    return remedies.fix(having(*peers), replace(CALL, **call))


def pasted(lines: str, settings: Settings = NODE) -> Settings:
    """The settings with these lines appended to their file."""
    read = tomllib.loads(lines)
    added = [Peer.model_validate(one) for one in read.pop("peers")]
    assert read == {}
    whole = settings.model_copy(update={"peers": (*settings.peers, *added)})
    return Settings.model_validate(whole.model_dump())


def lets_in(settings: Settings, call: Refused) -> bool:
    return any(one.may_call_from([call.address]) for one in settings.sources(call.calling_ae_title))


# -- who is not let in -----------------------------------------------------------------------------


def test_an_unknown_caller_gets_the_lines_to_paste() -> None:
    assert fix() == (
        '[[peers]]\nname = "ct1"\nae_title = "CT1"\nhost = "10.0.0.9"\nroles = ["source"]'
    )
    assert remedies.is_block(fix())


def test_a_caller_that_came_by_tls_is_to_come_by_tls() -> None:
    (added,) = pasted(fix(tls=True)).peers
    assert added.tls


def test_the_new_peer_gets_a_name_that_is_free() -> None:
    one, two = peer(name="ct1", host="10.0.0.1", ae_title="A"), peer(name="ct1-2", host="h")
    lines = fix(one, two.model_copy(update={"ae_title": "B"}))
    assert [added.name for added in pasted(lines, having(one)).peers] == ["ct1", "ct1-3"]


# PS3.5 6.2, VR AE: quotes, brackets and hashes are all allowed
@given(st.from_regex(r"\A[!-\[\]-~][ -\[\]-~]{0,14}[!-\[\]-~]\Z"), st.ip_addresses().map(str))
def test_pasted_lines_let_exactly_this_caller_in(title: str, address: str) -> None:
    call = replace(CALL, calling_ae_title=title, address=address)
    settings = pasted(remedies.fix(NODE, call))
    assert lets_in(settings, call)
    assert remedies.fix(settings, call) == ""


@given(st.text(), st.text(max_size=40), st.sampled_from(Reason))
def test_nothing_that_comes_from_the_network_gets_into_the_configuration(
    title: str, address: str, reason: Reason
) -> None:
    call = replace(CALL, calling_ae_title=title, called_ae_title=title, address=address or "-")
    lines = remedies.fix(NODE, replace(call, reason=reason)).splitlines()
    assert all(line.isascii() and line.isprintable() for line in lines)
    if lines and remedies.is_block(lines[0]):
        (added,) = tomllib.loads("\n".join(lines))["peers"]
        assert added.get("ae_title", call.calling_ae_title) == call.calling_ae_title
        assert added["host"] == call.address
    else:
        assert len(lines) <= 1


@pytest.mark.parametrize("title", ["", "A\\B", "A\x1bB", "ÄRZTE", "ABCDEFGHIJKLMNOPQ"])
def test_a_caller_without_a_valid_title_must_get_one(title: str) -> None:
    assert fix(calling_ae_title=title).startswith("at the sender: set a calling AE title")


@pytest.mark.parametrize("reason", [Reason.UNKNOWN_TITLE, Reason.WRONG_ADDRESS])
def test_a_peer_at_another_address_gets_that_address_too(reason: Reason) -> None:
    ct = peer(host=["10.0.0.7", "10.1.0.0/24"])
    said = fix(ct, reason=reason)
    assert said == 'peer ct: host = ["10.0.0.7", "10.1.0.0/24", "10.0.0.9"]'


def test_a_peer_that_may_not_send_gets_the_role() -> None:
    assert fix(peer(roles=["destination"])) == 'peer ct: roles = ["source", "destination"]'


def test_a_peer_that_lacks_both_gets_both() -> None:
    said = fix(peer(roles=["destination"], host="10.0.0.7"))
    assert said == ('peer ct: roles = ["source", "destination"], host = ["10.0.0.7", "10.0.0.9"]')


def test_a_destination_that_reports_on_commitment_needs_no_other_role() -> None:
    pacs = peer(roles=["destination"], proof="commitment", host="10.0.0.7")
    assert fix(pacs, reason=Reason.WRONG_ADDRESS) == 'peer ct: host = ["10.0.0.7", "10.0.0.9"]'


def test_a_source_with_another_title_at_its_own_address_gets_that_title() -> None:
    assert fix(peer(ae_title="CT")).startswith('peer ct: ae_title = "CT1"; another system')


@pytest.mark.parametrize(
    "peers",
    [
        pytest.param([peer(ae_title="CT", host="10.0.0.0/24")], id="in-a-network"),
        pytest.param([peer(ae_title="A"), peer(name="b", ae_title="B")], id="shared-address"),
        pytest.param([peer(ae_title="A", roles=["source", "destination"])], id="we-call-it-too"),
    ],
)
def test_where_it_may_be_another_system_it_gets_lines_of_its_own(peers: list[Peer]) -> None:
    assert remedies.is_block(fix(*peers))


@pytest.mark.parametrize("title", ["CT1", "CTQR"])
@pytest.mark.parametrize("reason", [Reason.UNKNOWN_TITLE, Reason.WRONG_ADDRESS])
def test_who_is_let_in_by_now_needs_nothing(title: str, reason: Reason) -> None:
    ct = peer(query_ae_title="CTQR")
    assert fix(ct, calling_ae_title=title, reason=reason) == ""


# -- what the sender must do -----------------------------------------------------------------------


def test_a_wrong_called_title_is_the_senders_to_set() -> None:
    said = fix(peer(), reason=Reason.WRONG_CALLED_TITLE, called_ae_title='X"')
    assert said == 'at the sender: called AE title "DICOMNODE" (that of this node), not "X\\""'
    assert fix(reason=Reason.WRONG_CALLED_TITLE, called_ae_title="DICOMNODE") == ""
    assert fix(reason=Reason.WRONG_CALLED_TITLE, called_ae_title="").endswith("not none")


def test_a_peer_that_must_call_by_tls_is_told_the_port_and_the_way_out() -> None:
    said = fix(peer(tls=True), reason=Reason.TLS_REQUIRED)
    assert "call port 2762 by TLS" in said
    assert said.endswith("peer ct: tls = false")
    assert fix(peer(), reason=Reason.TLS_REQUIRED) == ""


def test_a_failed_handshake_names_ports_and_authorities() -> None:
    said = fix(reason=Reason.TLS_HANDSHAKE, calling_ae_title="", tls=True)
    assert "port 2762" in said
    assert "tls.authorities (ca.pem)" in said
    assert said.endswith("without TLS port 11112")


# -- what is full ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "key"),
    [
        (Reason.LIMIT, "associations"),
        (Reason.LIMIT_PER_ADDRESS, "associations_per_address"),
    ],
)
@pytest.mark.parametrize(("now", "then"), [(10, 20), (1000, 1024)])
def test_a_limit_is_doubled_as_far_as_it_may_be(
    reason: Reason, key: str, now: int, then: int
) -> None:
    settings = Settings.model_validate({"listener": {key: now}})
    said = remedies.fix(settings, replace(CALL, reason=reason))
    assert said.startswith(f"[listener] {key} = {then}, ")
    Settings.model_validate({"listener": {key: then}})


def test_a_full_disk_is_named() -> None:
    assert fix(reason=Reason.DISK_FULL).startswith("free space below data, ")


# -- whose it was ----------------------------------------------------------------------------------


def of(*peers: Peer, **call: Any) -> str | None:
    found = remedies.peer_of(having(*peers), replace(CALL, **call))
    return found.name if found else None


def test_a_title_tells_whose_call_it_was_and_then_the_address() -> None:
    near, far = peer(), peer(name="far", host="10.9.9.9")
    assert of(far, near) == "ct"
    assert of(far) == "far"
    assert of(near, calling_ae_title="", reason=Reason.TLS_HANDSHAKE) == "ct"
    assert of(far, calling_ae_title="X") is None


# -- HL7 -------------------------------------------------------------------------------------------

RIS = {"name": "ris", "protocol": "hl7", "host": "10.0.0.0/24", "roles": ["source"]}
HL7 = {"calling_ae_title": "HL7", "called_ae_title": "", "reason": Reason.HL7}


def test_an_unknown_ris_gets_the_lines_to_paste() -> None:
    (added,) = pasted(fix(**HL7)).peers
    assert (added.name, added.protocol, added.is_source) == ("hl7-10-0-0-9", "hl7", True)
    assert added.may_call_from([CALL.address])


def test_a_known_ris_that_opens_too_many_connections_is_told() -> None:
    ris = Peer.model_validate(RIS)
    assert fix(ris, **HL7) == "at the sender: keep one connection open, not one for each message"


@pytest.mark.parametrize("reason", Reason)
def test_there_is_a_remedy_for_every_reason(reason: Reason) -> None:
    assert fix(peer(tls=True, host="10.0.0.7"), reason=reason, called_ae_title="OTHER")
