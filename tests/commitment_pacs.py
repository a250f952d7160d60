"""A PACS that commits, by pynetdicom: as asked, on the same association, elsewhere, or never."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

from pydicom import Dataset
from pydicom.uid import UID, BasicTextSRStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association

from dicom_node.config import Peer

PUSH_MODEL = UID("1.2.840.10008.1.20.1")
PUSH_MODEL_INSTANCE = UID("1.2.840.10008.1.20.1.1")
_SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_JOIN = 30.0  # seconds

Where = Literal["here", "elsewhere", "never"]


class CommitmentPacs:
    """Stores what it is sent, and commits to what it has, or says why not.

    Parameters
    ----------
    where
        ``here``: reports on the association of the request; ``elsewhere``: by :meth:`report`, at
        once where ``node`` is set.
    commits
        Does it have storage commitment at all?
    """

    def __init__(self, where: Where = "here", *, commits: bool = True, port: int = 0) -> None:
        self.where = where
        self.node: Peer | None = None  #: whom to call
        self.status = 0x0000  #: of N-ACTION
        self.reason: int | None = None  #: why it does not commit to what it has
        self.stored: dict[str, str] = {}  #: SOP class by SOP Instance UID
        self.stores = 0
        self.requests: list[Dataset] = []
        self.answers: list[int | None] = []  #: to our reports
        self.while_asked: Callable[[], None] = lambda: None  #: before N-ACTION is answered
        self._reporters: list[threading.Thread] = []
        entity = AE("PACS")
        entity.add_supported_context(BasicTextSRStorage, _SYNTAXES)
        if commits:
            entity.add_supported_context(PUSH_MODEL, _SYNTAXES)
        self._running = True
        self._server = entity.start_server(
            ("127.0.0.1", port),
            block=False,
            evt_handlers=[(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._action)],
        )

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return int(self._server.server_address[1])

    def peer(self, **overrides: Any) -> Peer:
        """How a node would have it configured."""
        values: dict[str, Any] = {
            "name": "pacs",
            "ae_title": "PACS",
            "host": ("127.0.0.1",),
            "port": self.port,
            "roles": ("destination",),
            "proof": "commitment",
            **overrides,
        }
        return Peer(**values)

    def stop(self) -> None:
        """Stop listening, and let the last reports end."""
        if self._running:
            self._running = False
            for reporter in self._reporters:
                reporter.join(_JOIN)
            assert self._server is not None
            self._server.shutdown()

    def forget(self) -> None:
        """Lose all that was stored."""
        self.stored.clear()

    def report(self, request: Dataset, association: Association) -> int | None:
        """Tell what became of a request; the status it was answered with, ``None``: with none."""
        event_type, information = self.outcome(request)
        status: int | None = None
        with suppress(RuntimeError):  # the association is over
            answer, _ = association.send_n_event_report(
                information, event_type, PUSH_MODEL, PUSH_MODEL_INSTANCE
            )
            status = answer.get("Status")
        self.answers.append(status)
        return status

    def call(self, request: Dataset, *, calling: str = "PACS") -> int | None:
        """Report on an association of our own; ``None``: the node did not take it."""
        assert self.node is not None
        entity = AE(calling)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
        entity.add_requested_context(PUSH_MODEL, _SYNTAXES)
        association = entity.associate(
            self.node.address,
            self.node.port,
            ae_title=self.node.ae_title,
            ext_neg=[build_role(PUSH_MODEL, scp_role=True)],
        )
        if not association.is_established:
            return None
        try:
            return self.report(request, association)
        finally:
            association.release()

    def outcome(self, request: Dataset) -> tuple[int, Dataset]:
        """Event Type ID and Event Information (PS3.4 J.3.3)."""
        failed = [self._failed(one) for one in request.ReferencedSOPSequence]
        made = Dataset()
        made.TransactionUID = request.TransactionUID
        made.FailedSOPSequence = [one for one in failed if one is not None]
        pairs = zip(request.ReferencedSOPSequence, failed, strict=True)
        made.ReferencedSOPSequence = [one for one, failure in pairs if failure is None]
        for sequence in ("FailedSOPSequence", "ReferencedSOPSequence"):
            if not made[sequence].value:
                del made[sequence]
        return (2 if "FailedSOPSequence" in made else 1), made

    def _failed(self, one: Dataset) -> Dataset | None:
        known = one.ReferencedSOPInstanceUID in self.stored
        if known and self.reason is None:
            return None
        made = Dataset()
        made.update(one)
        made.FailureReason = self.reason or 0x0112
        return made

    def _store(self, event: evt.Event) -> int:
        self.stores += 1
        request: Any = event.request
        self.stored[str(request.AffectedSOPInstanceUID)] = str(request.AffectedSOPClassUID)
        return 0x0000

    def _action(self, event: evt.Event) -> tuple[int, None]:
        self.while_asked()
        request = event.action_information
        if self.status == 0x0000:
            self.requests.append(request)
            self._tell(request, event.assoc)
        return self.status, None

    def _tell(self, request: Dataset, association: Association) -> None:
        """After the answer to N-ACTION, which this thread is going to send."""
        if self.where == "here":
            self._begin(self.report, request, association)
        elif self.where == "elsewhere" and self.node is not None:
            self._begin(self.call, request)

    def _begin(self, work: Callable[..., object], *arguments: object) -> None:
        thread = threading.Timer(0.1, work, arguments)
        self._reporters.append(thread)
        thread.start()


class Requestor:
    """A source that asks for commitment, and takes reports on a port of its own."""

    def __init__(self, port: int = 0) -> None:
        self.reports: list[tuple[int, Dataset]] = []  #: event type, information
        self.status = 0x0000  #: that reports are answered with
        self.came = threading.Event()
        self._running = True
        entity = AE("MODALITY")
        entity.add_supported_context(PUSH_MODEL, _SYNTAXES, scu_role=True, scp_role=True)
        self._server = entity.start_server(
            ("127.0.0.1", port),
            block=False,
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._report)],
        )

    @property
    def port(self) -> int:
        """Where it takes reports."""
        assert self._server is not None
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Stop listening, now or at the end of the test."""
        if self._running:
            self._running = False
            assert self._server is not None
            self._server.shutdown()

    def _report(self, event: evt.Event) -> tuple[int, None]:
        assert event.event_type is not None
        self.reports.append((event.event_type, event.event_information))
        if self.status == 0x0000:
            self.came.set()
        return self.status, None


def action(transaction_uid: str, references: Sequence[tuple[str, str]]) -> Dataset:
    """Action Information, as any toolkit would write it."""
    made = Dataset()
    made.TransactionUID = transaction_uid
    made.ReferencedSOPSequence = []
    for sop_class_uid, sop_instance_uid in references:
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class_uid
        item.ReferencedSOPInstanceUID = sop_instance_uid
        made.ReferencedSOPSequence.append(item)
    return made


def ask(association: Association, information: Dataset | None, action_type: int = 1) -> int | None:
    """N-ACTION; the status."""
    answer, _ = association.send_n_action(information, action_type, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    status: int | None = answer.get("Status")
    return status
