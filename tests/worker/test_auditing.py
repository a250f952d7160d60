"""A result that went out is told of with it, and only where the site has a collector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
import sqlalchemy as sa
from pydicom.uid import BasicTextSRStorage

from dicom_node import db
from dicom_node.audit import spool
from dicom_node.cli import looking
from dicom_node.config import Audit, Service
from dicom_node.db import Database
from tests.dicom_node.audit import judge
from tests.pacs import Pacs
from tests.worker.study import PATIENT, Study
from worker import tasks
from worker.host import ModelHost
from worker.pipeline import Node
from worker.tasks import Context

COLLECTOR = Audit(url="udp://127.0.0.1:514")


def audited(node: Node) -> Node:
    return replace(node, settings=node.settings.model_copy(update={"audit": COLLECTOR}))


def told(database: Database) -> Sequence[Element]:
    with database.transaction() as connection:
        found = spool.oldest(connection, limit=99, longest=None)
    return [judge.judged(one.message) for one in found]


def deliver(node: Node, host: ModelHost) -> None:
    """A study comes, is read, and its draft goes out."""
    context = Context(node=node, name="net@test", host=host)
    study = Study(node=node)
    study.receive()
    tasks.analyse(context, study.queue())
    for one in study.account.deliveries:
        tasks.deliver(context, one.id)


def test_a_draft_that_a_peer_took_is_told_of(
    pacs_node: Node, host: ModelHost, database: Database
) -> None:
    deliver(audited(pacs_node), host)
    (root,) = told(database)
    receiver = judge.player(root, "110152")
    assert (
        receiver.attrib["AlternativeUserID"] == f"AETITLES={pacs_node.settings.peers[0].ae_title}"
    )
    assert judge.instances(root) == {BasicTextSRStorage: 1}
    assert judge.patient_ids(root) == [PATIENT.patient_id]


def test_without_a_collector_nothing_is_kept(
    pacs_node: Node, host: ModelHost, database: Database
) -> None:
    deliver(pacs_node, host)
    assert told(database) == []


def test_a_draft_that_nobody_took_is_not_told_of(
    pacs_node: Node, host: ModelHost, database: Database, peer_scp: Pacs
) -> None:
    peer_scp.answers = [0xA700]
    deliver(audited(pacs_node), host)
    assert told(database) == []


def test_a_draft_that_is_written_to_a_file_is_told_of_before(
    pacs_node: Node,
    host: ModelHost,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = audited(pacs_node)
    deliver(node, host)
    with database.transaction() as connection:
        uid = connection.scalars(sa.select(db.draft.c.study_instance_uid)).one()
    monkeypatch.setattr(looking.wiring, "database", lambda settings: database)
    settings = node.settings.model_copy(update={"database": Service(url="unused")})
    nowhere = tmp_path / "no such folder" / "draft.dcm"
    with pytest.raises(FileNotFoundError):
        looking.draft(settings, uid, kind=None, output=nowhere, text=False)
    file = tmp_path / "draft.dcm"
    looking.draft(settings, uid, kind=None, output=file, text=False)
    assert file.read_bytes()[128:132] == b"DICM"
    exports = [one for one in told(database) if judge.event(one) == "110106"]
    targets = [judge.player(one, "110154").attrib["UserID"] for one in exports]
    assert targets == [nowhere.as_uri(), file.as_uri()]
    assert judge.patient_ids(exports[1]) == [PATIENT.patient_id]
