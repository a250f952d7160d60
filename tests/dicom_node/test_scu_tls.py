"""What becomes of our calls to a peer by TLS: scu, over the certificates of tls."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from dicom_node.config import Peer, Tls
from dicom_node.errors import PeerError
from dicom_node.scu import DicomPeer, Reference, Timeouts
from tests.dicom_node.certificates import Authority, Certificate
from tests.dicom_node.network import VERIFICATION

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
PATIENCE = 20.0  #: seconds; far above what a handshake takes
TIMEOUTS = Timeouts(connect=PATIENCE, associate=PATIENCE, answer=PATIENCE, network=PATIENCE)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("hospital"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "Some other CA")


@pytest.fixture(scope="module")
def ours(authority: Authority) -> Tls:
    return authority.issue().settings(authority)


@pytest.fixture(scope="module")
def theirs(authority: Authority) -> Certificate:
    return authority.issue()


def strict(certificate: Certificate, trusted: Authority) -> ssl.SSLContext:
    """A peer that demands a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.private_key)
    context.load_verify_locations(trusted.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def called(port: int, tls: Tls, **changes: object) -> DicomPeer:
    """A peer on that port, as we call it."""
    fields = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": port, "tls": True}
    return DicomPeer(Peer.model_validate(fields | changes), "DICOMNODE", TIMEOUTS, tls)


@contextmanager
def pacs(context: ssl.SSLContext, title: str = "PACS") -> Iterator[int]:
    """A PACS that echoes and lists everything; its port."""

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        yield 0xFF00, event.identifier

    entity = AE(title)
    entity.require_called_aet = True
    entity.add_supported_context(VERIFICATION)
    entity.add_supported_context(STUDY_ROOT_FIND)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, ssl_context=context, evt_handlers=[(evt.EVT_C_FIND, find)]
    )
    assert server is not None
    try:
        yield int(server.server_address[1])
    finally:
        entity.shutdown()


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port on which one caller is answered like this."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE)

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.settimeout(PATIENCE)
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            thread.join(PATIENCE)


def by_tls(context: ssl.SSLContext) -> Callable[[socket.socket], None]:
    """Shake hands, and wait for the caller to go."""

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as wrapped:
            wait_for_end(wrapped)

    return answer


def wait_for_end(connection: socket.socket) -> None:
    """Say nothing until the caller goes."""
    while connection.recv(4096):
        pass


def why(port: int, tls: Tls, **changes: object) -> str:
    """What we say of a peer that can't be called."""
    with pytest.raises(PeerError, match=r"^pacs \(PACS@.* can't be called by TLS: ") as failure:
        called(port, tls, **changes).verify()
    assert failure.value.retry  # a certificate is mended, and then it goes on
    return str(failure.value).partition("by TLS: ")[2]


def test_a_peer_is_called_by_tls(theirs: Certificate, authority: Authority, ours: Tls) -> None:
    with pacs(strict(theirs, authority)) as port:
        called(port, ours).verify()


def test_a_peer_is_called_by_tls_1_2(theirs: Certificate, authority: Authority, ours: Tls) -> None:
    context = strict(theirs, authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pacs(context) as port:
        called(port, ours).verify()


def test_queries_go_by_tls_to_where_they_are_answered(
    theirs: Certificate, authority: Authority, ours: Tls
) -> None:
    reference = Reference(
        study_instance_uid="1.2.3", series_instance_uid="1.2.3.1", sop_instance_uid="1.2.3.4"
    )
    with pacs(strict(theirs, authority), "PACSQR") as port:
        peer = called(104, ours, query_ae_title="PACSQR", query_port=port, proof="find")
        assert peer.prove(reference)


def test_a_new_certificate_is_used_for_the_next_call(
    theirs: Certificate, authority: Authority, ours: Tls, tmp_path: Path
) -> None:
    late = authority.issue(days=-1)
    paths = {"certificate": tmp_path / "node.pem", "private_key": tmp_path / "node.key"}
    settings = ours.model_copy(update={key: str(path) for key, path in paths.items()})
    for key, path in paths.items():
        path.write_bytes(getattr(late, key).read_bytes())
    assert why(1, settings) == f"tls.certificate: {paths['certificate']}: has expired"
    with pacs(strict(theirs, authority)) as port:
        for key, path in paths.items():
            path.write_bytes(Path(getattr(ours, key)).read_bytes())
        called(port, settings).verify()


@pytest.mark.parametrize(
    ("host", "days", "said"),
    [
        ("IP:127.0.0.1", -1, "the peer's certificate has expired"),
        ("DNS:pacs.hospital", 9, "the peer's certificate is not for the address that was called"),
    ],
)
def test_a_certificate_of_the_peer_that_is_wrong_is_described(
    authority: Authority, ours: Tls, host: str, days: int, said: str
) -> None:
    context = strict(authority.issue(host=host, days=days), authority)
    with answering(by_tls(context)) as port:
        assert why(port, ours) == said


def test_a_peer_of_another_authority_is_not_believed(
    stranger: Authority, authority: Authority, ours: Tls
) -> None:
    with answering(by_tls(strict(stranger.issue(), authority))) as port:
        said = why(port, ours)
    assert said == "the peer's certificate is of an authority that is not trusted"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_peer_that_does_not_trust_us_says_so(
    theirs: Certificate, stranger: Authority, ours: Tls, version: ssl.TLSVersion
) -> None:
    context = strict(theirs, stranger)
    context.maximum_version = version
    with answering(by_tls(context)) as port:
        said = why(port, ours)
    assert said == "the peer does not trust the authority of our certificate"


def test_a_peer_without_tls_is_described(ours: Tls) -> None:
    abort = bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, 0))  # PS3.8 9.3.8, as to any noise

    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(abort)
        connection.recv(4096)

    with answering(answer) as port:
        said = why(port, ours)
    assert said == "the peer speaks no TLS; DICOM without TLS has another port"


def test_a_peer_that_hangs_up_is_described(ours: Tls) -> None:
    with answering(lambda connection: connection.close()) as port:
        said = why(port, ours)
    assert said == "the peer closed the connection during the TLS handshake"


def test_a_peer_that_is_silent_is_given_up(ours: Tls) -> None:
    impatient = Timeouts(connect=0.5, associate=0.5, answer=0.5, network=0.5)
    with answering(wait_for_end) as port:
        peer = Peer(name="pacs", ae_title="PACS", host=("127.0.0.1",), port=port, tls=True)
        with pytest.raises(PeerError, match="did not finish the TLS handshake in time"):
            DicomPeer(peer, "DICOMNODE", impatient, ours).verify()


def test_nobody_there_is_no_fault_of_tls(ours: Tls) -> None:
    with pytest.raises(PeerError, match="can't be reached: no TCP connection"):
        called(1, ours).verify()
