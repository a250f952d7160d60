"""Search: the nearest first, within one model's space, live drafts only."""

from __future__ import annotations

import numpy as np
import pytest

from dicom_node import retrieval
from dicom_node.db import Database
from dicom_node.drafts import Draft
from dicom_node.reports import store
from dicom_node.reports.final import Claim
from dicom_node.reports.matching import Outcome
from dicom_node.retrieval import Hit, Kind
from inference.findings import Embedding, FloatVector
from tests.conftest import DraftFactory, StudyFactory
from tests.dicom_node.reports.made import final, kept, row

DIMENSIONS = 16


def unit(vector: FloatVector) -> FloatVector:
    scaled: FloatVector = (vector / np.linalg.norm(vector)).astype(np.float32)
    return scaled


def embedding(seed: int, *, digest: str = "model") -> Embedding:
    random = np.random.default_rng(seed).standard_normal(DIMENSIONS).astype(np.float32)
    return Embedding(vector=unit(random), digest=digest)


def write(database: Database, draft: Draft, vector: Embedding, kind: Kind = "image") -> None:
    with database.transaction() as connection:
        retrieval.write(connection, draft.study_instance_uid, draft.sop_instance_uid, kind, vector)


def nearest(
    database: Database,
    query: Embedding,
    *,
    kind: Kind = "image",
    limit: int = 10,
    asked: str | None = None,
) -> list[Hit]:
    with database.transaction() as connection:
        return retrieval.nearest(connection, query, kind=kind, limit=limit, asked=asked)


def test_hits_come_in_the_order_and_with_the_scores_of_a_plain_computation(
    database: Database, draft_factory: DraftFactory
) -> None:
    vectors = [embedding(seed) for seed in range(20)]
    kept = [draft_factory() for _ in vectors]
    for draft, vector in zip(kept, vectors, strict=True):
        write(database, draft, vector)
    query = embedding(99)
    cosines = np.array([vector.vector @ query.vector for vector in vectors])
    best = np.argsort(-cosines)[:5]
    hits = nearest(database, query, limit=5)
    assert [hit.study_instance_uid for hit in hits] == [
        kept[index].study_instance_uid for index in best
    ]
    assert [hit.score for hit in hits] == pytest.approx(cosines[best], abs=1e-5)
    assert [hit.text for hit in hits] == [kept[index].text for index in best]


def test_a_vector_finds_itself_with_a_score_of_one(
    database: Database, draft_factory: DraftFactory
) -> None:
    write(database, draft_factory(), embedding(1))
    assert nearest(database, embedding(1))[0].score == pytest.approx(1)


def test_vectors_of_other_models_are_never_compared(
    database: Database, draft_factory: DraftFactory
) -> None:
    write(database, draft_factory(), embedding(1, digest="old model"))
    wider = Embedding(vector=unit(np.ones(2 * DIMENSIONS, np.float32)), digest="wide model")
    write(database, draft_factory(), wider)
    assert nearest(database, embedding(1, digest="new model")) == []
    assert len(nearest(database, wider)) == 1


def test_images_and_reports_are_asked_apart(
    database: Database, draft_factory: DraftFactory
) -> None:
    draft = draft_factory()
    write(database, draft, embedding(1), "image")
    write(database, draft, embedding(2), "report")
    (image,) = nearest(database, embedding(1), kind="image")
    (report,) = nearest(database, embedding(2), kind="report")
    assert (image.kind, report.kind) == ("image", "report")
    assert image.score == pytest.approx(1)
    assert report.score == pytest.approx(1)


def test_superseded_drafts_are_left_out(database: Database, draft_factory: DraftFactory) -> None:
    first = draft_factory()
    write(database, first, embedding(1))
    second = draft_factory(study_instance_uid=first.study_instance_uid, revision=2, version=2)
    write(database, second, embedding(2))
    (hit,) = nearest(database, embedding(1))
    assert hit.text == second.text
    with database.transaction() as connection:
        live = retrieval.stored(connection, first.study_instance_uid, "image")
    assert live is not None
    assert live.vector == pytest.approx(embedding(2).vector, abs=1e-6)


def test_the_study_that_is_asked_about_is_left_out_and_its_patient_is_marked(
    database: Database, draft_factory: DraftFactory, study_factory: StudyFactory
) -> None:
    asked, prior = (study_factory(patient_key="same") for _ in range(2))
    stranger = study_factory(patient_key="other")
    for number, uid in enumerate((asked, prior, stranger)):
        write(database, draft_factory(study_instance_uid=uid), embedding(number))
    hits = nearest(database, embedding(0), asked=asked)
    assert {hit.study_instance_uid: hit.same_patient for hit in hits} == {
        prior: True,
        stranger: False,
    }


def test_studies_without_a_patient_id_are_not_of_the_same_patient(
    database: Database, draft_factory: DraftFactory, study_factory: StudyFactory
) -> None:
    asked, other = (study_factory(patient_key="") for _ in range(2))
    for uid in (asked, other):
        write(database, draft_factory(study_instance_uid=uid), embedding(1))
    (hit,) = nearest(database, embedding(1), asked=asked)
    assert not hit.same_patient


def test_a_stored_vector_comes_back_as_it_was(
    database: Database, draft_factory: DraftFactory
) -> None:
    draft = draft_factory()
    write(database, draft, embedding(7))
    with database.transaction() as connection:
        found = retrieval.stored(connection, draft.study_instance_uid, "image")
        assert retrieval.stored(connection, draft.study_instance_uid, "report") is None
        assert retrieval.stored(connection, "1.2.3", "image") is None
    assert found is not None
    assert found.digest == "model"
    assert found.vector.dtype == np.float32
    assert np.array_equal(found.vector, embedding(7).vector)


# -- final reports ---------------------------------------------------------------------------------


def report(database: Database, uid: str, text: str, vector: Embedding) -> int:
    """A final report of that study, indexed."""
    found = kept(database, final(text, claim=Claim(study_instance_uid=uid)))
    with database.transaction() as connection:
        retrieval.drop_final(connection, uid)
        retrieval.write_final(connection, uid, found.id, vector)
    return found.id


def test_a_final_report_stands_for_the_drafts_text_and_not_for_the_image(
    database: Database, draft_factory: DraftFactory
) -> None:
    draft = draft_factory()
    write(database, draft, embedding(1), "image")
    write(database, draft, embedding(2), "report")
    report(database, draft.study_instance_uid, "Final.", embedding(3))
    (hit,) = nearest(database, embedding(3), kind="report")
    assert (hit.study_instance_uid, hit.kind, hit.text) == (
        draft.study_instance_uid,
        "report",
        "Final.",
    )
    assert hit.score == pytest.approx(1)
    (hit,) = nearest(database, embedding(1), kind="image")
    assert hit.text == draft.text


def test_other_studies_keep_their_drafts_and_the_best_comes_first(
    database: Database, draft_factory: DraftFactory
) -> None:
    reported, drafted = draft_factory(), draft_factory()
    for draft in (reported, drafted):
        write(database, draft, embedding(2), "report")
    report(database, reported.study_instance_uid, "Final.", embedding(3))
    assert [hit.text for hit in nearest(database, embedding(3), kind="report")] == [
        "Final.",
        drafted.text,
    ]


def test_a_final_report_in_another_models_space_does_not_hide_the_draft(
    database: Database, draft_factory: DraftFactory
) -> None:
    draft = draft_factory()
    write(database, draft, embedding(2), "report")
    report(database, draft.study_instance_uid, "Final.", embedding(3, digest="other"))
    (hit,) = nearest(database, embedding(2), kind="report")
    assert hit.text == draft.text


def test_a_report_that_left_the_study_is_not_found_and_the_draft_is_again(
    database: Database, draft_factory: DraftFactory
) -> None:
    draft = draft_factory()
    write(database, draft, embedding(2), "report")
    report_id = report(database, draft.study_instance_uid, "Final.", embedding(3))
    with database.transaction() as connection:
        parked = Outcome(state="parked", reason="another patient's")
        store.settle(connection, row(database, report_id), parked)
    assert [hit.text for hit in nearest(database, embedding(3), kind="report")] == [draft.text]


def test_a_later_final_report_takes_the_earlier_ones_place(
    database: Database, draft_factory: DraftFactory
) -> None:
    uid = draft_factory().study_instance_uid
    report(database, uid, "First.", embedding(1))
    report(database, uid, "Second.", embedding(2))
    assert [hit.text for hit in nearest(database, embedding(1), kind="report")] == ["Second."]
