"""A study as a radiologist lives with it: drafts that change, and the final report that comes back.

One running node, its real listeners, one PACS.
"""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import hl7
import pytest
from pydicom import Dataset

from dicom_node import scu
from inference.demo import dicom, phantom
from inference.demo.dicom import ACQUIRED, DemoPatient
from tests.acceptance import phantoms
from tests.acceptance.running_node import MODALITY, START_SECONDS, RunningNode, wait_for
from tests.pacs import Pacs

STUDY = "2.25.4711.4"
PATIENT = DemoPatient(patient_id="READING-ROOM-1", name="READING^ROOM")
FINAL = "Small left pleural effusion. No pneumothorax. The heart is normal in size."


def send(node: RunningNode, folder: Path, **arguments: Any) -> str:
    """One more image of the study; its SOP Instance UID."""
    seed = arguments.pop("seed")
    image = dicom.to_dx(
        phantom.render(phantom.scene(seed)),
        study_instance_uid=STUDY,
        patient=PATIENT,
        **arguments,
    )
    path = folder / f"{image.SOPInstanceUID}.dcm"
    image.save_as(path, enforce_file_format=True)
    assert scu.send_files([path], node.peer, MODALITY)[0].failure is None
    return str(image.SOPInstanceUID)


def ended(node: RunningNode, revision: int) -> dict[str, Any]:
    """The study's account when nothing of that revision is under way any more."""
    wait_for(
        f"revision {revision}",
        START_SECONDS,
        lambda: True if (node.study(STUDY) or {"revision": 0})["revision"] >= revision else None,
    )
    (found,) = node.wait_ended(STUDY)
    return found


def answer(node: RunningNode, message: str) -> str:
    """What the node answers to an HL7 message: MSA-1."""
    where = ("127.0.0.1", node.settings.reports.hl7_port)
    with socket.create_connection(where, 30) as connection:
        connection.sendall(b"\x0b" + message.encode() + b"\x1c\r")
        received = b""
        while b"\x1c" not in received:
            received += connection.recv(4096)
    return str(hl7.parse(received.strip(b"\x0b\x1c\r").decode()).segment("MSA")(1))


def oru(control_id: str, patient_id: str, status: str, findings: str) -> str:
    return "\r".join(
        [
            f"MSH|^~\\&|RIS|HOSP|||20261122120000||ORU^R01^ORU_R01|{control_id}|P|2.5",
            f"PID|1||{patient_id}^^^^MR",
            f"OBR|1||F1|36643-5^XR Chest^LN|||20261122|||||||||||||||||RAD|{status}",
            f"OBX|1|TX|59776-5^Findings^LN||{findings}||||||{status}",
            f"OBX|2|ST|113014^DICOM Study^DCM||{STUDY}||||||{status}",
            "",
        ]
    )


def replaced(draft: Dataset) -> str:
    """The SOP Instance UID of the document that a draft replaces."""
    series = draft.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    return str(series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)


@pytest.fixture(scope="module")
def read(node: RunningNode, pacs: Pacs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The study after an AP, a better PA and a lateral came, each when the one before was done."""
    folder = tmp_path_factory.mktemp("study")
    send(node, folder, seed=51, view_position="AP")
    ended(node, 1)
    send(node, folder, seed=52, view_position="PA", acquired=ACQUIRED + timedelta(minutes=5))
    ended(node, 2)
    stores = pacs.stores
    send(node, folder, seed=53, view_position="LL", acquired=ACQUIRED + timedelta(minutes=9))
    found = ended(node, 3)
    assert pacs.stores == stores, "a late lateral sent something"
    return found


def test_a_better_image_gives_version_2_that_names_the_first(
    read: dict[str, Any], pacs: Pacs
) -> None:
    first, second = read["drafts"]
    assert first["superseded_by"] == second["sop_instance_uid"]
    assert second["superseded_by"] is None
    assert second["predecessor"] == first["sop_instance_uid"]
    assert second["series_instance_uid"] != first["series_instance_uid"]
    arrived = phantoms.parsed(pacs.received[second["sop_instance_uid"]])
    assert replaced(arrived) == first["sop_instance_uid"]
    assert str(arrived.SeriesDescription).endswith(" v2")


def test_a_late_lateral_sends_nothing(read: dict[str, Any]) -> None:
    assert len(read["drafts"]) == 2
    stands = f"the input is unchanged: draft {read['drafts'][1]['sop_instance_uid']} stands"
    assert read["jobs"][-1]["reason"] == stands


def test_the_final_report_is_matched_compared_and_found(
    read: dict[str, Any], node: RunningNode
) -> None:
    assert answer(node, oru("P1", PATIENT.patient_id, "P", "Nothing yet.")) == "AA"
    assert answer(node, oru("F1", PATIENT.patient_id, "F", FINAL)) == "AA"
    assert answer(node, oru("F1", PATIENT.patient_id, "F", FINAL)) == "AA"  # sent again
    (report,) = node.json("study", STUDY)["reports"]
    assert (report["verdict"], report["current"]) == ("final", True)
    assert report["sections"]["findings"] == FINAL
    assert report["comparison"]["draft_uid"] == read["drafts"][1]["sop_instance_uid"]
    wait_for("the report is in the index", START_SECONDS, lambda: indexed(node))
    (best,) = node.json("search", FINAL, "--kind", "report", "--limit", "1")["hits"]
    assert (best["study_instance_uid"], best["text"]) == (STUDY, FINAL)
    rows = node.json("evaluate", "feedback")["rows"]
    assert sum(row["n"] for row in rows) == 1


def indexed(node: RunningNode) -> bool | None:
    found = node.study(STUDY)
    return True if found and all(one["indexed"] for one in found["reports"]) else None


def test_a_report_of_another_patient_is_parked_and_shown(
    read: dict[str, Any], node: RunningNode
) -> None:
    assert answer(node, oru("W1", "SOMEBODY-ELSE", "F", "Large mass.")) == "AA"
    assert all("mass" not in one["text"] for one in node.json("study", STUDY)["reports"])
    (parked,) = node.json("reports", "list", "--parked")["reports"]
    assert parked["source_uid"] == "W1"
    assert "another patient" in parked["reason"]
    assert "reports" in [one["code"] for one in node.status()["warnings"]]


def test_a_draft_of_ours_that_the_pacs_sends_back_is_no_report(
    read: dict[str, Any], node: RunningNode
) -> None:
    path = node.data / read["drafts"][1]["path"]
    assert scu.send_files([path], node.peer, MODALITY)[0].failure is None
    wait_for("it was looked at", START_SECONDS, lambda: _looked_at(node, path.stem) or None)
    assert all(one["source"] != "sr" for one in node.json("study", STUDY)["reports"])
    node.wait_ended(STUDY)


def _looked_at(node: RunningNode, uid: str) -> bool:
    found = node.json("reports", "list")["reports"]
    return any(one["source_uid"] == uid and one["state"] == "ignored" for one in found)
