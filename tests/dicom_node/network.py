"""What the tests of the network share: a listener on a free port, and a sender of raw bytes."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import A_ASSOCIATE, SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext

from dicom_node.associations import Refused
from dicom_node.commitments import Report, Request
from dicom_node.config import Listener, Node, Peer, Settings
from dicom_node.disk import Watermarks
from dicom_node.scp import Caller, Scp
from dicom_node.storage import Kept, Storage, StoredInstance
from dicom_node.upper_layer import Deadlines

DIGITAL_X_RAY = UID("1.2.840.10008.5.1.4.1.1.1.1")
VERIFICATION = UID("1.2.840.10008.1.1")
CONTEXT = (DIGITAL_X_RAY, ExplicitVRLittleEndian)
SOURCE = Peer(name="modality", ae_title="MODALITY", host=("127.0.0.1",), roles=("source",))


@dataclass
class Commitments:
    """What was said of storage commitment, and by whom."""

    requests: list[Request] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    callers: list[Caller] = field(default_factory=list)
    fault: Exception | None = None  #: instead of keeping it

    def of(self, caller: Caller) -> Commitments:
        self.callers.append(caller)
        return self

    def requested(self, request: Request) -> None:
        self._fail()
        self.requests.append(request)

    def reported(self, report: Report) -> None:
        self._fail()
        self.reports.append(report)

    def _fail(self) -> None:
        if self.fault is not None:
            raise self.fault


@dataclass
class Running:
    """An SCP that runs, and what it said."""

    scp: Scp
    storage: Storage
    watermarks: Watermarks
    data: Path
    registered: list[StoredInstance] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    commitments: Commitments = field(default_factory=Commitments)

    @property
    def port(self) -> int:
        return self.scp.port

    @property
    def files(self) -> list[Path]:
        """All but those that were made for what may come, and are empty."""
        found = (path for path in self.data.rglob("*") if path.is_file())
        return sorted(path for path in found if path.stat().st_size)


def settings(*peers: Peer, port: int = 0, **listener: int) -> Settings:
    """Settings for an SCP on loopback; port 0, which no administrator may set: a free one."""
    node = Node(host="127.0.0.1").model_copy(update={"port": port})
    return Settings(node=node, listener=Listener.model_validate(listener), peers=peers)


@contextmanager
def running(
    data: Path,
    *peers: Peer,
    register: Callable[[StoredInstance], None] | None = None,
    deadlines: Deadlines | None = None,
    port: int = 0,
    **listener: int,
) -> Iterator[Running]:
    """An SCP over real storage; without ``register`` rows are only noted down."""
    registered: list[StoredInstance] = []
    refused: list[Refused] = []
    storage = Storage(data)

    def settle_first(instance: StoredInstance, settle: Callable[[], None]) -> None:
        settle()
        (register or registered.append)(instance)

    commitments = Commitments()
    configured = settings(*peers, port=port, **listener)
    watermarks = Watermarks(data, configured.disk)
    scp = Scp(
        configured,
        storage,
        settle_first,
        commitments.of,
        refused.append,
        watermarks,
        deadlines=deadlines,
    )
    scp.start()
    try:
        yield Running(scp, storage, watermarks, data, registered, refused, commitments)
    finally:
        scp.stop()
        storage.close()


def associate(
    port: int,
    *contexts: tuple[str, str] | PresentationContext,
    calling: str = "MODALITY",
    called: str = "DICOMNODE",
    timeout: float = 20,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
) -> Association:
    """Ask for an association; contexts are (SOP class, transfer syntax)."""
    entity = AE(calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout
    asked = [
        one if isinstance(one, PresentationContext) else build_context(*one)
        for one in contexts or (CONTEXT,)
    ]
    return entity.associate("127.0.0.1", port, contexts=asked, ae_title=called, ext_neg=list(roles))


def rejection(asked: Association) -> tuple[int, int, int] | None:
    """Result, source and diagnostic (PS3.8 9.3.4); ``None``: not rejected."""
    # In the queue when the rejection outran pynetdicom (see scu)
    answer = asked.acceptor.primitive or asked.dul.peek_next_pdu()
    if not isinstance(answer, A_ASSOCIATE) or not answer.result:
        return None
    return answer.result, answer.result_source or 0, answer.diagnostic or 0


@contextmanager
def association(
    port: int,
    *contexts: tuple[str, str],
    timeout: float = 20,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    **names: str,
) -> Iterator[Association]:
    """An accepted association, released in the end."""
    opened = associate(port, *contexts, timeout=timeout, roles=roles, **names)
    assert opened.is_established
    try:
        yield opened
    finally:
        if opened.is_established:
            opened.release()


def send_raw(
    association: Association,
    data_set: bytes | None,
    *,
    sop_class_uid: str | None,
    sop_instance_uid: str | None,
    context_id: int = 1,
) -> int | None:
    """C-STORE bytes as they are, right or wrong; ``None``: no status came back (an abort)."""
    request = C_STORE()
    request.MessageID = 1
    request.Priority = 2
    request.AffectedSOPClassUID = sop_class_uid
    request.AffectedSOPInstanceUID = sop_instance_uid
    request.DataSet = None if data_set is None else BytesIO(data_set)
    association._reactor_checkpoint.clear()  # as pynetdicom's own send_c_store does
    while not association._is_paused:
        time.sleep(0.0001)
    association.dimse.send_msg(request, context_id)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    while association.is_alive() and association._is_paused:  # or it takes the next answer away
        time.sleep(0.0005)
    return None if answer is None else answer.Status


def keep_instance(
    storage: Storage,
    *,
    study_instance_uid: str,
    sop_instance_uid: str,
    sop_class_uid: str,
    transfer_syntax_uid: str,
    data_set: bytes,
) -> Kept:
    """Keep a data set as a receiver does, at once."""
    incoming = storage.receive(
        sop_class_uid=sop_class_uid,
        sop_instance_uid=sop_instance_uid,
        transfer_syntax_uid=transfer_syntax_uid,
    )
    try:
        incoming.write(data_set)
        kept = incoming.place(study_instance_uid)
        incoming.settle()
    finally:
        incoming.drop()
    storage.sync_folders([kept.path])
    return kept


def header(**changes: object) -> Dataset:
    """The header of a small object; a value ``None`` leaves the attribute out."""
    values: dict[str, object] = {
        "SOPClassUID": DIGITAL_X_RAY,
        "SOPInstanceUID": "1.2.3.4",
        "PatientName": "Verysecret^Name",
        "PatientID": "SECRET-ID",
        "PatientBirthDate": "19010203",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.1",
        **changes,
    }
    made = Dataset()
    for keyword, value in values.items():
        if value is not None:
            setattr(made, keyword, value)
    return made


def encoded(dataset: Dataset, transfer_syntax: UID = ExplicitVRLittleEndian) -> bytes:
    """A data set as it travels, with pixel data where the syntax is a compressed one."""
    if transfer_syntax.is_encapsulated:
        dataset.PixelData = encapsulate([bytes(range(256)) * 5])  # nobody decodes it here
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    buffer = DicomBytesIO()
    buffer.is_implicit_VR = transfer_syntax.is_implicit_VR
    buffer.is_little_endian = transfer_syntax.is_little_endian
    write_dataset(buffer, dataset)
    plain = buffer.getvalue()
    if not transfer_syntax.is_deflated:
        return plain
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = packer.compress(plain) + packer.flush()
    return packed + bytes(len(packed) % 2)
