"""Who may associate and what becomes of what they send: Verification, Storage, its Commitment.

Success means "durably mine" (file synced *and* row committed). An unknown caller is turned away
before anything else: a calling AE title and an address must both be those of one configured peer
that calls us, and the called AE title must be ours.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import build_context
from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import ServiceClass, StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

from dicom_node import acceptor, commitment_service, dimse, filing
from dicom_node.acceptor import Context, Receiving, Rejection, Request
from dicom_node.associations import Reason, Refused, printable
from dicom_node.commitment_information import PUSH_MODEL
from dicom_node.commitment_service import Books
from dicom_node.config import Peer, Settings
from dicom_node.dimse import Command
from dicom_node.disk import Watermarks
from dicom_node.errors import NodeError, NotAuthorised, OutOfResources, trace
from dicom_node.listener import Endpoint, Listener
from dicom_node.storage import Incoming, Storage, StoredInstance
from dicom_node.tls import Material, explain
from dicom_node.upper_layer import Abort, Connection, Deadlines

logger = logging.getLogger(__name__)

#: Everything we can decode, best first: of several syntaxes that a sender offers in one context
#: the first of these is taken, so that it need not compress and never compresses lossily for us.
TRANSFER_SYNTAXES = [
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    RLELossless,
    JPEGLosslessSV1,
    JPEGLossless,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEGLSNearLossless,
    JPEG2000,
    HTJ2K,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
]

_PROPOSABLE: list[str | UID] = [*TRANSFER_SYNTAXES]  # pynetdicom's type is invariant

#: Associations beyond the others' bound that ask for Verification only, in total and for each
#: address: whoever checks whether we live gets an answer while we are busy, or take nothing for
#: want of room.
VERIFICATION_PLACES = 32
VERIFICATION_PLACES_PER_ADDRESS = 4

_VERIFICATION = UID("1.2.840.10008.1.1")  # PS3.4 A.4
_STORAGE_ROOT = "1.2.840.10008.5.1.4.1.1."  # PS3.6 A: composite storage SOP classes
_PROCESSING_FAILURE = 0x0110  # PS3.7 C.5.10
_UID_LENGTH = 64  # PS3.5 9.1
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_CALLING, _CALLED = 3, 7  # PS3.8 9.3.4, diagnostics of source 1: AE title not recognized

#: The watchdog's port: reached from this machine only, Verification only.
_OWN = Endpoint(host="127.0.0.1", port=0, local=True)

#: The instance, and what puts its file in place.
Register = Callable[[StoredInstance, Callable[[], None]], None]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who has an association with us."""

    peers: tuple[Peer, ...]  #: those it may be; of two with one title and address, both
    address: str

    @property
    def is_source(self) -> bool:
        """May it store?"""
        return any(peer.is_source for peer in self.peers)


class Scp:
    """Answers the network: Verification, Storage and Storage Commitment.

    Parameters
    ----------
    settings
        Who we are and who may call.
    storage
        Where data sets go.
    register
        Makes an instance durable: its file, by the second argument, the folder's entry, its row;
        raises ``OutOfResources`` where it can't.
    commitments
        Where a caller's messages of storage commitment are kept.
    refused
        Told of everybody who is turned away.
    watermarks
        Whether the disk has room.
    tls
        Certificates, where there is a TLS port.
    """

    def __init__(
        self,
        settings: Settings,
        storage: Storage,
        register: Register,
        commitments: Callable[[Caller], Books],
        refused: Callable[[Refused], None],
        watermarks: Watermarks,
        tls: Material | None = None,
        deadlines: Deadlines | None = None,
    ) -> None:
        self._settings = settings
        self._storage = storage
        self._register = register
        self._commitments = commitments
        self.refused = refused
        self._watermarks = watermarks
        self._places = Places(
            total=settings.listener.associations,
            per_address=settings.listener.associations_per_address,
        )
        self._verifying = Places(
            total=VERIFICATION_PLACES, per_address=VERIFICATION_PLACES_PER_ADDRESS
        )
        self._listener = Listener(self._serve, self._no_tls, deadlines)
        self._plain, self._secure = _endpoints(settings, tls)

    def start(self) -> None:
        """Listen.

        Raises
        ------
        ConfigurationError
            A port is taken, or the host is not ours.
        """
        endpoints = [self._plain, *([self._secure] if self._secure else []), _OWN]
        self._listener.start(endpoints)

    def stop(self) -> None:
        """Stop listening; running associations get a moment to end, then they are cut."""
        self._listener.stop()

    @property
    def port(self) -> int:
        """The TCP port that is listened on, once started."""
        return self._listener.port(self._plain)

    @property
    def tls_port(self) -> int | None:
        """The TCP port for TLS, once started; ``None`` where there is none."""
        return self._listener.port(self._secure) if self._secure else None

    @property
    def own_port(self) -> int:
        """The port that only this machine reaches, for the watchdog."""
        return self._listener.port(_OWN)

    def _serve(self, connection: Connection) -> None:
        acceptor.serve(connection, self)

    def _no_tls(self, connection: Connection, error: OSError) -> None:
        self.refused(
            Refused(
                calling_ae_title="",
                called_ae_title="",
                address=connection.address,
                reason=Reason.TLS_HANDSHAKE,
                tls=True,
                detail=explain(error),
            )
        )

    def admit(self, request: Request) -> _Association | Rejection:
        """Let the caller in, or say why not (PS3.8 9.3.4)."""
        verification_only = {*request.abstract_syntaxes} <= {_VERIFICATION}
        if request.local:
            if verification_only:
                return _Association(self, request, None, ())  # the watchdog needs no place
            return Rejection(reason=Reason.UNKNOWN_TITLE, diagnostic=_CALLING)
        peers = _callers(self._settings, request)
        if isinstance(peers, Rejection):
            return peers
        stores_nothing = {*request.abstract_syntaxes} <= {_VERIFICATION, PUSH_MODEL}
        if not (stores_nothing or self._watermarks.accepting):
            return _congested(Reason.DISK_FULL)
        places = self._verifying if verification_only else self._places
        reason = places.take(request.address)
        if reason is not None:
            return _congested(reason)
        return _Association(self, request, places, peers)

    @staticmethod
    def supported(abstract_syntax: UID) -> PresentationContext | None:
        """Verification, Storage Commitment in both roles, and whatever can be stored."""
        if abstract_syntax == _VERIFICATION:
            return build_context(_VERIFICATION, _PROPOSABLE[:2])
        if abstract_syntax == PUSH_MODEL:
            # PS3.4 J.3.3: who reports on an association of its own proposes to be the SCP.
            context = build_context(PUSH_MODEL, _PROPOSABLE[:2])
            context.scu_role = context.scp_role = True
            return context
        return build_context(abstract_syntax, _PROPOSABLE) if _is_storage(abstract_syntax) else None

    def receive(self, caller: Caller, request: Request, command: Command, syntax: UID) -> Receiving:
        """A C-STORE-RQ begins."""
        return _Storing(self, caller, request, command, syntax)

    def commitments(self, caller: Caller) -> Books:
        """Where a caller's messages of storage commitment are kept."""
        return self._commitments(caller)

    def begin(self, caller: Caller, command: Command, transfer_syntax: UID) -> Incoming:
        """Open a file for a data set.

        Raises
        ------
        NodeError
            The caller is no source, the disk is full, or UIDs can't be filed.
        """
        if not caller.is_source:
            raise NotAuthorised("the peer is let in for storage commitment only: no role source")
        if not self._watermarks.accepting:
            raise OutOfResources("the disk is full")
        return self._storage.receive(
            sop_class_uid=command.affected_sop_class_uid,
            sop_instance_uid=command.affected_sop_instance_uid,
            transfer_syntax_uid=transfer_syntax,
        )

    def prepare(self) -> None:
        """Make a file for the next data set."""
        self._storage.prepare()

    def look_at_disk(self, error: Exception) -> None:
        """A write that finds no room closes the door at once."""
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_ROOM:
            self._watermarks.full()

    def has_room(self) -> bool:
        """May more be written?"""
        return self._watermarks.accepting

    def keep(
        self, incoming: Incoming, request: Request, command: Command, transfer_syntax: UID
    ) -> None:
        """Make a whole data set durable; PS3.4 B.2.3.

        Raises
        ------
        NodeError
            It can't be filed, or resources are away.
        """
        origin = filing.Origin(
            sop_class_uid=command.affected_sop_class_uid,
            sop_instance_uid=command.affected_sop_instance_uid,
            transfer_syntax=transfer_syntax,
            calling_ae_title=request.calling_ae_title,
            address=request.address,
        )
        self._register(filing.file(incoming, origin), incoming.settle)


class _Association:
    """An admitted association; its place is given back in the end."""

    def __init__(
        self, scp: Scp, request: Request, places: Places | None, peers: tuple[Peer, ...]
    ) -> None:
        self._scp = scp
        self._request = request
        self._places = places
        self._caller = Caller(peers, request.address)

    def __enter__(self) -> _Association:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._places is not None:
            self._places.give_back(self._request.address)

    def receive(self, command: Command, context: Context) -> Receiving:
        """A C-STORE-RQ, or a message of storage commitment."""
        if context.abstract_syntax == PUSH_MODEL:
            return self._message(command, context)
        stores = command.command_field == dimse.C_STORE_RQ
        if not stores or context.abstract_syntax == _VERIFICATION:
            raise Abort(f"request 0x{command.command_field:04X} out of place", source=0)
        if not (command.affected_sop_class_uid and command.affected_sop_instance_uid):
            # Both are mandatory (PS3.7 9.3.1.1), and an answer could not name them.
            raise Abort("C-STORE-RQ without SOP Class or Instance UID", source=0)
        return self._scp.receive(self._caller, self._request, command, context.transfer_syntax)

    def _message(self, command: Command, context: Context) -> commitment_service.Message:
        """PS3.7 10.1: every normalised request gets an answer, others are out of place."""
        ours = (dimse.N_ACTION_RQ, dimse.N_EVENT_REPORT_RQ, *dimse.OTHER_N_REQUESTS)
        if command.command_field not in ours:
            raise Abort(f"request 0x{command.command_field:04X} out of place", source=0)
        books = self._scp.commitments(self._caller)
        return commitment_service.Message(command, context.transfer_syntax, books)

    def prepare(self) -> None:
        """Where objects come, the next one's file can be made."""
        if self._request.abstract_syntaxes != (_VERIFICATION,):
            self._scp.prepare()

    def answer(self, command: Command, context: Context) -> int:
        """C-ECHO (PS3.7 9.1.5), or a message of storage commitment that lacks its data set."""
        if context.abstract_syntax == PUSH_MODEL:
            return self._message(command, context).finish()
        if command.command_field != dimse.C_ECHO_RQ:
            raise Abort(f"request 0x{command.command_field:04X} without a data set", source=0)
        return 0x0000


class _Storing:
    """One C-STORE: what goes wrong on the way is the answer in the end."""

    def __init__(
        self, scp: Scp, caller: Caller, request: Request, command: Command, transfer_syntax: UID
    ) -> None:
        self._scp = scp
        self._request = request
        self._command = command
        self._transfer_syntax = transfer_syntax
        self._incoming: Incoming | None = None
        self._fault: Exception | None = None
        try:
            self._incoming = scp.begin(caller, command, transfer_syntax)
        except Exception as error:
            self._fault = error

    def write(self, piece: memoryview) -> None:
        """The next bytes; after a fault they are thrown away (PS3.7 9.1.1: the answer waits)."""
        if self._incoming is None:
            return
        try:
            self._incoming.write(piece)
            if not self._scp.has_room():
                raise OutOfResources("the disk has become full")
        except Exception as error:
            self._fault = error
            self._scp.look_at_disk(error)
            self.drop()

    def finish(self) -> int:
        """A border: every fault becomes a DIMSE status (PS3.4 B.2.3)."""
        try:
            if self._incoming is None:
                raise self._fault or OutOfResources("nothing was written")
            self._scp.keep(self._incoming, self._request, self._command, self._transfer_syntax)
        except NodeError as error:
            self._scp.look_at_disk(error)
            logger.warning("C-STORE of %s: 0x%04X %s", self._who, error.dimse_status, error)
            return error.dimse_status
        except Exception as error:
            logger.error("C-STORE of %s: our bug\n%s", self._who, trace(error))
            return _PROCESSING_FAILURE
        finally:
            self.drop()
        return 0x0000

    def drop(self) -> None:
        """Forget what was written, where it has not found its place."""
        if self._incoming is not None:
            self._incoming.drop()
            self._incoming = None

    @property
    def _who(self) -> str:
        # From the network: a log is read in a terminal.
        uid = printable(self._command.affected_sop_instance_uid, _UID_LENGTH)
        return f"{uid} from {self._request.calling_ae_title}"


class Places:
    """Who may have an association just now.

    Parameters
    ----------
    total, per_address
        Associations at a time.
    """

    def __init__(self, *, total: int, per_address: int) -> None:
        self._total = total
        self._per_address = per_address
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()

    def take(self, address: str) -> Literal[Reason.LIMIT, Reason.LIMIT_PER_ADDRESS] | None:
        """Take a place, or say why there is none."""
        with self._lock:
            if self._taken.total() >= self._total:
                return Reason.LIMIT
            if self._taken[address] >= self._per_address:
                return Reason.LIMIT_PER_ADDRESS
            self._taken[address] += 1
            return None

    def give_back(self, address: str) -> None:
        """The association has ended."""
        with self._lock:
            self._taken[address] -= 1
            if not self._taken[address]:
                del self._taken[address]


def rejection_of(settings: Settings, request: Request) -> Rejection | None:
    """Why this caller may not talk to us; ``None``: it may."""
    found = _callers(settings, request)
    return found if isinstance(found, Rejection) else None


def _callers(settings: Settings, request: Request) -> tuple[Peer, ...] | Rejection:
    """Which peers the caller may be, or why it may not talk to us.

    Without a configured peer that calls us nobody may. A right title from a wrong address gets the
    same answer as a wrong title, so that titles can't be guessed; the reason tells the
    administrator.
    """
    if request.called_ae_title != settings.node.ae_title.strip():
        return Rejection(reason=Reason.WRONG_CALLED_TITLE, diagnostic=_CALLED)
    titled = [
        peer
        for peer in settings.peers
        if peer.calls_us
        and peer.protocol == "dicom"
        and request.calling_ae_title in peer.calling_ae_titles
    ]
    if not titled:
        return Rejection(reason=Reason.UNKNOWN_TITLE, diagnostic=_CALLING)
    here = [peer for peer in titled if may_call([peer], request.address)]
    if not here:
        return Rejection(reason=Reason.WRONG_ADDRESS, diagnostic=_CALLING)
    admitted = tuple(peer for peer in here if request.tls or not peer.tls)
    if not admitted:
        return Rejection(reason=Reason.TLS_REQUIRED, diagnostic=_CALLING)
    return admitted


def may_call(sources: Iterable[Peer], address: str) -> bool:
    """Is the caller at this address one of these peers?"""
    return any(peer.may_call_from(_names(address, peer)) for peer in sources)


def _congested(reason: Reason) -> Rejection:
    """PS3.8 9.3.4: rejected-transient, service-provider (presentation), local-limit-exceeded."""
    return Rejection(reason=reason, result=2, source=3, diagnostic=2)


def _endpoints(settings: Settings, tls: Material | None) -> tuple[Endpoint, Endpoint | None]:
    node, shared = settings.node, settings.listener.processes > 1
    plain = Endpoint(host=node.host, port=node.port, shared=shared)
    if tls is None:
        return plain, None
    secure = Endpoint(host=node.host, port=settings.tls.port, tls=tls.server_context, shared=shared)
    return plain, secure


def _is_storage(uid: UID) -> bool:
    service = uid_to_service_class(uid)
    if service is not ServiceClass:
        return service is StorageServiceClass
    return uid.is_private or uid.startswith(_STORAGE_ROOT)  # not known to pynetdicom


def _names(address: str, peer: Peer) -> frozenset[str]:
    """The address, and those host names of the peer that resolve to it."""
    return frozenset({address, *(host for host in peer.host if _resolves_to(host, address))})


def _resolves_to(host: str, address: str) -> bool:
    if "/" in host:  # a network
        return False
    with suppress(OSError, UnicodeError):  # no such host
        return any(found[4][0] == address for found in socket.getaddrinfo(host, None))
    return False
