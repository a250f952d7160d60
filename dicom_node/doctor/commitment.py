"""One storage commitment of the marked object: asked for, and its report waited for (PS3.4 J.3).

The report may come on the association of the request, or on one that the peer asks the node for;
that one is the running node's, and its row tells.
"""

from __future__ import annotations

import time
import uuid

from dicom_node import commitment_calls, commitments
from dicom_node.commitments import Asked, InvalidArgument, Item, Report, Request
from dicom_node.config import Peer, Settings
from dicom_node.db import Database
from dicom_node.doctor.checks import Fault, Finding
from dicom_node.errors import PeerError
from dicom_node.scu import DicomPeer

_LOOK = 0.2  # seconds between two looks at the row


class Transaction:
    """A request of ours and what is heard of it.

    Parameters
    ----------
    database
        Where the running node writes down a report that comes to it; ``None``: none can be seen.
    peer
        Who is asked.
    item
        The object.
    """

    def __init__(self, database: Database | None, peer: Peer, item: Item) -> None:
        self._database = database
        self._item = item
        self._heard: Asked | None = None
        if database is None:
            self.uid = f"2.25.{uuid.uuid4().int}"  # PS3.5 B.2
            return
        with database.transaction() as connection:
            self.uid = commitments.ask(connection, peer.name, item)

    def requested(self, request: Request) -> None:
        """Refuse: we ask here, nobody else does."""
        raise InvalidArgument("this association is for a request of ours")

    def reported(self, report: Report) -> None:
        """Take a report that came on the association of the request."""
        if report.transaction_uid != self.uid:
            raise InvalidArgument("the report is of another transaction")
        if self._item in report.committed:
            self._heard = Asked("committed", None)
        elif self._item in report.failed:
            self._heard = Asked("failed", report.failed[self._item])
        else:
            raise InvalidArgument("the report does not name the object")

    def outcome(self) -> Asked | None:
        """What was heard, here or by the running node; ``None``: nothing yet."""
        return self._heard or self.told_elsewhere()

    def told_elsewhere(self) -> Asked | None:
        """What the running node heard; ``None``: nothing yet, or it can't be seen."""
        if self._database is None:
            return None
        with self._database.transaction() as connection:
            found = commitments.asked(connection, self.uid)
        return found if found and found.outcome else None


def prove(
    called: DicomPeer,
    settings: Settings,
    peer: Peer,
    transaction: Transaction,
    item: Item,
    patience: float,
) -> Finding:
    """Ask, and wait up to ``patience`` seconds; silence is a note, for a PACS may take its time.

    Raises
    ------
    Fault
        The peer does not take the request, or reports that it does not keep the object.
    """
    started = time.monotonic()
    request = Request(transaction_uid=transaction.uid, references=(item,))
    try:
        commitment_calls.request(
            called, request, transaction, lambda: transaction.told_elsewhere() is not None
        )
    except PeerError as error:
        fix = (
            f'at the peer: switch Storage Commitment on for us; or peer {peer.name}: proof = "find"'
        )
        raise Fault(str(error), fix) from error
    while transaction.outcome() is None and time.monotonic() - started < patience:
        time.sleep(_LOOK)
    return _judged(transaction.outcome(), settings, peer, time.monotonic() - started)


def _judged(heard: Asked | None, settings: Settings, peer: Peer, seconds: float) -> Finding:
    if heard is None:
        port = settings.tls.port if peer.tls else settings.node.port
        return Finding(
            text=f"it took the request and did not report within {seconds:.0f} s",
            fix=f"at the peer: send storage commitment reports to {settings.node.ae_title}, port"
            f" {port}, on this machine, and see that the node runs",
        )
    if heard.outcome == "committed":
        return Finding(text=f"it commits to the test object, {seconds:.1f} s after it was asked")
    why = commitments.in_words(heard.failure_reason or 0)
    raise Fault(
        f"it answered success and does not commit to the object: {why}",
        "the peer's log says why it did not keep what it had taken",
    )
