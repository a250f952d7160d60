"""A small PACS for tests: a true Storage, Query and Verification SCP that records what it got."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from pydicom import Dataset
from pydicom.uid import UID, BasicTextSRStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt

from dicom_node.config import Peer

_VERIFICATION = UID("1.2.840.10008.1.1")  # PS3.4 A.4
_STUDY_ROOT_FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")  # PS3.4 C.6.2.1.3
_PENDING = 0xFF00  # PS3.4 C.4.1.1.4

ABORT = -1  #: instead of a status: abort the association, so that no status comes back


class Pacs:
    """Stores what it is sent, unless told to answer something else.

    ``answers`` holds the statuses of the next C-STOREs; when it is empty the answer is 0x0000.
    """

    def __init__(
        self,
        takes: Iterable[str] = (BasicTextSRStorage,),
        transfer_syntaxes: Sequence[str] = (ExplicitVRLittleEndian, ImplicitVRLittleEndian),
    ) -> None:
        self.answers: list[int] = []
        self.received: dict[str, bytes] = {}  #: data set by SOP Instance UID
        self.stores = 0  #: C-STORE requests, whatever they were answered
        self.lists = True  #: does C-FIND know what was stored?
        self.while_storing: Callable[[], None] = lambda: None  #: before a C-STORE is answered
        entity = AE("PACS")
        for sop_class in (_VERIFICATION, _STUDY_ROOT_FIND, *takes):
            entity.add_supported_context(sop_class, list(transfer_syntaxes))
        self._running = True
        server = entity.start_server(
            ("127.0.0.1", 0),
            block=False,
            evt_handlers=[(evt.EVT_C_STORE, self._store), (evt.EVT_C_FIND, self._find)],
        )
        assert server is not None  # it is one with block=False
        self._server = server

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def peer(self, **overrides: Any) -> Peer:
        """How a node would have it configured."""
        values: dict[str, Any] = {
            "name": "pacs",
            "ae_title": "PACS",
            "host": ("127.0.0.1",),
            "port": self.port,
            "roles": ("destination",),
            **overrides,
        }
        return Peer(**values)

    def stop(self) -> None:
        """Stop listening, now or at the end of the test."""
        if self._running:
            self._running = False
            self._server.shutdown()

    def _store(self, event: evt.Event) -> int:
        self.stores += 1
        self.while_storing()
        answer = self.answers.pop(0) if self.answers else 0x0000
        if answer == ABORT:
            event.assoc.abort()
            return 0x0000  # nobody is there to hear it
        if answer == 0x0000 or answer & 0xF000 == 0xB000:  # PS3.4 Table B.2-1
            request: Any = event.request
            self.received[str(request.AffectedSOPInstanceUID)] = event.encoded_dataset(
                include_meta=False
            )
        return answer

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        wanted = event.identifier.SOPInstanceUID
        if self.lists and wanted in self.received:
            yield _PENDING, event.identifier
