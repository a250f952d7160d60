"""How final reports come in: SR documents that were C-STOREd, HL7 messages, and files; and orders.

Whatever comes is kept as it came, then read, matched and written down in one transaction: a row
says what became of it, of what is no final report too. The same bytes twice are one row. Orders
are no reports: only their rows are kept.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom import Dataset
from sqlalchemy import Connection

from dicom_node import drafts, orders
from dicom_node.db import Database
from dicom_node.errors import NodeError, NotFound, OutOfResources, Unreadable, trace
from dicom_node.malformed import MALFORMED
from dicom_node.reports import hl7_message, matching, read_csv, read_order, read_oru, read_sr, store
from dicom_node.reports.final import FinalReport, Source, order_key
from dicom_node.reports.matching import Outcome
from dicom_node.reports.store import Arrived, Report
from dicom_node.storage import Kept, Storage
from dicom_node.studies import Instance

logger = logging.getLogger(__name__)

#: At most so many documents, and so many reports without a study, are looked at in one go.
SR_BATCH = 20
PARKED_BATCH = 100
#: Bytes of an SR document; a report has some kilobytes.
MAXIMUM_SIZE = 16 * 2**20

Filed = Outcome | None  #: None: the same report was here already


# -- SR documents that were received ---------------------------------------------------------------


def take_received(database: Database, storage: Storage, node_uid: str) -> int:
    """Look at SR documents that came by C-STORE and nobody looked at; how many they were.

    ``node_uid`` is the Device UID of this installation: what we wrote is no report.

    Raises
    ------
    OutOfResources
        Database or disk are away.
    """
    with database.transaction() as connection:
        waiting = store.unread(connection, limit=SR_BATCH)
    for instance, received_at in waiting:
        with database.transaction() as connection:
            final = _read_instance(connection, storage, instance, node_uid)
            kept = Kept(instance.path, instance.sha256, instance.size)
            _file(connection, final, kept, received_at=received_at)
    return len(waiting)


def _read_instance(
    connection: Connection, storage: Storage, instance: Instance, node_uid: str
) -> FinalReport:
    try:
        file = _bytes(storage, instance)
        final = _read_sr(file, _ours(connection), node_uid)
    except Unreadable as error:
        final = _unreadable("sr", str(error))
    return replace(final, source_uid=instance.sop_instance_uid)  # it is told by it what was read


def _bytes(storage: Storage, instance: Instance) -> bytes:
    if instance.size > MAXIMUM_SIZE:
        raise Unreadable(f"larger than {MAXIMUM_SIZE // 2**20} MiB")
    try:
        return storage.path(instance.path).read_bytes()
    except FileNotFoundError:
        raise Unreadable("its file is gone") from None
    except OSError as error:
        raise OutOfResources(f"{instance.path}: {error.strerror}") from error


def _ours(connection: Connection) -> Callable[[str], bool]:
    return lambda uid: drafts.find(connection, uid) is not None


def _read_sr(file: bytes, ours: Callable[[str], bool], node_uid: str) -> FinalReport:
    try:
        return read_sr.read(_parsed(file), ours, node_uid)
    except NodeError:
        raise
    except Exception as error:  # border: one document must not keep all others waiting
        logger.error("an SR document: our bug\n%s", trace(error))
        raise Unreadable(f"bug: {type(error).__name__}") from None


def _parsed(file: bytes) -> Dataset:
    try:
        return pydicom.dcmread(BytesIO(file))
    except MALFORMED as error:
        # "from None": pydicom puts values of elements into its messages
        raise Unreadable(f"no DICOM file: {type(error).__name__}") from None


# -- messages and files ----------------------------------------------------------------------------


def take_message(database: Database, storage: Storage, message: bytes) -> list[Filed]:
    """Keep one HL7 message and what it reports, or the orders in it; all is durable on return.

    Raises
    ------
    Unreadable
        It can't be read. A report is kept and parked, for a person to see; an order is not kept.
    OutOfResources
        Database or disk are away: the message is to be sent again.
    """
    if hl7_message.kind(message) in read_order.KINDS:
        told = read_order.read(message)  # the message is not kept: it names the patient
        with database.transaction() as connection:
            orders.keep(connection, told)
        return []
    kept = storage.keep_report(message, ".hl7")
    try:
        reports = read_oru.read(message)
    except Unreadable as error:
        with database.transaction() as connection:
            _file(connection, _unreadable("hl7", str(error)), kept, parked=True)
        raise
    return _file_all(database, reports, kept)


def take_file(database: Database, storage: Storage, node_uid: str, path: Path) -> Mapping[str, int]:
    """Take a file with reports of any kind; how many of them are matched, parked, ... now.

    It is taken whole or, where a row of a table is wrong, not at all.

    Raises
    ------
    NotFound, Unreadable
        There is no such file, or it holds no reports; names the file.
    OutOfResources
        Database or disk are away.
    """
    try:
        file = path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from error
    try:
        reports, suffix = _read_file(database, node_uid, file, path.suffix.lower())
    except Unreadable as error:
        raise Unreadable(f"{path}: {error}") from None
    filed = _file_all(database, reports, storage.keep_report(file, suffix))
    return Counter(one.state if one else "already here" for one in filed)


def _read_file(
    database: Database, node_uid: str, file: bytes, suffix: str
) -> tuple[Iterable[FinalReport], str]:
    if suffix == ".csv":
        return list(read_csv.read(_text(file))), suffix
    if suffix != ".dcm" and file[128:132] != b"DICM":  # PS3.10 7.1
        return read_oru.read(file), ".hl7"
    with database.transaction() as connection:
        return [_read_sr(file, _ours(connection), node_uid)], ".dcm"


def _text(file: bytes) -> str:
    try:
        return file.decode("utf-8-sig")
    except UnicodeDecodeError:
        return file.decode("cp1252", "replace")  # what spreadsheets write otherwise


# -- filing ----------------------------------------------------------------------------------------


def look_again(database: Database) -> int:
    """Look again for the studies of reports that later instances may concern; of how many.

    Raises
    ------
    OutOfResources
        The database is away.
    """
    with database.transaction() as connection:
        concerned = store.to_look_for_again(connection, limit=PARKED_BATCH)
        for one in concerned:
            store.settle(connection, one, _again(connection, one))
    return len(concerned)


def _again(connection: Connection, one: Report) -> Outcome:
    """Where a report belongs now; what is matched stays so, unless its study proves another's."""
    if one.study_instance_uid is None:
        return matching.find(connection, one.claim)
    study = matching.candidate(connection, one.study_instance_uid)
    if study is not None and matching.is_anothers(one.claim, study):
        return Outcome(state="parked", reason=matching.ANOTHERS)
    return Outcome(state="matched", study_instance_uid=one.study_instance_uid)


def _file_all(database: Database, reports: Iterable[FinalReport], kept: Kept) -> list[Filed]:
    with database.transaction() as connection:
        return [_file(connection, final, kept, part=part) for part, final in enumerate(reports)]


def _file(
    connection: Connection,
    final: FinalReport,
    kept: Kept,
    *,
    part: int = 0,
    received_at: datetime | None = None,
    parked: bool = False,
) -> Filed:
    arrived = Arrived(
        final=final, part=part, sha256=kept.sha256, path=kept.path, received_at=received_at
    )
    if parked:
        outcome = Outcome(state="parked", reason=final.reason)
    elif final.verdict == "ignored":
        outcome = Outcome(state="ignored", reason=final.reason)
    else:
        outcome = matching.find(connection, matching.claimed(final.claim))
    return outcome if store.keep(connection, arrived, outcome) is not None else None


def _unreadable(source: Source, reason: str) -> FinalReport:
    return FinalReport(
        source=source, source_uid="", order_key=order_key(), verdict="ignored", reason=reason
    )
