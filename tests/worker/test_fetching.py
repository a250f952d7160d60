"""A study that a peer has comes to us once, whole and of the right patient, or it says why not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom.dataset import Dataset
from sqlalchemy import func

from dicom_node import account, db, fetches, queries, reconciliation, studies
from dicom_node.config import Jobs, Peer, Reconciliation, Settings
from dicom_node.config import Node as NodeSettings
from dicom_node.db import Database
from dicom_node.disk import Watermarks
from dicom_node.fetches import MISSED, PRIOR, Fetch, Found
from dicom_node.filing import Origin
from dicom_node.registering import Registrar
from dicom_node.storage import StoredInstance
from tests.dicom_node.network import DIGITAL_X_RAY, encoded, running
from tests.query_pacs import QueryPacs, chest
from worker import fetching, pipeline, tasks
from worker.tasks import Context

US = "DICOMNODE"


@pytest.fixture(scope="module")
def shared() -> Iterator[QueryPacs]:
    """One for all, for its end takes half a second."""
    with QueryPacs() as started:
        yield started


@pytest.fixture
def pacs(shared: QueryPacs) -> QueryPacs:
    """A PACS that holds nothing yet."""
    shared.hold()
    return shared


def worker(database: Database, data: Path, *peers: Peer, **jobs: float) -> Context:
    settings = Settings(
        node=NodeSettings(data=data),
        jobs=Jobs.model_validate({"first_retry_seconds": 0, **jobs}),
        reconciliation=Reconciliation(priors=2),
        peers=peers,
    )
    return Context(node=pipeline.open_node(settings, database), name="net@test", host=None)


@contextmanager
def listening(context: Context, pacs: QueryPacs) -> Iterator[None]:
    """Our SCP, which the PACS knows, over the worker's storage and database."""
    node = context.node
    registrar = Registrar(node.settings, node.database, node.storage)

    def register(stored: StoredInstance) -> None:
        registrar.register(stored, lambda: None)

    data = node.settings.node.data
    with running(data, *node.settings.peers, register=register) as ours:
        pacs.destinations[US] = ("127.0.0.1", ours.port)
        try:
            yield
        finally:
            registrar.close()


def want(context: Context, image: Dataset, purpose: str = MISSED, **values: Any) -> int:
    uid = str(image.StudyInstanceUID)
    one = Found(study_instance_uid=uid, study_date="20260304", peer="pacs")
    with context.database.transaction() as connection:
        assert fetches.want(connection, one, purpose, **values)
    return row(context, uid).id


def row(context: Context, study_instance_uid: str) -> Fetch:
    with context.database.transaction() as connection:
        found = fetches.of_study(connection, study_instance_uid)
    assert found is not None
    return found


def kept(context: Context, image: Dataset) -> list[str]:
    """SOP Instance UIDs that are here."""
    with context.database.transaction() as connection:
        found = studies.instances(connection, str(image.StudyInstanceUID))
    assert all(context.node.storage.path(one.path).is_file() for one in found)
    return [one.sop_instance_uid for one in found]


def state(context: Context, image: Dataset) -> tuple[str, str | None]:
    found = row(context, str(image.StudyInstanceUID))
    return found.state, found.reason


# -- a study ---------------------------------------------------------------------------------------


def test_a_study_is_fetched_by_c_move_and_never_again(
    database: Database, tmp_path: Path, pacs: QueryPacs
) -> None:
    image = chest()
    pacs.hold(image)
    context = worker(database, tmp_path, pacs.peer())
    fetch_id = want(context, image)
    with listening(context, pacs):
        for _ in range(3):
            tasks.fetch(context, fetch_id)
    assert kept(context, image) == [image.SOPInstanceUID]
    assert state(context, image) == ("fetched", None)
    assert len(pacs.moved) == 1


def test_a_study_is_fetched_by_c_get_as_durably(
    database: Database, tmp_path: Path, pacs: QueryPacs
) -> None:
    image = chest()
    pacs.hold(image)
    context = worker(database, tmp_path, pacs.peer(retrieve="get", roles=("query",)))
    tasks.fetch(context, want(context, image))
    assert kept(context, image) == [image.SOPInstanceUID]
    assert state(context, image) == ("fetched", None)
    with database.transaction() as connection:
        told = account.of(connection, str(image.StudyInstanceUID))
    (instance,) = told.instances
    data_set = context.node.storage.path(instance.path).read_bytes()
    assert data_set.endswith(encoded(image))


def test_only_the_series_of_the_chest_are_fetched(
    database: Database, tmp_path: Path, pacs: QueryPacs
) -> None:
    image = chest()
    same = {"StudyInstanceUID": image.StudyInstanceUID}
    pacs.hold(image, chest(BodyPartExamined="KNEE", **same), chest(Modality="CT", **same))
    context = worker(database, tmp_path, pacs.peer(retrieve="get"))
    tasks.fetch(context, want(context, image))
    assert kept(context, image) == [image.SOPInstanceUID]
    assert pacs.got == [image.SeriesInstanceUID]


def test_what_came_in_part_is_completed_and_what_is_here_not_asked_for_again(
    database: Database, tmp_path: Path, pacs: QueryPacs
) -> None:
    first = chest()
    second = chest(StudyInstanceUID=first.StudyInstanceUID)
    pacs.hold(first, second)
    pacs.failing.add(second.SOPInstanceUID)
    context = worker(database, tmp_path, pacs.peer(), longest_retry_seconds=0)
    fetch_id = want(context, first)
    with listening(context, pacs):
        tasks.fetch(context, fetch_id)
        left, reason = state(context, first)
        assert left == "due"
        assert kept(context, first) == [first.SOPInstanceUID]
        pacs.failing.clear()
        pacs.moved.clear()
        tasks.fetch(context, fetch_id)
    assert "1 of 2 objects" in str(reason) or "0xA702" in str(reason)
    assert len(kept(context, first)) == 2
    assert pacs.moved == [second.SeriesInstanceUID]
    assert state(context, first)[0] == "fetched"


@pytest.mark.parametrize("retrieve", ["move", "get"])
def test_the_rest_of_a_study_that_came_in_part_is_fetched(
    retrieve: str, database: Database, tmp_path: Path, pacs: QueryPacs
) -> None:
    first = chest()
    second = chest(StudyInstanceUID=first.StudyInstanceUID)
    pacs.hold(first, second)
    context = worker(database, tmp_path, pacs.peer(retrieve=retrieve))
    uid = received(context, first)
    with database.transaction() as connection:
        rest = Found(study_instance_uid=uid, study_date="20260304", peer="pacs")
        assert fetches.complete(connection, rest)
    with listening(context, pacs):
        tasks.fetch(context, row(context, uid).id)
    assert sorted(kept(context, first)) == sorted([first.SOPInstanceUID, second.SOPInstanceUID])
    assert pacs.moved + pacs.got == [second.SeriesInstanceUID]
    assert state(context, first) == ("fetched", None)


def test_a_worker_that_died_after_all_came_leaves_nothing_to_ask_for(
    database: Database, tmp_path: Path, pacs: QueryPacs
) -> None:
    image = chest()
    pacs.hold(image)
    context = worker(database, tmp_path, pacs.peer())
    fetch_id = want(context, image)
    with listening(context, pacs):
        with database.transaction() as connection:
            held = fetches.claim(
                connection, fetch_id, lease=timedelta(0), worker="dead", per_hour=60
            )
        assert held is not None
        wanted = fetching._wanted(context.node, pacs.peer(), str(image.StudyInstanceUID))
        fetching._retrieve(context.node, pacs.peer(), held, wanted)
        tasks.fetch(context, fetch_id)
    assert len(pacs.moved) == 1
    assert state(context, image)[0] == "fetched"
    assert row(context, str(image.StudyInstanceUID)).claims == 2


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        pytest.param({}, "0xA801: move destination unknown: the PACS must know", id="unknown us"),
        pytest.param({"port": 1}, "can't be reached", id="away"),
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # pynetdicom's
def test_a_peer_that_does_not_give_it_is_asked_again_later(
    database: Database, tmp_path: Path, pacs: QueryPacs, changes: dict[str, Any], why: str
) -> None:
    image = chest()
    pacs.hold(image)
    context = worker(database, tmp_path, pacs.peer(**changes))
    tasks.fetch(context, want(context, image))
    left, reason = state(context, image)
    assert left == "due"
    assert why in str(reason)


def test_after_a_day_it_has_failed_and_says_why(
    database: Database, tmp_path: Path, pacs: QueryPacs
) -> None:
    image = chest()
    pacs.hold(image)
    context = worker(database, tmp_path, pacs.peer(), longest_retry_seconds=0)
    fetch_id = want(context, image)
    tasks.fetch(context, fetch_id)
    with database.transaction() as connection:
        started = func.now() - timedelta(hours=25)
        connection.execute(sa.update(db.fetch).values(started_at=started))
    tasks.fetch(context, fetch_id)
    left, reason = state(context, image)
    assert left == "failed"
    assert "0xA801" in str(reason)


@pytest.mark.parametrize(
    ("roles", "why"),
    [
        pytest.param(("query",), "give it the role source too", id="may not send to us"),
        pytest.param(("source",), "is no longer asked", id="not asked any more"),
    ],
)
def test_a_peer_that_is_not_set_up_for_it_fails_at_once(
    database: Database, tmp_path: Path, pacs: QueryPacs, roles: tuple[str, ...], why: str
) -> None:
    image = chest()
    context = worker(database, tmp_path, pacs.peer(roles=roles))
    tasks.fetch(context, want(context, image))
    left, reason = state(context, image)
    assert left == "failed"
    assert why in str(reason)


def test_a_study_that_the_peer_has_no_more_is_told(
    database: Database, tmp_path: Path, pacs: QueryPacs
) -> None:
    image = chest()
    context = worker(database, tmp_path, pacs.peer())
    tasks.fetch(context, want(context, image))
    assert "lists no object of the chest" in str(state(context, image)[1])


def test_nothing_is_asked_for_while_the_disk_is_full(
    database: Database, tmp_path: Path, pacs: QueryPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = chest()
    pacs.hold(image)
    context = worker(database, tmp_path, pacs.peer())
    monkeypatch.setattr(Watermarks, "accepting", property(lambda self: False))
    tasks.fetch(context, want(context, image))
    assert pacs.moved == []
    assert state(context, image)[0] == "fetching", "until its lease ends"


def test_a_bug_is_a_failure_without_anything_of_the_patient(
    database: Database,
    tmp_path: Path,
    pacs: QueryPacs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fault = ValueError("VERYSECRET^NAME")

    def broken(*arguments: object, **more: object) -> None:
        raise fault

    monkeypatch.setattr(queries, "inquiry", broken)
    image = chest()
    context = worker(database, tmp_path, pacs.peer())
    tasks.fetch(context, want(context, image))
    assert state(context, image) == ("failed", "bug: ValueError")
    assert "VERYSECRET" not in caplog.text


def test_a_peer_can_not_slip_in_another_study(
    database: Database, tmp_path: Path, pacs: QueryPacs, caplog: pytest.LogCaptureFixture
) -> None:
    image, other = chest(), chest()
    pacs.hold(image)
    pacs._wanted = lambda question: [other]  # type: ignore[method-assign]
    try:
        context = worker(database, tmp_path, pacs.peer(retrieve="get"))
        tasks.fetch(context, want(context, image))
    finally:
        del pacs._wanted
    assert "of another study than was asked for" in caplog.text
    assert kept(context, other) == []


# -- priors ----------------------------------------------------------------------------------------


def settled(context: Context) -> None:
    with context.database.transaction() as connection:
        connection.execute(sa.update(db.study).values(settle_at=func.now()))
        studies.settle(connection, ["demo"], fetches.search)


def received(context: Context, image: Dataset) -> str:
    """A modality sent it, and it is complete."""
    node = context.node
    incoming = node.storage.receive(
        sop_class_uid=DIGITAL_X_RAY,
        sop_instance_uid=str(image.SOPInstanceUID),
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    )
    incoming.write(encoded(image))
    origin = Origin(
        sop_class_uid=DIGITAL_X_RAY,
        sop_instance_uid=str(image.SOPInstanceUID),
        transfer_syntax=image.file_meta.TransferSyntaxUID,
        calling_ae_title="MODALITY",
        address="127.0.0.1",
    )
    registrar = Registrar(node.settings, node.database, node.storage)
    registrar.register(fetching.filing.file(incoming, origin), incoming.settle)
    registrar.close()
    settled(context)
    return str(image.StudyInstanceUID)


def search(context: Context) -> None:
    with context.database.transaction() as connection:
        ids = fetches.nudge_searches(connection, every=timedelta(0))
    for search_id in ids:
        tasks.search_priors(context, search_id)


def fetch_all(context: Context) -> None:
    while True:
        with context.database.transaction() as connection:
            due = fetches.nudge(connection, every=timedelta(0), per_hour=60)
        if not due:
            return
        for fetch_id in due:
            tasks.fetch(context, fetch_id)


def events(context: Context, uid: str, subject: str) -> list[str | None]:
    with context.database.transaction() as connection:
        return [one.reason for one in account.of(connection, uid).events if one.subject == subject]


def test_a_complete_study_gets_the_priors_of_its_patient_and_only_those(
    database: Database, tmp_path: Path, pacs: QueryPacs
) -> None:
    current = chest()
    newest, older, oldest = (chest(StudyDate=f"{year}0101") for year in (2025, 2024, 2023))
    namesake = chest(StudyDate="20250601", PatientID="OTHER")
    elsewhere = chest(StudyDate="20250602", IssuerOfPatientID="ELSEWHERE")
    pacs.hold(current, newest, older, oldest, namesake, elsewhere)
    context = worker(database, tmp_path, pacs.peer(retrieve="get"))
    uid = received(context, current)
    search(context)
    search(context)
    assert events(context, uid, "priors") == ["2 earlier studies found, 2 of them to be fetched"]
    fetch_all(context)
    settled(context)
    for one in (newest, older):
        assert kept(context, one) == [one.SOPInstanceUID]
        with database.transaction() as connection:
            told = account.of(connection, str(one.StudyInstanceUID))
        assert (told.study.state, told.jobs) == ("complete", [])
    for one in (oldest, namesake, elsewhere):
        assert kept(context, one) == []
    search(context)
    with database.transaction() as connection:
        assert connection.scalar(sa.select(func.count()).select_from(db.prior_search)) == 1


def test_what_comes_as_a_prior_and_names_another_patient_is_none(
    database: Database, tmp_path: Path, pacs: QueryPacs
) -> None:
    current, wrong = chest(), chest(StudyDate="20250101", PatientID="OTHER")
    pacs.hold(current, wrong)
    context = worker(database, tmp_path, pacs.peer(retrieve="get"))
    uid = received(context, current)
    want(context, wrong, PRIOR, prior_of=uid)
    fetch_all(context)
    left, reason = state(context, wrong)
    assert left == "failed"
    assert "its objects name another: it is no prior" in str(reason)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # pynetdicom's
def test_a_search_waits_for_a_peer_that_is_away(
    database: Database, tmp_path: Path, pacs: QueryPacs
) -> None:
    current, prior = chest(), chest(StudyDate="20250101")
    pacs.hold(current, prior)
    away = worker(database, tmp_path, pacs.peer(port=1))
    received(away, current)
    search(away)
    with database.transaction() as connection:
        row = connection.execute(sa.select(db.prior_search)).mappings().one()
    assert row["state"] == "due"
    assert "can't be reached" in row["reason"]
    back = worker(database, tmp_path, pacs.peer())
    search(back)
    with database.transaction() as connection:
        (queued,) = fetches.priors_of(connection, str(current.StudyInstanceUID))
    assert queued.study_instance_uid == prior.StudyInstanceUID


def test_a_study_that_says_nothing_of_its_patient_has_none(
    database: Database, tmp_path: Path, pacs: QueryPacs
) -> None:
    current = chest(PatientID=None)
    pacs.hold(current, chest(StudyDate="20250101", PatientID=None))
    context = worker(database, tmp_path, pacs.peer())
    uid = received(context, current)
    search(context)
    assert events(context, uid, "priors") == ["0 earlier studies found, 0 of them to be fetched"]
    assert reconciliation.header_of(database, context.node.storage, uid).patient.patient_id == ""
