"""Who stores by DICOMweb: STOW-RS and QIDO-RS as a destination (PS3.18 10.5, 10.6).

The search is dicomweb-client's. Its ``store_instances`` is not used, for it decodes a file and
encodes it again, and knows of a refusal the HTTP status only: the file goes byte for byte as it
lies, in a message written here over the same session. Nothing is repeated here; that is for the
delivery, which counts its attempts.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import requests
import urllib3
from dicomweb_client.web import DICOMwebClient
from pydicom.filereader import read_file_meta_info

from dicom_node import http_peer, http_session
from dicom_node.config import Peer, Tls
from dicom_node.errors import NotSupported, PeerError, PeerRefused, Unreadable
from dicom_node.scu import Reference, Timeouts, needed_context

# They would log what a server writes into a Warning, a header or a body: it may be anything.
for _name in ("dicomweb_client", "retrying", "urllib3"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

T = TypeVar("T")
Attributes = dict[str, Any]  # DICOM JSON, PS3.18 F.2

_JSON = "application/dicom+json"
_NOBODYS_STUDY = "2.25.0"  # asked for where the answer is to hold no patient

# PS3.18 I.1, Store Instances Response
_FAILED_SOP_SEQUENCE = "00081198"
_OTHER_FAILURES_SEQUENCE = "0008119A"
_REFERENCED_SOP_SEQUENCE = "00081199"
_REFERENCED_SOP_INSTANCE_UID = "00081155"
_FAILURE_REASON = "00081197"
_WARNING_REASON = "00081196"
_SOP_INSTANCE_UID = "00080018"

#: The object is there already: in DIMSE (PS3.7 C.5.7), and as Microsoft's server has it.
_DUPLICATES = (0x0111, 0xB00E)
#: SOP class, transfer syntax (PS3.18 Table I.2-2)
_NOT_SUPPORTED = (0x0122, 0xC122)

_STORED = (HTTPStatus.OK, HTTPStatus.ACCEPTED)  # PS3.18 10.5.3.1
_SEARCHED = (HTTPStatus.OK, HTTPStatus.NO_CONTENT, HTTPStatus.PARTIAL_CONTENT)
_ABSENT = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)

#: Answers of 4xx that are about the service or our rights there, not about the object.
_FOR_NOW = (
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.NOT_ACCEPTABLE,
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.MISDIRECTED_REQUEST,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
)
_FIXES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "set username and password, or token, of this peer",
    HTTPStatus.FORBIDDEN: "give our login there the right to do this",
    HTTPStatus.NOT_FOUND: "no DICOMweb is there: check the peer's url",
    HTTPStatus.METHOD_NOT_ALLOWED: "this service is off there: check the peer's url",
    HTTPStatus.NOT_ACCEPTABLE: "it gives no DICOM JSON",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "raise its limit, and that of a proxy before it",
}

_FOREIGN = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    HTTPException,
    OSError,
    ValueError,
    RecursionError,  # of JSON, nested deeply
)
_UNREADABLE = (
    requests.JSONDecodeError,
    requests.exceptions.ContentDecodingError,
    RecursionError,
)
_NO_JSON = "gave an answer that is no DICOM JSON"
_REDIRECTED = "set the peer's url to where it answers itself"


class _Refused(Exception):
    """A search that was answered with another status than success."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class DicomWebServer:
    """A peer that takes objects by STOW-RS and lists them by QIDO-RS.

    Parameters
    ----------
    peer
        Its ``url`` is the base of both services, ``https://host/dicom-web``.
    calling_ae_title
        Who we are: what the server's log will say (User-Agent).
    timeouts
        How long to wait; ``answer`` bounds the whole exchange.
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
        self._base = http_peer.base(peer).geturl().rstrip("/")

    def verify(self) -> None:
        """Search for a study that nobody has (QIDO-RS, PS3.18 10.6).

        Raises
        ------
        PeerError
            It can't be reached, does not let us in, or is no DICOMweb server.
        """
        nobody = {"StudyInstanceUID": _NOBODYS_STUDY}
        self._search(lambda client: client.search_for_studies(limit=1, search_filters=nobody))

    def send(self, file: Path) -> int:
        """Store one Part 10 file (STOW-RS, PS3.18 10.5), byte for byte as it lies.

        Returns
        -------
        int
            0x0000, 0x0111 (it was there already) or the warning reason: in each case it is stored.

        Raises
        ------
        Unreadable
            The file is no Part 10 file.
        NotSupported
            The server takes no such objects.
        PeerRefused
            The server will never take this object.
        PeerError
            Any other failure; an answer that does not name the object is one.
        """
        uid, content = _read(file)
        status, answer = self._ask("STOW-RS", lambda session: self._post(session, content))
        return self._judge(status, answer, uid)

    def prove(self, reference: Reference) -> bool:
        """Is the object there, as far as the peer's ``proof`` asks?

        ``none``: the success status was proof enough. ``find``: the server lists it (QIDO-RS).

        Raises
        ------
        PeerError
            The server can't be asked.
        """
        if self._peer.proof == "none":
            return True
        found = self._search(
            lambda client: client.search_for_instances(
                reference.study_instance_uid,
                reference.series_instance_uid,
                search_filters={"SOPInstanceUID": reference.sop_instance_uid},
            ),
            absent=_ABSENT,
        )
        return any(_value(one, _SOP_INSTANCE_UID) == reference.sop_instance_uid for one in found)

    # -- exchanges -----------------------------------------------------------------------------

    def _post(self, session: requests.Session, content: bytes) -> tuple[int, Attributes]:
        media_type, message = _multipart(content)
        answer = session.post(
            f"{self._base}/studies",
            data=message,
            headers={"Content-Type": media_type, "Accept": _JSON},
            timeout=self._patience,
            allow_redirects=False,
            stream=True,
        )
        return answer.status_code, _attributes(http_session.bounded(answer).content)

    def _search(
        self,
        question: Callable[[DICOMwebClient], object],
        absent: Collection[int] = (),
    ) -> list[Attributes]:
        """What a search finds; statuses in ``absent`` mean that it finds nothing."""

        def searched(session: requests.Session) -> object:
            client = DICOMwebClient(
                self._base,
                session,
                callback=_searched,
                permissive_uid=True,  # a study has the UID it has, PS3.5 9.1 or not
                timeout=self._patience,
            )
            client.set_http_retry_params(retry=False)
            try:
                return question(client)
            except _Refused as error:
                if error.status in absent:
                    return []
                raise

        found = self._ask("QIDO-RS", searched)
        if not isinstance(found, list):
            raise PeerError(f"{self._who} {_NO_JSON}")
        return [one for one in found if isinstance(one, dict)]

    def _ask(self, service: str, question: Callable[[requests.Session], T]) -> T:
        """An exchange; whatever may go wrong in it becomes :class:`PeerError`."""
        peer, timeouts = self._peer, self._timeouts
        began = time.monotonic()
        try:
            with http_session.opened(peer, self._calling_ae_title, timeouts, self._tls) as session:
                return question(session)
        except _Refused as error:
            failure = self._answered(service, error.status)
        except _FOREIGN as error:
            late = time.monotonic() - began >= timeouts.answer
            failure = PeerError(f"{self._who} {_why(error, late=late)}")
        raise failure  # outside: what the server sent must not come along as the cause

    def _judge(self, status: int, answer: Attributes, uid: str) -> int:
        """What the server says of our object (PS3.18 10.5.3, I.2)."""
        failures = _items(answer, _FAILED_SOP_SEQUENCE) + _items(answer, _OTHER_FAILURES_SEQUENCE)
        if failures:
            return self._failed(failures[0])
        stored = [
            one
            for one in _items(answer, _REFERENCED_SOP_SEQUENCE)
            if _value(one, _REFERENCED_SOP_INSTANCE_UID) == uid
        ]
        if status not in _STORED:
            raise self._answered("STOW-RS", status)
        if not stored:
            raise PeerError(
                f"{self._who} answered STOW-RS with {status},"
                " and names the object neither as stored nor as failed"
            )
        return _number(stored[0], _WARNING_REASON) or 0

    def _failed(self, item: Attributes) -> int:
        reason = _number(item, _FAILURE_REASON)
        if reason in _DUPLICATES:
            return _DUPLICATES[0]
        if reason is None:
            raise PeerError(f"{self._who} failed to store the object and gives no reason")
        message = f"{self._who} failed to store the object: reason 0x{reason:04X}"
        raise kind_of_reason(reason)(message, status=reason)

    def _answered(self, service: str, status: int) -> PeerError:
        fix = _FIXES.get(status) or (_REDIRECTED if 300 <= status < 400 else "")
        message = f"{self._who} answered {service} with {status}{': ' if fix else ''}{fix}"
        return kind_of_status(status)(message)

    @property
    def _patience(self) -> tuple[float, float]:
        return self._timeouts.connect, self._timeouts.network

    @property
    def _who(self) -> str:
        return http_peer.who(self._peer)


# -- kinds of failure ------------------------------------------------------------------------------


def kind_of_status(status: int) -> type[PeerError]:
    """What an HTTP status (PS3.18 8.5, 10.5.3.1) says of a later attempt."""
    if status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
        return NotSupported
    return PeerRefused if 400 <= status < 500 and status not in _FOR_NOW else PeerError


def kind_of_reason(reason: int) -> type[PeerError]:
    """What a failure reason (PS3.18 Table I.2-2) says of a later attempt.

    0x0110, processing failure, is no refusal for good: servers say it of all that goes wrong, a
    full disk too.
    """
    if reason in _NOT_SUPPORTED:
        return NotSupported
    wrong = reason & 0xFF00 == 0xA900 or reason & 0xF000 == 0xC000
    return PeerRefused if wrong else PeerError


def _why(error: BaseException, *, late: bool) -> str:
    if not late and isinstance(error, _UNREADABLE):
        return _NO_JSON
    return http_peer.why(_cause(error), late=late)


def _cause(error: BaseException) -> BaseException:
    """The failure that requests and urllib3 have wrapped."""
    current: BaseException | None = error
    while current is not None:
        ours = isinstance(current, OSError | HTTPException)
        if ours and not isinstance(current, requests.RequestException):
            return current
        current = current.__context__ or current.__cause__
    return error


def _searched(response: requests.Response, **_: object) -> requests.Response:
    """Judge an answer before dicomweb-client does, which would follow a redirect."""
    if response.status_code not in _SEARCHED:
        response.close()
        raise _Refused(response.status_code)
    return http_session.bounded(response)


# -- what is sent, and what is said of it ----------------------------------------------------------


def _read(file: Path) -> tuple[str, bytes]:
    """SOP Instance UID and content of a Part 10 file."""
    needed_context(file)
    try:
        uid = read_file_meta_info(file).MediaStorageSOPInstanceUID
        return str(uid), file.read_bytes()
    except OSError as error:
        raise Unreadable(f"{file.name}: {error.strerror}") from error


def _multipart(content: bytes) -> tuple[str, bytes]:
    """Media type and body of a request with one object (PS3.18 8.6.1.2, RFC 2046 5.1)."""
    boundary = uuid4().hex
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    tail = f"\r\n--{boundary}--\r\n".encode()
    media_type = f'multipart/related; type="application/dicom"; boundary={boundary}'
    return media_type, head + content + tail


def _attributes(content: bytes) -> Attributes:
    """DICOM JSON, whatever its header calls it; nothing where something else has answered."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _items(attributes: Attributes, tag: str) -> list[Attributes]:
    return [one for one in _values(attributes, tag) if isinstance(one, dict)]


def _value(attributes: Attributes, tag: str) -> object:
    return next(iter(_values(attributes, tag)), None)


def _number(attributes: Attributes, tag: str) -> int | None:
    value = _value(attributes, tag)
    return value & 0xFFFF if isinstance(value, int) else None  # VR US, PS3.5 6.2


def _values(attributes: Attributes, tag: str) -> list[object]:
    element = attributes.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []
