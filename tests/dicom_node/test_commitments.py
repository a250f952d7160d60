"""Storage commitment as rows: every report counts once, and only from whom it was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from dicom_node import commitments, db, deliveries
from dicom_node.commitments import InvalidArgument, Item, Report, Request
from dicom_node.config import Peer
from dicom_node.db import Database
from dicom_node.drafts import Draft
from tests.conftest import DraftFactory, StudyFactory

PEER = Peer(name="pacs", ae_title="PACS", host=("127.0.0.1",), proof="commitment")
HOUR = timedelta(hours=1)
ONE, OTHER = (
    Item("1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"),
    Item("1.2.840.10008.5.1.4.1.1.7", "1.2.4"),
)


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    """A transaction of the test."""
    with database.transaction() as opened:
        yield opened


class Sent:
    """A draft that the peer answered with success, and what is said of it."""

    def __init__(self, connection: Connection, draft: Draft) -> None:
        self.connection = connection
        self.item = Item(draft.sop_class_uid, draft.sop_instance_uid)
        deliveries.create(connection, draft.study_instance_uid, draft.sop_instance_uid, [PEER])
        self.id = connection.scalars(sa.select(db.delivery.c.id)).one()
        self.send()

    def send(self) -> None:
        """At this moment, which is another one than that of the last request."""
        self.set(
            state="sent",
            sent_at=sa.func.clock_timestamp(),
            sent_uid=self.item.sop_instance_uid,
            attempts=1,
        )

    def set(self, **values: object) -> None:
        self.connection.execute(sa.update(db.delivery).values(**values))

    def ask(self) -> str:
        """A request of this moment: in a test's one transaction now() stands still."""
        uid = commitments.ask(self.connection, PEER.name, self.item, delivery_id=self.id)
        self.connection.execute(
            sa.update(db.commitment)
            .where(db.commitment.c.transaction_uid == uid)
            .values(requested_at=sa.func.clock_timestamp())
        )
        return uid

    def committed(self, transaction_uid: str, *peers: str) -> None:
        report = Report(transaction_uid=transaction_uid, committed=(self.item,))
        commitments.take(self.connection, report, peers or ("pacs",), back_off)

    def failed(self, transaction_uid: str, reason: int = 0x0112) -> None:
        report = Report(
            transaction_uid=transaction_uid, committed=(ONE,), failed={self.item: reason}
        )
        commitments.take(self.connection, report, ("pacs",), back_off)

    @property
    def row(self) -> sa.Row[tuple[object, ...]]:
        return self.connection.execute(sa.select(db.delivery)).one()


def back_off(attempts: int) -> timedelta:
    return timedelta(minutes=attempts)


@pytest.fixture
def sent(connection: Connection, draft_factory: DraftFactory) -> Sent:
    return Sent(connection, draft_factory())


# -- what we ask -----------------------------------------------------------------------------------


def test_each_request_has_a_transaction_uid_of_its_own(sent: Sent) -> None:
    first, second = sent.ask(), sent.ask()
    assert first != second
    assert first.startswith("2.25.")
    assert len(first) <= 64


def test_a_report_proves_the_delivery(sent: Sent) -> None:
    transaction = sent.ask()
    assert commitments.asked(sent.connection, transaction) == (None, None)
    sent.committed(transaction)
    assert (sent.row.state, sent.row.proof) == ("delivered", "commitment")
    assert commitments.asked(sent.connection, transaction) == ("committed", None)


def test_what_the_peer_does_not_have_is_sent_again_and_the_reason_told(sent: Sent) -> None:
    sent.failed(transaction := sent.ask())
    assert (sent.row.state, sent.row.sent_at) == ("due", None)
    assert sent.row.reason == "pacs does not commit to it: 0x0112 no such object instance"
    assert commitments.asked(sent.connection, transaction) == ("failed", 0x0112)


def test_a_reason_that_the_standard_does_not_know_is_told_too(sent: Sent) -> None:
    sent.failed(sent.ask(), 0xABCD)
    assert sent.row.reason == "pacs does not commit to it: 0xABCD unknown reason"


def test_a_report_that_comes_twice_counts_once(sent: Sent) -> None:
    transaction = sent.ask()
    sent.committed(transaction)
    sent.committed(transaction)
    sent.failed(transaction)
    assert sent.row.state == "delivered"


def test_a_late_report_of_an_earlier_request_counts(sent: Sent) -> None:
    late, _ = sent.ask(), sent.ask()
    sent.committed(late)
    assert sent.row.state == "delivered"


def test_a_failure_of_before_the_object_was_sent_again_is_old_news(sent: Sent) -> None:
    late = sent.ask()
    sent.send()
    sent.failed(late)
    assert sent.row.state == "sent"
    assert commitments.asked(sent.connection, late) == ("failed", 0x0112)


def test_a_late_report_proves_a_delivery_that_was_given_up(sent: Sent) -> None:
    transaction = sent.ask()
    sent.set(state="failed", reason="no report")
    sent.committed(transaction)
    assert (sent.row.state, sent.row.reason) == ("delivered", None)


def test_only_who_was_asked_may_report(sent: Sent) -> None:
    transaction = sent.ask()
    with pytest.raises(InvalidArgument):
        sent.committed(transaction, "another", "third")
    assert sent.row.state == "sent"
    sent.committed(transaction, "another", "pacs")
    assert sent.row.state == "delivered"


def test_a_report_on_what_nobody_asked_is_refused(sent: Sent) -> None:
    with pytest.raises(InvalidArgument) as raised:
        sent.committed("2.25.1")
    assert raised.value.dimse_status == 0x0115


def test_a_report_on_another_object_proves_nothing(sent: Sent) -> None:
    transaction = sent.ask()
    report = Report(transaction_uid=transaction, committed=(ONE,))
    with pytest.raises(InvalidArgument):
        commitments.take(sent.connection, report, ("pacs",), back_off)
    assert sent.row.state == "sent"
    assert commitments.asked(sent.connection, transaction) == (None, None)


def pending(sent: Sent, patience: timedelta = HOUR) -> timedelta | None:
    return commitments.pending(sent.connection, sent.id, sent.item.sop_instance_uid, patience)


def test_only_a_request_that_the_peer_took_is_waited_for(sent: Sent) -> None:
    assert pending(sent) is None
    transaction = sent.ask()
    assert pending(sent) is None
    commitments.accepted(sent.connection, transaction)
    assert pending(sent) == HOUR  # now() stands still within a transaction
    assert pending(sent, timedelta(0)) is None
    sent.committed(transaction)
    assert pending(sent) is None


def test_a_request_of_before_the_object_was_sent_again_is_not_waited_for(sent: Sent) -> None:
    commitments.accepted(sent.connection, sent.ask())
    sent.send()
    assert pending(sent) is None


def test_somebody_may_ask_without_a_delivery(connection: Connection) -> None:
    transaction = commitments.ask(connection, "pacs", ONE)
    report = Report(transaction_uid=transaction, committed=(), failed={ONE: 0x0110})
    commitments.take(connection, report, ("pacs",), back_off)
    assert commitments.asked(connection, transaction) == ("failed", 0x0110)


def test_nothing_is_known_of_a_transaction_that_is_not_ours(connection: Connection) -> None:
    assert commitments.asked(connection, "2.25.1") is None


def test_a_study_can_be_forgotten_with_its_transactions(sent: Sent) -> None:
    sent.committed(sent.ask())
    sent.connection.execute(sa.delete(db.delivery))
    assert sent.connection.scalar(sa.select(sa.func.count()).select_from(db.commitment)) == 0


# -- what we are asked -----------------------------------------------------------------------------

REQUEST = Request(transaction_uid="2.25.5", references=(ONE, OTHER))
Ask = Callable[[], None]


@pytest.fixture
def ask(connection: Connection) -> Ask:
    def asked() -> None:
        commitments.requested(connection, REQUEST, peer="modality", address="127.0.0.1")

    return asked


def claim(connection: Connection, *, lease: timedelta = HOUR) -> commitments.Held | None:
    request_id = connection.scalars(sa.select(db.commitment_request.c.id)).one()
    return commitments.claim(connection, request_id, lease=lease, worker="w")


def state(connection: Connection) -> str:
    return str(connection.scalars(sa.select(db.commitment_request.c.state)).one())


def test_one_worker_at_a_time_reports(connection: Connection, ask: Ask) -> None:
    ask()
    held = claim(connection)
    assert held is not None
    assert (held.transaction_uid, held.references) == ("2.25.5", (ONE, OTHER))
    assert (held.peer, held.address, held.attempts) == ("modality", "127.0.0.1", 1)
    assert claim(connection) is None
    assert commitments.renew(connection, held, lease=HOUR)


def test_who_lost_the_lease_changes_nothing(connection: Connection, ask: Ask) -> None:
    ask()
    lost = claim(connection, lease=-HOUR)
    held = claim(connection)
    assert lost is not None
    assert held is not None
    commitments.reported(connection, lost)
    assert not commitments.renew(connection, lost, lease=HOUR)
    assert state(connection) == "reporting"
    commitments.reported(connection, held)
    assert state(connection) == "reported"


def test_a_request_that_comes_twice_is_reported_on_once(connection: Connection, ask: Ask) -> None:
    ask()
    ask()
    held = claim(connection)
    assert held is not None
    ask()
    assert state(connection) == "reporting"
    commitments.reported(connection, held)
    ask()
    assert state(connection) == "reported"


def test_what_could_not_be_reported_is_when_it_is_asked_again(
    connection: Connection, ask: Ask
) -> None:
    ask()
    held = claim(connection)
    assert held is not None
    commitments.fail(connection, held, "nobody there")
    assert claim(connection) is None
    ask()
    again = claim(connection)
    assert again is not None
    assert again.attempts == 1


def test_a_report_may_wait(connection: Connection, ask: Ask) -> None:
    ask()
    held = claim(connection)
    assert held is not None
    commitments.retry_later(connection, held, HOUR, "nobody there")
    assert claim(connection) is None
    assert commitments.nudge(connection, every=HOUR) == []


def test_due_requests_are_nudged_once_in_a_while(connection: Connection, ask: Ask) -> None:
    ask()
    assert len(commitments.nudge(connection, every=HOUR)) == 1
    assert commitments.nudge(connection, every=HOUR) == []


def test_a_transaction_uid_stands_for_the_same_objects(connection: Connection, ask: Ask) -> None:
    ask()
    other = Request(transaction_uid=REQUEST.transaction_uid, references=(ONE,))
    with pytest.raises(InvalidArgument):
        commitments.requested(connection, other, peer="modality", address="127.0.0.1")
    commitments.requested(connection, other, peer="another", address="127.0.0.1")


def test_copies_are_found_without_those_that_retention_deleted(
    connection: Connection, study_factory: StudyFactory
) -> None:
    study_factory(sop_instance_uid=ONE.sop_instance_uid, sop_class_uid=ONE.sop_class_uid)
    study_factory(sop_instance_uid=OTHER.sop_instance_uid)
    found = commitments.copies(connection, REQUEST.references)
    assert set(found) == {ONE.sop_instance_uid, OTHER.sop_instance_uid}
    ((sop_class_uid, _, size),) = found[ONE.sop_instance_uid]
    assert (sop_class_uid, size) == (ONE.sop_class_uid, 1000)
    connection.execute(sa.update(db.instance).values(pixels_deleted_at=sa.func.now()))
    assert commitments.copies(connection, REQUEST.references) == {}


def test_what_could_not_be_reported_is_counted_for_a_while(
    connection: Connection, ask: Ask
) -> None:
    ask()
    assert commitments.unreported(connection, within=HOUR) == {}
    held = claim(connection)
    assert held is not None
    commitments.retry_later(connection, held, HOUR, "nobody there")
    assert commitments.unreported(connection, within=HOUR) == {"modality": (1, "nobody there")}
    assert commitments.unreported(connection, within=-HOUR) == {}


# -- both ------------------------------------------------------------------------------------------


def test_what_ended_long_ago_is_forgotten(connection: Connection, ask: Ask, sent: Sent) -> None:
    ask()
    held = claim(connection)
    assert held is not None
    commitments.reported(connection, held)
    kept, mere = sent.ask(), commitments.ask(connection, "pacs", ONE)
    commitments.forget(connection)
    assert commitments.asked(connection, mere) is not None
    long_ago = sa.func.now() - commitments.KEPT - HOUR
    connection.execute(sa.update(db.commitment_request).values(ended_at=long_ago))
    connection.execute(sa.update(db.commitment).values(requested_at=long_ago))
    commitments.forget(connection)
    assert commitments.asked(connection, mere) is None
    assert commitments.asked(connection, kept) is not None
    assert connection.scalar(sa.select(db.commitment_request.c.id)) is None
