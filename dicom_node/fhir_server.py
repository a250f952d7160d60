"""Who sends FHIR resources: a FHIR R4 server as a destination (RESTful API, JSON).

Made of http.client and not of urllib.request, which follows redirects to other hosts and takes a
proxy from the environment: a draft goes where the configuration says, or nowhere.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path

from dicom_node import http_peer
from dicom_node.config import Peer, Tls
from dicom_node.errors import PeerError, PeerRefused, Unreadable
from dicom_node.results.fhir import resource_id
from dicom_node.scu import Reference, Timeouts

_JSON = "application/fhir+json"
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")  # FHIR R4, data type id
_FOR_NOW = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
_ABSENT = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)


class FhirServer:
    """A peer that takes FHIR resources.

    Parameters
    ----------
    peer
        Its ``url`` is the server's base, ``https://host/fhir``.
    calling_ae_title
        Who we are: what the server's log will say (User-Agent).
    timeouts
        How long to wait; ``answer`` bounds the whole wait for one.
    tls
        Our certificates, for an https url; their files are read for every exchange.

    Raises
    ------
    ConfigurationError
        The url names no host, or a user.
    """

    def __init__(
        self,
        peer: Peer,
        calling_ae_title: str,
        timeouts: Timeouts | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._peer = peer
        self._calling_ae_title = calling_ae_title
        self._timeouts = timeouts or Timeouts()
        self._tls = tls
        self._base = http_peer.base(peer)

    def verify(self) -> None:
        """Ask what the server can do (FHIR R4, capabilities).

        Raises
        ------
        PeerError
            It can't be reached, or it is no FHIR server.
        """
        status = self._request("GET", "metadata")
        if status != HTTPStatus.OK:
            raise PeerError(f"{self._who()} answered GET metadata with {status}")

    def send(self, file: Path) -> int:
        """Put one DiagnosticReport under its own id: a second time changes nothing.

        Returns
        -------
        int
            0: created, or there already.

        Raises
        ------
        Unreadable
            The file is no DiagnosticReport.
        PeerRefused
            The server will never take it: any 4xx but 408 and 429.
        PeerError
            Any other failure.
        """
        resource = _content(file)
        status = self._request("PUT", f"DiagnosticReport/{_id(file, resource)}", resource)
        if status in (HTTPStatus.OK, HTTPStatus.CREATED):
            return 0
        message = f"{self._who()} answered PUT DiagnosticReport with {status}"
        if 400 <= status < 500 and status not in _FOR_NOW:
            raise PeerRefused(message)
        raise PeerError(message)

    def prove(self, reference: Reference) -> bool:
        """Is the report there, as far as the peer's ``proof`` asks?

        ``none``: the success status was proof enough. ``find``: the server gives it back.

        Raises
        ------
        PeerError
            The server can't be asked.
        """
        if self._peer.proof == "none":
            return True
        where = f"DiagnosticReport/{resource_id(reference.sop_instance_uid)}"
        status = self._request("GET", where)
        if status not in (HTTPStatus.OK, *_ABSENT):
            raise PeerError(f"{self._who()} answered GET DiagnosticReport with {status}")
        return status == HTTPStatus.OK

    def _request(self, method: str, where: str, body: bytes | None = None) -> int:
        """Return the status of the answer; its content is not read."""
        path = f"{self._base.path.rstrip('/')}/{where}"
        headers = {
            "Accept": _JSON,
            "Prefer": "return=minimal",
            **http_peer.headers(self._peer, self._calling_ae_title),
            **({} if body is None else {"Content-Type": _JSON}),
        }
        started = time.monotonic()
        try:
            with closing(self._connection()) as connection, self._bounded(connection):
                connection.request(method, path, body, headers)
                return connection.getresponse().status
        except (OSError, HTTPException, ValueError) as error:
            late = time.monotonic() - started >= self._timeouts.answer
            why = http_peer.why(error, late=late)
        # Outside: what the server sent must not come along as the cause.
        raise PeerError(f"{self._who()} {why}")

    def _connection(self) -> HTTPConnection:
        base, seconds = self._base, self._timeouts.connect
        host = base.hostname or ""
        if base.scheme == "http":
            return HTTPConnection(host, base.port, timeout=seconds)
        context = http_peer.context(self._peer, self._tls)
        return HTTPSConnection(host, base.port, timeout=seconds, context=context)

    @contextmanager
    def _bounded(self, connection: HTTPConnection) -> Iterator[None]:
        """Connect, and hang up when ``answer`` is over: a server may send byte by byte for ever."""
        connection.connect()
        connection.sock.settimeout(self._timeouts.network)
        timer = threading.Timer(self._timeouts.answer, _hang_up, [connection.sock])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _who(self) -> str:
        return http_peer.who(self._peer)


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # it is over already
        connection.shutdown(socket.SHUT_RDWR)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Unreadable(f"{file.name}: {error.strerror}") from error


def _id(file: Path, content: bytes) -> str:
    try:
        resource = json.loads(content)
    except ValueError:
        resource = None
    if isinstance(resource, dict) and resource.get("resourceType") == "DiagnosticReport":
        found = str(resource.get("id"))
        if "id" in resource and _ID.fullmatch(found):
            return found
    raise Unreadable(f"{file.name}: not a FHIR DiagnosticReport with an id")
