from __future__ import annotations

import logging
import shutil
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicom_node import tls
from dicom_node.config import Tls
from dicom_node.errors import ConfigurationError
from dicom_node.tls import Material
from tests.dicom_node.certificates import Authority, Certificate, openssl

PATIENCE = 20.0  #: seconds; far above what a handshake takes

ASSOCIATE_RQ = bytes((1, 0, 0, 0, 0, 200)) + bytes(200)  # PS3.8 9.3.2, as it begins


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("hospital"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "Some other CA")


@pytest.fixture(scope="module")
def settings(authority: Authority) -> Tls:
    return authority.issue().settings(authority)


@pytest.fixture(scope="module")
def node(settings: Tls) -> Material:
    return Material(settings)


def client(certificate: Certificate | None, trusted: Authority) -> ssl.SSLContext:
    """A peer's own idea of a client: no rules but that it checks us."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(trusted.certificate)
    if certificate is not None:
        context.load_cert_chain(certificate.certificate, certificate.private_key)
    return context


def server(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.private_key)
    return context


Ended = tuple[str, str | None]  # what came of it, and the TLS version


def meet(
    serving: ssl.SSLContext, calling: ssl.SSLContext, host: str = "127.0.0.1"
) -> tuple[Ended, Ended]:
    """Shake hands and pass a byte to the caller; what each says of it, the server first."""
    left, right = socket.socketpair()

    def side(wrap: Callable[[], ssl.SSLSocket]) -> Ended:
        try:
            with wrap() as wrapped:
                if wrapped.server_side:
                    wrapped.send(b"x")
                else:
                    assert wrapped.recv(1) == b"x"
                return "", wrapped.version()
        except OSError as error:
            return tls.explain(error), None

    with left, right, ThreadPoolExecutor() as pool:
        for one in (left, right):
            one.settimeout(PATIENCE)
        served = pool.submit(side, lambda: serving.wrap_socket(left, server_side=True))
        called = pool.submit(side, lambda: calling.wrap_socket(right, server_hostname=host))
        return served.result(), called.result()


def said_of(sent: bytes, node: Material) -> str:
    """What we say of a caller who sends this instead of a TLS handshake, and then leaves."""
    left, right = socket.socketpair()
    with left, right:
        right.sendall(sent)
        right.shutdown(socket.SHUT_WR)
        left.settimeout(PATIENCE)
        with pytest.raises(OSError) as caught:  # noqa: PT011
            node.server_context().wrap_socket(left, server_side=True)
    return tls.explain(caught.value)


# -- who may talk to whom ----------------------------------------------------------------------


def test_two_nodes_of_one_authority_meet_by_tls_1_3(node: Material) -> None:
    served, called = meet(node.server_context(), node.client_context())
    assert served == called == ("", "TLSv1.3")


def test_a_peer_that_knows_only_tls_1_2_is_served(node: Material, authority: Authority) -> None:
    old = client(authority.issue(), authority)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert meet(node.server_context(), old)[0] == ("", "TLSv1.2")


def test_an_rsa_certificate_serves_as_well(authority: Authority) -> None:
    material = Material(authority.issue(kind="rsa:2048").settings(authority))
    assert meet(material.server_context(), material.client_context())[0] == ("", "TLSv1.3")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_tls_1_1_is_refused(node: Material, authority: Authority) -> None:
    old = client(authority.issue(), authority)
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    served, _ = meet(node.server_context(), old)
    assert served[0] == "the peer offers no TLS version from 1.2 on"


@pytest.mark.parametrize("suite", ["ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES256-SHA"])
def test_suites_outside_the_profile_are_refused(
    node: Material, authority: Authority, suite: str
) -> None:
    weak = client(authority.issue(), authority)
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers(suite)
    served, called = meet(node.server_context(), weak)
    assert served[0] == "the peer offers none of the cipher suites of BCP 195"
    assert called[0] == "the peer finds nothing in common: cipher suites, or a certificate"


def test_the_suites_of_tls_1_2_are_those_of_rfc_9325(node: Material) -> None:
    for context in (node.server_context(), node.client_context()):
        offered = [one["name"] for one in context.get_ciphers() if one["protocol"] == "TLSv1.2"]
        assert offered == [
            "ECDHE-ECDSA-AES128-GCM-SHA256",
            "ECDHE-RSA-AES128-GCM-SHA256",
            "ECDHE-ECDSA-AES256-GCM-SHA384",
            "ECDHE-RSA-AES256-GCM-SHA384",
        ]


def test_nothing_is_compressed_negotiated_again_or_without_a_certificate(node: Material) -> None:
    never = ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    for context in (node.server_context(), node.client_context()):
        assert context.options & never == never
        assert context.verify_mode == ssl.CERT_REQUIRED
    assert node.client_context().check_hostname


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_caller_without_a_certificate_is_refused(
    node: Material, authority: Authority, version: ssl.TLSVersion
) -> None:
    bare = client(None, authority)
    bare.maximum_version = version
    served, _ = meet(node.server_context(), bare)
    assert served[0] == "the peer showed no certificate"


@pytest.mark.parametrize(
    ("days", "host", "usage", "said"),
    [
        (-1, "IP:127.0.0.1", "clientAuth", "the peer's certificate has expired"),
        (1, "IP:127.0.0.1", "serverAuth", "the peer's certificate is not made for this use"),
    ],
    ids=["expired", "not for clients"],
)
def test_what_is_wrong_with_a_caller_s_certificate_is_said(
    node: Material, authority: Authority, days: int, host: str, usage: str, said: str
) -> None:
    wrong = client(authority.issue(days=days, host=host, usage=usage), authority)
    served, called = meet(node.server_context(), wrong)
    assert served[0].startswith(said)
    assert "our certificate" in called[0]  # the caller is told too


def test_a_caller_of_another_authority_is_refused_and_told(
    node: Material, authority: Authority, stranger: Authority
) -> None:
    served, called = meet(node.server_context(), client(stranger.issue(), authority))
    assert served[0] == "the peer's certificate is of an authority that is not trusted"
    assert called[0] == "the peer does not trust the authority of our certificate"


def test_a_peer_whose_certificate_is_its_own_is_refused(
    node: Material, authority: Authority, stranger: Authority
) -> None:
    served, _ = meet(node.server_context(), client(stranger.own, authority))
    assert served[0] == "the peer's certificate is signed by nobody but itself"


def test_a_pinned_self_signed_certificate_is_trusted(
    settings: Tls, stranger: Authority, authority: Authority
) -> None:
    pinning = Material(settings.model_copy(update={"authorities": str(stranger.certificate)}))
    assert meet(pinning.server_context(), client(stranger.own, authority))[0] == ("", "TLSv1.3")


@pytest.mark.parametrize(
    ("host", "called", "said"),
    [
        ("DNS:pacs.hospital", "pacs.hospital", ""),
        ("IP:127.0.0.1", "127.0.0.1", ""),
        ("DNS:pacs.hospital", "ris.hospital", "is not for the name that was called"),
        ("DNS:pacs.hospital", "127.0.0.1", "is not for the address that was called"),
    ],
)
def test_the_peer_we_call_must_be_named_in_its_certificate(
    node: Material, authority: Authority, host: str, called: str, said: str
) -> None:
    _, ended = meet(server(authority.issue(host=host)), node.client_context(), called)
    assert ended[0] == (f"the peer's certificate {said}" if said else "")


def test_a_common_name_names_nobody(node: Material, authority: Authority) -> None:  # RFC 9525 2
    _, ended = meet(server(authority.issue(host="email:x@y")), node.client_context(), "a node")
    assert ended[0] == "the peer's certificate is not for the name that was called"


@pytest.mark.parametrize(
    ("days", "said"), [(-1, "has expired"), (1, "is of an authority that is not trusted")]
)
def test_the_peer_we_call_must_have_a_valid_certificate(
    node: Material, authority: Authority, stranger: Authority, days: int, said: str
) -> None:
    signer = authority if days < 0 else stranger
    _, ended = meet(server(signer.issue(days=days)), node.client_context())
    assert ended[0] == f"the peer's certificate {said}"


# -- who speaks no TLS -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (ASSOCIATE_RQ, "the peer speaks no TLS; DICOM without TLS has another port"),
        (b"GET / HTTP/1.1\r\nHost: node\r\n\r\n", "the peer speaks HTTP without TLS"),
        (b"", "the peer closed the connection during the TLS handshake"),
        (b"\x16\x03\x01\x02\x00\x01", "the peer closed the connection during the TLS handshake"),
        (bytes(range(64, 128)), "the peer speaks no TLS; DICOM without TLS has another port"),
    ],
    ids=["DICOM", "HTTP", "nothing", "half a hello", "noise"],
)
def test_who_speaks_no_tls_is_described(node: Material, sent: bytes, said: str) -> None:
    assert said_of(sent, node) == said


def test_a_silent_caller_is_described(node: Material) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.settimeout(0.05)
        with pytest.raises(TimeoutError) as caught:
            node.server_context().wrap_socket(left, server_side=True)
    assert tls.explain(caught.value) == "the peer did not finish the TLS handshake in time"


def test_any_other_fault_is_a_sentence_too() -> None:
    unknown = ssl.SSLError(1, "[SSL: BAD_ECPOINT] bad ecpoint (_ssl.c:1)")
    assert tls.explain(unknown) == "the TLS handshake failed"
    assert tls.explain(ConnectionResetError()).startswith("the peer closed the connection")


# -- our own files -----------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["certificate", "private_key", "authorities"])
def test_a_missing_file_is_named(settings: Tls, key: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^tls\.{key}: /none\.pem: No such file"):
        Material(settings.model_copy(update={key: "/none.pem"}))


@pytest.mark.parametrize("key", ["certificate", "private_key", "authorities"])
def test_a_file_that_is_not_pem_is_named(settings: Tls, key: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_bytes(b"\x30\x82\x01\xff")
    with pytest.raises(ConfigurationError, match=rf"^tls\.{key}: {wrong}: holds no .* in PEM form"):
        Material(settings.model_copy(update={key: str(wrong)}))


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("certificate", "CERTIFICATE"),
        ("private_key", "PRIVATE KEY"),
        ("authorities", "CERTIFICATE"),
    ],
)
def test_a_damaged_file_is_named(settings: Tls, key: str, content: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text(f"-----BEGIN {content}-----\nAAAA\n-----END {content}-----\n")
    with pytest.raises(ConfigurationError, match=r"^tls\.\w+: .*can't be used") as caught:
        Material(settings.model_copy(update={key: str(wrong)}))
    assert f"tls.{key}" in str(caught.value)
    assert str(wrong) in str(caught.value)


def test_a_key_of_another_certificate_is_named(settings: Tls, authority: Authority) -> None:
    other = str(authority.issue().private_key)
    with pytest.raises(
        ConfigurationError, match=rf"^tls\.private_key: {other}: is not the key of tls\.certificate"
    ):
        Material(settings.model_copy(update={"private_key": other}))


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_a_passphrase(
    settings: Tls, tmp_path: Path
) -> None:
    locked = tmp_path / "locked.key"
    words = ["pkey", "-in", settings.private_key, "-out", str(locked)]
    openssl(*words, "-aes256", "-passout", "pass:secret")
    with pytest.raises(ConfigurationError, match=r"^tls\.private_key: .*is encrypted"):
        Material(settings.model_copy(update={"private_key": str(locked)}))


def test_an_expired_certificate_is_named(authority: Authority) -> None:
    expired = authority.issue(days=-1)
    with pytest.raises(
        ConfigurationError, match=rf"^tls\.certificate: {expired.certificate}: has expired"
    ):
        Material(expired.settings(authority))


def test_a_certificate_too_weak_for_the_profile_is_named(authority: Authority) -> None:
    weak = authority.issue(kind="rsa:1024")
    with pytest.raises(ConfigurationError, match=r"^tls\.certificate: .*\(ee key too small\)"):
        Material(weak.settings(authority))


def test_a_certificate_that_is_not_for_servers_serves_no_port(authority: Authority) -> None:
    callers = authority.issue(usage="clientAuth")
    with pytest.raises(ConfigurationError, match=r"^tls\.certificate: .*is not made for this use"):
        Material(callers.settings(authority))
    Material(callers.settings(authority, port=0))  # who only calls needs no more


def test_a_certificate_that_is_not_for_clients_serves_a_node_that_is_only_called(
    authority: Authority,
) -> None:
    servers = authority.issue(usage="serverAuth")
    Material(servers.settings(authority))
    with pytest.raises(ConfigurationError, match=r"^tls\.certificate: .*is not made for this use"):
        Material(servers.settings(authority, port=0))


def test_it_is_known_when_our_certificate_ends(authority: Authority) -> None:
    ends = Material(authority.issue(days=20).settings(authority)).expires
    assert abs(ends - datetime.now(UTC) - timedelta(days=20)) < timedelta(minutes=5)


def test_a_heartbeat_tells_when_our_certificate_ends_or_what_is_wrong(
    settings: Tls, authority: Authority
) -> None:
    assert tls.facts(Tls()) == {}
    assert tls.facts(settings) == {"certificate_expires": tls.expiry(settings).isoformat()}
    expired = authority.issue(days=-1)
    said = f"tls.certificate: {expired.certificate}: has expired"
    assert tls.facts(expired.settings(authority)) == {"fault": said}


# -- new certificates while we run -------------------------------------------------------------


@pytest.fixture
def replaceable(authority: Authority, tmp_path: Path) -> Certificate:
    """A certificate whose files may be written over."""
    made = authority.issue(days=10)
    return Certificate(
        certificate=Path(shutil.copy(made.certificate, tmp_path / "node.pem")),
        private_key=Path(shutil.copy(made.private_key, tmp_path / "node.key")),
    )


def test_new_certificates_hold_for_the_next_connection(
    authority: Authority, replaceable: Certificate
) -> None:
    material = Material(replaceable.settings(authority))
    before = material.server_context()
    new = authority.issue(days=100)
    shutil.copy(new.certificate, replaceable.certificate)
    shutil.copy(new.private_key, replaceable.private_key)
    assert material.reload()
    assert material.expires > datetime.now(UTC) + timedelta(days=90)
    assert material.server_context() is not before


def test_faulty_new_certificates_change_nothing_and_are_logged(
    authority: Authority, replaceable: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    material = Material(replaceable.settings(authority))
    before, ends = material.server_context(), material.expires
    replaceable.private_key.unlink()
    with caplog.at_level(logging.ERROR):
        assert not material.reload()
    assert (material.server_context(), material.expires) == (before, ends)
    assert f"tls.private_key: {replaceable.private_key}: No such file" in caplog.text


def test_no_session_tickets_are_given(node: Material, authority: Authority) -> None:
    caller = client(authority.issue(), authority)
    left, right = socket.socketpair()
    with left, right, ThreadPoolExecutor() as pool:
        served = pool.submit(node.server_context().wrap_socket, left, True)
        with caller.wrap_socket(right, server_hostname="127.0.0.1") as wrapped:
            served.result().send(b"x")
            assert wrapped.recv(1) == b"x"
            assert wrapped.session is None or not wrapped.session.has_ticket
        served.result().close()
