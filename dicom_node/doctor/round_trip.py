"""A marked object to a peer, and the proof that it is there: what each draft goes through."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from pydicom.filewriter import dcmwrite

from dicom_node import commitments, destinations
from dicom_node.commitments import Item
from dicom_node.config import Peer, Settings
from dicom_node.db import Database
from dicom_node.doctor import answers, commitment, marked_object
from dicom_node.doctor.checks import Fault, Finding, NotTried
from dicom_node.doctor.services import Classes
from dicom_node.errors import NodeError, PeerError
from dicom_node.scu import Destination, DicomPeer, Reference, Timeouts

_AGAIN = 0.5  # seconds between two questions


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Who calls whom, and how far it goes."""

    settings: Settings
    database: Database | None
    peer: Peer
    classes: Classes
    store: bool = False  #: put the marked object into the peer
    timeouts: Timeouts = field(default_factory=Timeouts)
    patience: float = 10.0  #: seconds; a PACS may file after it answered

    @property
    def whose(self) -> str:
        """Where the peer is configured."""
        return f"peer {self.peer.name}"

    def destination(self) -> Destination:
        """What a delivery uses; raises :class:`ConfigurationError`."""
        settings = self.settings
        return destinations.open_destination(
            self.peer, settings.node.ae_title, self.timeouts, settings.tls
        )

    def verified(self) -> Finding:
        """It answers the question that its protocol has for that."""
        peer = self.peer
        try:
            self.destination().verify()
        except NodeError as error:
            url = f"check url, and username and password or token, of {self.whose}"
            raise Fault(str(error), url if peer.url else "the peer's log says why") from error
        return Finding(text=f"{peer.place} answers{' C-ECHO' if not peer.url else ''}")


class RoundTrip:
    """Store, then prove."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._stored: Reference | None = None
        self._sop_class_uid = ""

    @property
    def peer(self) -> Peer:
        """To whom."""
        return self._call.peer

    def store(self, takes: Collection[str] = marked_object.CLASSES) -> Finding:
        """Send the marked object as a delivery is sent; raises :class:`Fault`, :class:`NotTried`.

        Parameters
        ----------
        takes
            SOP classes that the peer accepted.
        """
        call = self._call
        if not call.store:
            raise NotTried("`--store` leaves a marked test object in the peer")
        if call.peer.mode == "shadow":
            raise NotTried('mode = "shadow": nothing is sent to this peer')
        form = next((uid for uid in marked_object.CLASSES if uid in takes), None)
        if form is None:
            raise NotTried("it takes no text SR, as which the test object is made")
        ds = marked_object.made(call.settings.node.ae_title, form)
        try:
            with TemporaryDirectory() as folder:
                file = Path(folder) / "test.dcm"
                dcmwrite(file, ds, enforce_file_format=True)
                status = call.destination().send(file)
        except PeerError as error:
            raise answers.not_stored(str(error), error.status, call.settings) from error
        self._stored = Reference(
            study_instance_uid=str(ds.StudyInstanceUID),
            series_instance_uid=str(ds.SeriesInstanceUID),
            sop_instance_uid=str(ds.SOPInstanceUID),
        )
        self._sop_class_uid = form
        text = f"stored with status 0x{status:04X}; delete patient {marked_object.PATIENT_ID} there"
        warned = status & 0xF000 == 0xB000  # PS3.4 B.2.3
        return Finding(text=text, fix="the peer's log says what it changed" if warned else "")

    def prove(self) -> Finding:
        """Ask as the peer's ``proof`` wants; raises :class:`Fault`, :class:`NotTried`."""
        call = self._call
        if call.peer.proof == "none":
            raise NotTried('proof = "none": what it answers success to counts as delivered')
        if self._stored is None:
            raise NotTried("a test object is to be stored first")
        if call.peer.proof == commitments.PROOF:
            return self._committed(self._stored)
        return self._listed(self._stored)

    def _committed(self, stored: Reference) -> Finding:
        call, settings = self._call, self._call.settings
        item = Item(self._sop_class_uid, stored.sop_instance_uid)
        called = DicomPeer(call.peer, settings.node.ae_title, call.timeouts, settings.tls)
        transaction = commitment.Transaction(call.database, call.peer, item)
        return commitment.prove(called, settings, call.peer, transaction, item, call.patience)

    def _listed(self, stored: Reference) -> Finding:
        started = time.monotonic()
        destination = self._call.destination()
        while True:
            waited = time.monotonic() - started
            try:
                if destination.prove(stored):
                    return Finding(
                        text=f"it lists the test object, {waited:.1f} s after it was stored"
                    )
            except PeerError as error:
                fix = f"at the peer: let {self._call.settings.node.ae_title} query"
                raise Fault(str(error), fix) from error
            if waited >= self._call.patience:
                raise Fault(
                    f"it answered success and does not list the object {waited:.0f} s later",
                    "at the peer: look where it put the patient DICOM-NODE-TEST (a quarantine, a"
                    f" queue), and let {self._call.settings.node.ae_title} query all it stores",
                )
            time.sleep(_AGAIN)
