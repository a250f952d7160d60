"""Who asks for the orders of these days: Modality Worklist SCU (PS3.4 K), in a thread of the tick.

What an entry says goes into ``orders``, and is found there when the images come. Only what
matching, urgency and indication need is asked for, no names and no birth dates. The only writer of
``worklist_answer``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from functools import partial

from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.association import Association
from sqlalchemy import Connection, func
from sqlalchemy.dialects import postgresql

from dicom_node import heartbeats, orders, priorities
from dicom_node.audit.auditor import Auditor
from dicom_node.config import Peer, Settings
from dicom_node.db import Database, worklist_answer
from dicom_node.errors import PeerError
from dicom_node.malformed import MALFORMED
from dicom_node.orders import Told
from dicom_node.periodic import Periodic
from dicom_node.scu import DicomPeer
from dicom_node.storage import Identity, identity_key

_FIND = UID("1.2.840.10008.5.1.4.31")  # PS3.4 K.5, Modality Worklist Information Model - FIND
_UNCOMPRESSED: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_PENDING = (0xFF00, 0xFF01)  # PS3.4 K.4.1.1.4; 0xFF01: not all optional keys are supported
_SUCCESS = 0x0000

#: Entries of one modality that are read; a department has some hundred in three days.
MAXIMUM = 5000
#: Seconds for the entries of one modality.
PATIENCE = 120.0

#: Free text that says why, the nearer to this examination the earlier (PS3.4 table K.6-1; the
#: second is retired, PS3.6 6). Requested Procedure Comments are left out: they tell the staff what
#: to do. So are the reason's codes: the models were trained on sentences.
_REASONS = (
    "ReasonForTheRequestedProcedure",
    "ReasonForTheImagingServiceRequest",
    "AdditionalPatientHistory",
    "AdmittingDiagnosesDescription",
)
#: What is to be returned, beside the scheduled step.
ASKED = (
    "AccessionNumber",
    "PatientID",
    "IssuerOfPatientID",
    "StudyInstanceUID",
    "RequestedProcedureID",
    "RequestedProcedurePriority",
    *_REASONS,
)


class Worklists:
    """Asks every peer with the role ``worklist``, each in a thread of its own.

    Parameters
    ----------
    settings
        Whom to ask, who we are, and how often.
    database
        Where the orders go.
    today
        The node's local date: what a RIS means by a scheduled date.
    """

    def __init__(
        self, settings: Settings, database: Database, today: Callable[[], date] = date.today
    ) -> None:
        self._settings = settings
        self._database = database
        self._today = today
        self.periodics = [self._periodic(peer) for peer in settings.asked("worklist")]

    def ask(self, peer: Peer) -> int:
        """Ask one peer for the orders of yesterday to tomorrow and write them down; how many.

        Raises
        ------
        PeerError
            It can't be reached, or does not answer as it should.
        OutOfResources
            The database is away.
        """
        try:
            told = [one for entry in self._entries(peer) if (one := read(entry, peer.name))]
        except PeerError as error:
            with self._database.transaction() as connection:
                _failed(connection, peer.name, str(error))
            raise
        with self._database.transaction() as connection:
            orders.keep(connection, told)
            _answered(connection, peer.name, len(told))
        return len(told)

    def _periodic(self, peer: Peer) -> Periodic:
        seconds = self._settings.worklist.every_seconds
        return Periodic(f"worklist of {peer.name}", seconds, partial(self.ask, peer))

    def _entries(self, peer: Peer) -> Iterator[Dataset]:
        settings = self._settings
        asked = DicomPeer(peer.for_queries, settings.node.ae_title, tls=settings.tls)
        auditor = Auditor(settings, heartbeats.process_name("node"))
        heard = auditor.asking(self._database, peer)
        with asked.association([build_context(_FIND, _UNCOMPRESSED)]) as association:
            for modality in settings.worklist.modalities:
                asking = question(modality, self._today())
                heard(_FIND, asking)
                yield from _find(asked, association, asking)


def question(modality: str, today: date) -> Dataset:
    """What is asked (PS3.4 K.6.1.2): one modality's steps that are scheduled around today.

    Yesterday's too, for what was late; tomorrow's, so that an order is here before its images.
    """
    day = timedelta(days=1)
    step = Dataset()
    step.Modality = modality
    step.ScheduledProcedureStepStartDate = f"{today - day:%Y%m%d}-{today + day:%Y%m%d}"
    step.ScheduledProcedureStepStartTime = None
    step.ScheduledStationAETitle = None
    step.ScheduledProcedureStepID = None
    issuer = Dataset()
    issuer.LocalNamespaceEntityID = None
    issuer.UniversalEntityID = None
    asked = Dataset()
    asked.ScheduledProcedureStepSequence = [step]
    asked.IssuerOfAccessionNumberSequence = [issuer]
    for keyword in ASKED:
        setattr(asked, keyword, None)
    return asked


def _find(peer: DicomPeer, association: Association, asked: Dataset) -> Iterator[Dataset]:
    began = answered = time.monotonic()
    found = 0
    for answer, entry in association.send_c_find(asked, _FIND):
        status = peer.status(association, answer, answered)
        answered = time.monotonic()
        if status not in (_SUCCESS, *_PENDING):
            message = f"{peer.who} answered a worklist query with 0x{status:04X}"
            raise PeerError(message, status=status)
        if entry is not None:
            found += 1
            yield entry
        if found > MAXIMUM or answered - began > PATIENCE:
            association.abort()
            raise PeerError(
                f"{peer.who} has more than {MAXIMUM} worklist entries of a modality in three days,"
                f" or needs more than {PATIENCE:g} s for them"
            )


def _answered(connection: Connection, peer: str, entries: int) -> None:
    now = {"answered_at": func.now(), "entries": entries, "failed_at": None, "fault": None}
    _note(connection, peer, now, now)


def _failed(connection: Connection, peer: str, fault: str) -> None:
    since = func.coalesce(worklist_answer.c.failed_at, func.now())
    _note(
        connection,
        peer,
        {"failed_at": func.now(), "fault": fault},
        {"failed_at": since, "fault": fault},
    )


def _note(
    connection: Connection, peer: str, first: dict[str, object], then: dict[str, object]
) -> None:
    insert = postgresql.insert(worklist_answer).values(peer=peer, **first)
    connection.execute(insert.on_conflict_do_update(index_elements=["peer"], set_=then))


def read(entry: Dataset, peer: str) -> Told | None:
    """What a worklist entry says of its order; ``None``: nothing that a study could be found by."""
    uid, accession = _text(entry, "StudyInstanceUID"), _text(entry, "AccessionNumber")
    if not uid and not accession:
        return None
    reason = next((one for one in _REASONS if orders.says_something(_text(entry, one))), "")
    return Told(
        source="worklist",
        peer=peer,
        order_key=orders.order_key(accession or uid, _text(entry, "RequestedProcedureID")),
        study_instance_uid=uid,
        identity=Identity(
            patient_id_key=identity_key(_text(entry, "PatientID")),
            patient_issuer_key=identity_key(_text(entry, "IssuerOfPatientID")),
            accession_key=identity_key(accession),
            accession_issuer_key=identity_key(_accession_issuer(entry)),
        ),
        indication=_text(entry, reason),
        indication_source=f"Modality Worklist {peer} > {reason}" if reason else "",
        priority=priorities.of_dicom(_text(entry, "RequestedProcedurePriority")),
    )


def _accession_issuer(entry: Dataset) -> str:
    """PS3.3 10.17, HL7v2 Hierarchic Designator; as ``filing`` reads it from an image."""
    try:
        (item,) = entry["IssuerOfAccessionNumberSequence"].value
    except (*MALFORMED, TypeError):
        return ""
    return _text(item, "LocalNamespaceEntityID") or _text(item, "UniversalEntityID")


def _text(entry: Dataset, keyword: str) -> str:
    """An attribute's value as text; "" where there is none, or none that can be read."""
    try:
        element: DataElement | None = entry[keyword] if keyword and keyword in entry else None
        value = element.value if element is not None else None
    except MALFORMED:
        return ""
    values = value if isinstance(value, MultiValue) else [value]
    return "; ".join(str(one) for one in values if one is not None).strip(" \0")
