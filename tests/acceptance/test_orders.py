"""What an order said, in prompt and draft: from HL7 and from DCMTK's worklist server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hl7
import pytest
import sqlalchemy as sa

from dicom_node import db, scu
from dicom_node.priorities import STAT
from dicom_node.results import text_sr
from inference.demo import dicom, phantom
from inference.demo.dicom import DemoPatient
from tests.acceptance import phantoms
from tests.acceptance.running_node import (
    MODALITY,
    START_SECONDS,
    RunningNode,
    running,
    wait_for,
)
from tests.dicom_node import worklists
from tests.pacs import Pacs

pytestmark = pytest.mark.alone

REASON = "Fever and cough, verysecret"
WORKLIST = """
[worklist]
every_seconds = 1

[[peers]]
name = "worklist"
ae_title = "{title}"
host = "127.0.0.1"
port = {port}
roles = ["worklist"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A study that no header says the reason of."""

    uid: str
    patient_id: str
    accession: str
    seed: int

    def send(self, node: RunningNode, folder: Path) -> None:
        image = dicom.to_dx(
            phantom.render(phantom.scene(self.seed)),
            study_instance_uid=self.uid,
            patient=DemoPatient(patient_id=self.patient_id),
        )
        image.AccessionNumber = self.accession
        path = folder / f"{self.uid}.dcm"
        image.save_as(path, enforce_file_format=True)
        assert scu.send_files([path], node.peer, MODALITY)[0].failure is None


def drafted(node: RunningNode, pacs: Pacs, uid: str) -> tuple[dict[str, Any], str]:
    """The study's account when its draft is delivered, and what the PACS then shows of it."""
    (found,) = node.wait_ended(uid)
    (draft,) = found["drafts"]
    return found, text_sr.text(phantoms.parsed(pacs.received[draft["sop_instance_uid"]]))


def given(node: RunningNode, uid: str) -> str | None:
    """The indication in the prompt, as the model returned what it was given."""
    query = sa.select(db.draft.c.record).where(db.draft.c.study_instance_uid == uid)
    with node.database.transaction() as connection:
        record: dict[str, Any] = connection.execute(query).scalar_one()
    return record["history"]


def request(source: str) -> str:
    return f"REQUEST\n{REASON}\nRequest from: {source}\n"


def priorities(node: RunningNode, uid: str) -> set[int]:
    query = sa.select(db.delivery.c.priority).join(
        db.draft, db.draft.c.sop_instance_uid == db.delivery.c.draft_uid
    )
    with node.database.transaction() as connection:
        return set(connection.scalars(query.where(db.draft.c.study_instance_uid == uid)))


# -- HL7 -------------------------------------------------------------------------------------------


def orm(control: str, patient_id: str, accession: str) -> str:
    return "\r".join(
        [
            f"MSH|^~\\&|RIS|HOSP|||20261122120000||ORM^O01|O-{accession}{control}|P|2.3.1",
            f"PID|1||{patient_id}^^^^MR||VERYSECRET^NAME||19010203",
            f"ORC|{control}|P-{accession}|||||^^^^^S",
            f"OBR|1|P-{accession}||XRCHEST||||||||||||||{accession}|||||||||||||^{REASON}",
            "",
        ]
    )


def answer(node: RunningNode, message: str) -> str:
    """What the node answers to an HL7 message: MSA-1."""
    where = ("127.0.0.1", node.settings.reports.hl7_port)
    with socket.create_connection(where, 30) as connection:
        connection.sendall(b"\x0b" + message.encode() + b"\x1c\r")
        received = b""
        while b"\x1c" not in received:
            received += connection.recv(4096)
    return str(hl7.parse(received.strip(b"\x0b\x1c\r").decode()).segment("MSA")(1))


def test_an_hl7_order_is_told_to_the_model_and_only_for_its_own_patient(
    node: RunningNode, pacs: Pacs, tmp_path: Path
) -> None:
    his = Planned(uid="2.25.4711.61", patient_id="ORDERS-1", accession="ACC-61", seed=61)
    another = Planned(uid="2.25.4711.62", patient_id="ORDERS-2", accession="ACC-61", seed=62)
    cancelled = Planned(uid="2.25.4711.63", patient_id="ORDERS-3", accession="ACC-63", seed=63)
    assert answer(node, orm("NW", "ORDERS-1", "ACC-61")) == "AA"
    assert answer(node, orm("NW", "ORDERS-3", "ACC-63")) == "AA"
    assert answer(node, orm("CA", "ORDERS-3", "ACC-63")) == "AA"
    for one in (his, another, cancelled):
        one.send(node, tmp_path)
    account, text = drafted(node, pacs, his.uid)
    assert given(node, his.uid) == REASON
    assert request("HL7 ORM RIS > OBR-31") in text
    assert account["indication"] == {"source": "HL7 ORM RIS > OBR-31"}
    assert priorities(node, his.uid) == {STAT}
    for one in (another, cancelled):
        account, text = drafted(node, pacs, one.uid)
        assert given(node, one.uid) is None
        assert (account["indication"], "REQUEST" in text) == (None, False)
    logs = [file.read_text("utf-8") for file in (node.data / "log").glob("*.log")]
    assert "verysecret" not in "".join(logs).lower()


# -- Modality Worklist -----------------------------------------------------------------------------


@pytest.fixture
def asking(pacs: Pacs, tmp_path: Path) -> Iterator[tuple[RunningNode, Path]]:
    """A node that asks DCMTK's worklist server, and the folder that this one answers from."""
    served = tmp_path / "served"
    served.mkdir()
    with worklists.wlmscpfs(served) as server:
        more = WORKLIST.format(title=server.ae_title, port=server.port)
        home = tmp_path / "home"
        home.mkdir()
        with running(home, pacs_title="PACS", pacs_port=pacs.port, more=more) as started:
            yield started, served / worklists.TITLE


@pytest.mark.slow  # short: tests/worker/test_orders.py, without processes of the node's own
def test_a_worklist_entry_is_told_to_the_model_and_only_for_its_own_patient(
    asking: tuple[RunningNode, Path], pacs: Pacs, tmp_path: Path
) -> None:
    node, served = asking
    his = Planned(uid="2.25.4711.71", patient_id="ORDERS-1", accession="ACC-71", seed=71)
    another = Planned(uid="2.25.4711.72", patient_id="ORDERS-2", accession="ACC-71", seed=72)
    entry = worklists.entry(
        StudyInstanceUID=his.uid,
        PatientID=his.patient_id,
        AccessionNumber=his.accession,
        ReasonForTheRequestedProcedure=REASON,
        RequestedProcedurePriority="STAT",
    )
    worklists.write(served, entry)
    wait_for("the order is known", START_SECONDS, lambda: known(node) or None)
    for one in (his, another):
        one.send(node, tmp_path)
    _, text = drafted(node, pacs, his.uid)
    assert given(node, his.uid) == REASON
    assert request("Modality Worklist worklist > ReasonForTheRequestedProcedure") in text
    assert priorities(node, his.uid) == {STAT}
    _, text = drafted(node, pacs, another.uid)
    assert given(node, another.uid) is None
    assert "REQUEST" not in text
    assert "worklist" not in [one["code"] for one in node.status()["warnings"]]


def known(node: RunningNode) -> int:
    with node.database.transaction() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(db.imaging_order)) or 0
