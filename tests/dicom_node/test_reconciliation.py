"""What a PACS has and we have not is found, once, and of the right patient only."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom.dataset import Dataset

from dicom_node import db, fetches, queries, reconciliation, studies
from dicom_node.config import Peer, Reconciliation, Settings
from dicom_node.db import Database
from dicom_node.errors import NotFound, Unreadable
from dicom_node.reconciliation import Comparison
from dicom_node.registering import Registrar
from dicom_node.storage import Storage
from tests.conftest import StudyFactory, make_stored_instance
from tests.dicom_node.network import encoded, keep_instance
from tests.query_pacs import OPTIONAL, QueryPacs, chest

DAY = "20260304"
ONCE = Reconciliation(days=1, patience_minutes=0)


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


def site(*peers: Peer, **wanted: Any) -> Settings:
    return Settings(peers=peers, reconciliation=ONCE.model_copy(update=wanted))


def part_of(image: Dataset, **changes: Any) -> Dataset:
    """Another object of its study."""
    return chest(StudyInstanceUID=image.StudyInstanceUID, StudyDate=image.StudyDate, **changes)


def holding(study_factory: StudyFactory, image: Dataset) -> None:
    """We have received it."""
    study_factory(
        study_instance_uid=str(image.StudyInstanceUID),
        sop_instance_uid=str(image.SOPInstanceUID),
    )


def today() -> str:
    return f"{datetime.now(UTC).astimezone():%Y%m%d}"


def rows(database: Database) -> dict[str, tuple[str, str]]:
    """Study Instance UID: purpose and state of its fetch."""
    with database.transaction() as connection:
        found = connection.execute(
            sa.select(db.fetch.c.study_instance_uid, db.fetch.c.purpose, db.fetch.c.state)
        ).all()
    return {uid: (purpose, state) for uid, purpose, state in found}


def compared(database: Database, settings: Settings, day: str = DAY) -> Comparison:
    (peer,) = settings.peers
    with queries.inquiry(peer, "DICOMNODE") as asked:
        return reconciliation.compare(database, settings, asked, peer, day)


# -- by day ----------------------------------------------------------------------------------------


def test_what_the_pacs_has_and_we_have_not_is_missing(
    database: Database, pacs: QueryPacs, study_factory: StudyFactory
) -> None:
    missing, here = chest(), chest()
    holding(study_factory, here)
    pacs.hold(missing, here)
    comparison = compared(database, site(pacs.peer()))
    assert comparison.found == 2
    (only,) = comparison.missed
    assert only.study.study_instance_uid == missing.StudyInstanceUID
    assert (only.state, only.absent) == (None, None)


def test_of_a_study_that_is_here_in_part_the_rest_is_missing(
    database: Database, pacs: QueryPacs, study_factory: StudyFactory
) -> None:
    here = chest(StudyDate=today())
    late = part_of(here), part_of(here)
    holding(study_factory, here)
    # A report and a knee, which nobody would fetch, are no part that is missing.
    pacs.hold(here, *late, part_of(here, Modality="SR"), part_of(here, BodyPartExamined="KNEE"))
    settings = site(pacs.peer())
    comparison = compared(database, settings, today())
    (only,) = comparison.missed
    assert (only.study.study_instance_uid, only.absent) == (here.StudyInstanceUID, 2)
    sweep = reconciliation.Sweep(database, settings)
    for _ in range(2):
        sweep()
    assert rows(database) == {here.StudyInstanceUID: ("incomplete", "due")}
    assert compared(database, settings, today()).missed[0].state == "due"


@pytest.mark.parametrize(
    ("told", "looks"),
    [
        pytest.param(OPTIONAL, [1, 1, 2], id="that tells how many objects a study has"),
        pytest.param((), [1, 2, 3], id="that does not tell"),
    ],
)
def test_a_whole_study_is_looked_at_again_when_the_peer_may_have_more(
    told: tuple[str, ...],
    looks: list[int],
    database: Database,
    pacs: QueryPacs,
    study_factory: StudyFactory,
) -> None:
    here = chest(StudyDate=today())
    holding(study_factory, here)
    pacs.hold(here, told=told)
    sweep, seen = reconciliation.Sweep(database, site(pacs.peer())), []
    for held in ((here,), (here,), (here, part_of(here))):
        pacs.held = [*held]
        sweep()
        levels = [one.QueryRetrieveLevel for one in pacs.asked]
        seen.append(levels.count("SERIES"))
        assert (rows(database) == {}) is (len(held) == 1)
    assert seen == looks


def test_a_part_that_could_not_be_fetched_waits_for_a_person(
    database: Database, pacs: QueryPacs, study_factory: StudyFactory
) -> None:
    here = chest(StudyDate=today())
    holding(study_factory, here)
    pacs.hold(here, part_of(here))
    settings = site(pacs.peer())
    reconciliation.Sweep(database, settings)()
    with database.transaction() as connection:
        connection.execute(sa.update(db.fetch).values(state="failed"))
    reconciliation.Sweep(database, settings)()
    assert rows(database) == {here.StudyInstanceUID: ("incomplete", "failed")}
    assert compared(database, settings, today()).missed[0].state == "failed"


def test_a_study_of_another_body_part_is_skipped_and_not_asked_for_again(
    database: Database, pacs: QueryPacs
) -> None:
    knee = chest(BodyPartExamined="KNEE")
    pacs.hold(knee)
    for _ in range(2):
        comparison = compared(database, site(pacs.peer()))
        assert comparison.missed == []
        with database.transaction() as connection:
            assert reconciliation.queue(connection, comparison) == 0
    assert rows(database) == {knee.StudyInstanceUID: ("missed", "skipped")}
    levels = [one.QueryRetrieveLevel for one in pacs.asked]
    assert levels.count("SERIES") == 1


def test_of_a_peer_that_tells_no_modality_the_series_are_asked(
    database: Database, pacs: QueryPacs
) -> None:
    dx, ct = chest(), chest(Modality="CT")
    pacs.hold(dx, ct, told=(), matches=())
    comparison = compared(database, site(pacs.peer()))
    assert [one.study.study_instance_uid for one in comparison.missed] == [dx.StudyInstanceUID]


def test_two_sweeps_queue_a_study_once(database: Database, pacs: QueryPacs) -> None:
    missed = chest(StudyDate=today())
    pacs.hold(missed)
    settings = site(pacs.peer())
    for _ in range(2):
        reconciliation.Sweep(database, settings)()
    assert rows(database) == {missed.StudyInstanceUID: ("missed", "due")}
    with database.transaction() as connection:
        days = connection.execute(sa.select(db.reconciled_day)).mappings().all()
    by_day = {one["study_date"]: (one["found"], one["missing"]) for one in days}
    assert by_day[today()] == (1, 1)
    assert len(by_day) == 2, "tomorrow's date too"


def test_a_study_that_may_be_on_its_way_is_left_alone_for_a_while(
    database: Database, pacs: QueryPacs
) -> None:
    pacs.hold(chest(StudyDate=today()))
    reconciliation.Sweep(database, site(pacs.peer(), patience_minutes=30))()
    with database.transaction() as connection:
        wait = connection.scalar(sa.select(db.fetch.c.due_at - db.fetch.c.found_at))
        assert wait == timedelta(minutes=30)
        assert fetches.nudge(connection, every=timedelta(0), per_hour=60) == []


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # pynetdicom's
def test_a_peer_that_is_away_does_not_keep_the_others_from_it(
    database: Database, pacs: QueryPacs, caplog: pytest.LogCaptureFixture
) -> None:
    missed = chest(StudyDate=today())
    pacs.hold(missed)
    away = Peer(name="away", ae_title="AWAY", host=("127.0.0.1",), port=1, roles=("query",))
    with caplog.at_level(logging.WARNING):
        reconciliation.Sweep(database, site(away, pacs.peer()))()
    assert missed.StudyInstanceUID in rows(database)
    assert "reconciliation: away (AWAY@127.0.0.1:1) can't be reached" in caplog.text


@pytest.mark.parametrize(
    ("days", "roles", "runs"),
    [
        pytest.param(7, ("query",), True, id="wanted"),
        pytest.param(0, ("query",), False, id="no days"),
        pytest.param(7, ("source",), False, id="nobody is asked"),
    ],
)
def test_the_sweep_runs_where_the_site_wants_it(
    database: Database, pacs: QueryPacs, days: int, roles: tuple[str, ...], runs: bool
) -> None:
    settings = site(pacs.peer(roles=roles), days=days)
    assert bool(reconciliation.periodics(settings, database)) is runs


def test_the_newest_day_is_first(database: Database) -> None:
    with database.transaction() as connection:
        days = reconciliation.last_days(connection, 3)
    assert days == sorted(days, reverse=True)
    assert days[1] == today()
    assert len(days) == 4


# -- by patient ------------------------------------------------------------------------------------


def keep(database: Database, data: Path, image: Dataset) -> str:
    """Receive an image; its study."""
    storage = Storage(data)
    kept = keep_instance(
        storage,
        study_instance_uid=image.StudyInstanceUID,
        sop_instance_uid=image.SOPInstanceUID,
        sop_class_uid=image.SOPClassUID,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        data_set=encoded(image),
    )
    stored = make_stored_instance(
        study_instance_uid=str(image.StudyInstanceUID),
        sop_instance_uid=str(image.SOPInstanceUID),
        path=kept.path,
        sha256=kept.sha256,
    )
    registrar = Registrar(Settings(), database, storage)
    registrar.register(stored, lambda: None)
    registrar.close()
    return stored.study_instance_uid


def found_priors(pacs: QueryPacs, current: Dataset, count: int = 3, **wanted: Any) -> list[str]:
    of = queries.study_of(current)
    assert of is not None
    found, faults = reconciliation.priors(site(pacs.peer(), **wanted), of, count)
    assert faults == []
    return [one.study.study_instance_uid for one in found]


def earlier(day: str, **changes: Any) -> Dataset:
    return chest(StudyDate=day, **changes)


def test_the_newest_earlier_chest_studies_of_the_patient_are_found(pacs: QueryPacs) -> None:
    current, last, before, long_ago = (
        earlier(day) for day in ("20260304", "20250101", "20240101", "20100101")
    )
    later, knee = earlier("20260401"), earlier("20251231", BodyPartExamined="KNEE")
    pacs.hold(long_ago, current, last, later, knee, before)
    assert found_priors(pacs, current, 2) == [last.StudyInstanceUID, before.StudyInstanceUID]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"PatientID": "OTHER"}, id="the same name, another id"),
        pytest.param({"IssuerOfPatientID": "ELSEWHERE"}, id="the same id of another issuer"),
        pytest.param({"PatientBirthDate": "19800101"}, id="the same id, born on another day"),
    ],
)
def test_another_patients_study_is_no_prior(pacs: QueryPacs, changes: dict[str, str]) -> None:
    current, mine = chest(), earlier("20250101")
    pacs.hold(current, mine, earlier("20250202", **changes))
    assert found_priors(pacs, current) == [mine.StudyInstanceUID]


def test_of_the_same_day_the_earlier_one_is_a_prior(pacs: QueryPacs) -> None:
    current = chest(StudyTime="101500")
    before, after = chest(StudyTime="090000"), chest(StudyTime="110000")
    pacs.hold(current, before, after)
    assert found_priors(pacs, current) == [before.StudyInstanceUID]


def test_a_study_without_a_date_has_no_priors(pacs: QueryPacs) -> None:
    pacs.hold(earlier("20250101"))
    assert found_priors(pacs, chest(StudyDate=None)) == []


def test_a_prior_that_we_have_is_not_fetched(
    database: Database, pacs: QueryPacs, study_factory: StudyFactory
) -> None:
    current, here, there = chest(), earlier("20250101"), earlier("20240101")
    study_factory(study_instance_uid=str(here.StudyInstanceUID))
    pacs.hold(current, here, there)
    of = queries.study_of(current)
    assert of is not None
    settings = site(pacs.peer())
    found, _ = reconciliation.priors(settings, of, 3)
    with database.transaction() as connection:
        uid = str(current.StudyInstanceUID)
        assert reconciliation.queue_priors(connection, settings, found, uid) == 1
        assert reconciliation.queue_priors(connection, settings, found, uid) == 0
    assert rows(database) == {there.StudyInstanceUID: ("prior", "due")}


def test_a_prior_of_a_day_that_is_swept_is_a_missed_study_and_will_be_read(
    database: Database, pacs: QueryPacs
) -> None:
    current = chest(StudyDate=today(), StudyTime="235900")
    missed, long_ago = chest(StudyDate=today(), StudyTime="000100"), earlier("20240101")
    pacs.hold(missed, long_ago)
    of = queries.study_of(current)
    assert of is not None
    settings = site(pacs.peer())
    found, _ = reconciliation.priors(settings, of, 3)
    with database.transaction() as connection:
        reconciliation.queue_priors(connection, settings, found, str(current.StudyInstanceUID))
    purposes = {uid: purpose for uid, (purpose, _) in rows(database).items()}
    assert purposes == {missed.StudyInstanceUID: "missed", long_ago.StudyInstanceUID: "prior"}


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # pynetdicom's
def test_what_one_peer_has_is_found_though_another_is_away(pacs: QueryPacs) -> None:
    current, mine = chest(), earlier("20250101")
    pacs.hold(current, mine)
    away = Peer(name="away", ae_title="AWAY", host=("127.0.0.1",), port=1, roles=("query",))
    of = queries.study_of(current)
    assert of is not None
    found, (fault,) = reconciliation.priors(site(away, pacs.peer()), of, 3)
    assert [one.study.study_instance_uid for one in found] == [mine.StudyInstanceUID]
    assert "can't be reached" in str(fault)


def test_whose_study_it_is_is_read_from_its_file(database: Database, tmp_path: Path) -> None:
    uid = keep(database, tmp_path, chest())
    of = reconciliation.header_of(database, Storage(tmp_path), uid)
    assert of.study_instance_uid == uid
    assert of.taken == (DAY, "101500")
    assert of.patient.patient_id == "SECRET-ID"


def test_a_study_without_files_says_nothing(database: Database, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"study 1\.2\.3 has no file here any more"):
        reconciliation.header_of(database, Storage(tmp_path), "1.2.3")


def test_a_file_that_is_gone_is_named(database: Database, tmp_path: Path) -> None:
    uid = keep(database, tmp_path, chest())
    with database.transaction() as connection:
        (kept,) = studies.instances(connection, uid)
    (tmp_path / kept.path).unlink()
    with pytest.raises(Unreadable, match=r"instances/.*: can't be read: FileNotFoundError"):
        reconciliation.header_of(database, Storage(tmp_path), uid)
