"""A hostile network, one attack at a time, while an allowed peer echoes every second.

Attackers come from another address, or from the allowed peer's own. After each attack the node's
memory, threads and handles are back to what they were. ``--slow``: the counts of the issue.
"""

from __future__ import annotations

import random
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial

import pytest

from dicom_node.upper_layer import Deadlines
from tests.acceptance.running_node import wait_for
from tests.conftest import Server
from tests.integration.adversary import (
    ABORT,
    ALLOWED,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    ASSOCIATE_RQ,
    COMMAND,
    CONTEXTS,
    GIVE_UP,
    HOSTILE,
    MODALITY,
    P_DATA,
    PATIENCE,
    RELEASE,
    RELEASE_RP,
    ROGUE,
    SECURE,
    TRANSIENT,
    Certificate,
    Connection,
    Echoes,
    Figures,
    Service,
    associate_rq,
    command_set,
    data_set,
    echo,
    message,
    p_data,
    pdu,
    serving,
    store_rq,
)

pytestmark = pytest.mark.alone

DEADLINES = Deadlines(handshake=3, associate=3, pdu=3, idle=6)
LONGEST_WAIT = 1.0  #: seconds that a peer may wait for its echo
TWO_GIB = (1 << 31) - 1
#: Bytes of an endless PDU that may be taken before the line is cut; most of it lies in the
#: buffers of the two sockets.
TAKEN = 32 << 20
#: What may be left of an attack: an allocator's arenas, and what the other services of the node
#: come and go with (a connection to the database).
SLACK = Figures(resident=24 << 20, threads=3, handles=6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Whom to attack, from where, how hard."""

    service: Service
    source: str
    full: bool

    @property
    def title(self) -> str:
        """An AE title that is served at ``source``."""
        return MODALITY if self.source == ALLOWED else ROGUE

    def connect(self, *, tls_port: bool = False) -> Connection:
        """One more connection."""
        port = self.service.tls_port if tls_port else self.service.port
        return Connection(port, self.source)

    def associated(self) -> Connection:
        """One more with an association."""
        connection = self.connect()
        try:
            connection.associate(calling=self.title)
        except OSError:
            connection.close()
            raise
        return connection


Attack = Callable[[Target], None]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Self-signed."""
    home = tmp_path_factory.mktemp("certificate")
    made = Certificate(certificate=home / "certificate.pem", key=home / "key.pem")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=node"
    names = ["-addext", f"subjectAltName=IP:{ALLOWED}"]
    files = ["-keyout", str(made.key), "-out", str(made.certificate)]
    command = ["openssl", *words.split(), *names, *files]
    subprocess.run(command, check=True, capture_output=True)
    return made


@pytest.fixture(scope="module")
def service(
    server: Server,
    template: str,
    certificate: Certificate,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """One node for all attacks: it must live through each."""
    url = server.create(template=template)
    home = tmp_path_factory.mktemp("hostile_network")
    with serving(home, url, DEADLINES, certificate) as started:
        warm(started)
        yield started
    server.drop(url)


def warm(service: Service) -> None:
    """Let the node load and open what it does only when first needed."""
    target = Target(service=service, source=HOSTILE, full=False)
    for number in range(20):
        with target.associated() as connection:
            connection.send(*stored(number))
            assert connection.status() == 0x0000
            connection.release()
        with target.connect() as connection:
            assert connection.ask(calling="NOBODY")[0] == ASSOCIATE_RJ
    random_bytes(target)


def stored(number: int) -> list[bytes]:
    """A C-STORE-RQ of a small object."""
    name = f"2.25.40{number}"
    return message(3, store_rq(name), data_set(name, "2.25.41"))


def hangs_up(connection: Connection) -> bytes:
    """What they said until they hung up, which they do within the deadline."""
    began = time.monotonic()
    said = connection.rest()
    assert time.monotonic() - began < DEADLINES.idle + PATIENCE
    return said


# -- the attacks -----------------------------------------------------------------------------------


def silence(target: Target, *, sockets: int, tls_port: bool = False, first: bytes = b"") -> None:
    """Connect, say no more than ``first``, and wait until they hang up."""
    with ExitStack() as stack:
        opened = []
        for _ in range(sockets):
            connection = stack.enter_context(target.connect(tls_port=tls_port))
            with suppress(ConnectionError):
                connection.send(first)
            opened.append(connection)
        for connection in opened:
            hangs_up(connection)


def slow_loris(target: Target) -> None:
    """A request at one byte a second: the whole of it has a deadline, not each byte."""
    request = associate_rq(calling=target.title)
    with ExitStack() as stack:
        opened = [stack.enter_context(target.connect()) for _ in range(20)]
        began = time.monotonic()
        for one in range(len(request)):
            opened = [connection for connection in opened if trickles(connection, request[one])]
            if not opened:
                return
            assert time.monotonic() - began < DEADLINES.associate + PATIENCE
            time.sleep(1.0)
    pytest.fail("the request was read to its end")


def trickles(connection: Connection, byte: int) -> bool:
    """Send one byte; is anybody there?"""
    connection.socket.setblocking(False)
    try:
        connection.socket.send(bytes([byte]))
        return bool(connection.socket.recv(100))
    except BlockingIOError:
        return True  # nothing to read: they wait
    except OSError:
        return False


def endless_pdu(target: Target) -> None:
    """2 GiB are claimed before there is an association."""
    with target.connect() as connection:
        pour(connection, ASSOCIATE_RQ)


def endless_pdu_of_an_association(target: Target) -> None:
    """2 GiB are claimed by a P-DATA-TF."""
    with target.associated() as connection:
        pour(connection, P_DATA)


def pour(connection: Connection, kind: int) -> None:
    """Send on until the line is cut."""
    part, taken = bytes(1 << 16), 0
    with suppress(ConnectionError):
        connection.send(pdu(kind, b"", TWO_GIB))
        while taken < 200 << 20:
            connection.send(part)
            taken += len(part)
    assert taken < TAKEN, f"{taken >> 20} MiB of one PDU were taken"


def half_pdus(target: Target) -> None:
    """Stop in the middle: of a header, of a request, of a command, of a data set."""
    request, whole = associate_rq(calling=target.title), b"".join(stored(1))
    with ExitStack() as stack:
        opened = []
        for number in range(40):
            opened.append(stack.enter_context(target.connect()))
            opened[-1].send(request[: (3, 6, len(request) // 2, -1)[number % 4]])
        for number in range(20):
            opened.append(stack.enter_context(target.associated()))
            opened[-1].send(whole[: (5, 60, len(whole) // 2, -1)[number % 4]])
        for connection in opened:
            hangs_up(connection)


def connect_and_close(target: Target) -> None:
    """Come and go, politely and with a reset."""
    for number in range(10_000 if target.full else 500):
        with target.connect() as connection:
            if number % 2:
                at_once = struct.pack("ii", 1, 0)
                connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)


def http(target: Target) -> None:
    """A browser or a scanner."""
    request = b"GET / HTTP/1.1\r\nHost: pacs\r\nUser-Agent: curl\r\n\r\n"
    silence(target, sockets=30, first=request)
    silence(target, sockets=30, first=request, tls_port=True)


def random_bytes(target: Target) -> None:
    """Noise, before and within an association."""
    source = random.Random(5)
    for _ in range(30):
        noise = source.randbytes(source.randrange(1, 5000))
        with target.connect() as connection, suppress(ConnectionError):
            connection.send(noise)
            connection.socket.shutdown(socket.SHUT_WR)
            hangs_up(connection)
        with target.associated() as connection, suppress(ConnectionError):
            connection.send(noise)
            connection.socket.shutdown(socket.SHUT_WR)
            hangs_up(connection)


def aborts(target: Target) -> None:
    """A-ABORT in every state of PS3.8 9.2.1 that a requestor can bring about."""
    for state in ABORTED:
        with ExitStack() as stack:
            opened = [stack.enter_context(target.connect()) for _ in range(20)]
            for connection in opened:
                state(connection, target.title)
                with suppress(ConnectionError):
                    connection.send(GIVE_UP)
            for connection in opened:
                hangs_up(connection)


def before_the_request(connection: Connection, title: str) -> None:
    """Nothing was said."""


def within_the_request(connection: Connection, title: str) -> None:
    """The abort is taken for a part of it, so that it never ends."""
    connection.send(associate_rq(calling=title)[:-20])


def while_negotiating(connection: Connection, title: str) -> None:
    """The answer is not waited for."""
    connection.send(associate_rq(calling=title))


def while_associated(connection: Connection, title: str) -> None:
    """Nothing is under way."""
    connection.associate(calling=title)


def between_command_and_data_set(connection: Connection, title: str) -> None:
    """The command was sent, nothing of its data set."""
    connection.associate(calling=title)
    connection.send(stored(2)[0])


def within_the_command(connection: Connection, title: str) -> None:
    """A fragment of the command was sent."""
    connection.associate(calling=title)
    connection.send(p_data(3, COMMAND, command_set(store_rq("2.25.402"))[:40]))


def within_the_data_set(connection: Connection, title: str) -> None:
    """Fragments of the data set were sent, not the last."""
    connection.associate(calling=title)
    connection.send(*message(3, store_rq("2.25.402"), data_set("2.25.402", "2.25.41"), 100)[:-1])


def before_the_status(connection: Connection, title: str) -> None:
    """All was sent, the status not waited for."""
    connection.associate(calling=title)
    connection.send(*stored(3))


def while_releasing(connection: Connection, title: str) -> None:
    """The release is not waited for."""
    connection.associate(calling=title)
    connection.send(RELEASE)


def after_the_release(connection: Connection, title: str) -> None:
    """There is nothing left to abort."""
    connection.associate(calling=title)
    connection.release()


ABORTED = (
    before_the_request,
    within_the_request,
    while_negotiating,
    while_associated,
    between_command_and_data_set,
    within_the_command,
    within_the_data_set,
    before_the_status,
    while_releasing,
    after_the_release,
)


def idle_associations(target: Target, *, contexts: tuple[tuple[int, str, str], ...]) -> None:
    """1,000 are asked for and kept; those beyond the bounds are told to come back later."""
    accepted = rejected = 0
    with ExitStack() as stack:
        for _ in range(1000):
            connection = stack.enter_context(target.connect())
            kind, body = connection.ask(calling=target.title, contexts=contexts)
            if kind == ASSOCIATE_AC:
                accepted += 1
                continue
            assert (kind, body[1]) == (ASSOCIATE_RJ, TRANSIENT)
            connection.close()
            rejected += 1
        time.sleep(DEADLINES.idle / 2)  # for echoes while there is no place left
    assert accepted
    assert rejected > accepted


# -- the tests -------------------------------------------------------------------------------------

silent_client = partial(silence, sockets=30)
silent_tls_client = partial(silence, sockets=30, tls_port=True)
#: A record header of 400 bytes that never come (RFC 8446 5.1).
half_client_hello = partial(silence, sockets=30, tls_port=True, first=b"\x16\x03\x01\x01\x90\x01")
idle_sockets = partial(silence, sockets=200)
storage_associations = partial(idle_associations, contexts=CONTEXTS)
#: An address has few of these; so only from elsewhere, or it would be the peer who has too many.
verification_associations = partial(idle_associations, contexts=CONTEXTS[:1])


def named(attack: Attack, name: str, *sources: str) -> Iterator[object]:
    for source in sources or (HOSTILE,):
        where = "the peer's own address" if source == ALLOWED else "elsewhere"
        on_demand = [pytest.mark.slow] if source == ALLOWED else []
        yield pytest.param(attack, source, marks=on_demand, id=f"{name} from {where}")


ATTACKS = [
    *named(silent_client, "silent client"),
    *named(silent_tls_client, "silent TLS client", HOSTILE, ALLOWED),
    *named(half_client_hello, "half a TLS handshake"),
    *named(idle_sockets, "200 idle sockets", HOSTILE, ALLOWED),
    *named(slow_loris, "slow loris", HOSTILE, ALLOWED),
    *named(endless_pdu, "2 GiB before an association"),
    *named(endless_pdu_of_an_association, "2 GiB in an association"),
    *named(half_pdus, "half PDUs"),
    *named(connect_and_close, "connect and close"),
    *named(http, "HTTP"),
    *named(random_bytes, "random bytes"),
    *named(aborts, "A-ABORT in every state"),
    *named(storage_associations, "1000 associations", HOSTILE, ALLOWED),
    *named(verification_associations, "1000 associations for Verification"),
]


@pytest.mark.parametrize(("attack", "source"), ATTACKS)
def test_an_attack_neither_delays_an_allowed_peer_nor_leaves_anything_behind(
    attack: Attack,
    source: str,
    service: Service,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    full = bool(request.config.getoption("--slow"))
    before = service.figures()
    with Echoes(lambda: echo(service.port)) as echoes:
        echoes.wait(1)
        attack(Target(service=service, source=source, full=full))
        echoes.wait(2)
    longest = max(echoes.waits, default=0)
    record_property("longest_echo", longest)
    print(f"{len(echoes.waits)} echoes, the longest {longest * 1e3:.0f} ms, {service.figures()}")
    assert echoes.faults == []
    assert longest < LONGEST_WAIT
    is_flat_again(service, before)
    assert service.complaints() == []


def test_silent_tls_clients_do_not_delay_a_peer_that_speaks_tls(
    service: Service, certificate: Certificate
) -> None:
    speak: Callable[[], ssl.SSLContext] = certificate.client
    before = service.figures()
    secure = partial(echo, service.tls_port, calling=SECURE)
    with Echoes(lambda: secure(tls=speak())) as echoes:
        echoes.wait(1)
        silent_tls_client(Target(service=service, source=ALLOWED, full=False))
        echoes.wait(2)
    assert echoes.faults == []
    assert max(echoes.waits) < LONGEST_WAIT
    is_flat_again(service, before)


def test_an_abort_and_a_release_are_answered_as_the_standard_says(service: Service) -> None:
    with Connection(service.port, HOSTILE) as connection:
        connection.associate()
        connection.send(RELEASE)
        assert connection.pdu() == (RELEASE_RP, bytes(4))
        assert connection.rest() == b""
    with Connection(service.port, HOSTILE) as connection:
        connection.associate()
        connection.send(pdu(ABORT, bytes(4)))
        assert connection.rest() == b""  # PS3.8 9.2.3, AA-3


def is_flat_again(service: Service, before: Figures) -> None:
    """Within the deadlines."""
    seconds = DEADLINES.idle + PATIENCE
    wait_for(f"flat as before ({before})", seconds, lambda: flat(service.figures(), before))


def flat(now: Figures, before: Figures) -> bool | None:
    """Nothing is held but the slack; ``None``: not yet."""
    grown = (
        now.resident - before.resident > SLACK.resident,
        now.threads - before.threads > SLACK.threads,
        now.handles - before.handles > SLACK.handles,
    )
    return None if any(grown) else True
