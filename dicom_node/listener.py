"""The sockets under the SCP: accept, shake hands, hand over; bounded in threads and in time.

Each connection has a thread of its own that waits in the kernel. Who has no association yet is
only waiting, and of those at most :data:`WAITING` are borne: one more pushes out whoever waits
longest, so that a flood of silent callers never keeps out one who speaks (PS3.8 9.1.5, ARTIM).
"""

from __future__ import annotations

import ipaddress
import logging
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from dicom_node.errors import ConfigurationError, trace
from dicom_node.upper_layer import Connection, Deadlines

logger = logging.getLogger(__name__)

#: Connections without an association at a time.
WAITING = 64
#: Threads at a time beyond the established ones, those included that are about to end.
_THREADS = 4 * WAITING
_BACKLOG = 512
_BREATH = 0.01  # seconds to wait where threads or file handles have run out
STOP_GRACE = 3.0  # seconds that running associations get when we stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where to listen."""

    host: str
    port: int  #: 0: any free one
    #: called for every connection, so that new certificates hold from then on
    tls: Callable[[], ssl.SSLContext] | None = None
    local: bool = False  #: only this machine can reach it
    shared: bool = False  #: with other processes (SO_REUSEPORT)


class Listener:
    """Accepts connections and serves each in a thread.

    Parameters
    ----------
    serve
        Serves a connection until it ends, and closes it.
    no_tls
        Told of a failed TLS handshake.
    """

    def __init__(
        self,
        serve: Callable[[Connection], None],
        no_tls: Callable[[Connection, OSError], None],
        deadlines: Deadlines | None = None,
    ) -> None:
        self._serve = serve
        self._no_tls = no_tls
        self._deadlines = deadlines or Deadlines()
        self._sockets: dict[Endpoint, socket.socket] = {}
        self._open: dict[Connection, threading.Thread] = {}  # the oldest first
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._accepting = threading.Thread(target=self._accept_all, name="accept", daemon=True)
        self._stopping = False

    def start(self, endpoints: Sequence[Endpoint]) -> None:
        """Listen.

        Raises
        ------
        ConfigurationError
            A port is taken, or a host is not ours.
        """
        try:
            for endpoint in endpoints:
                self._sockets[endpoint] = listening = _listening(endpoint)
                self._selector.register(listening, selectors.EVENT_READ, endpoint)
        except ConfigurationError:
            self._close_sockets()
            raise
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._accepting.start()

    def port(self, endpoint: Endpoint) -> int:
        """The port of an endpoint, once started."""
        return int(self._sockets[endpoint].getsockname()[1])

    @property
    def connections(self) -> list[Connection]:
        """Those being served."""
        with self._lock:
            return list(self._open)

    def stop(self) -> None:
        """Stop listening; running associations get a moment to end, then they are cut."""
        self._stopping = True
        self._wake.send(b".")
        if self._accepting.is_alive():
            self._accepting.join()
        self._close_sockets()
        for connection in self.connections:
            if not connection.established:
                connection.cut()
        self._join(time.monotonic() + STOP_GRACE)
        for connection in self.connections:
            connection.cut()
        self._join(time.monotonic() + STOP_GRACE)

    def _close_sockets(self) -> None:
        self._selector.close()
        for closing in (*self._sockets.values(), self._wake, self._woken):
            closing.close()

    def _join(self, deadline: float) -> None:
        with self._lock:
            threads = list(self._open.values())
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _accept_all(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select():
                if key.data is not None:
                    self._accept(key.data)

    def _accept(self, endpoint: Endpoint) -> None:
        try:
            accepted, address = self._sockets[endpoint].accept()
        except BlockingIOError:  # it went away, or another process was quicker
            return
        except OSError as error:  # out of file handles: whoever waits longest makes room
            logger.warning("can't accept: %s", error.strerror)
            self._make_room(0)
            time.sleep(_BREATH)
            return
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(accepted, _plain(address[0]), self._deadlines, local=endpoint.local)
        self._make_room(WAITING - 1)
        self._begin(connection, endpoint)

    def _make_room(self, keep: int) -> None:
        """Cut those that wait longest for an association until ``keep`` are left."""
        waiting = [one for one in self.connections if not (one.established or one.was_cut)]
        for connection in waiting[: max(0, len(waiting) - keep)]:
            connection.cut()
        while sum(not one.established for one in self.connections) >= _THREADS:
            time.sleep(_BREATH)

    def _begin(self, connection: Connection, endpoint: Endpoint) -> None:
        thread = threading.Thread(
            target=self._run, args=(connection, endpoint), name="association", daemon=True
        )
        with self._lock:
            self._open[connection] = thread
        try:
            thread.start()
        except RuntimeError as error:  # no more threads
            logger.warning("can't serve: %s", error)
            self._forget(connection)

    def _run(self, connection: Connection, endpoint: Endpoint) -> None:
        try:
            if endpoint.tls is None or self._shake_hands(connection, endpoint.tls):
                self._serve(connection)
        except Exception as error:
            logger.error("connection of %s: our bug\n%s", connection.address, trace(error))
        finally:
            self._forget(connection)

    def _shake_hands(self, connection: Connection, context: Callable[[], ssl.SSLContext]) -> bool:
        try:
            connection.start_tls(context())
        except OSError as error:
            self._no_tls(connection, error)
            connection.linger()  # or a reset takes our alert away (RFC 8446 6)
            return False
        return True

    def _forget(self, connection: Connection) -> None:
        connection.close()
        with self._lock:
            self._open.pop(connection, None)


def check(endpoint: Endpoint) -> None:
    """Raise ``ConfigurationError`` where nobody can listen there alone just now."""
    _listening(endpoint).close()


def _listening(endpoint: Endpoint) -> socket.socket:
    where = f"{endpoint.host}:{endpoint.port}"
    try:
        found = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family = found[0][0]
        made = socket.create_server(
            (endpoint.host, endpoint.port),
            family=family,
            backlog=_BACKLOG,
            reuse_port=endpoint.shared,
            dualstack_ipv6=family == socket.AF_INET6 and endpoint.host == "::",
        )
    except OSError as error:
        raise ConfigurationError(
            f"node.host, node.port: can't listen on {where}: {error.strerror}"
        ) from error
    made.setblocking(False)
    return made


def _plain(address: str) -> str:
    """An IPv4 caller of a socket that takes both is named by its IPv4 address."""
    with suppress(ValueError):
        mapped = getattr(ipaddress.ip_address(address), "ipv4_mapped", None)
        return str(mapped or address)
    return address  # IPv6 with a zone
