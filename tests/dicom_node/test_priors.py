"""A patient's earlier studies as they are shown: surely of the same patient, and of the chest."""

from __future__ import annotations

import pytest

from dicom_node import account, fetches, jobs, priors
from dicom_node.db import Database
from dicom_node.fetches import PRIOR, Found
from dicom_node.identity import MIXED
from dicom_node.priors import EarlierStudy
from dicom_node.storage import Identity
from tests.conftest import StudyFactory
from tests.dicom_node.states import claimed

HIM = {"patient_id_key": "a", "patient_issuer_key": "b"}


def study(factory: StudyFactory, day: str, **keys: str) -> str:
    return factory(identity=Identity(study_date=day, **{**HIM, **keys}))


def read(database: Database, uid: str) -> str:
    """The study's job has ended with a draft."""
    with database.transaction() as connection:
        job_id = jobs.create(connection, uid, 1, "demo")
    assert job_id is not None
    held = claimed(database, job_id)
    with database.transaction() as connection:
        jobs.drafted(connection, held, {"sop_instance_uid": "1.2.3", "rule": "x"})
    return uid


def shown(database: Database, uid: str) -> list[EarlierStudy]:
    with database.transaction() as connection:
        return priors.of_study(connection, uid)


def want(database: Database, uid: str, prior_of: str, day: str = "20240101") -> None:
    found = Found(study_instance_uid=uid, study_date=day, peer="pacs")
    with database.transaction() as connection:
        assert fetches.want(connection, found, PRIOR, prior_of=prior_of)


def test_what_was_read_before_is_a_prior_newest_first(
    database: Database, study_factory: StudyFactory
) -> None:
    current = study(study_factory, "20260304")
    older = read(database, study(study_factory, "20240101"))
    newer = read(database, study(study_factory, "20250101"))
    read(database, study(study_factory, "20260401"))
    study(study_factory, "20250601")  # nobody knows whether it shows a chest
    found = shown(database, current)
    assert [one.study_instance_uid for one in found] == [newer, older]
    assert {(one.state, one.peer) for one in found} == {("here", None)}


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({"patient_id_key": "x"}, id="another id"),
        pytest.param({"patient_issuer_key": "x"}, id="another issuer"),
        pytest.param({"patient_issuer_key": ""}, id="no issuer"),
    ],
)
def test_another_patients_study_is_none(
    database: Database, study_factory: StudyFactory, keys: dict[str, str]
) -> None:
    current = study(study_factory, "20260304")
    read(database, study(study_factory, "20250101", **keys))
    assert shown(database, current) == []


def test_a_study_of_several_patients_has_none(
    database: Database, study_factory: StudyFactory
) -> None:
    mixed = study(study_factory, "20260304", patient_id_key=MIXED)
    read(database, study(study_factory, "20250101", patient_id_key=MIXED))
    assert shown(database, mixed) == []


def test_one_that_is_still_to_come_is_shown_with_its_state(
    database: Database, study_factory: StudyFactory
) -> None:
    current = study(study_factory, "20260304")
    want(database, "2.25.5", current)
    (one,) = shown(database, current)
    assert (one.study_instance_uid, one.state, one.peer) == ("2.25.5", "due", "pacs")
    with database.transaction() as connection:
        (told,) = account.to_json(account.of(connection, current))["priors"]
    assert told["study_date"] == "20240101"
