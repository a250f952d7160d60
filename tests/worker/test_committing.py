"""A draft is delivered when its PACS commits to it, and sources are told what is safe here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_node import commitment_calls, commitments, db, status
from dicom_node.commitment_service import Ledger
from dicom_node.commitments import Item, Request
from dicom_node.config import Peer
from dicom_node.db import Database
from dicom_node.deliveries import Delivery
from tests.commitment_pacs import CommitmentPacs, Requestor
from tests.dicom_node.network import DIGITAL_X_RAY
from tests.worker.conftest import open_node
from tests.worker.study import Study
from worker import tasks
from worker.host import ModelHost
from worker.tasks import Context

# pynetdicom drops sockets unclosed where a connection is refused or cut.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a report that does not come."""
    defaults = commitment_calls.request.__kwdefaults__
    assert defaults is not None  # it has one
    monkeypatch.setitem(defaults, "patience", 0.3)


# -- destinations ----------------------------------------------------------------------------------


class Outbox:
    """A draft on its way to a PACS that commits."""

    def __init__(
        self, database: Database, data: Path, host: ModelHost, pacs: CommitmentPacs
    ) -> None:
        self.pacs = pacs
        node = open_node(database, data, pacs.peer())
        self.context = Context(node=node, name="test", host=host)
        self.study = Study(node=node)
        self.study.receive()
        tasks.analyse(self.context, self.study.queue())

    def deliver(self) -> Delivery:
        """Do what is due now, even what should wait."""
        self.set(db.delivery, due_at=sa.func.now())
        tasks.deliver(self.context, self.delivery.id)
        return self.delivery

    @property
    def delivery(self) -> Delivery:
        (found,) = self.study.account.deliveries
        return found

    @property
    def reasons(self) -> list[str]:
        return [one.reason for one in self.study.account.events if one.reason]

    def set(self, table: sa.Table, **values: object) -> None:
        with self.context.database.transaction() as connection:
            connection.execute(sa.update(table).values(**values))

    def be_told(self, request: int = -1) -> None:
        """The report on a request comes now, on an association of the PACS's own."""
        event_type, information = self.pacs.outcome(self.pacs.requests[request])
        assert event_type in (1, 2)
        from_pacs = [
            Item(one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID)
            for one in information.get("ReferencedSOPSequence", ())
        ]
        failed = {
            Item(one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID): int(one.FailureReason)
            for one in information.get("FailedSOPSequence", ())
        }
        told = commitments.Report(
            transaction_uid=information.TransactionUID, committed=tuple(from_pacs), failed=failed
        )
        node = self.context.node
        Ledger(node.database, node.settings.jobs, (self.pacs.peer(),), "127.0.0.1").reported(told)

    def overdue(self) -> None:
        """As if the draft had been on its way for longer than anybody waits."""
        hours = self.context.node.settings.jobs.give_up_hours + 1
        self.set(db.delivery, created_at=sa.func.now() - sa.text(f"interval '{hours} hours'"))


@pytest.fixture
def pacs() -> Iterator[CommitmentPacs]:
    made = CommitmentPacs()
    yield made
    made.stop()


@pytest.fixture
def outbox(database: Database, tmp_path: Path, host: ModelHost, pacs: CommitmentPacs) -> Outbox:
    return Outbox(database, tmp_path, host, pacs)


def test_a_draft_is_delivered_when_the_pacs_commits_to_it(outbox: Outbox) -> None:
    delivery = outbox.deliver()
    assert (delivery.state, delivery.proof) == ("delivered", "commitment")
    (request,) = outbox.pacs.requests
    (named,) = request.ReferencedSOPSequence
    assert named.ReferencedSOPInstanceUID == delivery.sent_uid
    outbox.pacs.stop()
    assert outbox.pacs.answers == [0x0000]


def test_a_draft_is_only_sent_while_no_report_has_come(outbox: Outbox) -> None:
    outbox.pacs.where = "never"
    delivery = outbox.deliver()
    assert (delivery.state, delivery.proof) == ("sent", None)
    assert "no report yet" in (delivery.reason or "")


def test_the_transaction_is_on_disk_before_the_pacs_hears_of_it(outbox: Outbox) -> None:
    seen: list[str] = []

    def look() -> None:
        with outbox.context.database.transaction() as connection:
            seen.extend(connection.scalars(sa.select(db.commitment.c.transaction_uid)))

    outbox.pacs.while_asked = look
    outbox.deliver()
    assert seen == [outbox.pacs.requests[0].TransactionUID]


def test_a_report_that_comes_later_delivers_it(outbox: Outbox) -> None:
    outbox.pacs.where = "never"
    outbox.deliver()
    outbox.be_told()
    assert outbox.delivery.state == "delivered"
    assert outbox.pacs.stores == 1


def test_a_pacs_that_lost_the_draft_gets_it_again(outbox: Outbox) -> None:
    outbox.pacs.where = "never"
    outbox.deliver()
    outbox.pacs.forget()
    outbox.be_told()
    assert outbox.delivery.state == "due"
    outbox.pacs.where = "here"
    delivery = outbox.deliver()
    assert (delivery.state, outbox.pacs.stores) == ("delivered", 2)
    assert "pacs does not commit to it: 0x0112 no such object instance" in outbox.reasons


def test_a_pacs_that_fails_to_commit_on_the_same_association_gets_it_again(outbox: Outbox) -> None:
    outbox.pacs.reason = 0x0110
    outbox.deliver()
    assert outbox.delivery.state == "due"
    outbox.pacs.reason = None
    assert outbox.deliver().state == "delivered"
    assert outbox.pacs.stores == 2


def test_it_is_not_asked_again_while_the_report_may_come(outbox: Outbox) -> None:
    outbox.pacs.where = "never"
    outbox.deliver()
    outbox.deliver()
    assert len(outbox.pacs.requests) == 1
    assert outbox.delivery.state == "sent"


def test_a_pacs_that_stays_silent_is_asked_again_and_not_sent_again(outbox: Outbox) -> None:
    outbox.pacs.where = "never"
    outbox.deliver()
    outbox.set(db.commitment, accepted_at=sa.func.now() - sa.text("interval '1 hour'"))
    outbox.deliver()
    first, second = outbox.pacs.requests
    assert first.TransactionUID != second.TransactionUID
    assert outbox.pacs.stores == 1
    outbox.be_told(0)
    assert outbox.delivery.state == "delivered"


def test_a_request_that_was_lost_with_us_is_repeated(outbox: Outbox) -> None:
    """As after kill -9 between the row and the answer to N-ACTION."""
    outbox.pacs.where = "never"
    outbox.deliver()
    outbox.set(db.commitment, accepted_at=None)
    outbox.deliver()
    assert len(outbox.pacs.requests) == 2


def test_a_pacs_that_never_reports_is_an_alarm_in_the_end(outbox: Outbox) -> None:
    outbox.pacs.where = "never"
    outbox.deliver()
    outbox.overdue()
    delivery = outbox.deliver()
    assert delivery.state == "failed"
    assert delivery.reason == (
        "peer.unproven: the peer answered success, and has not committed to it for 24 hours:"
        " let pacs send its storage commitment reports to DICOMNODE, port 11112, on this machine"
    )
    outbox.be_told()
    assert outbox.delivery.state == "delivered"


def test_a_pacs_that_refuses_the_request_is_asked_again_and_not_sent_again(outbox: Outbox) -> None:
    outbox.pacs.status = 0x0213
    delivery = outbox.deliver()
    assert delivery.state == "due"
    assert "answered N-ACTION with 0x0213" in (delivery.reason or "")
    outbox.pacs.status = 0x0000
    assert outbox.deliver().state == "delivered"
    assert outbox.pacs.stores == 1


def test_a_pacs_without_storage_commitment_fails_with_the_remedy(
    database: Database, tmp_path: Path, host: ModelHost
) -> None:
    storing = CommitmentPacs(commits=False)
    try:
        delivery = Outbox(database, tmp_path, host, storing).deliver()
    finally:
        storing.stop()
    assert delivery.state == "failed"
    assert 'has no storage commitment: set proof = "find" or "none"' in (delivery.reason or "")


# -- sources ---------------------------------------------------------------------------------------


class Inbox:
    """A node that a source has sent to, and asks to commit."""

    def __init__(self, database: Database, data: Path, host: ModelHost, peer: Peer) -> None:
        node = open_node(database, data, peer)
        self.context = Context(node=node, name="test", host=host)
        self.study = Study(node=node)
        self.uid = self.study.receive()
        self._ledger = Ledger(database, node.settings.jobs, (peer,), "127.0.0.1")

    def ask(self, *references: tuple[str, str], transaction_uid: str = "2.25.5") -> None:
        items = tuple(Item(*one) for one in references)
        self._ledger.requested(Request(transaction_uid=transaction_uid, references=items))

    def report(self) -> None:
        """Report what is due, even what should wait."""
        with self.context.database.transaction() as connection:
            connection.execute(sa.update(db.commitment_request).values(due_at=sa.func.now()))
            ids = connection.scalars(sa.select(db.commitment_request.c.id)).all()
        for request_id in ids:
            tasks.report_commitment(self.context, request_id)

    @property
    def row(self) -> sa.Row[tuple[object, ...]]:
        with self.context.database.transaction() as connection:
            return connection.execute(sa.select(db.commitment_request)).one()


def source(port: int, host: str = "127.0.0.1") -> Peer:
    return Peer(name="modality", ae_title="MODALITY", host=(host,), port=port, roles=("source",))


@pytest.fixture
def requestor() -> Iterator[Requestor]:
    made = Requestor()
    yield made
    made.stop()


@pytest.fixture
def inbox(database: Database, tmp_path: Path, host: ModelHost, requestor: Requestor) -> Inbox:
    return Inbox(database, tmp_path, host, source(requestor.port))


def test_a_source_is_told_that_its_object_is_safe(inbox: Inbox, requestor: Requestor) -> None:
    inbox.ask((DIGITAL_X_RAY, inbox.uid))
    inbox.report()
    inbox.report()
    ((event_type, told),) = requestor.reports
    assert (event_type, told.TransactionUID) == (1, "2.25.5")
    assert inbox.row.state == "reported"


def test_each_object_gets_the_answer_that_it_deserves(inbox: Inbox, requestor: Requestor) -> None:
    secondary_capture = "1.2.840.10008.5.1.4.1.1.7"
    inbox.ask(
        (DIGITAL_X_RAY, inbox.uid), (secondary_capture, inbox.uid), (DIGITAL_X_RAY, "1.2.3.4.5")
    )
    inbox.report()
    ((event_type, told),) = requestor.reports
    assert event_type == 2
    (safe,) = told.ReferencedSOPSequence
    assert safe.ReferencedSOPInstanceUID == inbox.uid
    reasons = [(one.ReferencedSOPInstanceUID, one.FailureReason) for one in told.FailedSOPSequence]
    assert reasons == [(inbox.uid, 0x0119), ("1.2.3.4.5", 0x0112)]


def path_of(inbox: Inbox) -> Path:
    with inbox.context.database.transaction() as connection:
        path = connection.scalars(sa.select(db.instance.c.path)).one()
    return inbox.context.node.storage.path(path)


def test_a_file_that_is_gone_or_cut_is_not_committed_to(inbox: Inbox, requestor: Requestor) -> None:
    inbox.ask((DIGITAL_X_RAY, inbox.uid), transaction_uid="2.25.5")
    path = path_of(inbox)
    path.write_bytes(path.read_bytes()[:-1])
    inbox.report()
    path.unlink()
    inbox.ask((DIGITAL_X_RAY, inbox.uid), transaction_uid="2.25.6")
    inbox.report()
    assert [event_type for event_type, _ in requestor.reports] == [2, 2]


def test_what_retention_deleted_is_not_committed_to(inbox: Inbox, requestor: Requestor) -> None:
    inbox.ask((DIGITAL_X_RAY, inbox.uid))
    with inbox.context.database.transaction() as connection:
        connection.execute(sa.update(db.instance).values(pixels_deleted_at=sa.func.now()))
    inbox.report()
    ((event_type, _),) = requestor.reports
    assert event_type == 2


def test_a_disk_that_is_away_is_no_reason_to_deny_an_object(
    inbox: Inbox, requestor: Requestor
) -> None:
    inbox.ask((DIGITAL_X_RAY, inbox.uid))
    instances = inbox.context.node.storage.path("instances")
    away = instances.rename(instances.with_name("elsewhere"))
    inbox.report()
    assert (requestor.reports, inbox.row.state) == ([], "reporting")
    away.rename(instances)
    with inbox.context.database.transaction() as connection:
        connection.execute(sa.update(db.commitment_request).values(lease_until=sa.func.now()))
    inbox.report()
    assert [event_type for event_type, _ in requestor.reports] == [1]


def test_a_source_that_refuses_the_report_is_told_again(inbox: Inbox, requestor: Requestor) -> None:
    requestor.status = 0x0110
    inbox.ask((DIGITAL_X_RAY, inbox.uid))
    inbox.report()
    assert (inbox.row.state, inbox.row.attempts) == ("due", 1)
    said = status.snapshot(inbox.context.database, inbox.context.node.settings)
    (warning,) = [one for one in said.warnings if one.code == "commitment"]
    assert "answered N-EVENT-REPORT with 0x0110" in warning.text
    requestor.status = 0x0000
    inbox.report()
    assert inbox.row.state == "reported"


def test_a_source_that_can_not_be_called_is_given_up_in_the_end(
    inbox: Inbox, requestor: Requestor
) -> None:
    requestor.stop()
    inbox.ask((DIGITAL_X_RAY, inbox.uid))
    inbox.report()
    assert inbox.row.state == "due"
    with inbox.context.database.transaction() as connection:
        long_ago = sa.func.now() - sa.text("interval '25 hours'")
        connection.execute(sa.update(db.commitment_request).values(received_at=long_ago))
    inbox.report()
    assert inbox.row.state == "failed"
    assert "can't be reached" in str(inbox.row.reason)


def test_a_source_that_is_configured_by_its_network_is_called_where_it_asked_from(
    database: Database, tmp_path: Path, host: ModelHost, requestor: Requestor
) -> None:
    inbox = Inbox(database, tmp_path, host, source(requestor.port, "127.0.0.0/8"))
    inbox.ask((DIGITAL_X_RAY, inbox.uid))
    inbox.report()
    assert len(requestor.reports) == 1


def test_who_is_no_source_any_more_is_not_called(
    database: Database, tmp_path: Path, host: ModelHost, inbox: Inbox
) -> None:
    inbox.ask((DIGITAL_X_RAY, inbox.uid))
    other = open_node(database, tmp_path)
    context = Context(node=other, name="test", host=host)
    tasks.report_commitment(context, inbox.row.id)
    assert inbox.row.state == "failed"
