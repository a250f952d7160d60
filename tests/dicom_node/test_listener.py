"""Sockets: who waits longest goes first, nobody holds up another, and stopping ends them all."""

from __future__ import annotations

import errno
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from dicom_node import listener as module
from dicom_node.errors import ConfigurationError, NodeError
from dicom_node.listener import Endpoint, Listener, check
from dicom_node.upper_layer import Connection, Deadlines
from tests.dicom_node.certificates import Authority
from tests.dicom_node.sockets import HOUR, PATIENCE, pdu

HERE = Endpoint(host="127.0.0.1", port=0)
QUESTION, ANSWER = pdu(4, b""), pdu(6, b"")


def answer(connection: Connection) -> None:
    """Serve: each question gets its answer."""
    try:
        while True:
            connection.pdu(3600)
            connection.send(ANSWER)
    except NodeError:
        connection.close()


def answer_established(connection: Connection) -> None:
    """Serve: as an association that was accepted."""
    connection.established = True
    answer(connection)


@contextmanager
def listening(
    *endpoints: Endpoint,
    serve: Callable[[Connection], None] = answer,
    no_tls: Callable[[Connection, OSError], None] = lambda connection, error: None,
    deadlines: Deadlines = HOUR,
) -> Iterator[Listener]:
    listener = Listener(serve, no_tls, deadlines)
    listener.start(endpoints or (HERE,))
    try:
        yield listener
    finally:
        listener.stop()
    assert listener.connections == []
    assert "association" not in [thread.name for thread in threading.enumerate()]


def call(listener: Listener, endpoint: Endpoint = HERE) -> socket.socket:
    """A connection that is being served."""
    before = set(listener.connections)
    caller = socket.create_connection(("127.0.0.1", listener.port(endpoint)), PATIENCE)
    wait_until(lambda: bool({*listener.connections} - before))
    return caller


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def is_answered(caller: socket.socket) -> bool:
    try:
        caller.sendall(QUESTION)
        return caller.recv(100) == ANSWER
    except ConnectionError:
        return False


# -- who waits -------------------------------------------------------------------------------------


def test_a_flood_of_silent_callers_pushes_out_the_oldest_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WAITING", 4)
    with listening() as listener, ExitStack() as opened:
        callers = [
            opened.enter_context(
                socket.create_connection(("127.0.0.1", listener.port(HERE)), PATIENCE)
            )
            for _ in range(20)
        ]
        for caller in callers[:16]:
            assert caller.recv(1) == b""
        assert all(is_answered(caller) for caller in callers[16:])
        assert len(listener.connections) == 4


def test_who_has_an_association_is_never_pushed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING", 2)
    with listening(serve=answer_established) as listener, ExitStack() as opened:
        callers = [opened.enter_context(call(listener)) for _ in range(10)]
        assert all(is_answered(caller) for caller in callers)


def test_without_a_file_handle_the_oldest_that_waits_makes_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accept = socket.socket.accept
    lacking = [OSError(errno.EMFILE, "Too many open files")]

    def accept_or_not(listening: socket.socket) -> tuple[socket.socket, object]:
        if lacking:
            raise lacking.pop()
        return accept(listening)

    with listening() as listener, call(listener) as oldest:
        monkeypatch.setattr(socket.socket, "accept", accept_or_not)
        with socket.create_connection(("127.0.0.1", listener.port(HERE)), PATIENCE) as caller:
            assert oldest.recv(1) == b""
            assert is_answered(caller)
    assert "can't accept: Too many open files" in caplog.text


def test_a_bug_of_ours_ends_one_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    name = "Doe^Jane"

    def buggy(connection: Connection) -> None:
        if "our bug" in caplog.text:
            answer(connection)
        raise ZeroDivisionError(name)

    with listening(serve=buggy) as listener:
        port = listener.port(HERE)
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as caller:
            assert caller.recv(1) == b""
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as caller:
            assert is_answered(caller)
    assert "ZeroDivisionError" in caplog.text
    assert "Doe" not in caplog.text


def test_a_connection_knows_where_it_comes_from() -> None:
    local = Endpoint(host="127.0.0.1", port=0, local=True)
    both = Endpoint(host="::", port=0)
    with listening(local, both) as listener, call(listener, local), call(listener, both):
        assert [(one.address, one.local) for one in listener.connections] == [
            ("127.0.0.1", True),
            ("127.0.0.1", False),  # and not ::ffff:127.0.0.1
        ]


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Endpoint:
    """A port for TLS with a certificate of its own."""
    own = Authority(tmp_path_factory.mktemp("tls")).own
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.certificate, own.private_key)
    return replace(HERE, tls=lambda: context)


def by_tls(caller: socket.socket) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(caller)


def test_silent_tls_callers_hold_up_nobody(secure: Endpoint) -> None:
    with listening(HERE, secure) as listener, ExitStack() as opened:
        for _ in range(10):
            opened.enter_context(call(listener, secure))
        with by_tls(call(listener, secure)) as caller:
            assert is_answered(caller)
        with call(listener, HERE) as plain:
            assert is_answered(plain)
        assert [one.tls for one in listener.connections[:10]] == [True] * 10


def test_new_certificates_hold_for_the_next_connection(secure: Endpoint) -> None:
    asked: list[None] = []

    def context() -> ssl.SSLContext:
        asked.append(None)
        assert secure.tls is not None
        return secure.tls()

    endpoint = replace(secure, tls=context)
    with listening(endpoint) as listener:
        for number in (1, 2):
            with by_tls(call(listener, endpoint)) as caller:
                assert is_answered(caller)
            assert len(asked) == number


@pytest.mark.parametrize(
    ("sent", "error"),
    [(b"", TimeoutError), (b"GET / HTTP/1.1\r\n\r\n", ssl.SSLError)],
    ids=["silent", "HTTP"],
)
def test_a_failed_handshake_is_told_of_and_served_no_further(
    secure: Endpoint, sent: bytes, error: type[OSError]
) -> None:
    told: list[tuple[str, OSError]] = []
    served: list[Connection] = []
    with (
        listening(
            secure,
            serve=served.append,
            no_tls=lambda connection, fault: told.append((connection.address, fault)),
            deadlines=Deadlines(handshake=0.2, close=0.1),
        ) as listener,
        socket.create_connection(("127.0.0.1", listener.port(secure)), PATIENCE) as caller,
    ):
        caller.sendall(sent)
        wait_until(lambda: bool(told))
        wait_until(lambda: listener.connections == [])
    ((address, fault),) = told
    assert address == "127.0.0.1"
    assert isinstance(fault, error)
    assert served == []


# -- stopping --------------------------------------------------------------------------------------


def test_stopping_cuts_at_once_who_has_no_association(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_GRACE", PATIENCE)
    with listening() as listener:
        caller = call(listener)
        started = time.monotonic()
    with caller:
        assert caller.recv(1) == b""
    assert time.monotonic() - started < PATIENCE


def test_stopping_gives_an_association_a_moment_and_then_cuts_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STOP_GRACE", 0.1)
    with listening(serve=answer_established) as listener:
        caller = call(listener)
        assert is_answered(caller)
    with caller:
        assert caller.recv(1) == b""


def test_an_association_that_ends_in_time_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_GRACE", PATIENCE)
    served: list[Connection] = []

    def serve(connection: Connection) -> None:
        served.append(connection)
        answer_established(connection)

    listener = Listener(serve, lambda connection, error: None, HOUR)
    listener.start([HERE])
    caller = call(listener)
    assert is_answered(caller)
    stopping = threading.Thread(target=listener.stop)
    stopping.start()
    assert is_answered(caller)
    caller.close()
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    assert not served[0].was_cut


def test_stopping_what_never_started_does_nothing() -> None:
    Listener(answer, lambda connection, error: None).stop()


# -- ports -----------------------------------------------------------------------------------------


def test_a_stopped_listener_leaves_its_port_to_the_next() -> None:
    with listening() as first, call(first) as caller:
        assert is_answered(caller)
        port = first.port(HERE)
    with listening(Endpoint(host="127.0.0.1", port=port)):
        pass


@pytest.fixture
def taken() -> Iterator[Endpoint]:
    """A port where somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield Endpoint(host="127.0.0.1", port=other.getsockname()[1])


@pytest.mark.parametrize("shared", [False, True])
def test_a_taken_port_is_a_wrong_setting(taken: Endpoint, shared: bool) -> None:
    endpoint = replace(taken, shared=shared)
    with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1:{taken.port}"):
        check(endpoint)
    with pytest.raises(ConfigurationError, match=r"node\.port"), listening(HERE, endpoint):
        pass


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_a_host_that_is_not_ours_is_a_wrong_setting(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"node\.host"):
        check(Endpoint(host=host, port=0))


def test_several_can_share_a_port_but_not_with_who_does_not_share() -> None:
    shared = replace(HERE, shared=True)
    with listening(shared) as first:
        same = Endpoint(host="127.0.0.1", port=first.port(shared), shared=True)
        with listening(same), pytest.raises(ConfigurationError):
            check(replace(same, shared=False))
