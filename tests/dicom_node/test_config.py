"""Settings: where they come from, which of them wins, and what is said about a wrong one."""

from __future__ import annotations

import json
import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dicom_node.config import KINDS, PREFIX, Jobs, Peer, Settings, environment, load
from dicom_node.errors import ConfigurationError

#: Every key of interface.md, and its default there.
INTERFACE: dict[str, dict[str, object]] = {
    "node": {"ae_title": "DICOMNODE", "host": "0.0.0.0", "port": 11112, "data": Path("./data")},
    "database": {"url": ""},
    "broker": {"url": ""},
    "study": {"quiet_seconds": 60},
    "model": {"name": "llava-rad", "path": "", "device": "auto"},
    "results": {"text_sr": True},
}
PEER = {
    "name": "pacs",
    "ae_title": "PACS",
    "host": "10.0.0.5",
    "port": 104,
    "roles": ["source", "destination"],
    "proof": "commitment",
    "mode": "live",
}
SHARED = Path(__file__).parents[3] / "shared"


def written(folder: Path, text: str) -> Path:
    file = folder / "dicom-node.toml"
    file.write_text(text, "utf-8")
    return file


def peer(**overrides: Any) -> Peer:
    return Peer.model_validate({**PEER, **overrides})


# -- sources and their order -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key", "default"),
    [(section, key, value) for section, keys in INTERFACE.items() for key, value in keys.items()],
)
def test_every_key_of_the_interface_has_its_default(
    section: str, key: str, default: object
) -> None:
    assert getattr(getattr(load(None, {}, {}), section), key) == default


def test_the_interface_documents_example_is_accepted(tmp_path: Path) -> None:
    document = SHARED / "interface.md"
    if not document.exists():
        pytest.skip(f"{document} is not here")
    (example,) = re.findall(r"```toml\n(.*?)```", document.read_text("utf-8"), re.DOTALL)
    loaded = load(written(tmp_path, example), {}, {})
    raw = tomllib.loads(example)
    (wanted,) = raw.pop("peers")
    assert {section: set(keys) for section, keys in raw.items()} == {
        section: set(keys) for section, keys in INTERFACE.items()
    }
    assert loaded.peers == (peer(**wanted),)


def test_the_file_beats_the_default(tmp_path: Path) -> None:
    file = written(tmp_path, "[node]\nport = 2000\n")
    assert load(file, {}, {}).node.port == 2000


def test_the_environment_beats_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "[node]\nport = 2000\n")
    assert load(file, {"DICOM_NODE_NODE__PORT": "3000"}, {}).node.port == 3000


def test_a_flag_beats_the_environment(tmp_path: Path) -> None:
    file = written(tmp_path, '[node]\ndata = "file"\n')
    environ = {"DICOM_NODE_NODE__DATA": "environment"}
    assert load(file, environ, {"node.data": "flag"}).node.data == Path("flag")


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    assert load(None, {}, {"node.data": None}) == Settings()


def test_a_key_that_one_source_sets_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    file = written(tmp_path, '[node]\nae_title = "FILE"\nport = 2000\n')
    node = load(file, {"DICOM_NODE_NODE__PORT": "3000"}, {"node.data": "flag"}).node
    assert (node.ae_title, node.port, node.data) == ("FILE", 3000, Path("flag"))


def test_peers_of_the_environment_replace_those_of_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, '[[peers]]\nname = "a"\nae_title = "A"\nhost = "a"\n')
    environ = {"DICOM_NODE_PEERS": json.dumps([PEER])}
    assert [one.name for one in load(file, environ, {}).peers] == ["pacs"]


def test_other_programs_variables_are_not_looked_at() -> None:
    environ = {"PATH": "/bin", "DICOM_NODE_CONFIG": "x.toml", "XDICOM_NODE_NODE__PORT": "1"}
    assert load(None, environ, {}) == Settings()


def test_settings_can_not_be_changed_under_anyone() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().node.port = 1


# -- secrets ---------------------------------------------------------------------------------------


def test_a_secret_is_read_from_the_file_that_the_environment_names(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql+psycopg://u:p@h/n\n")
    environ = {"DICOM_NODE_DATABASE__URL_FILE": str(tmp_path / "url")}
    assert load(None, environ, {}).database.url == "postgresql+psycopg://u:p@h/n"


def test_a_secret_is_read_from_the_file_that_the_configuration_names(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://h\n")
    file = written(tmp_path, f'[broker]\nurl_file = "{tmp_path / "url"}"\n')
    assert load(file, {}, {}).broker.url == "redis://h"


def test_an_url_of_the_environment_beats_an_url_file_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://from-file\n")
    file = written(tmp_path, f'[broker]\nurl_file = "{tmp_path / "url"}"\n')
    environ = {"DICOM_NODE_BROKER__URL": "redis://from-environment"}
    assert load(file, environ, {}).broker.url == "redis://from-environment"


def test_a_secret_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    environ = {"DICOM_NODE_DATABASE__URL_FILE": str(tmp_path / "missing")}
    with pytest.raises(ConfigurationError, match=r"url_file = .*/missing: No such file"):
        load(None, environ, {})


def test_a_secret_that_is_no_text_is_named_and_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "url").write_bytes(b"geheim\xff")
    with pytest.raises(ConfigurationError, match=r"url_file = .*: not UTF-8 text") as caught:
        load(None, {"DICOM_NODE_DATABASE__URL_FILE": str(tmp_path / "url")}, {})
    assert caught.value.__cause__ is caught.value.__context__ is None


ARCHIVE = {
    "name": "archive",
    "protocol": "dicomweb",
    "url": "https://archive/dicom-web",
    "roles": ["destination"],
}


def test_a_peer_s_password_may_lie_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("geheim\n")
    (tmp_path / "token").write_text("a.b.c\n")
    other = {**ARCHIVE, "name": "other", "token_file": str(tmp_path / "token")}
    login = {"username": "node", "password_file": str(tmp_path / "password")}
    environ = {"DICOM_NODE_PEERS": json.dumps([{**ARCHIVE, **login}, other])}
    settings = load(None, environ, {})
    assert [(one.password, one.token) for one in settings.peers] == [("geheim", ""), ("", "a.b.c")]
    assert load(None, environment(settings), {}) == settings
    assert not any(secret in repr(settings) for secret in ("geheim", "a.b.c"))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"username": "node"}, "a login is username and password, or a token alone"),
        ({"password": "geheim"}, "a login is username and password, or a token alone"),
        ({"username": "node", "password": "geheim", "token": "a"}, "or a token alone"),
        ({"username": "a:b", "password": "geheim"}, r"peers\.0\.username"),
        ({"username": "node", "password": "geheim\r\nX: y"}, r"peers\.0\.password"),
        ({"token": "geheim \n"}, r"peers\.0\.token"),
        (
            {"protocol": "hl7", "host": "h", "url": "", "token": "geheim"},
            "token: only for peers with a url",
        ),
    ],
)
def test_a_login_that_can_t_be_one_is_an_error_that_shows_no_secret(
    change: dict[str, object], why: str
) -> None:
    environ = {"DICOM_NODE_PEERS": json.dumps([{**ARCHIVE, **change}])}
    with pytest.raises(ConfigurationError, match=why) as caught:
        load(None, environ, {})
    assert "geheim" not in str(caught.value)


# -- what is wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "unknown", "nearest"),
    [
        pytest.param("[node]\nae_titel = 'X'\n", "node.ae_titel", "node.ae_title", id="key"),
        pytest.param("[nodes]\nport = 1\n", "nodes", "node", id="section"),
        pytest.param("[study]\nquiet = 1\n", "study.quiet", "study.quiet_seconds", id="shorter"),
        pytest.param(
            "[[peers]]\nname='p'\nae_title='P'\nhost='h'\nprof='find'\n",
            "peers.0.prof",
            "peers.proof",
            id="peer",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(
    tmp_path: Path, text: str, unknown: str, nearest: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load(written(tmp_path, text), {}, {})
    assert str(raised.value) == f"unknown key {unknown}; did you mean {nearest}?"


def test_an_unknown_key_of_the_environment_names_the_nearest_known_one() -> None:
    with pytest.raises(ConfigurationError, match=r"node\.prot; did you mean node\.port\?"):
        load(None, {"DICOM_NODE_NODE__PROT": "1"}, {})


def test_a_variable_without_a_section_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="DICOM_NODE_PORT: no such setting"):
        load(None, {"DICOM_NODE_PORT": "1"}, {})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"dicom-node\.toml: No such file"):
        load(tmp_path / "dicom-node.toml", {}, {})


@pytest.mark.parametrize("content", [b"[node\n", b"\xff\xfe"], ids=["syntax", "encoding"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "dicom-node.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"dicom-node\.toml: not valid TOML"):
        load(file, {}, {})


def test_peers_that_are_no_json_are_named() -> None:
    with pytest.raises(ConfigurationError, match="DICOM_NODE_PEERS: not valid JSON"):
        load(None, {"DICOM_NODE_PEERS": "{"}, {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("node.port", "0"),
        ("node.port", "65536"),
        ("node.port", "many"),
        ("study.quiet_seconds", "-1"),
        ("jobs.max_attempts", "0"),
        ("jobs.give_up_hours", "0"),
        ("model.device", "tpu"),
        ("model.slots", "-1"),
        ("model.slots", "65"),
        ("model.draft_tokens", "-1"),
        ("model.draft_tokens", "16"),
        ("model.max_new_tokens", "-1"),
        ("model.report_seconds", "-0.1"),
        ("results.text_sr", "perhaps"),
    ],
)
def test_a_wrong_value_names_its_key_and_is_not_repeated(key: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load(None, {}, {key: value})
    assert str(raised.value).startswith(f"{key}: ")
    assert "input_value" not in str(raised.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"node\.port: .*; unknown key node\.hots"):
        load(None, {}, {"node.port": 0, "node.hots": "x"})


# PS3.5 6.2, VR AE
@pytest.mark.parametrize("ae_title", ["A", "ABCDEFGHIJKLMNOP", "MY PACS", "a-b_c.d", "0"])
def test_an_ae_title_may_be(ae_title: str) -> None:
    assert load(None, {}, {"node.ae_title": ae_title}).node.ae_title == ae_title


@pytest.mark.parametrize(
    "ae_title", ["", " ", "   ", "ABCDEFGHIJKLMNOPQ", "A\\B", "A\nB", "A\n", "\tA", "ÄRZTE", "A\0"]
)
def test_an_ae_title_may_not_be(ae_title: str) -> None:
    with pytest.raises(ConfigurationError, match=r"node\.ae_title"):
        load(None, {}, {"node.ae_title": ae_title})


# -- peers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "address", "may"),
    [
        ("10.0.0.5", "10.0.0.5", True),
        ("10.0.0.5", "10.0.0.50", False),
        ("10.0.0.0/24", "10.0.0.77", True),
        ("10.0.0.7/24", "10.0.0.77", True),  # host bits in a network are forgiven
        ("10.0.0.0/24", "10.0.1.1", False),
        ("fd00::/8", "fd12::1", True),
        ("fd00::/8", "10.0.0.1", False),
        ("fd12:0::1", "fd12::1", True),
        ("Pacs.Example", "pacs.example", True),
        ("pacs.example", "10.0.0.1", False),
        (["10.0.0.5", "10.1.0.0/16"], "10.1.2.3", True),
        (["10.0.0.5", "10.1.0.0/16"], "10.2.2.3", False),
        ("10.0.0.0/99", "10.0.0.1", False),
    ],
)
def test_a_peer_may_call_from(host: str | list[str], address: str, may: bool) -> None:
    assert peer(host=host, roles=["source"]).may_call_from([address]) is may


def test_one_matching_name_of_a_caller_is_enough() -> None:
    assert peer(host="pacs.example").may_call_from(["10.0.0.5", "pacs.example"])
    assert not peer(host="pacs.example").may_call_from([])


@pytest.mark.parametrize(
    ("host", "why"),
    [
        pytest.param("10.0.0.0/24", "a destination needs a host", id="network"),
        pytest.param(["10.0.0.0/24", "10.0.0.5"], "a destination needs a host", id="network-first"),
        pytest.param([], "needs a host", id="none"),
        pytest.param("", "at least 1 character", id="empty"),
    ],
)
def test_a_destination_without_a_host_is_an_error(host: str | list[str], why: str) -> None:
    environ = {"DICOM_NODE_PEERS": json.dumps([{**PEER, "host": host}])}
    with pytest.raises(ConfigurationError, match=why):
        load(None, environ, {})


def test_a_peer_without_a_host_is_an_error() -> None:
    without = {key: value for key, value in PEER.items() if key != "host"}
    with pytest.raises(ConfigurationError, match=r"peer pacs: needs a host"):
        load(None, {"DICOM_NODE_PEERS": json.dumps([without])}, {})


def test_a_source_may_be_a_whole_network() -> None:
    assert not peer(host="10.0.0.0/24", roles=["source"]).is_destination


def test_the_first_host_is_the_one_we_call() -> None:
    assert peer(host=["10.0.0.5", "10.0.0.0/24"]).address == "10.0.0.5"


def test_two_peers_of_one_name_are_an_error() -> None:
    environ = {"DICOM_NODE_PEERS": json.dumps([PEER, PEER])}
    with pytest.raises(ConfigurationError, match="two peers are named pacs"):
        load(None, environ, {})


def test_drafts_go_to_destinations_only() -> None:
    source, destination = peer(name="a", roles=["source"]), peer(name="b", roles=["destination"])
    settings = Settings(peers=(source, destination))
    assert settings.destinations() == (destination,)
    assert settings.peer("a") == source
    assert settings.peer("c") is None


def test_a_senders_own_quiet_time_beats_the_general_one() -> None:
    settings = Settings(peers=(peer(ae_title="SLOW", quiet_seconds=900), peer(name="other")))
    assert settings.quiet_seconds("SLOW") == 900
    assert settings.quiet_seconds("PACS") == 60
    assert settings.quiet_seconds("STRANGER") == 60


@pytest.mark.parametrize("own", [7, 900, None])
def test_of_two_senders_with_one_title_the_longest_wait_counts(own: float | None) -> None:
    elsewhere = peer(name="b", host="10.0.0.6", quiet_seconds=own)
    settings = Settings(peers=(peer(name="a", quiet_seconds=30), elsewhere))
    assert settings.quiet_seconds("PACS") == max(30, own or 60)


# -- one PACS under two titles, and whether by TLS -------------------------------------------------

TWO_TITLES = {"query_ae_title": "PACSQR", "query_port": 1104}
TLS = {"certificate": "node.pem", "private_key": "node.key", "authorities": "ca.pem"}


def test_a_peer_may_call_under_its_query_title_too() -> None:
    pacs = peer(**TWO_TITLES, quiet_seconds=5)
    assert pacs.calling_ae_titles == {"PACS", "PACSQR"}
    assert peer().calling_ae_titles == {"PACS"}
    settings = Settings(peers=(pacs, peer(name="other", ae_title="OTHER")))
    assert settings.sources("PACSQR") == settings.sources("PACS") == (pacs,)
    assert settings.sources("STRANGER") == ()
    assert settings.quiet_seconds("PACSQR") == 5


def test_only_dicom_peers_that_may_send_are_sources() -> None:
    ris = Peer.model_validate({**RIS, "roles": ["source"]})
    settings = Settings(peers=(peer(roles=["destination"]), ris))
    assert settings.sources() == ()


@pytest.mark.parametrize(
    ("changes", "called"),
    [
        ({}, ("PACS", 104)),
        ({"query_ae_title": "PACSQR"}, ("PACSQR", 104)),
        ({"query_port": 1104}, ("PACS", 1104)),
        (TWO_TITLES, ("PACSQR", 1104)),
    ],
)
def test_queries_go_to_the_query_title_and_port(
    changes: dict[str, object], called: tuple[str, int]
) -> None:
    asked = peer(port=104, **changes).for_queries
    assert (asked.ae_title, asked.port) == called


@pytest.mark.parametrize("differs", [{"quiet_seconds": 5}, {"tls": True}])
@pytest.mark.parametrize("host", ["10.0.0.5", "10.0.0.0/24", ["10.1.1.1", "10.0.0.5/32"]])
def test_two_peers_that_a_call_can_not_be_told_apart_by_must_mean_the_same(
    host: str | list[str], differs: dict[str, object]
) -> None:
    one, other = {**PEER, "roles": ["source"]}, {**PEER, "name": "b", "host": host}
    other |= {"roles": ["source"]}
    settings = {"tls": {**TLS, "port": 2762}, "peers": [one, other]}
    assert Settings.model_validate(settings).sources("PACS")
    settings["peers"] = [one, {**other, **differs}]
    with pytest.raises(ValueError, match="peers pacs and b both call as PACS from one address"):
        Settings.model_validate(settings)


@pytest.mark.parametrize(
    "apart",
    [
        {"host": "10.0.0.6"},
        {"host": "pacs.example"},
        {"host": ["fd00::1", "10.0.0.5/32"], "ae_title": "PACS2"},
        {"host": "fd00::/8", "roles": ["source"]},
        {"ae_title": "OTHER"},
        {"roles": ["destination"]},
    ],
)
def test_two_peers_that_can_be_told_apart_may_differ(apart: dict[str, object]) -> None:
    other = {**PEER, "name": "b", "quiet_seconds": 5, **apart}
    assert len(Settings.model_validate({"peers": [PEER, other]}).peers) == 2


def test_a_tls_peer_without_certificates_is_an_error_that_names_the_keys() -> None:
    environ = {"DICOM_NODE_PEERS": json.dumps([{**PEER, "tls": True}])}
    keys = r"peer pacs: .*tls\.certificate, tls\.private_key and tls\.authorities"
    with pytest.raises(ConfigurationError, match=keys):
        load(None, environ, {})


def test_a_tls_source_without_a_tls_port_is_an_error_and_a_destination_is_none() -> None:
    caller = {**PEER, "tls": True}
    with pytest.raises(ValueError, match=r"peer pacs: tls = true needs tls\.port"):
        Settings.model_validate({"tls": TLS, "peers": [caller]})
    called = {**caller, "roles": ["destination"], "proof": "find"}
    assert Settings.model_validate({"tls": TLS, "peers": [called]}).peers[0].tls
    reporting = {**called, "proof": "commitment"}  # it calls with its reports
    with pytest.raises(ValueError, match=r"peer pacs: tls = true needs tls\.port"):
        Settings.model_validate({"tls": TLS, "peers": [reporting]})


@pytest.mark.parametrize("key", ["query_ae_title", "query_port", "tls"])
def test_what_only_dicom_peers_have_is_an_error_elsewhere(key: str) -> None:
    value = {"query_ae_title": "QR", "query_port": 1, "tls": True}[key]
    with pytest.raises(ValueError, match=f"peer ris: {key}: only for DICOM peers"):
        Peer.model_validate({**RIS, key: value})


# -- back-off and the way into child processes -----------------------------------------------------


def test_waits_double_up_to_the_longest_and_half_of_each_is_chance() -> None:
    jobs = Jobs(first_retry_seconds=5, longest_retry_seconds=600)
    longest = {1: 5, 2: 10, 3: 20, 7: 320, 8: 600, 9: 600, 10_000: 600}
    for attempts, seconds in longest.items():
        waits = {jobs.back_off(attempts) for _ in range(50)}
        assert len(waits) > 1
        assert timedelta(seconds=seconds / 2) <= min(waits)
        assert max(waits) <= timedelta(seconds=seconds)


_printable = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
_seconds = st.floats(0, 1e6, allow_nan=False)
_ae_titles = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_ ]{0,15}\Z")
_peers = st.builds(
    Peer,
    name=st.text(min_size=1, max_size=10),
    ae_title=_ae_titles,
    host=st.lists(st.sampled_from(["10.0.0.5", "pacs.example", "::1"]), min_size=1, max_size=3),
    port=st.integers(1, 65535),
    roles=st.sets(st.sampled_from(["source", "destination"])),
    proof=st.sampled_from(["commitment", "find", "none"]),
    mode=st.sampled_from(["live", "shadow"]),
    quiet_seconds=st.none() | _seconds,
)
_settings = st.fixed_dictionaries(
    {
        "node": st.fixed_dictionaries(
            {
                "ae_title": _ae_titles,
                "host": st.sampled_from(["0.0.0.0", "::", "localhost"]),
                "port": st.integers(1, 65535),
                "data": _printable.filter(str.strip).map(Path),
                "institution": _printable,
            }
        ),
        "database": st.fixed_dictionaries({"url": _printable}),
        "broker": st.fixed_dictionaries({"url": _printable}),
        "study": st.fixed_dictionaries({"quiet_seconds": _seconds, "ready_seconds": _seconds}),
        "model": st.fixed_dictionaries(
            {
                "name": _printable,
                "path": _printable,
                "slots": st.integers(0, 64),
                "report_seconds": _seconds,
            }
        ),
        "results": st.fixed_dictionaries({"text_sr": st.booleans()}),
        "jobs": st.fixed_dictionaries({"max_attempts": st.integers(1), "lease_seconds": _seconds}),
        "peers": st.lists(
            _peers, max_size=3, unique_by=(lambda one: one.name, lambda one: one.ae_title)
        ),
    }
)


@given(_settings)
def test_a_child_process_gets_exactly_our_settings(values: dict[str, Any]) -> None:
    ours = Settings.model_validate(values)
    handed_over = environment(ours)
    assert all(name.startswith(PREFIX) for name in handed_over)
    assert load(None, handed_over, {}) == ours


def test_what_the_parent_decided_beats_the_childs_own_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://before")
    file = written(tmp_path, f'[node]\nport = 2000\n[broker]\nurl_file = "{tmp_path / "url"}"\n')
    ours = load(file, {}, {"node.port": 3000, "broker.url": "redis://now"})
    assert load(file, environment(ours), {}) == ours


# -- peers of other protocols ----------------------------------------------------------------------

RIS = {"name": "ris", "protocol": "hl7", "host": "10.0.0.6", "roles": ["destination"]}
EHR = {"name": "ehr", "protocol": "fhir", "url": "https://ehr/fhir", "roles": ["destination"]}
MESSAGES = {"DICOM_NODE_RESULTS__HL7": "true", "DICOM_NODE_RESULTS__FHIR": "true"}


def test_each_kind_of_result_goes_to_the_peers_that_speak_its_protocol() -> None:
    settings = load(None, {**MESSAGES, "DICOM_NODE_PEERS": json.dumps([PEER, RIS, EHR])}, {})
    names = {kind: [one.name for one in settings.destinations(kind)] for kind in KINDS}
    assert names.pop("hl7") == ["ris"]
    assert names.pop("fhir") == ["ehr"]
    assert list(names.values()) == [["pacs"]] * len(names)
    again = load(None, environment(settings), {})
    assert again == settings


def test_the_first_kind_that_is_made_stands_for_the_draft() -> None:
    assert load(None, {}, {}).results.kinds == ("text_sr",)
    environ = {"DICOM_NODE_RESULTS__TEXT_SR": "false", "DICOM_NODE_RESULTS__PDF": "true"}
    assert load(None, environ, {}).results.kinds == ("pdf",)


@pytest.mark.parametrize("peer_of", [RIS, EHR], ids=["hl7", "fhir"])
def test_a_peer_that_nothing_is_made_for_is_an_error(peer_of: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing is made for it: set results\."):
        load(None, {"DICOM_NODE_PEERS": json.dumps([peer_of])}, {})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param({"protocol": "dicom"}, "needs an ae_title", id="dicom without title"),
        pytest.param({"protocol": "fhir"}, 'needs url = "https', id="fhir without url"),
        pytest.param({"host": []}, "needs a host", id="hl7 without host"),
        pytest.param({"proof": "find"}, "HL7 has no query", id="hl7 with proof"),
        pytest.param(
            {**EHR, "proof": "commitment"}, "fhir has no commitment", id="fhir with commitment"
        ),
        pytest.param({**EHR, "roles": ["source"]}, "needs url", id="fhir as a source"),
        pytest.param(
            {**EHR, "protocol": "dicomweb", "proof": "commitment"},
            "dicomweb has no commitment",
            id="dicomweb with commitment",
        ),
        pytest.param(
            {**EHR, "roles": ["destination", "query"]}, "needs url", id="fhir that is asked"
        ),
    ],
)
def test_a_peer_says_what_its_protocol_needs(change: dict[str, object], why: str) -> None:
    environ = {**MESSAGES, "DICOM_NODE_PEERS": json.dumps([{**RIS, **change}])}
    with pytest.raises(ConfigurationError, match=why):
        load(None, environ, {})


def test_the_fallback_is_a_list_in_a_variable_too() -> None:
    environ = {"DICOM_NODE_RESULTS__FALLBACK": '["capture"]'}
    assert load(None, environ, {}).results.fallback == ("capture",)
    with pytest.raises(ConfigurationError, match="not valid JSON"):
        load(None, {"DICOM_NODE_RESULTS__FALLBACK": "capture"}, {})


def test_a_list_can_be_given_in_a_variable() -> None:
    environ = {"DICOM_NODE_RECONCILIATION__MODALITIES": '["CR"]'}
    assert load(None, environ, {}).reconciliation.modalities == ("CR",)


@pytest.mark.parametrize(
    "url", ["collector", "http://collector:514", "udp://collector", "udp://collector:65536"]
)
def test_an_audit_collector_needs_transport_host_and_port(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"udp://HOST:PORT or tls://HOST:PORT"):
        load(None, {"DICOM_NODE_AUDIT__URL": url}, {})


@pytest.mark.parametrize("url", ["udp://collector:514", "tls://[::1]:6514"])
def test_an_audit_collector_is_reached_by_udp_or_tls(url: str) -> None:
    files = {"CERTIFICATE": "a", "PRIVATE_KEY": "b", "AUTHORITIES": "c"}
    environ = {f"DICOM_NODE_TLS__{key}": value for key, value in files.items()}
    assert load(None, {"DICOM_NODE_AUDIT__URL": url, **environ}, {}).audit.url == url


def test_an_audit_collector_is_reached_by_tls_with_certificates() -> None:
    with pytest.raises(ConfigurationError, match=r"audit\.url: tls:// needs tls\.certificate"):
        load(None, {"DICOM_NODE_AUDIT__URL": "tls://collector:6514"}, {})


def test_what_is_forgotten_here_must_not_be_asked_for_again() -> None:
    environ = {
        "DICOM_NODE_RECONCILIATION__DAYS": "31",
        "DICOM_NODE_RETENTION__METADATA_DAYS": "30",
    }
    with pytest.raises(ConfigurationError, match=r"reconciliation\.days = 31 must not be above"):
        load(None, environ, {})
    environ["DICOM_NODE_RETENTION__METADATA_DAYS"] = "0"  # for ever
    assert load(None, environ, {}).reconciliation.days == 31


def test_the_peers_that_are_asked_are_those_with_the_role() -> None:
    both = peer(name="a", roles=["query", "worklist"])
    settings = Settings(peers=(both, peer(name="b", roles=["query"]), peer(name="c")))
    assert [one.name for one in settings.asked("query")] == ["a", "b"]
    assert [one.name for one in settings.asked("worklist")] == ["a"]
