"""What the rest of the node tells of: facts go in, messages are kept, in the fact's transaction.

Where no collector is configured nothing is made and nothing is read.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import Connection

from dicom_node.audit import arrivals, messages, patient, spool
from dicom_node.audit.messages import Content
from dicom_node.audit.schema import AuditMessage, Participant, Source, encode
from dicom_node.config import Peer, Settings
from dicom_node.db import Database
from dicom_node.errors import OutOfResources
from dicom_node.storage import Storage

logger = logging.getLogger(__name__)


#: Is told the SOP Class UID and the identifier of a query before it is made.
Asking = Callable[[str, Dataset], None]


class Auditor:
    """Keeps audit messages for the collector of ``[audit] url``; without one it does nothing.

    Parameters
    ----------
    settings
        Who we are, and whether there is a collector.
    process
        This process as the logs and ``status`` name it (PS3.15 A.5.2.1).
    """

    def __init__(self, settings: Settings, process: str) -> None:
        self.wanted = bool(settings.audit.url)  #: are messages made at all?
        self._settings = settings
        self._source = Source(
            id=settings.node.ae_title, enterprise_site_id=settings.node.institution
        )
        self._us = messages.application(
            settings.node.ae_title,
            user_id=process,
            user_name="dicom-node",
            network_access_point=socket.gethostname(),
        )

    def started(self, connection: Connection) -> None:
        """This process runs."""
        self._keep(connection, messages.application_activity(self._us, at=_now(), started=True))

    def stopped(self, connection: Connection) -> None:
        """This process ends."""
        self._keep(connection, messages.application_activity(self._us, at=_now(), started=False))

    def received(self, connection: Connection, storage: Storage, study_instance_uid: str) -> None:
        """A study is complete: one message for each who sent of it since it last was.

        To be called before the event of the completion is written.
        """
        if not self.wanted:
            return
        quiet = self._settings.quiet_seconds
        for one in arrivals.since_last_completion(connection, study_instance_uid, quiet):
            content = Content(
                study_instance_uid=study_instance_uid,
                patient_id=patient.of_file(storage.path(one.path)),
                sop_classes=one.sop_classes,
            )
            sender = messages.application(one.calling_ae_title, network_access_point=one.address)
            transferred = messages.instances_transferred(
                sender, self._us, content, at=one.at, action=one.action
            )
            self._keep(connection, transferred)

    def sent(self, connection: Connection, peer: Peer, content: Content) -> None:
        """A peer took a result: DICOM instances, or what was made of them (HL7, FHIR)."""
        if peer.protocol in ("dicom", "dicomweb"):
            # R: whether it was there before is not known to who sends (PS3.15 A.5.3.7)
            message = messages.instances_transferred(
                self._us, _known(peer), content, at=_now(), action="R"
            )
        else:
            message = messages.export(self._us, _uri(peer), content, at=_now())
        self._keep(connection, message)

    def written(self, connection: Connection, file: Path, content: Content) -> None:
        """Whoever runs this process has a result written to a file."""
        uri = file.absolute().as_uri()
        person = f"{_login()}@{socket.gethostname()}"
        self._keep(connection, messages.export(self._us, uri, content, at=_now(), person=person))

    def queried(
        self, connection: Connection, peer: Peer, sop_class_uid: str, identifier: Dataset
    ) -> None:
        """We ask a peer for what it has, or what is planned there."""
        if not self.wanted:
            return
        message = messages.query(
            self._us,
            _known(peer.for_queries),
            sop_class_uid=sop_class_uid,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            data_set=_encoded(identifier),
            at=_now(),
        )
        self._keep(connection, message)

    def asking(self, database: Database, peer: Peer) -> Asking:
        """:meth:`queried` for those who ask a peer, in a transaction of its own each time.

        It raises OutOfResources where the database is away: nobody asks unheard.
        """

        def tell(sop_class_uid: str, identifier: Dataset) -> None:
            if self.wanted:
                with database.transaction() as connection:
                    self.queried(connection, peer, sop_class_uid, identifier)

        return tell

    def refused(self, connection: Connection, ae_title: str, address: str, reason: str) -> None:
        """Somebody was turned away."""
        caller = messages.application(
            ae_title, user_id="" if ae_title else address, network_access_point=address
        )
        self._keep(connection, messages.security_alert(self._us, caller, reason, at=_now()))

    def _keep(self, connection: Connection, message: AuditMessage) -> None:
        if self.wanted:
            spool.put(connection, encode(message, self._source))


@contextmanager
def lifetime(database: Database, auditor: Auditor) -> Iterator[None]:
    """Tell that this process starts, and that it ends."""
    tell(database, auditor.started)
    try:
        yield
    finally:
        tell(database, auditor.stopped)


def tell(database: Database, fact: Callable[[Connection], None]) -> None:
    """Keep a message in a transaction of its own; one line in the log if the database is away."""
    try:
        with database.transaction() as connection:
            fact(connection)
    except OutOfResources as error:
        logger.warning("audit message not kept: %s", error)


def _now() -> datetime:
    return datetime.now(UTC)


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


def _known(peer: Peer) -> Participant:
    if peer.protocol == "dicomweb":
        return messages.application("", user_id=peer.name, network_access_point=peer.url)
    return messages.application(peer.ae_title, network_access_point=peer.address)


def _uri(peer: Peer) -> str:
    return peer.url or f"mllp://{peer.address}:{peer.port}"


def _encoded(identifier: Dataset) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    write_dataset(buffer, identifier)
    return buffer.getvalue()
