"""Messages of storage commitment over our port: which are kept, and what each is answered."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_role
from pynetdicom.association import Association

from dicom_node import commitments, db, dimse
from dicom_node.commitment_service import MAXIMUM_INFORMATION, Ledger, Message, answer
from dicom_node.commitments import InvalidArgument, Item, Report, Request
from dicom_node.config import Jobs, Peer
from dicom_node.db import Database
from dicom_node.dimse import Command
from dicom_node.errors import NotAuthorised, OutOfResources
from tests.commitment_pacs import PUSH_MODEL, PUSH_MODEL_INSTANCE, action, ask
from tests.dicom_node.network import (
    DIGITAL_X_RAY,
    SOURCE,
    Commitments,
    Running,
    association,
    encoded,
    header,
    running,
    send_raw,
)
from tests.integration.adversary import ABORT, Connection, echo_rq, message

TRANSACTION = "2.25.17"
ONE = (DIGITAL_X_RAY, "1.2.3")
REQUEST = Request(transaction_uid=TRANSACTION, references=(Item(*ONE),))
CONTEXT = (PUSH_MODEL, ImplicitVRLittleEndian)
SCP_ONLY = [build_role(PUSH_MODEL, scp_role=True)]
BOTH = [build_role(PUSH_MODEL, scu_role=True, scp_role=True)]
DESTINATION = Peer(
    name="pacs", ae_title="PACS", host=("127.0.0.1",), roles=("destination",), proof="commitment"
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("scp"), SOURCE, DESTINATION) as node:
        yield node


@pytest.fixture
def node(shared: Running) -> Running:
    """The shared one, with nothing noted down."""
    kept = shared.commitments
    for noted in (kept.requests, kept.reports, kept.callers):
        noted.clear()
    kept.fault = None
    return shared


def report(opened: Association, event_type: int = 1) -> int | None:
    answered, _ = opened.send_n_event_report(
        action(TRANSACTION, [ONE]), event_type, PUSH_MODEL, PUSH_MODEL_INSTANCE
    )
    status: int | None = answered.get("Status")
    return status


# -- over the network ------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_request_is_kept_and_then_answered(node: Running, syntax: UID) -> None:
    with association(node.port, (PUSH_MODEL, syntax)) as opened:
        assert ask(opened, action(TRANSACTION, [ONE])) == 0x0000
    assert node.commitments.requests == [REQUEST]
    (caller,) = node.commitments.callers
    assert (caller.peers, caller.address) == ((SOURCE,), "127.0.0.1")


def test_thousands_of_references_are_one_request(node: Running) -> None:
    many = [(DIGITAL_X_RAY, f"1.2.3.{number}") for number in range(3000)]
    with association(node.port, CONTEXT) as opened:
        assert ask(opened, action(TRANSACTION, many)) == 0x0000
    (request,) = node.commitments.requests
    assert request.references == tuple(Item(*one) for one in many)


def test_a_report_is_taken_from_who_proposes_to_be_the_scp(node: Running) -> None:
    with association(node.port, CONTEXT, calling="PACS", roles=SCP_ONLY) as opened:
        assert opened.accepted_contexts[0].as_scp
        assert report(opened) == 0x0000
    assert node.commitments.reports == [
        Report(transaction_uid=TRANSACTION, committed=(Item(*ONE),))
    ]
    (caller,) = node.commitments.callers
    assert caller.peers == (DESTINATION,)


def test_a_request_and_a_report_may_share_an_association(node: Running) -> None:
    with association(node.port, CONTEXT, roles=BOTH) as opened:
        assert ask(opened, action(TRANSACTION, [ONE])) == 0x0000
        assert report(opened) == 0x0000
    assert len(node.commitments.requests) == len(node.commitments.reports) == 1


def test_who_is_let_in_to_report_may_not_store(node: Running) -> None:
    with association(node.port, (DIGITAL_X_RAY, ExplicitVRLittleEndian), calling="PACS") as opened:
        status = send_raw(
            opened,
            encoded(header()),
            sop_class_uid=DIGITAL_X_RAY,
            sop_instance_uid="1.2.3.4",
        )
    assert status == 0x0124
    assert node.registered == []


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (OutOfResources("database"), 0x0213),
        (InvalidArgument("no such transaction"), 0x0115),
        (NotAuthorised("no source"), 0x0124),
        (ValueError("our bug"), 0x0110),
    ],
)
def test_what_can_not_be_kept_is_answered_with_the_reason(
    node: Running, fault: Exception, status: int
) -> None:
    node.commitments.fault = fault
    with association(node.port, CONTEXT, roles=BOTH) as opened:
        assert ask(opened, action(TRANSACTION, [ONE])) == status
        assert report(opened) == status


def test_the_next_request_is_answered_after_one_that_failed(node: Running) -> None:
    with association(node.port, CONTEXT) as opened:
        assert ask(opened, None) == 0x0115
        assert ask(opened, action(TRANSACTION, [ONE]), action_type=2) == 0x0123
        assert ask(opened, action(TRANSACTION, [ONE])) == 0x0000
    assert node.commitments.requests == [REQUEST]


def test_other_normalised_services_are_not_recognised(node: Running) -> None:
    with association(node.port, CONTEXT) as opened:
        answered, _ = opened.send_n_get([(8, 0x1195)], PUSH_MODEL, PUSH_MODEL_INSTANCE)
        assert answered.Status == 0x0211


def test_an_echo_has_no_place_among_commitments(node: Running) -> None:
    body = message(1, echo_rq())
    with Connection(node.port) as raw:
        raw.associate(calling="MODALITY", contexts=[(1, PUSH_MODEL, ImplicitVRLittleEndian)])
        raw.send(*body)
        assert raw.pdu()[0] == ABORT


# -- the answer to a message -----------------------------------------------------------------------

ACTION = Command(
    context_id=1,
    command_field=dimse.N_ACTION_RQ,
    message_id=1,
    has_data_set=True,
    affected_sop_class_uid=PUSH_MODEL,
    affected_sop_instance_uid=PUSH_MODEL_INSTANCE,
    type_id=1,
)
EVENT = replace(ACTION, command_field=dimse.N_EVENT_REPORT_RQ)
GOOD = encoded(action(TRANSACTION, [ONE]))


@pytest.mark.parametrize(
    ("command", "status"),
    [
        pytest.param(ACTION, 0x0000, id="a request"),
        pytest.param(EVENT, 0x0000, id="a report"),
        pytest.param(replace(EVENT, type_id=2), 0x0115, id="failures that are not named"),
        pytest.param(replace(EVENT, type_id=3), 0x0113, id="an unknown event"),
        pytest.param(replace(ACTION, type_id=None), 0x0123, id="no action"),
        pytest.param(replace(ACTION, affected_sop_class_uid="1.2"), 0x0118, id="another class"),
        pytest.param(replace(EVENT, affected_sop_instance_uid=""), 0x0112, id="no instance"),
    ],
)
def test_each_mistake_has_its_status(command: Command, status: int) -> None:
    books = Commitments()
    assert answer(command, GOOD, ExplicitVRLittleEndian, books) == status
    assert bool(books.requests or books.reports) == (status == 0x0000)


def test_a_data_set_that_is_too_long_is_not_kept_in_memory() -> None:
    books = Commitments()
    message = Message(ACTION, ExplicitVRLittleEndian, books)
    for _ in range(40):
        message.write(memoryview(bytes(MAXIMUM_INFORMATION // 4)))
    assert len(message._data_set) <= MAXIMUM_INFORMATION + 1
    assert message.finish() == 0x0213
    assert books.requests == []


def test_a_message_may_come_in_pieces() -> None:
    books = Commitments()
    message = Message(ACTION, ExplicitVRLittleEndian, books)
    for at in range(0, len(GOOD), 7):
        message.write(memoryview(GOOD)[at : at + 7])
    assert message.finish() == 0x0000
    assert books.requests == [REQUEST]


def test_nothing_that_was_sent_reaches_a_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        bad = GOOD.replace(TRANSACTION.encode(), b"SECRET^")
        assert answer(ACTION, bad, ExplicitVRLittleEndian, Commitments()) == 0x0115
        books = Commitments(fault=ValueError("SECRET^"))
        assert answer(ACTION, GOOD, ExplicitVRLittleEndian, books) == 0x0110
    assert "SECRET" not in caplog.text
    assert "ValueError" in caplog.text


# -- rows ------------------------------------------------------------------------------------------


def test_a_request_is_kept_for_the_source_that_asked(database: Database) -> None:
    Ledger(database, Jobs(), (DESTINATION, SOURCE), "127.0.0.7").requested(REQUEST)
    with database.transaction() as connection:
        row = connection.execute(sa.select(db.commitment_request)).one()
    assert (row.peer, row.address, row.state) == ("modality", "127.0.0.7", "due")


def test_who_is_no_source_can_not_ask(database: Database) -> None:
    with pytest.raises(NotAuthorised):
        Ledger(database, Jobs(), (DESTINATION,), "127.0.0.1").requested(REQUEST)


def test_a_report_is_kept_for_the_transaction(database: Database) -> None:
    with database.transaction() as connection:
        uid = commitments.ask(connection, "pacs", Item(*ONE))
    told = Report(transaction_uid=uid, committed=(Item(*ONE),))
    Ledger(database, Jobs(), (SOURCE, DESTINATION), "127.0.0.1").reported(told)
    with database.transaction() as connection:
        assert commitments.asked(connection, uid) == ("committed", None)
    with pytest.raises(InvalidArgument):
        Ledger(database, Jobs(), (SOURCE,), "127.0.0.1").reported(told)
