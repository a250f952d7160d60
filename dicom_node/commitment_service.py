"""What is answered to messages of storage commitment (PS3.4 J.3), as SCP and as SCU.

One border for both ways in which a message comes: over our port, where the peer asked for the
association, and as a report over an association that we asked for. What it changes is durable
before it is answered 0x0000.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from pydicom.uid import UID

from dicom_node import commitment_information as information
from dicom_node import commitments, dimse
from dicom_node.commitments import InvalidArgument, Report, Request
from dicom_node.config import Jobs, Peer
from dicom_node.db import Database
from dicom_node.dimse import Command
from dicom_node.errors import NodeError, NotAuthorised, OutOfResources, trace

logger = logging.getLogger(__name__)

#: Bytes of Action or Event Information: thousands of references, and seconds at most to read
#: whatever else is sent.
MAXIMUM_INFORMATION = 1024 * 1024

_SUCCESS = 0x0000
_PROCESSING_FAILURE = 0x0110  # PS3.7 C.5.10
_RESOURCE_LIMITATION = 0x0213  # PS3.7 C.5.23


class Books(Protocol):
    """Where what a peer says of storage commitment is kept, durably."""

    def requested(self, request: Request) -> None:
        """It asks us to commit. Raises :class:`NodeError`: its status is answered."""
        ...

    def reported(self, report: Report) -> None:
        """It tells what became of what we asked. Raises :class:`NodeError`."""
        ...


class Ledger:
    """What one peer says, as rows.

    Parameters
    ----------
    jobs
        How long to wait before an object that the peer does not have is sent again.
    peers
        Those it may be: one title and address may be several peers'.
    address
        Where it is.
    """

    def __init__(self, database: Database, jobs: Jobs, peers: Sequence[Peer], address: str) -> None:
        self._database = database
        self._jobs = jobs
        self._peers = peers
        self._address = address

    def requested(self, request: Request) -> None:
        """Keep a request; a worker reports on it."""
        sources = [peer.name for peer in self._peers if peer.is_source]
        if not sources:
            raise NotAuthorised("storage commitment is for what a source has sent: no role source")
        with self._database.transaction() as connection:
            commitments.requested(connection, request, peer=sources[0], address=self._address)

    def reported(self, report: Report) -> None:
        """Keep a report, and what it means for the draft."""
        names = {peer.name for peer in self._peers}
        with self._database.transaction() as connection:
            commitments.take(connection, report, names, self._jobs.back_off)


class _Refusal(NodeError):
    """The message is not one of ours to answer (PS3.7 10.1.1.1.8, 10.1.4.1.10)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.dimse_status = status


def answer(command: Command, data_set: bytes, transfer_syntax: UID, books: Books) -> int:
    """Take a message; the status to answer with. A border: nothing is raised."""
    try:
        if len(data_set) > MAXIMUM_INFORMATION:
            raise OutOfResources(f"a data set of more than {MAXIMUM_INFORMATION} bytes")
        _check(command)
        if command.command_field == dimse.N_ACTION_RQ:
            books.requested(information.read_request(data_set, transfer_syntax))
        else:
            books.reported(_report(command, data_set, transfer_syntax))
    except OutOfResources as error:
        return _refused(_RESOURCE_LIMITATION, error)
    except NodeError as error:
        return _refused(error.dimse_status, error)
    except Exception as error:
        logger.error("storage commitment: our bug\n%s", trace(error))
        return _PROCESSING_FAILURE
    return _SUCCESS


def _check(command: Command) -> None:
    types = {
        dimse.N_ACTION_RQ: ((information.REQUEST_COMMITMENT,), 0x0123),  # no such action
        dimse.N_EVENT_REPORT_RQ: (
            (information.SUCCESSFUL, information.FAILURES_EXIST),
            0x0113,  # no such event type
        ),
    }
    if command.command_field not in types:
        raise _Refusal("unrecognised operation", 0x0211)
    if command.affected_sop_class_uid != information.PUSH_MODEL:
        raise _Refusal("no such SOP class", 0x0118)
    if command.affected_sop_instance_uid != information.PUSH_MODEL_INSTANCE:
        raise _Refusal("no such SOP instance", 0x0112)
    known, unknown = types[command.command_field]
    if command.type_id not in known:
        raise _Refusal(f"no action or event of type {command.type_id}", unknown)


def _report(command: Command, data_set: bytes, transfer_syntax: UID) -> Report:
    report = information.read_report(data_set, transfer_syntax)
    if bool(report.failed) != (command.type_id == information.FAILURES_EXIST):
        raise InvalidArgument("the report's type and its Failed SOP Sequence disagree")
    return report


def _refused(status: int, error: NodeError) -> int:
    logger.warning("storage commitment: 0x%04X %s", status, error)
    return status


class Message:
    """One message as it arrives."""

    def __init__(self, command: Command, transfer_syntax: UID, books: Books) -> None:
        self._command = command
        self._transfer_syntax = transfer_syntax
        self._books = books
        self._data_set = bytearray()

    def write(self, piece: memoryview) -> None:
        """The next bytes; of a data set that is too long only so many that this shows."""
        self._data_set += piece[: MAXIMUM_INFORMATION + 1 - len(self._data_set)]

    def finish(self) -> int:
        """The status to answer with."""
        return answer(self._command, bytes(self._data_set), self._transfer_syntax, self._books)

    def drop(self) -> None:
        """Forget what came."""
        self._data_set.clear()
