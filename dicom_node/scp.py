"""Who answers C-ECHO and C-STORE: negotiate, keep the bytes, register, then say 0x0000.

Success means "durably mine" (file synced *and* row committed). An unknown caller is turned away
before anything else: a calling AE title and an address must both be those of one configured peer
with the role ``source``, and the called AE title must be ours.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import socket
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import cast

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
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
from pynetdicom import AE, _config, build_context, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import A_ASSOCIATE, SOPClassCommonExtendedNegotiation
from pynetdicom.service_class import ServiceClass, StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class
from pynetdicom.transport import AssociationSocket, ThreadedAssociationServer

from dicom_node.config import Peer, Settings
from dicom_node.errors import (
    CannotUnderstand,
    ConfigurationError,
    NodeError,
    WrongSopClass,
    trace,
)
from dicom_node.malformed import MALFORMED
from dicom_node.storage import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    Identity,
    Storage,
    StoredInstance,
    checked_uid,
    identity_key,
)

logger = logging.getLogger(__name__)

# pynetdicom's standard handlers would format every message for its log, and stop at one without
# UIDs before _on_message sees it. The one module-wide switch of pynetdicom that is set here.
_config.LOG_HANDLER_LEVEL = "none"

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

#: Associations at a time; one more is answered "local limit exceeded" (PS3.8 9.3.4).
MAXIMUM_ASSOCIATIONS = 32
#: Bytes; PS3.8 D.1. Large enough that a chest X-ray is about 100 PDUs.
MAXIMUM_PDU_SIZE = 128 * 1024
ACSE_TIMEOUT = 30.0  # seconds until a new connection must have asked for an association
NETWORK_TIMEOUT = 60.0  # seconds of silence until an association is given up
STOP_GRACE = 3.0  # seconds that running associations get when we stop

#: Bytes of a deflated data set that are looked at to find the UIDs: bounds a zip bomb.
MAXIMUM_HEADER = 16 * 1024 * 1024

_VERIFICATION = "1.2.840.10008.1.1"  # PS3.4 A.4
_STORAGE_SERVICE_CLASS = "1.2.840.10008.4.2"  # PS3.4 B.3.1.5 (related general SOP classes)
_STORAGE_ROOT = "1.2.840.10008.5.1.4.1.1."  # PS3.6 A: composite storage SOP classes
_NO_DATA_SET = 0x0101  # PS3.7 E.1, Command Data Set Type
_PROCESSING_FAILURE = 0x0110  # PS3.7 C.5.10
_NOT_RECOGNISED = {"calling": 3, "called": 7}  # PS3.8 9.3.4, source 1 (service-user)

_STUDY_INSTANCE_UID = Tag(0x0020, 0x000D)
_SERIES_INSTANCE_UID = Tag(0x0020, 0x000E)
_SOP_CLASS_UID = Tag(0x0008, 0x0016)
_SOP_INSTANCE_UID = Tag(0x0008, 0x0018)
_STUDY_DATE = Tag(0x0008, 0x0020)
_ACCESSION_NUMBER = Tag(0x0008, 0x0050)
_ISSUER_OF_ACCESSION_NUMBER = Tag(0x0008, 0x0051)
_LOCAL_NAMESPACE_ENTITY_ID = Tag(0x0040, 0x0031)
_UNIVERSAL_ENTITY_ID = Tag(0x0040, 0x0032)
_PATIENT_ID = Tag(0x0010, 0x0020)
_ISSUER_OF_PATIENT_ID = Tag(0x0010, 0x0021)
_NEEDED: list[BaseTag | int] = [
    _SOP_CLASS_UID,
    _SOP_INSTANCE_UID,
    _STUDY_DATE,
    _ACCESSION_NUMBER,
    _ISSUER_OF_ACCESSION_NUMBER,
    _PATIENT_ID,
    _ISSUER_OF_PATIENT_ID,
    _STUDY_INSTANCE_UID,
    _SERIES_INSTANCE_UID,
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What filing needs of a data set; "" where it says nothing."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    patient_key: str
    identity: Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why an association is turned away."""

    diagnostic: int  #: PS3.8 9.3.4, of source 1
    reason: str


#: calling AE title, address, reason
Refused = Callable[[str, str, str], None]
Register = Callable[[StoredInstance], None]


class Listener:
    """Answers the network: Verification and Storage.

    Parameters
    ----------
    settings
        Who we are and who may call.
    storage
        Where data sets go.
    register
        Commits the row of a kept instance; raises ``OutOfResources`` where it can't.
    refused
        Told of every association that is turned away.
    """

    def __init__(
        self, settings: Settings, storage: Storage, register: Register, refused: Refused
    ) -> None:
        self._settings = settings
        self._storage = storage
        self._register = register
        self._refused = refused
        self._ae = _application_entity(settings.node.ae_title)
        self._server: ThreadedAssociationServer | None = None

    @property
    def port(self) -> int:
        """The TCP port that is listened on, once started."""
        if self._server is None:
            raise RuntimeError("the listener is not started")
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Listen.

        Raises
        ------
        ConfigurationError
            The port is taken, or the host is not ours.
        """
        node = self._settings.node
        # Verification only: what a peer may store is added per association, after admission, so
        # that a fault on the way to there leaves the door shut.
        contexts = [build_context(_VERIFICATION, _PROPOSABLE[:2])]
        handlers: list[evt.EventHandlerType] = [
            (evt.EVT_CONN_OPEN, _bound_waiting),
            (evt.EVT_REQUESTED, self._on_requested),
            (evt.EVT_REJECTED, self._on_rejected),
            (evt.EVT_SOP_COMMON, _on_sop_common),
            (evt.EVT_DIMSE_RECV, _on_message),
            (evt.EVT_C_STORE, self._on_c_store),
        ]
        try:
            self._server = self._ae.start_server(
                (node.host, node.port), block=False, evt_handlers=handlers, contexts=contexts
            )
        except OSError as error:
            raise ConfigurationError(
                f"node.host, node.port: can't listen on {node.host}:{node.port}: {error.strerror}"
            ) from error

    def stop(self) -> None:
        """Stop listening; running associations get a moment to end, then they are aborted."""
        if self._server is None:
            return
        self._server.shutdown()
        deadline = time.monotonic() + STOP_GRACE
        for association in self._ae.active_associations:
            if association.is_established:
                association.join(max(0.0, deadline - time.monotonic()))
        self._ae.shutdown()
        self._server = None

    def _on_requested(self, event: evt.Event) -> None:
        """Admit or turn away (PS3.8 9.3.4); the events of pynetdicom allow both here."""
        association = event.assoc
        refusal = refusal_of(
            self._settings,
            called_ae_title=_request(association).called_ae_title,
            calling_ae_title=_request(association).calling_ae_title,
            address=_address(association),
        )
        if refusal is None:
            association.acceptor.supported_contexts += [
                build_context(uid, _PROPOSABLE) for uid in _proposed_storage(association)
            ]
            return
        # Result 1: permanent; source 1: the service-user, us.
        association.acse.send_reject(1, 1, refusal.diagnostic)
        try:
            self._report(association, refusal.reason)
        finally:
            association.kill()

    def _on_rejected(self, event: evt.Event) -> None:
        """pynetdicom turned it away: its only reason is the number of associations."""
        self._report(event.assoc, f"more than {MAXIMUM_ASSOCIATIONS} associations at a time")

    def _report(self, association: Association, reason: str) -> None:
        calling_ae_title = _request(association).calling_ae_title
        address = _address(association)
        logger.warning("refused an association of %s at %s: %s", calling_ae_title, address, reason)
        self._refused(calling_ae_title, address, reason)

    def _on_c_store(self, event: evt.Event) -> int:
        """A border: every fault becomes a DIMSE status (PS3.4 B.2.3)."""
        request = cast(C_STORE, event.request)
        try:
            self._store(event, request)
        except NodeError as error:
            logger.warning(
                "C-STORE of %s from %s: 0x%04X %s",
                request.AffectedSOPInstanceUID,
                event.assoc.requestor.ae_title,
                error.dimse_status,
                error,
            )
            return error.dimse_status
        except Exception as error:
            uid = request.AffectedSOPInstanceUID
            logger.error("C-STORE of %s: our bug\n%s", uid, trace(error))
            return _PROCESSING_FAILURE
        return 0x0000

    def _store(self, event: evt.Event, request: C_STORE) -> None:
        data_set = event.encoded_dataset(include_meta=False)
        transfer_syntax = event.context.transfer_syntax
        header = read_header(data_set, transfer_syntax)
        _check(header, str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
        kept = self._storage.keep_instance(
            study_instance_uid=header.study_instance_uid,
            sop_instance_uid=header.sop_instance_uid,
            sop_class_uid=header.sop_class_uid,
            transfer_syntax_uid=transfer_syntax,
            data_set=data_set,
        )
        self._register(
            StoredInstance(
                study_instance_uid=header.study_instance_uid,
                series_instance_uid=header.series_instance_uid,
                sop_instance_uid=header.sop_instance_uid,
                sop_class_uid=header.sop_class_uid,
                transfer_syntax_uid=transfer_syntax,
                path=kept.path,
                sha256=kept.sha256,
                size=kept.size,
                calling_ae_title=event.assoc.requestor.ae_title,
                address=_address(event.assoc),
                patient_key=header.patient_key,
                identity=header.identity,
            )
        )


def refusal_of(
    settings: Settings, *, called_ae_title: str, calling_ae_title: str, address: str
) -> Refusal | None:
    """Why this caller may not talk to us; ``None``: it may.

    Without a configured source nobody may. A right title from a wrong address gets the same
    answer as a wrong title, so that titles can't be guessed; the reason tells the administrator.
    """
    if called_ae_title != settings.node.ae_title.strip():
        return Refusal(
            diagnostic=_NOT_RECOGNISED["called"],
            reason=f"called AE title {called_ae_title} is not ours",
        )
    sources = [
        peer
        for peer in settings.peers
        if peer.is_source and peer.protocol == "dicom" and peer.ae_title.strip() == calling_ae_title
    ]
    if may_call(sources, address):
        return None
    reason = "address is not this peer's" if sources else "no peer with this AE title may send"
    return Refusal(diagnostic=_NOT_RECOGNISED["calling"], reason=reason)


def may_call(sources: Iterable[Peer], address: str) -> bool:
    """Is the caller at this address one of these peers?"""
    return any(peer.may_call_from(_names(address, peer)) for peer in sources)


def read_header(data_set: bytes, transfer_syntax: UID) -> Header:
    """Read what filing needs from an encoded data set, up to Series Instance UID.

    Values are taken raw: nothing else is decoded, converted or logged.

    Raises
    ------
    CannotUnderstand
        The bytes are no data set of this transfer syntax.
    """
    try:
        stream = BytesIO(_inflated(data_set) if transfer_syntax.is_deflated else data_set)
        found = read_dataset(
            stream,
            transfer_syntax.is_implicit_VR,
            transfer_syntax.is_little_endian,
            stop_when=lambda tag, vr, length: tag > _SERIES_INSTANCE_UID,
            specific_tags=_NEEDED,
        )
    except MALFORMED as error:
        # "from None": pydicom puts values of elements into its messages
        why = f"data set can't be parsed: {type(error).__name__}"
        raise CannotUnderstand(why) from None
    return Header(
        study_instance_uid=_text(found, _STUDY_INSTANCE_UID),
        series_instance_uid=_text(found, _SERIES_INSTANCE_UID),
        sop_instance_uid=_text(found, _SOP_INSTANCE_UID),
        sop_class_uid=_text(found, _SOP_CLASS_UID),
        patient_key=_patient_key(found),
        identity=_identity(found),
    )


def _application_entity(ae_title: str) -> AE:
    entity = AE(ae_title)
    entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.maximum_associations = MAXIMUM_ASSOCIATIONS
    entity.maximum_pdu_size = MAXIMUM_PDU_SIZE
    entity.acse_timeout = ACSE_TIMEOUT
    entity.dimse_timeout = NETWORK_TIMEOUT
    entity.network_timeout = NETWORK_TIMEOUT
    return entity


def _bound_waiting(event: evt.Event) -> None:
    """A peer that stops in the middle of a PDU holds a thread no longer than the time-out."""
    connection = cast(AssociationSocket, event.assoc.dul.socket).socket
    cast(socket.socket, connection).settimeout(NETWORK_TIMEOUT)


def _on_message(event: evt.Event) -> None:
    """Abort a C-STORE-RQ without its UIDs or data set, which are mandatory (PS3.7 9.3.1.1).

    pynetdicom only logs such a message, and the sender would wait for an answer until it tires.
    """
    if not isinstance(event.message, C_STORE_RQ):
        return
    command = event.message.command_set
    named = command.get("AffectedSOPClassUID") and command.get("AffectedSOPInstanceUID")
    if not named or command.get("CommandDataSetType") == _NO_DATA_SET:
        logger.warning("C-STORE-RQ without SOP Class UID, Instance UID or data set: aborted")
        event.assoc.abort()


def _on_sop_common(event: evt.Event) -> dict[UID, SOPClassCommonExtendedNegotiation]:
    """Say that private and retired SOP classes belong to the Storage service class.

    PS3.7 D.3.3.6 lets the requestor say so; few do, so we say it for them. It steers pynetdicom's
    dispatch for this association only; nothing of it goes on the wire.
    """
    return {
        uid: _storage_item(uid)
        for uid in _proposed_storage(event.assoc)
        if uid_to_service_class(uid) is not StorageServiceClass
    }


def _storage_item(uid: UID) -> SOPClassCommonExtendedNegotiation:
    item = SOPClassCommonExtendedNegotiation()
    item.sop_class_uid = uid
    item.service_class_uid = UID(_STORAGE_SERVICE_CLASS)
    return item


def _proposed_storage(association: Association) -> set[UID]:
    proposed = {UID(str(cx.abstract_syntax)) for cx in association.requestor.requested_contexts}
    return {uid for uid in proposed if _is_storage(uid)}


def _is_storage(uid: UID) -> bool:
    service = uid_to_service_class(uid)
    if service is not ServiceClass:
        return service is StorageServiceClass
    return uid.is_private or uid.startswith(_STORAGE_ROOT)  # not known to pynetdicom


def _request(association: Association) -> A_ASSOCIATE:
    return cast(A_ASSOCIATE, association.requestor.primitive)


def _address(association: Association) -> str:
    address = str(association.requestor.address)
    mapped = getattr(ipaddress.ip_address(address), "ipv4_mapped", None)
    return str(mapped or address)


def _names(address: str, peer: Peer) -> frozenset[str]:
    """The address, and those host names of the peer that resolve to it."""
    return frozenset({address, *(host for host in peer.host if _resolves_to(host, address))})


def _resolves_to(host: str, address: str) -> bool:
    if "/" in host:  # a network
        return False
    try:
        return any(found[4][0] == address for found in socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):  # no such host
        return False


def _check(header: Header, affected_sop_class_uid: str, affected_sop_instance_uid: str) -> None:
    """PS3.4 B.2.3: the data set is what the command says, and can be filed."""
    said = (affected_sop_class_uid, affected_sop_instance_uid)
    if (header.sop_class_uid, header.sop_instance_uid) != said:
        raise WrongSopClass("SOP Class or Instance UID differ between command and data set")
    for keyword, value in (
        ("StudyInstanceUID", header.study_instance_uid),
        ("SeriesInstanceUID", header.series_instance_uid),
    ):
        checked_uid(value, keyword)


def _inflated(data_set: bytes) -> bytes:
    """PS3.5 A.5: RFC 1951 without zlib's header; only as much as a header may take."""
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data_set, MAXIMUM_HEADER)


def _raw(found: Dataset, tag: BaseTag) -> bytes:
    if tag not in found:
        return b""
    value = found.get_item(tag).value
    return value.strip(b" \0") if isinstance(value, bytes) else b""


def _text(found: Dataset, tag: BaseTag) -> str:
    return _raw(found, tag).decode("ascii", "replace")


def _patient_key(found: Dataset) -> str:
    patient_id = _raw(found, _PATIENT_ID)
    if not patient_id:
        return ""
    return hashlib.sha256(_raw(found, _ISSUER_OF_PATIENT_ID) + b"|" + patient_id).hexdigest()


def _identity(found: Dataset) -> Identity:
    day = _text(found, _STUDY_DATE).replace(".", "").replace("-", "")  # ACR-NEMA 2.0: YYYY.MM.DD
    return Identity(
        patient_id_key=_key(found, _PATIENT_ID),
        patient_issuer_key=_key(found, _ISSUER_OF_PATIENT_ID),
        accession_key=_key(found, _ACCESSION_NUMBER),
        accession_issuer_key=_accession_issuer_key(found),
        study_date=day if len(day) == 8 and day.isdigit() else "",
    )


def _accession_issuer_key(found: Dataset) -> str:
    """Of PS3.3 10.17, HL7v2 Hierarchic Designator; empty too where it can't be parsed."""
    try:
        (item,) = found[_ISSUER_OF_ACCESSION_NUMBER].value
        return _key(item, _LOCAL_NAMESPACE_ENTITY_ID) or _key(item, _UNIVERSAL_ENTITY_ID)
    except MALFORMED:  # an image is not refused for it
        return ""


def _key(found: Dataset, tag: BaseTag) -> str:
    """The key of an identifier.

    Of other character sets than these two none is decoded here: a report that names such an
    identifier finds no study by it, which is safe.
    """
    raw = _raw(found, tag)
    try:
        return identity_key(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return identity_key(raw.decode("latin-1"))
