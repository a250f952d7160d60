"""From a real worklist server to the words of the draft, without the node's processes."""

from __future__ import annotations

from pathlib import Path

import pydicom
import sqlalchemy as sa

from dicom_node import db
from dicom_node.config import Settings
from dicom_node.results import text_sr
from dicom_node.storage import identity_key
from dicom_node.worklist import Worklists
from tests.dicom_node import worklists
from tests.dicom_node.states import claimed
from tests.worker.rule_model import RuleModel
from tests.worker.study import Study
from worker import pipeline
from worker.host import ModelHost


def read(study: Study, host: ModelHost, patient_id: str) -> str:
    """Read the study as that patient's; its draft."""
    study.receive()
    with study.node.database.transaction() as connection:
        keys = {
            "patient_id_key": identity_key(patient_id),
            "accession_key": identity_key("ACC-1"),
        }
        its = db.study.c.study_instance_uid == study.uid
        connection.execute(sa.update(db.study).where(its).values(keys))
    pipeline.analyse(study.node, host, claimed(study.node.database, study.queue()))
    (draft,) = study.account.drafts
    return text_sr.text(pydicom.dcmread(study.node.storage.path(draft.path)))


def test_what_dcmtks_server_says_is_told_to_the_model_for_its_own_patient_only(
    study: Study, host: ModelHost, model: RuleModel, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    served.mkdir()
    entry = worklists.entry(AccessionNumber="ACC-1", StudyInstanceUID=None)
    with worklists.wlmscpfs(served, entry) as server:
        Worklists(Settings(peers=(server,)), study.node.database).ask(server)
    source = "Modality Worklist ris > ReasonForTheRequestedProcedure"
    his = read(study, host, "SECRET-ID")
    another = read(Study(node=study.node, uid="2.25.78"), host, "ANOTHER")
    assert model.told == ["Cough and fever", None]
    assert f"REQUEST\nCough and fever\nRequest from: {source}\n" in his
    assert "REQUEST" not in another
