"""Who sends: C-ECHO, C-STORE, and the proof that an object arrived; the ``Destination`` protocol.

Every way in which a peer can fail becomes :class:`PeerError` (a later attempt may work) or
:class:`PeerRefused` (it won't), and names the peer and the reason.
"""

from __future__ import annotations

import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Protocol, cast

from pydantic import ValidationError
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import dcmread, read_file_meta_info
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, build_context, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE, SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationSocket

from dicom_node import tls as node_tls
from dicom_node.config import Peer, Tls
from dicom_node.errors import (
    ConfigurationError,
    NotSupported,
    PeerError,
    PeerRefused,
    Unreadable,
)
from dicom_node.storage import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

logger = logging.getLogger(__name__)

# The only place where pynetdicom's module-wide switches are set. Files are sent in chunks as they
# lie on disk: not decoded, not encoded again, not held in memory.
_config.STORE_SEND_CHUNKED_DATASET = True
# A C-FIND answer may carry what we did not ask for: nothing of it goes to a log.
_config.LOG_REQUEST_IDENTIFIERS = False
_config.LOG_RESPONSE_IDENTIFIERS = False

_VERIFICATION = UID("1.2.840.10008.1.1")  # PS3.4 A.4
_STUDY_ROOT_FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")  # PS3.4 C.6.2.1.3
_UNCOMPRESSED: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]

_MAXIMUM_CONTEXTS = 128  # PS3.8 9.3.2.2: context ids are odd and fit a byte

_REACTOR_PATIENCE = 1.0  # seconds; pynetdicom's reactor comes round every millisecond

_SUCCESS = 0x0000
_DUPLICATE_SOP_INSTANCE = 0x0111  # PS3.7 C.5.7: the object is there already
_SOP_CLASS_NOT_SUPPORTED = 0x0122  # PS3.7 C.5.6
_PENDING = (0xFF00, 0xFF01)  # PS3.4 C.4.1.1.4

# PS3.8 9.3.4, Table 9-21
_RESULTS = {1: "permanently", 2: "for now"}
_DIAGNOSTICS = {
    (1, 1): "no reason given",
    (1, 2): "application context name not supported",
    (1, 3): "our calling AE title is not recognised",
    (1, 7): "its called AE title is not recognised",
    (2, 1): "no reason given (ACSE)",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds to wait for a peer."""

    connect: float = 10  #: TCP connection
    associate: float = 30  #: answer to an association request
    answer: float = 60  #: answer to a DIMSE request; a PACS may be slow to file
    network: float = 60  #: silence inside a PDU


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Where an object is in the hierarchy of study, series, instance."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one file."""

    path: Path
    status: int | None  #: the peer's DIMSE status, if one came back
    failure: str | None  #: ``None``: it is there


class Destination(Protocol):
    """Where drafts go; group ``dicom_node.destinations``."""

    def verify(self) -> None:
        """Ask whether it answers (C-ECHO or its equal); raises :class:`PeerError`."""
        ...

    def send(self, file: Path) -> int:
        """Send one Part 10 file; the status that counts as stored. Raises :class:`PeerError`."""
        ...

    def prove(self, reference: Reference) -> bool:
        """Is it really there, as far as the peer's ``proof`` asks? Raises :class:`PeerError`."""
        ...


class DicomPeer:
    """A peer that speaks DIMSE.

    Parameters
    ----------
    peer
        Whom to call.
    calling_ae_title
        Who we are.
    timeouts
        How long to wait.
    tls
        Our certificates, for a peer that is called by TLS; the files are read for every
        association, so that new ones need no restart.
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
        self._tls = tls or Tls()

    def verify(self) -> None:
        """C-ECHO.

        Raises
        ------
        PeerError
            The peer can't be reached, rejects us or does not answer.
        """
        with self.association([build_context(_VERIFICATION, _UNCOMPRESSED)]) as association:
            started = time.monotonic()
            status = self.status(association, association.send_c_echo(), started)
        if status != _SUCCESS:
            raise PeerError(f"{self.who} answered C-ECHO with 0x{status:04X}", status=status)

    def send(self, file: Path) -> int:
        """C-STORE one Part 10 file in its own transfer syntax, its data set byte for byte.

        Returns
        -------
        int
            0x0000, 0x0111 (it was there already) or a warning 0xBxxx: in each case it is stored.

        Raises
        ------
        Unreadable
            The file is no Part 10 file.
        NotSupported
            The peer takes no objects of this SOP class.
        PeerRefused
            The peer will never take this object.
        PeerError
            Any other failure.
        """
        sop_class, transfer_syntax = needed_context(file)
        # PS3.5 10.1: everybody takes Implicit VR Little Endian, and some nothing else.
        fallback = transfer_syntax == ExplicitVRLittleEndian
        offered: list[str | UID] = [transfer_syntax]
        offered += [ImplicitVRLittleEndian] if fallback else []
        with self.association([build_context(sop_class, offered)]) as association:
            if association.accepted_contexts[0].transfer_syntax[0] == transfer_syntax:
                return self.store(association, file)
            return self.store(association, _implicit(file))

    def prove(self, reference: Reference) -> bool:
        """Is the object there, as far as the peer's ``proof`` asks?

        ``none``: the success status was proof enough. ``find``: the peer lists it. ``commitment``:
        not proven by a question; see ``commitment_calls``.

        Raises
        ------
        PeerError
            The peer can't be asked.
        """
        if self._peer.proof == "find":
            return self._at_queries()._lists(reference)
        return self._peer.proof == "none"

    def store(self, association: Association, file: Path | Dataset) -> int:
        """C-STORE one file or data set on an open association; raises as :meth:`send`."""
        started = time.monotonic()
        try:
            answer = association.send_c_store(file)
        except (ValueError, RuntimeError) as error:  # context not accepted; association gone
            raise PeerError(f"{self.who} does not take it: {error}") from error
        except OSError as error:
            name = file.name if isinstance(file, Path) else file.SOPInstanceUID
            raise Unreadable(f"{name}: {error.strerror}") from error
        return _stored(self.status(association, answer, started), self.who)

    @contextmanager
    def association(
        self,
        contexts: Sequence[PresentationContext],
        *,
        roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
        handlers: Sequence[evt.EventHandlerType] = (),
    ) -> Iterator[Association]:
        """An association that is released at the end, and aborted if we fail inside.

        Parameters
        ----------
        contexts
            What is proposed.
        roles
            Where the peer is to be the SCU (PS3.7 D.3.3.4).
        handlers
            What answers the peer's own requests.

        Raises
        ------
        PeerError
            Unreachable, rejected or aborted; :class:`NotSupported`: it accepted no context.
        """
        association = self._associate(contexts, roles, handlers)
        try:
            yield association
        finally:
            if association.is_established:
                association.release()

    def _associate(
        self,
        contexts: Sequence[PresentationContext],
        roles: Sequence[SCP_SCU_RoleSelectionNegotiation],
        handlers: Sequence[evt.EventHandlerType],
    ) -> Association:
        connected: list[evt.Event] = []
        faults: list[OSError] = []  # of TLS; pynetdicom keeps them to itself
        entity = _application_entity(self._calling_ae_title, self._timeouts)
        try:
            association = entity.associate(
                self._peer.address,
                self._peer.port,
                contexts=list(contexts),
                ae_title=self._peer.ae_title,
                ext_neg=list(roles),
                evt_handlers=[
                    *handlers,
                    (evt.EVT_CONN_OPEN, connected.append),
                    (evt.EVT_CONN_OPEN, _on_connected),
                ],
                tls_args=self._tls_arguments(faults) if self._peer.tls else None,
            )
        except OSError as error:  # the name does not resolve
            raise PeerError(f"{self.who} can't be reached: {error.strerror}") from error
        if faults and not association.is_established:
            why = node_tls.explain(faults[0])
            raise PeerError(f"{self.who} can't be called by TLS: {why}") from faults[0]
        if not association.is_established:
            kind = NotSupported if association.rejected_contexts else PeerError
            raise kind(f"{self.who} {_why_not(association, bool(connected))}")
        return association

    def _tls_arguments(self, faults: list[OSError]) -> tuple[ssl.SSLContext, str]:
        """What pynetdicom needs; the certificate must name the host as it is configured."""
        try:
            context = node_tls.Material(self._tls).client_context()
        except ConfigurationError as error:  # not for good: the files are read again next time
            raise PeerError(f"{self.who} can't be called by TLS: {error}") from error
        context.sslsocket_class = _noting(faults)
        return context, self._peer.address

    def _at_queries(self) -> DicomPeer:
        """The same peer where it answers queries."""
        return DicomPeer(self._peer.for_queries, self._calling_ae_title, self._timeouts, self._tls)

    def _lists(self, reference: Reference) -> bool:
        """PS3.4 C.4.1: C-FIND at IMAGE level in the Study Root model, unique keys only."""
        query = Dataset()
        query.QueryRetrieveLevel = "IMAGE"
        query.StudyInstanceUID = reference.study_instance_uid
        query.SeriesInstanceUID = reference.series_instance_uid
        query.SOPInstanceUID = reference.sop_instance_uid
        found = False
        started = time.monotonic()
        with self.association([build_context(_STUDY_ROOT_FIND, _UNCOMPRESSED)]) as association:
            for answer, identifier in association.send_c_find(query, _STUDY_ROOT_FIND):
                status = self.status(association, answer, started)
                if status not in (_SUCCESS, *_PENDING):
                    message = f"{self.who} answered C-FIND with 0x{status:04X}"
                    raise PeerError(message, status=status)
                found = found or _names(identifier, reference)
        return found

    def status(self, association: Association, answer: Dataset, started: float) -> int:
        """The status of an answer to what was asked at ``started`` (monotonic seconds).

        Raises
        ------
        PeerError
            None came, so the association is over; says why.
        """
        if answer.get("Status") is not None:
            return int(answer.Status)
        association.abort()  # pynetdicom may not have noticed the end yet
        seconds = self._timeouts.answer
        if time.monotonic() - started >= seconds:
            raise PeerError(f"{self.who} did not answer within {seconds:g} s")
        raise PeerError(
            f"{self.who} aborted the association, closed the connection or gave no valid answer"
        )

    @property
    def who(self) -> str:
        """The peer, for people."""
        peer = self._peer
        target = f"{peer.ae_title}@{peer.address}:{peer.port}"
        return target if peer.name == target else f"{peer.name} ({target})"


def echo(peer: Peer, calling_ae_title: str) -> None:
    """C-ECHO a peer; raises :class:`PeerError`."""
    DicomPeer(peer, calling_ae_title).verify()


def parse_target(text: str) -> Peer:
    """``AE@HOST:PORT`` as a peer that need not be configured.

    Raises
    ------
    ConfigurationError
        It is none.
    """
    parts = re.fullmatch(r"(?P<ae_title>[^@]+)@(?P<host>\[[^]]+\]|[^:]+):(?P<port>[0-9]+)", text)
    if parts is None:
        raise ConfigurationError(f"{text}: neither a configured peer nor AE@HOST:PORT")
    try:
        return Peer(
            name=text,
            ae_title=parts["ae_title"],
            host=(parts["host"].strip("[]"),),
            port=int(parts["port"]),
            roles=("destination",),
        )
    except ValidationError as error:
        why = error.errors(include_url=False, include_input=False)[0]
        raise ConfigurationError(f"{text}: {why['msg']}") from error


def files_under(paths: Iterable[Path]) -> list[Path]:
    """The files named, and all files in the folders named, in a stable order."""
    found: list[Path] = []
    for path in paths:
        inside = (file for file in path.rglob("*") if file.is_file())
        found += sorted(inside) if path.is_dir() else [path]
    return found


def send_files(
    files: Iterable[Path],
    peer: Peer,
    calling_ae_title: str,
    progress: Callable[[Outcome], None] = lambda outcome: None,
    timeouts: Timeouts | None = None,
    tls: Tls | None = None,
) -> list[Outcome]:
    """C-STORE files as they are, over as few associations as the peer allows.

    Parameters
    ----------
    files
        Part 10 files; what is none becomes a failed outcome.
    peer
        Whom to call.
    calling_ae_title
        Who we are.
    progress
        Told of each outcome as it comes.
    timeouts
        How long to wait.
    tls
        Our certificates, for a peer that is called by TLS.

    Returns
    -------
    list of Outcome
        One per file. A failure of one file does not stop the others.
    """
    outcomes: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        progress(outcome)

    readable: dict[Path, _Context] = {}
    for file in files:
        try:
            readable[file] = needed_context(file)
        except Unreadable as error:
            tell(Outcome(path=file, status=None, failure=str(error)))
    sender = DicomPeer(peer, calling_ae_title, timeouts, tls)
    for group in _groups(readable):
        _send_group(sender, group, tell)
    return outcomes


_Context = tuple[UID, UID]  # SOP class, transfer syntax


def needed_context(file: Path) -> _Context:
    """SOP class and transfer syntax of a Part 10 file.

    Raises
    ------
    Unreadable
        It can't be opened, or is no Part 10 file with complete file meta information (PS3.10 7.1).
    """
    try:
        meta = read_file_meta_info(file)
    except OSError as error:
        raise Unreadable(f"{file.name}: {error.strerror}") from error
    except (InvalidDicomError, ValueError, LookupError, EOFError, NotImplementedError) as error:
        raise Unreadable(f"{file.name}: not a DICOM file (PS3.10 7.1)") from error
    keywords = ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")
    missing = [keyword for keyword in keywords if not meta.get(keyword)]
    if missing:
        raise Unreadable(f"{file.name}: file meta information lacks {', '.join(missing)}")
    return meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID


def _implicit(file: Path) -> Dataset:
    """The same data set in Implicit VR Little Endian."""
    ds = dcmread(file)
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    buffer.seek(0)
    return dcmread(buffer)


def _groups(needed: dict[Path, _Context]) -> Iterator[dict[Path, _Context]]:
    """Files whose contexts fit one association, in the order given where possible."""
    contexts = iter(dict.fromkeys(needed.values()))
    while batch := set(islice(contexts, _MAXIMUM_CONTEXTS)):
        yield {file: context for file, context in needed.items() if context in batch}


def _send_group(
    sender: DicomPeer, group: dict[Path, _Context], tell: Callable[[Outcome], None]
) -> None:
    """Send all; after a lost association the rest goes over a new one."""
    waiting = list(group)
    while waiting:
        contexts = [build_context(*context) for context in dict.fromkeys(group.values())]
        try:
            with sender.association(contexts) as association:
                tell(_send_one(sender, association, waiting.pop(0)))
                while waiting and association.is_established:
                    tell(_send_one(sender, association, waiting.pop(0)))
        except PeerError as error:  # nobody there: no use to try file by file
            for file in waiting:
                tell(Outcome(path=file, status=error.status, failure=str(error)))
            return


def _send_one(sender: DicomPeer, association: Association, file: Path) -> Outcome:
    try:
        return Outcome(path=file, status=sender.store(association, file), failure=None)
    except PeerError as error:
        return Outcome(path=file, status=error.status, failure=str(error))
    except Unreadable as error:
        return Outcome(path=file, status=None, failure=str(error))


def _application_entity(ae_title: str, timeouts: Timeouts) -> AE:
    entity = AE(ae_title)
    entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.connection_timeout = timeouts.connect
    entity.acse_timeout = timeouts.associate
    entity.dimse_timeout = timeouts.answer
    entity.network_timeout = timeouts.network
    return entity


class _Checkpoint(threading.Event):
    """Where pynetdicom's reactor waits while a request of ours is under way.

    Its own event has a gap: between the reactor's passing it and saying so a request may begin,
    and then the reactor may take the answer away and drop it ("Received unexpected C-STORE
    service message"; seen in about 1 of 500 objects on a busy machine). Here :meth:`clear`
    returns only when the reactor waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self._change = threading.Condition()
        self._open = True
        self._reactor_waits = False

    def is_set(self) -> bool:
        """Is it open?"""
        return self._open

    def set(self) -> None:
        """Open."""
        with self._change:
            self._open = True
            self._change.notify_all()

    def clear(self) -> None:
        """Close, and let the reactor arrive; one that has ended never does."""
        with self._change:
            self._open = False
            self._change.wait_for(lambda: self._reactor_waits, _REACTOR_PATIENCE)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until open; called by the reactor only."""
        with self._change:
            self._reactor_waits = True
            self._change.notify_all()
            try:
                return self._change.wait_for(lambda: self._open, timeout)
            finally:
                self._reactor_waits = False


def _on_connected(event: evt.Event) -> None:
    """Set what pynetdicom leaves open."""
    event.assoc._reactor_checkpoint = _Checkpoint()
    connection = cast(socket.socket, cast(AssociationSocket, event.assoc.dul.socket).socket)
    # A peer that stops reading must not hold us for ever.
    connection.settimeout(event.assoc.network_timeout)
    # Command and data set are two writes: Nagle's algorithm would hold the second back until the
    # peer's delayed acknowledgement of the first, 40 ms per object.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _noting(faults: list[OSError]) -> type[ssl.SSLSocket]:
    """A kind of socket that notes why TLS failed.

    In TLS 1.3 a server judges our certificate when the handshake has ended for us, so that its
    verdict comes as we read (RFC 8446 4.4.2.4).
    """

    class Noting(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            try:
                super().do_handshake(block)
            except OSError as error:
                faults.append(error)
                raise

        def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
            try:
                return super().recv(buflen, flags)
            except ssl.SSLError as error:
                faults.append(error)
                raise

        def shutdown(self, how: int) -> None:
            try:
                super().shutdown(how)
            finally:
                self.close()  # pynetdicom drops unclosed what can't be shut down any more

    return Noting


def _why_not(association: Association, connected: bool) -> str:
    if not connected:
        return "can't be reached: no TCP connection"
    # A peer that rejects and closes at once may outrun pynetdicom, which then takes the closed
    # socket for one that never connected; the answer lies in the queue unread.
    answer = association.acceptor.primitive or association.dul.peek_next_pdu()
    if isinstance(answer, A_ASSOCIATE) and answer.result:
        source, diagnostic = answer.result_source, answer.diagnostic
        why = _DIAGNOSTICS.get((source or 0, diagnostic or 0), f"{source}/{diagnostic}")
        return f"rejected the association {_RESULTS.get(answer.result or 0, '')}: {why}"
    if association.rejected_contexts:
        refused = association.rejected_contexts[0]
        return (
            f"accepts none of {len(association.rejected_contexts)} presentation contexts,"
            f" first {refused.abstract_syntax} in {refused.transfer_syntax[0]}"
        )
    return "aborted the association or did not answer the request for one"


def _stored(status: int, who: str) -> int:
    """PS3.4 Table B.2-1, PS3.7 C: which statuses mean that the object is there."""
    if status in (_SUCCESS, _DUPLICATE_SOP_INSTANCE) or status & 0xF000 == 0xB000:
        return status
    message = f"{who} answered C-STORE with 0x{status:04X}"
    if status == _SOP_CLASS_NOT_SUPPORTED:
        raise NotSupported(message, status=status)
    if status & 0xF000 == 0xC000 or status & 0xFF00 in (0xA900, 0x0100):
        raise PeerRefused(message, status=status)
    raise PeerError(message, status=status)


def _names(identifier: Dataset | None, reference: Reference) -> bool:
    return identifier is not None and identifier.get("SOPInstanceUID") == reference.sop_instance_uid
