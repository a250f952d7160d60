"""The way below DICOM: each reason why there is none has its own words and its own fix."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest

from dicom_node.doctor import route
from dicom_node.doctor.checks import Fault
from tests.dicom_node.doctor.answering import answering, saying


def test_an_address_is_its_own() -> None:
    assert route.resolve("127.0.0.1", "peer pacs") == ["127.0.0.1"]


def test_ipv4_comes_first_for_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET6, 1, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, 1, 6, "", ("1.2.3.4", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert route.resolve("pacs", "peer pacs") == ["1.2.3.4", "::1"]


@pytest.mark.parametrize("host", ["pacs.invalid", "a" * 64, "pacs..example"])
def test_a_name_without_an_address_is_a_fault_of_the_setting(host: str) -> None:
    with pytest.raises(Fault, match="has no address") as caught:
        route.resolve(host, "peer pacs")
    assert caught.value.fix.startswith("peer pacs: host = ")


@pytest.mark.parametrize(
    ("error", "text", "fix"),
    [
        (TimeoutError(), "port 104 of 10.0.0.5 did not answer within 3 s", "a firewall between"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "nobody listens there", "port"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "No route to host", "routes"),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied", "host and port"),
    ],
)
def test_each_failure_to_connect_has_its_own_words(
    monkeypatch: pytest.MonkeyPatch, error: OSError, text: str, fix: str
) -> None:
    def fail(*_: object) -> socket.socket:
        raise error

    monkeypatch.setattr(socket, "create_connection", fail)
    with pytest.raises(Fault) as caught:
        route.connect(["10.0.0.5"], 104, 3, "peer pacs")
    assert text in str(caught.value)
    assert fix in caught.value.fix


def test_the_next_address_is_tried_where_one_refuses() -> None:
    with (
        answering(saying(b"")) as port,
        route.connect(["127.0.0.2", "127.0.0.1"], port, 5, "") as made,
    ):
        assert made.getpeername() == ("127.0.0.1", port)


def unverified(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "no")
    error.verify_code = code
    return error


def complaint(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, "no")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (unverified(9), "set this machine's clock"),
        (unverified(10), "at the peer: renew its certificate"),
        (unverified(18), "put the authority of the peer's certificate into FILE"),
        (unverified(20), "put the authority of the peer's certificate into FILE"),
        (unverified(62), "peer pacs: host = the name in its certificate"),
        (unverified(66), "at the peer: a certificate with a longer key"),
        (complaint("TLSV1_ALERT_UNKNOWN_CA"), "at the peer: trust the authority that signed our"),
        (complaint("SSLV3_ALERT_CERTIFICATE_EXPIRED"), "renew tls.certificate"),
        (complaint("TLSV1_ALERT_PROTOCOL_VERSION"), "at the peer: offer TLS 1.2"),
        (complaint("WRONG_VERSION_NUMBER"), "peer pacs: port = its TLS port"),
        (ssl.SSLEOFError(8, "closed"), "peer pacs: is this its TLS port"),
        (TimeoutError(), "peer pacs: is this its TLS port"),
    ],
)
def test_each_fault_of_tls_has_the_fix_of_the_side_that_mends_it(error: OSError, fix: str) -> None:
    assert route.tls_fault(error, "pacs.example", "peer pacs", "FILE").fix.startswith(fix)


def test_a_certificate_out_of_its_time_is_told_with_our_own_clock() -> None:
    text = str(route.tls_fault(unverified(9), "pacs", "peer pacs", "FILE"))
    assert text.startswith("the peer's certificate is not valid yet (by this machine's clock: 20")


@pytest.mark.parametrize("answer", [b"", b"\3\0\0\0\0\4\0\1\1\1"], ids=["closes", "DICOM"])
def test_who_does_not_speak_tls_is_known(answer: bytes) -> None:
    with answering(saying(answer)) as port:
        assert not route.speaks_tls("127.0.0.1", port, 5)


@pytest.mark.parametrize(
    ("error", "may_be_plain"),
    [
        (complaint("WRONG_VERSION_NUMBER"), True),
        (ConnectionResetError(), True),
        (unverified(20), False),
        (complaint("TLSV1_ALERT_UNKNOWN_CA"), False),
    ],
)
def test_only_what_tls_does_not_explain_may_be_no_tls(error: OSError, may_be_plain: bool) -> None:
    assert route.is_unexplained(error) == may_be_plain
