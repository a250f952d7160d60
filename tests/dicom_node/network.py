"""What the tests of the network share: a listener on a free port, and a sender of raw bytes."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
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
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext

from dicom_node.config import Node, Peer, Settings
from dicom_node.scp import Listener, Register
from dicom_node.storage import Storage, StoredInstance

DIGITAL_X_RAY = UID("1.2.840.10008.5.1.4.1.1.1.1")
VERIFICATION = UID("1.2.840.10008.1.1")
CONTEXT = (DIGITAL_X_RAY, ExplicitVRLittleEndian)
SOURCE = Peer(name="modality", ae_title="MODALITY", host=("127.0.0.1",), roles=("source",))


@dataclass
class Running:
    """A listener that runs, and what it said."""

    listener: Listener
    storage: Storage
    data: Path
    registered: list[StoredInstance] = field(default_factory=list)
    refused: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.data.rglob("*") if path.is_file())


def settings(*peers: Peer, port: int = 0) -> Settings:
    """Settings for a listener on loopback; port 0, which no administrator may set: a free one."""
    node = Node(host="127.0.0.1").model_copy(update={"port": port})
    return Settings(node=node, peers=peers)


@contextmanager
def running(data: Path, *peers: Peer, register: Register | None = None) -> Iterator[Running]:
    """A listener over real storage; without ``register`` rows are only noted down."""
    registered: list[StoredInstance] = []
    refused: list[tuple[str, str, str]] = []
    storage = Storage(data)
    listener = Listener(
        settings(*peers),
        storage,
        register or registered.append,
        lambda *refusal: refused.append(refusal),
    )
    listener.start()
    try:
        yield Running(listener, storage, data, registered, refused)
    finally:
        listener.stop()


def associate(
    port: int,
    *contexts: tuple[str, str] | PresentationContext,
    calling: str = "MODALITY",
    called: str = "DICOMNODE",
    timeout: float = 20,
) -> Association:
    """Ask for an association; contexts are (SOP class, transfer syntax)."""
    entity = AE(calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout
    asked = [
        one if isinstance(one, PresentationContext) else build_context(*one)
        for one in contexts or (CONTEXT,)
    ]
    return entity.associate("127.0.0.1", port, contexts=asked, ae_title=called)


def rejection(asked: Association) -> tuple[int, int, int] | None:
    """Result, source and diagnostic (PS3.8 9.3.4); ``None``: not rejected."""
    # In the queue when the rejection outran pynetdicom (see scu)
    answer = asked.acceptor.primitive or asked.dul.peek_next_pdu()
    if not isinstance(answer, A_ASSOCIATE) or not answer.result:
        return None
    return answer.result, answer.result_source or 0, answer.diagnostic or 0


@contextmanager
def association(
    port: int, *contexts: tuple[str, str], timeout: float = 20, **names: str
) -> Iterator[Association]:
    """An accepted association, released in the end."""
    opened = associate(port, *contexts, timeout=timeout, **names)
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
    return None if answer is None else answer.Status


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
