"""Syslog by UDP and TLS: what the collector got, and what we know of it."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dicom_node.audit import syslog
from dicom_node.audit.spool import Waiting
from dicom_node.audit.syslog import TlsCollector, UdpCollector, open_collector
from dicom_node.config import Audit, Settings, Tls
from dicom_node.errors import PeerError
from tests.dicom_node.audit import collectors
from tests.dicom_node.audit.collectors import Collected, TlsServer, UdpServer
from tests.dicom_node.audit.rsyslog import Rsyslog
from tests.dicom_node.certificates import Authority

PATIENCE = 20.0  #: seconds; far above what a loaded machine needs
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


def batch(*messages: str) -> list[Waiting]:
    return [Waiting(id=number, at=AT, message=one) for number, one in enumerate(messages)]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("hospital"))


@pytest.fixture(scope="module")
def ours(authority: Authority) -> Tls:
    return authority.issue().settings(authority, port=0)


@pytest.fixture(scope="module")
def context(authority: Authority) -> ssl.SSLContext:
    """The collector's: it wants to see our certificate."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = authority.issue()
    made.load_cert_chain(certificate.certificate, certificate.private_key)
    made.load_verify_locations(authority.certificate)
    made.verify_mode = ssl.CERT_REQUIRED
    return made


@pytest.fixture
def udp() -> Iterator[UdpServer]:
    server = UdpServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def by_tls(context: ssl.SSLContext) -> Iterator[TlsServer]:
    server = TlsServer(context)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def rsyslog(authority: Authority, tmp_path: Path) -> Iterator[Rsyslog]:
    """A collector that many hospitals have."""
    with Rsyslog(authority, tmp_path).running() as started:
        yield started


def test_rsyslog_takes_what_we_send_by_udp_and_by_tls(rsyslog: Rsyslog, ours: Tls) -> None:
    """Another implementation of syslog, and of TLS: GnuTLS."""
    texts = [f"<m{number}>" + "x" * 40_000 * (number == 7) for number in range(20)]
    for scheme in ("udp", "tls"):
        open_collector(f"{scheme}://127.0.0.1:{rsyslog.port}", ours).deliver(batch(*texts))
        rsyslog.wait([f"85 dicom-node DICOM+RFC3881 {one}" for one in texts], PATIENCE)


def test_a_frame_is_as_rfc_5424_has_it() -> None:
    (one,) = batch("<AuditMessage/>")
    frame = syslog.framed(one)
    assert frame.startswith(b"<85>1 2026-01-02T03:04:05.678+00:00 ")
    assert collectors.message(frame) == "<AuditMessage/>"


def test_messages_come_by_udp_in_order(udp: UdpServer) -> None:
    texts = [f"<m{number}/>" for number in range(50)]
    open_collector(udp.url, Tls()).deliver(batch(*texts))
    assert udp.collected.wait(50, PATIENCE) == texts


def test_the_longest_message_goes_by_udp(udp: UdpServer) -> None:
    assert UdpCollector.longest is not None
    assert UdpCollector.longest >= 32768  # PS3.15 A.6
    text = "x" * UdpCollector.longest
    open_collector(udp.url, Tls()).deliver(batch(text))
    assert udp.collected.wait(1, PATIENCE) == [text]


def test_by_udp_a_port_where_nobody_listens_is_told(udp: UdpServer) -> None:
    udp.stop()
    with pytest.raises(
        PeerError, match=r"the audit collector at 127\.0\.0\.1:\d+ can't be reached"
    ):
        open_collector(udp.url, Tls()).deliver(batch("<m/>"))


def test_a_host_that_nobody_knows_is_told() -> None:
    with pytest.raises(PeerError, match="can't be reached"):
        open_collector("udp://no-such-host.invalid:514", Tls()).deliver(batch("<m/>"))


def test_an_address_in_brackets_is_one() -> None:
    collector = open_collector("tls://[::1]:6514", Tls())
    assert isinstance(collector, TlsCollector)
    assert collector._place == ("::1", 6514)


def test_only_udp_has_a_longest_message() -> None:
    for url, longest in (("udp://a:1", UdpCollector.longest), ("tls://a:1", None)):
        assert syslog.longest_message(Settings(audit=Audit(url=url), tls=TLS)) == longest


TLS = Tls(certificate="a", private_key="b", authorities="c")


def test_messages_come_by_tls_in_order_and_long_ones_too(by_tls: TlsServer, ours: Tls) -> None:
    texts = [f"<m{number}/>" + "x" * 40_000 * (number == 7) for number in range(50)]
    open_collector(by_tls.url, ours).deliver(batch(*texts))
    assert by_tls.collected.messages == texts  # all of them before deliver() returned


def without_notify(connection: ssl.SSLSocket, collected: Collected) -> None:
    """A collector that reads everything and answers no close_notify: it just closes."""
    stream = connection.makefile("rb")
    with stream:
        while (length := collectors.message_length(stream.read)) is not None:
            collected.add(stream.read(length))


def test_a_collector_that_just_closes_has_them_too(by_tls: TlsServer, ours: Tls) -> None:
    by_tls.talk = without_notify
    open_collector(by_tls.url, ours).deliver(batch("<m/>"))
    assert by_tls.collected.messages == ["<m/>"]


def killed_unread(connection: ssl.SSLSocket, collected: Collected) -> None:
    """A collector that dies with messages in its socket that it never read."""
    time.sleep(0.3)


def read_one_and_close(connection: ssl.SSLSocket, collected: Collected) -> None:
    """A collector that is stopped politely, while more is coming."""
    connection.recv(10)
    plain = connection.unwrap()
    plain.close()


def close_at_once(connection: ssl.SSLSocket, collected: Collected) -> None:
    """A collector that ends the connection as soon as it stands."""
    with suppress(OSError):
        connection.unwrap()


@pytest.mark.parametrize("dying", [killed_unread, read_one_and_close, close_at_once])
def test_what_the_collector_did_not_read_does_not_count(
    by_tls: TlsServer, ours: Tls, dying: Callable[[ssl.SSLSocket, Collected], None]
) -> None:
    by_tls.talk = dying
    for size in (10, 100_000):
        with pytest.raises(PeerError):
            open_collector(by_tls.url, ours).deliver(batch("x" * size, "y" * size))


def test_a_collector_that_is_silent_is_given_up_on(
    by_tls: TlsServer, ours: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syslog, "_TIMEOUT", 0.5)
    by_tls.talk = lambda connection, collected: time.sleep(2)
    with pytest.raises(PeerError, match="did not answer in time"):
        open_collector(by_tls.url, ours).deliver(batch("<m/>"))


def test_a_collector_that_is_away_is_told(by_tls: TlsServer, ours: Tls) -> None:
    by_tls.stop()
    with pytest.raises(PeerError, match="can't be reached: Connection refused"):
        open_collector(by_tls.url, ours).deliver(batch("<m/>"))


def test_a_collector_of_another_authority_is_not_told_anything(
    by_tls: TlsServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Authority(tmp_path_factory.mktemp("other"), "Some other CA")
    theirs = other.issue().settings(other, port=0)
    with pytest.raises(PeerError, match="an authority that is not trusted"):
        open_collector(by_tls.url, theirs).deliver(batch("<m/>"))


def test_a_collector_that_does_not_trust_us_says_so(
    by_tls: TlsServer, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Authority(tmp_path_factory.mktemp("other"), "Some other CA")
    mixed = other.issue().settings(authority, port=0)
    with pytest.raises(PeerError):
        open_collector(by_tls.url, mixed).deliver(batch("<m/>"))
    assert by_tls.collected.messages == []


def test_a_collector_that_speaks_no_tls_is_given_up_on(
    ours: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syslog, "_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as plain:
        url = f"tls://127.0.0.1:{plain.getsockname()[1]}"
        with pytest.raises(PeerError, match="can't be reached"):
            open_collector(url, ours).deliver(batch("<m/>"))
