"""What the tests of a hostile network share: a node to attack, and DICOM made by hand to do it.

Nothing here uses a toolkit: what is sent is sent as it is, right or wrong, and what comes back is
looked at byte by byte. ``python -m tests.integration.adversary`` is the attacked process: the
product's own node over real files and a real database, with deadlines short enough for a test.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from dicom_node import config
from dicom_node.db import Database
from dicom_node.disk import Watermarks
from dicom_node.node import Node
from dicom_node.receiver import Receiver
from dicom_node.storage import Storage
from dicom_node.upper_layer import Deadlines
from tests.acceptance.running_node import START_SECONDS, STOP_SECONDS, wait_for
from tests.ports import free_port

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 20.0  #: seconds beyond a deadline; only a fault reaches them

ALLOWED = "127.0.0.1"  #: where the peers that behave are
HOSTILE = "127.0.0.2"  #: where the others are
MODALITY = "MODALITY"  #: may call from ALLOWED only
ROGUE = "ROGUE"  #: an allowed device gone mad: may call from all of loopback
SECURE = "SECURE"  #: calls by TLS

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ = 1, 2, 3  # PS3.8 9.3.1
P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = 4, 5, 6, 7
COMMAND, LAST = 0x01, 0x02  # PS3.8 E.2
TRANSIENT = 2  # PS3.8 9.3.4, result
VERIFICATION = "1.2.840.10008.1.1"
DIGITAL_X_RAY = "1.2.840.10008.5.1.4.1.1.1.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
CONTEXTS = ((1, VERIFICATION, IMPLICIT), (3, DIGITAL_X_RAY, EXPLICIT))
STORE_RQ, STORE_RSP, ECHO_RQ = 0x0001, 0x8001, 0x0030  # PS3.7 E.1
WITH_DATA_SET, WITHOUT_DATA_SET = 0x0000, 0x0101

_CONFIG = """\
[node]
host = "127.0.0.1"
port = {port}
data = "{data}"

[study]
quiet_seconds = 3600
ready_seconds = 3600

[listener]
processes = 1
associations = 64
associations_per_address = 48

{tls}
[[peers]]
name = "modality"
ae_title = "MODALITY"
host = "127.0.0.1"
roles = ["source"]

[[peers]]
name = "rogue"
ae_title = "ROGUE"
host = "127.0.0.0/8"
roles = ["source"]

[[peers]]
name = "secure"
ae_title = "SECURE"
host = "127.0.0.0/8"
roles = ["source"]
tls = {has_tls}
"""

_TLS = """\
[tls]
port = {port}
certificate = "{certificate}"
private_key = "{key}"
authorities = "{certificate}"
"""


# -- what is attacked ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """One that stands for every side and is its own authority."""

    certificate: Path
    key: Path

    def client(self) -> ssl.SSLContext:
        """For the side that calls."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a process holds."""

    resident: int  #: bytes
    threads: int
    handles: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The node's process."""

    pid: int
    port: int
    tls_port: int  #: 0: none
    data: Path
    log: Path
    database: Database

    def figures(self) -> Figures:
        """Of the process and what it started."""
        top = psutil.Process(self.pid)
        family = [top, *top.children(recursive=True)]
        return Figures(
            resident=sum(one.memory_info().rss for one in family),
            threads=sum(one.num_threads() for one in family),
            handles=sum(one.num_fds() for one in family),
        )

    def complaints(self) -> list[str]:
        """What its log tells of faults of its own, each with the lines that follow."""
        lines = self.log.read_text("utf-8", errors="replace").splitlines()
        words = ("our bug", "Exception in thread")
        return [
            "\n".join(lines[at : at + 30])
            for at, line in enumerate(lines)
            if any(word in line for word in words)
        ]


@contextmanager
def serving(
    home: Path,
    database_url: str,
    deadlines: Deadlines | None,
    certificate: Certificate | None = None,
) -> Iterator[Service]:
    """A node that listens; ``deadlines`` ``None``: the product's own."""
    port, tls_port = free_port(), free_port() if certificate else 0
    tls = ""
    if certificate:
        tls = _TLS.format(port=tls_port, **asdict(certificate))
    file, log, data = home / "node.toml", home / "node.log", home / "data"
    has_tls = str(certificate is not None).lower()
    file.write_text(_CONFIG.format(port=port, data=data, tls=tls, has_tls=has_tls), "utf-8")
    command = [sys.executable, "-m", __name__, str(file), database_url]
    command.append(json.dumps(deadlines and asdict(deadlines)))
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=output)
    database = Database(database_url)
    try:
        wait_for("the node answers", START_SECONDS, lambda: _answers(process, port, log))
        yield Service(
            pid=process.pid, port=port, tls_port=tls_port, data=data, log=log, database=database
        )
    finally:
        database.dispose()
        process.terminate()
        try:
            code = process.wait(STOP_SECONDS)
        finally:
            process.kill()
            process.wait()
    assert code == 0, f"the node ended with exit code {code}, see {log}"


def _answers(process: subprocess.Popen[bytes], port: int, log: Path) -> bool | None:
    assert process.poll() is None, log.read_text("utf-8")
    with suppress(OSError):
        echo(port)
        return True
    return None


def main() -> None:
    """The attacked process: configuration file, database URL, deadlines or null."""
    file, url, deadlines = sys.argv[1:]
    settings = config.load(Path(file), os.environ, {})
    _shorten(json.loads(deadlines))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    database, storage = Database(url), Storage(settings.node.data)
    watermarks = Watermarks(settings.node.data, settings.disk)
    Node(
        settings=settings,
        database=database,
        storage=storage,
        wake=lambda task, row: True,
        broker_answers=lambda: True,
        watermarks=watermarks,
        receiver=Receiver(settings, database, storage, watermarks),
    ).serve(stop)


def _shorten(deadlines: Mapping[str, float] | None) -> None:
    """Make these the defaults: no setting reaches them."""
    defaults = Deadlines.__init__.__kwdefaults__
    assert defaults is not None  # all its fields have one
    defaults.update(deadlines or {})


# -- PDUs and messages (PS3.8 9.3, PS3.7 9.3) ------------------------------------------------------


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    """A PDU; ``length`` where it shall lie."""
    return struct.pack(">BxI", kind, len(body) if length is None else length) + body


def item(kind: int, body: bytes, length: int | None = None) -> bytes:
    """An item of an A-ASSOCIATE PDU."""
    said = len(body) if length is None else length
    return struct.pack(">BxH", kind, said & 0xFFFF) + body


def context(number: int, abstract_syntax: str, *transfer_syntaxes: str) -> bytes:
    """One proposed presentation context."""
    names = item(0x30, abstract_syntax.encode())
    names += b"".join(item(0x40, one.encode()) for one in transfer_syntaxes)
    return item(0x20, struct.pack(">B3x", number) + names)


def associate_rq(
    items: bytes | None = None,
    *,
    calling: str = ROGUE,
    called: str = "DICOMNODE",
    contexts: Iterable[tuple[int, str, str]] = CONTEXTS,
) -> bytes:
    """A request as it should be, but for what is given."""
    if items is None:
        user = item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3.4")
        proposed = b"".join(context(*one) for one in contexts)
        items = item(0x10, b"1.2.840.10008.3.1.1.1") + proposed + item(0x50, user)
    names = called.ljust(16).encode() + calling.ljust(16).encode()
    return pdu(ASSOCIATE_RQ, struct.pack(">H2x", 1) + names + bytes(32) + items)


RELEASE = pdu(RELEASE_RQ, bytes(4))
GIVE_UP = pdu(ABORT, bytes(4))


def element(number: int, value: bytes, *, group: int = 0, length: int | None = None) -> bytes:
    """A command element: implicit VR little endian (PS3.7 6.3.1)."""
    return struct.pack("<HHI", group, number, len(value) if length is None else length) + value


def uid(value: str) -> bytes:
    """Padded to even length (PS3.5 9.1)."""
    return value.encode() + b"\0" * (len(value) % 2)


def us(value: int) -> bytes:
    """An unsigned short."""
    return struct.pack("<H", value)


def command_set(elements: Mapping[int, bytes]) -> bytes:
    """Elements in order, after their group length."""
    body = b"".join(element(number, elements[number]) for number in sorted(elements))
    return element(0x0000, struct.pack("<I", len(body))) + body


def echo_rq(message_id: int = 1) -> dict[int, bytes]:
    """The elements of a C-ECHO-RQ."""
    return {
        0x0002: uid(VERIFICATION),
        0x0100: us(ECHO_RQ),
        0x0110: us(message_id),
        0x0800: us(WITHOUT_DATA_SET),
    }


def store_rq(
    sop_instance_uid: str, *, sop_class_uid: str = DIGITAL_X_RAY, message_id: int = 1
) -> dict[int, bytes]:
    """The elements of a C-STORE-RQ."""
    return {
        0x0002: uid(sop_class_uid),
        0x0100: us(STORE_RQ),
        0x0110: us(message_id),
        0x0700: us(0),
        0x0800: us(WITH_DATA_SET),
        0x1000: uid(sop_instance_uid),
    }


def data_set(sop_instance_uid: str, study_instance_uid: str, size: int = 600) -> bytes:
    """A small object, explicit VR little endian, with ``size`` bytes of private filling."""

    def short(tag: int, vr: bytes, value: bytes) -> bytes:
        return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value

    return b"".join(
        (
            short(0x00080016, b"UI", uid(DIGITAL_X_RAY)),
            short(0x00080018, b"UI", uid(sop_instance_uid)),
            short(0x00100020, b"LO", b"ROGUE1"),
            short(0x0020000D, b"UI", uid(study_instance_uid)),
            short(0x0020000E, b"UI", uid(f"{study_instance_uid}.1")),
            struct.pack("<HH2sxxI", 0x7FE0, 0x0010, b"OB", size) + bytes(size),
        )
    )


def p_data(number: int, header: int, fragment: bytes, length: int | None = None) -> bytes:
    """A P-DATA-TF with one PDV, ``number`` its presentation context."""
    said = len(fragment) + 2 if length is None else length
    return pdu(P_DATA, struct.pack(">IBB", said, number, header) + fragment)


def message(
    number: int, elements: Mapping[int, bytes], data: bytes | None = None, fragment: int = 16000
) -> list[bytes]:
    """A DIMSE message as PDUs."""
    cut = [p_data(number, COMMAND | LAST, command_set(elements))]
    if data is not None:
        starts = range(0, max(len(data), 1), fragment)
        cut += [p_data(number, 0, data[at : at + fragment]) for at in starts[:-1]]
        cut.append(p_data(number, LAST, data[starts[-1] :]))
    return cut


# -- what comes back -------------------------------------------------------------------------------


def split(stream: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """PDUs as (type, body), and what is left over."""
    found, at = [], 0
    while at + 6 <= len(stream):
        kind, length = struct.unpack_from(">BxI", stream, at)
        if at + 6 + length > len(stream):
            break
        found.append((kind, stream[at + 6 : at + 6 + length]))
        at += 6 + length
    return found, stream[at:]


def values(bodies: Iterable[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """The whole PDVs of P-DATA-TF bodies: context, message control header, fragment."""
    for body in bodies:
        at = 0
        while at + 6 <= len(body):
            length, number, header = struct.unpack_from(">IBB", body, at)
            if length < 2 or at + 4 + length > len(body):
                break
            yield number, header, body[at + 6 : at + 4 + length]
            at += 4 + length


def elements_of(command: bytes) -> dict[int, bytes]:
    """A command set by element number; of a malformed one what is there."""
    found, at = {}, 0
    while at + 8 <= len(command):
        _, number, length = struct.unpack_from("<HHI", command, at)
        found[number] = command[at + 8 : at + 8 + length]
        at += 8 + length
    return found


class Connection:
    """A socket that speaks PDUs, right or wrong."""

    def __init__(
        self,
        port: int,
        source: str = ALLOWED,
        *,
        tls: ssl.SSLContext | None = None,
        timeout: float = PATIENCE,
    ) -> None:
        opened = socket.create_connection(("127.0.0.1", port), timeout, (source, 0))
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.socket = tls.wrap_socket(opened, server_hostname=ALLOWED) if tls else opened
        except OSError:
            opened.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(b"".join(parts))

    def pdu(self) -> tuple[int, bytes]:
        """The next one.

        Raises
        ------
        ConnectionError
            They hung up.
        """
        kind, length = struct.unpack(">BxI", self._exactly(6))
        return kind, self._exactly(length)

    def rest(self) -> bytes:
        """All until they hang up.

        Raises
        ------
        TimeoutError
            They don't.
        """
        received = bytearray()
        deadline = time.monotonic() + (self.socket.gettimeout() or PATIENCE)
        with suppress(ConnectionError):
            while part := self.socket.recv(1 << 16):
                received += part
                if time.monotonic() > deadline:
                    raise TimeoutError("talks on and on")
        return bytes(received)

    def ask(self, **request: Any) -> tuple[int, bytes]:
        """Ask for an association; the answer."""
        self.send(associate_rq(**request))
        return self.pdu()

    def associate(self, **request: Any) -> None:
        """Ask for an association, and get it."""
        answer = self.ask(**request)
        if answer[0] != ASSOCIATE_AC:
            raise ConnectionError(f"no association: {answer!r}")

    def status(self) -> int:
        """Of the next DIMSE response."""
        kind, body = self.pdu()
        if kind != P_DATA:
            raise ConnectionError(f"no response: PDU of type {kind}")
        command = b"".join(fragment for _, _, fragment in values([body]))
        return int.from_bytes(elements_of(command)[0x0900], "little")

    def release(self) -> None:
        """As one should."""
        self.send(RELEASE)
        if self.pdu()[0] != RELEASE_RP:
            raise ConnectionError("no A-RELEASE-RP")

    def _exactly(self, size: int) -> bytes:
        received = b""
        while len(received) < size:
            part = self.socket.recv(size - len(received))
            if not part:
                raise ConnectionResetError("they hung up")
            received += part
        return received


def echo(
    port: int,
    source: str = ALLOWED,
    *,
    calling: str = MODALITY,
    tls: ssl.SSLContext | None = None,
) -> None:
    """C-ECHO over an association of its own.

    Raises
    ------
    OSError
        It did not work.
    """
    with Connection(port, source, tls=tls) as connection:
        connection.associate(calling=calling, contexts=CONTEXTS[:1])
        connection.send(*message(1, echo_rq()))
        status = connection.status()
        if status != 0x0000:
            raise ConnectionError(f"C-ECHO was answered 0x{status:04X}")
        connection.release()


class Echoes:
    """An allowed peer that echoes every second, while the block runs."""

    def __init__(self, echoing: Callable[[], None]) -> None:
        self.waits: list[float] = []  #: seconds
        self.faults: list[str] = []
        self._echo = echoing
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def wait(self, more: int) -> None:
        """Until that many more were answered, or failed."""
        wanted = len(self.waits) + len(self.faults) + more
        wait_for(
            "echoes",
            PATIENCE * more,
            lambda: len(self.waits) + len(self.faults) >= wanted or None,
        )

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._echo()
                self.waits.append(time.monotonic() - began)
            except OSError as error:
                self.faults.append(str(error))
            self._stop.wait(1.0)


if __name__ == "__main__":
    main()
