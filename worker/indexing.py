"""A final report's way into the index: its text is placed where the images are."""

from __future__ import annotations

import logging

from dicom_node import retrieval, studies
from dicom_node.db import Database
from dicom_node.reports import store
from inference.findings import Embedding, InferenceError, ModelFailure
from inference.models import ReportModel

logger = logging.getLogger(__name__)


def index(database: Database, model: ReportModel, report_id: int) -> None:
    """Index the final report that stands now for the study of this one.

    A report that came while the text was placed stays due: the sweep asks for it again.

    Raises
    ------
    ModelFailure
        The device gave out; a later attempt may work.
    OutOfResources
        The database is away.
    """
    with database.transaction() as connection:
        asked = store.find(connection, report_id)
        if asked is None or asked.study_instance_uid is None or asked.indexed_at is not None:
            return
        uid = asked.study_instance_uid
        reports = store.of_study(connection, uid)
    current = store.standing(reports)
    vector = _placed(model, current.text) if current else None
    with database.transaction() as connection:
        studies.snapshot(connection, uid)  # locks the study: one index of it at a time
        if store.of_study(connection, uid) != reports:
            return
        retrieval.drop_final(connection, uid)
        if current is not None and vector is not None:
            retrieval.write_final(connection, uid, current.report.id, vector)
        store.indexed(connection, reports)


def _placed(model: ReportModel, text: str) -> Embedding | None:
    """The text's vector; ``None``: this model places no texts, or not this one."""
    if not text.strip():
        return None
    try:
        return model.embed_text(text)
    except ModelFailure:
        raise
    except InferenceError as error:
        logger.info("a final report is not placed: %s", error)
        return None
