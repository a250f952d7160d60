"""Studies: what an arriving instance changes, and when a study is read and complete."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, func
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import TIMESTAMP

from dicom_node import db, events, jobs, studies
from dicom_node.config import Settings
from dicom_node.db import Database
from dicom_node.errors import OutOfResources
from dicom_node.identity import MIXED
from dicom_node.status import snapshot
from dicom_node.storage import Identity, StoredInstance
from dicom_node.studies import Arrival, Study
from tests.conftest import (
    BASIC_TEXT_SR,
    DIGITAL_X_RAY,
    Server,
    StoredInstanceFactory,
    StudyFactory,
    make_stored_instance,
)
from tests.dicom_node import registering
from tests.dicom_node.states import MINUTE, claimed, transitions

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
KEY_OBJECT = "1.2.840.10008.5.1.4.1.1.88.59"
NOTHING = timedelta(0)


def register(
    database: Database,
    stored: StoredInstance,
    *,
    quiet: timedelta = MINUTE,
    ready: timedelta = MINUTE,
) -> bool:
    with database.transaction() as connection:
        written = studies.register(connection, [Arrival(stored=stored, quiet=quiet, ready=ready)])
    return written == 1


def settle(database: Database, *models: str) -> int:
    with database.transaction() as connection:
        return studies.settle(connection, models or ("demo",))


def found(database: Database, uid: str) -> Study:
    with database.transaction() as connection:
        study = studies.find(connection, uid)
    assert study is not None
    return study


def job_ids(database: Database, uid: str) -> list[int]:
    with database.transaction() as connection:
        return [one.id for one in jobs.of_study(connection, uid)]


def time_passes(database: Database, seconds: float) -> None:
    """The study's times move into the past."""
    gone = timedelta(seconds=seconds)
    columns = (db.study.c.received_at, db.study.c.ready_at, db.study.c.settle_at)
    with database.transaction() as connection:
        connection.execute(
            sa.update(db.study).values({column: column - gone for column in columns})
        )


# -- arriving --------------------------------------------------------------------------------------


def test_the_first_instance_makes_the_study(
    database: Database, stored_instance: StoredInstanceFactory
) -> None:
    stored = stored_instance()
    assert register(database, stored)
    study = found(database, stored.study_instance_uid)
    assert (study.state, study.revision, study.patient_key) == ("receiving", 1, stored.patient_key)
    assert study.settle_at - study.received_at == MINUTE
    assert transitions(database, stored.study_instance_uid, "study") == [(None, "receiving")]


def identity_of(database: Database, uid: str) -> Identity | None:
    """What the study's images told; ``None``: nothing yet."""
    names = Identity.__dataclass_fields__
    with database.transaction() as connection:
        query = sa.select(db.study).where(db.study.c.study_instance_uid == uid)
        row = connection.execute(query).mappings().one()
    if row["patient_id_key"] is None:
        assert {row[name] for name in names} == {None}
        return None
    return Identity(**{name: row[name] for name in names})


def test_the_first_image_that_tells_whose_study_it_is_is_believed(
    database: Database, study_factory: StudyFactory
) -> None:
    silent, told = Identity(), Identity(patient_id_key="p", accession_key="a", study_date="1")
    uid = study_factory(identity=silent)
    assert identity_of(database, uid) == silent
    study_factory(study_instance_uid=uid, identity=told)
    study_factory(study_instance_uid=uid, identity=silent)
    study_factory(study_instance_uid=uid, identity=replace(told, accession_key="b"))
    assert identity_of(database, uid) == told


def test_a_report_does_not_tell_whose_study_it_is(
    database: Database, study_factory: StudyFactory
) -> None:
    wrong, right = Identity(patient_id_key="wrong"), Identity(patient_id_key="right")
    for sop_class_uid in studies.STRUCTURED_REPORTS:
        uid = study_factory(sop_class_uid=sop_class_uid, identity=wrong)
        assert identity_of(database, uid) is None
        study_factory(study_instance_uid=uid, identity=right)
        study_factory(study_instance_uid=uid, sop_class_uid=sop_class_uid, identity=wrong)
        assert identity_of(database, uid) == right


@pytest.mark.parametrize("name", ["patient_id_key", "patient_issuer_key"])
def test_images_of_two_patients_leave_a_study_without_one(
    database: Database, study_factory: StudyFactory, name: str
) -> None:
    uid = study_factory(identity=Identity(**{name: "one"}))
    for other in ("two", "one", ""):
        study_factory(study_instance_uid=uid, identity=Identity(**{name: other}))
        assert identity_of(database, uid) == Identity(**{name: MIXED})


def test_the_same_image_again_tells_a_study_of_an_earlier_version(
    database: Database, stored_instance: StoredInstanceFactory
) -> None:
    stored = stored_instance(identity=Identity(patient_id_key="p"))
    register(database, stored)
    with database.transaction() as connection:
        columns = dict.fromkeys(Identity.__dataclass_fields__)
        connection.execute(sa.update(db.study).values(columns))
    assert not register(database, stored)
    assert identity_of(database, stored.study_instance_uid) == stored.identity


def test_an_instance_is_kept_as_it_was_described(
    database: Database, stored_instance: StoredInstanceFactory
) -> None:
    stored = stored_instance()
    register(database, stored)
    with database.transaction() as connection:
        (kept,) = studies.instances(connection, stored.study_instance_uid)
        sender = connection.execute(
            sa.select(db.instance.c.calling_ae_title, db.instance.c.address)
        )
        assert sender.one() == ("MODALITY", "127.0.0.1")
    assert (kept.path, kept.sha256, kept.size) == (stored.path, stored.sha256, stored.size)
    assert kept.revision == 1


def test_the_same_bytes_again_change_nothing(
    database: Database, stored_instance: StoredInstanceFactory
) -> None:
    stored = stored_instance()
    register(database, stored, quiet=NOTHING, ready=NOTHING)
    settle(database)
    before = found(database, stored.study_instance_uid)
    assert not register(database, stored)
    assert found(database, stored.study_instance_uid) == before
    assert before.state == "complete"
    with database.transaction() as connection:
        assert len(studies.instances(connection, stored.study_instance_uid)) == 1


def test_other_bytes_under_a_uid_are_a_new_revision_with_a_warning(
    database: Database, stored_instance: StoredInstanceFactory
) -> None:
    first = stored_instance()
    second = replace(first, sha256="f" * 64, path="instances/other.dcm")
    register(database, first)
    assert register(database, second)
    uid = first.study_instance_uid
    with database.transaction() as connection:
        (newest,) = studies.instances(connection, uid)
        warnings = [one for one in events.of_study(connection, uid) if one.subject != "study"]
        assert connection.scalar(sa.select(func.count()).select_from(db.instance)) == 2
    assert (newest.revision, newest.sha256, newest.path) == (2, second.sha256, second.path)
    (warning,) = warnings
    assert warning.subject == f"instance {first.sop_instance_uid}"
    assert (warning.from_state, warning.to_state) == ("revision 1", "revision 2")
    assert warning.reason is not None
    assert warning.reason.startswith("WARNING")
    shown = snapshot(database, Settings()).warnings
    assert [one.code for one in shown] == ["replaced", "no-destination"]


def test_the_first_bytes_coming_back_after_others_are_a_third_revision(
    database: Database, stored_instance: StoredInstanceFactory
) -> None:
    first = stored_instance()
    register(database, first)
    register(database, replace(first, sha256="f" * 64))
    assert register(database, first)
    with database.transaction() as connection:
        (newest,) = studies.instances(connection, first.study_instance_uid)
    assert (newest.revision, newest.sha256) == (3, first.sha256)


def test_one_sop_instance_uid_in_two_studies_is_two_instances(
    database: Database, stored_instance: StoredInstanceFactory
) -> None:
    first = stored_instance()
    other = stored_instance(sop_instance_uid=first.sop_instance_uid)
    assert register(database, first)
    assert register(database, other)
    with database.transaction() as connection:
        assert studies.instances(connection, other.study_instance_uid)[0].revision == 1


def test_each_instance_puts_completion_off(
    database: Database, stored_instance: StoredInstanceFactory
) -> None:
    stored = stored_instance()
    register(database, stored, quiet=MINUTE)
    time_passes(database, 59)
    register(database, stored_instance(study_instance_uid=stored.study_instance_uid), quiet=MINUTE)
    study = found(database, stored.study_instance_uid)
    assert study.settle_at - study.received_at == MINUTE
    assert settle(database) == 0


def test_instances_that_arrive_together_are_all_kept(
    database: Database, stored_instance: StoredInstanceFactory
) -> None:
    uid = stored_instance().study_instance_uid
    arriving = [stored_instance(study_instance_uid=uid) for _ in range(10)]
    with ThreadPoolExecutor(5) as pool:
        outcomes = list(pool.map(lambda one: register(database, one), arriving * 2))
    assert outcomes.count(True) == len(arriving)
    with database.transaction() as connection:
        kept = studies.instances(connection, uid)
    assert {one.sop_instance_uid for one in kept} == {one.sop_instance_uid for one in arriving}
    assert found(database, uid).revision == 1


# -- late instances --------------------------------------------------------------------------------


def test_an_instance_that_comes_while_the_job_is_queued_belongs_to_its_revision(
    database: Database, stored_instance: StoredInstanceFactory
) -> None:
    stored = stored_instance()
    register(database, stored, quiet=NOTHING, ready=NOTHING)
    settle(database)
    uid = stored.study_instance_uid
    register(database, stored_instance(study_instance_uid=uid), quiet=NOTHING, ready=NOTHING)
    study = found(database, uid)
    assert (study.state, study.revision) == ("receiving", 1)
    settle(database)
    assert len(job_ids(database, uid)) == 1
    with database.transaction() as connection:
        snapshot_ = studies.snapshot(connection, uid)
    assert snapshot_ is not None
    assert len(snapshot_[1]) == 2


@pytest.mark.parametrize("ended", [False, True], ids=["running", "ended"])
def test_an_instance_that_comes_after_the_job_started_begins_a_revision(
    database: Database, stored_instance: StoredInstanceFactory, ended: bool
) -> None:
    stored = stored_instance()
    register(database, stored, quiet=NOTHING, ready=NOTHING)
    settle(database)
    uid = stored.study_instance_uid
    held = claimed(database, job_ids(database, uid)[0])
    if ended:
        with database.transaction() as connection:
            jobs.refuse(connection, held, "NOT_FRONTAL", "view is lateral")
    register(database, stored_instance(study_instance_uid=uid), quiet=NOTHING, ready=NOTHING)
    study = found(database, uid)
    assert (study.state, study.revision) == ("receiving", 2)
    assert transitions(database, uid, "study") == [
        (None, "receiving"),
        ("receiving", "complete"),
        ("complete", "receiving"),
    ]
    settle(database)
    with database.transaction() as connection:
        assert [one.revision for one in jobs.of_study(connection, uid)] == [1, 2]


def test_several_late_instances_are_one_revision(
    database: Database, stored_instance: StoredInstanceFactory
) -> None:
    stored = stored_instance()
    register(database, stored, quiet=NOTHING, ready=NOTHING)
    settle(database)
    uid = stored.study_instance_uid
    claimed(database, job_ids(database, uid)[0])
    for _ in range(3):
        register(database, stored_instance(study_instance_uid=uid))
    assert found(database, uid).revision == 2


# -- ready and complete ----------------------------------------------------------------------------


def test_a_study_with_a_readable_image_is_queued_when_the_sender_pauses(
    database: Database, stored_instance: StoredInstanceFactory
) -> None:
    stored = stored_instance()
    register(database, stored, quiet=MINUTE, ready=timedelta(seconds=3))
    uid = stored.study_instance_uid
    assert settle(database) == 0
    time_passes(database, 4)
    assert settle(database) == 1
    assert found(database, uid).state == "receiving"
    assert len(job_ids(database, uid)) == 1
    assert settle(database) == 0


@pytest.mark.parametrize("sop_class", studies.READABLE)
def test_every_class_that_may_hold_the_image_makes_a_study_ready(
    database: Database, stored_instance: StoredInstanceFactory, sop_class: str
) -> None:
    register(database, stored_instance(sop_class_uid=sop_class), ready=NOTHING)
    assert settle(database) == 1


@pytest.mark.parametrize("sop_class", [CT_IMAGE, KEY_OBJECT])
def test_a_study_without_a_readable_image_waits_until_it_is_complete(
    database: Database, stored_instance: StoredInstanceFactory, sop_class: str
) -> None:
    stored = stored_instance(sop_class_uid=sop_class)
    register(database, stored, ready=NOTHING)
    assert settle(database) == 0
    time_passes(database, 61)
    assert settle(database) == 2  # completed, and queued
    assert found(database, stored.study_instance_uid).state == "complete"
    assert len(job_ids(database, stored.study_instance_uid)) == 1


def test_a_study_that_was_ready_gets_no_second_job_when_it_completes(
    database: Database, stored_instance: StoredInstanceFactory
) -> None:
    stored = stored_instance()
    register(database, stored, ready=NOTHING)
    settle(database)
    time_passes(database, 61)
    assert settle(database) == 1
    assert len(job_ids(database, stored.study_instance_uid)) == 1
    assert transitions(database, stored.study_instance_uid, "study") == [
        (None, "receiving"),
        ("receiving", "complete"),
    ]


def test_each_model_gets_its_job(
    database: Database, stored_instance: StoredInstanceFactory
) -> None:
    stored = stored_instance()
    register(database, stored, ready=NOTHING)
    assert settle(database, "demo", "other") == 2
    with database.transaction() as connection:
        made = jobs.of_study(connection, stored.study_instance_uid)
    assert [one.model for one in made] == ["demo", "other"]


def test_two_nodes_that_settle_together_queue_a_study_once(
    database: Database, stored_instance: StoredInstanceFactory
) -> None:
    made = [stored_instance() for _ in range(10)]
    for stored in made:
        register(database, stored, quiet=NOTHING, ready=NOTHING)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: settle(database), range(8)))
    settle(database)  # whatever one of them had locked while another looked
    for stored in made:
        assert len(job_ids(database, stored.study_instance_uid)) == 1
        assert found(database, stored.study_instance_uid).state == "complete"


def test_a_deferred_job_looks_again_when_a_new_image_has_had_its_pause(
    database: Database, stored_instance: StoredInstanceFactory
) -> None:
    stored = stored_instance()
    register(database, stored, quiet=10 * MINUTE, ready=NOTHING)
    settle(database)
    uid = stored.study_instance_uid
    held = claimed(database, job_ids(database, uid)[0])
    with database.transaction() as connection:
        jobs.defer(connection, held, found(database, uid).settle_at, "not yet: NOT_FRONTAL")
    late = stored_instance(study_instance_uid=uid)
    register(database, late, quiet=10 * MINUTE, ready=MINUTE)
    assert found(database, uid).revision == 1  # the waiting job will see it
    with database.transaction() as connection:
        (waiting,) = jobs.of_study(connection, uid)
    assert waiting.due_at == found(database, uid).received_at + MINUTE


# -- looking ---------------------------------------------------------------------------------------


def test_a_snapshot_waits_for_an_arriving_instance(
    database: Database, stored_instance: StoredInstanceFactory
) -> None:
    first = stored_instance()
    register(database, first)
    uid = first.study_instance_uid

    def look() -> int:
        with database.transaction() as connection:
            seen = studies.snapshot(connection, uid)
        assert seen is not None
        return len(seen[1])

    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as connection:
            late = stored_instance(study_instance_uid=uid)
            studies.register(connection, [Arrival(stored=late, quiet=MINUTE, ready=MINUTE)])
            looking = pool.submit(look)
            with pytest.raises(TimeoutError):
                looking.result(timeout=0.3)
        assert looking.result(timeout=10) == 2


def test_a_study_that_never_came_is_none(database: Database) -> None:
    with database.transaction() as connection:
        assert studies.find(connection, "1.2.3") is None
        assert studies.snapshot(connection, "1.2.3") is None
        assert studies.instances(connection, "1.2.3") == ()


def test_the_newest_studies_come_first(
    database: Database, stored_instance: StoredInstanceFactory
) -> None:
    made = [stored_instance().study_instance_uid for _ in range(3)]
    for uid in made:
        register(database, stored_instance(study_instance_uid=uid), quiet=NOTHING)
    with database.transaction() as connection:
        newest = studies.newest(connection, state=None, limit=2)
        assert studies.newest(connection, state="complete", limit=9) == []
    assert [one.study_instance_uid for one in newest] == made[:0:-1]
    settle(database)
    with database.transaction() as connection:
        assert len(studies.newest(connection, state="complete", limit=9)) == 3


# -- the function in the database and its specification --------------------------------------------

HOUR = timedelta(hours=1)
TABLES = (db.study, db.instance, db.job, db.event)

Step = Callable[[Connection], object]  #: one thing that happens to a database
RegisterAll = Callable[[Connection, list[Arrival]], object]


@pytest.fixture(scope="module")
def other_database(server: Server, template: str) -> Iterator[Database]:
    """A second one, in which the specification works."""
    opened = Database(server.create(template=template))
    yield opened
    opened.dispose()


def hours(value: object) -> object:
    return round(value / HOUR) if isinstance(value, timedelta) else value


def rows(connection: Connection) -> dict[str, list[dict[str, object]]]:
    """What is in the tables; of times how many hours they are away."""
    found = {}
    for table in TABLES:
        columns = [
            (column - func.now()).label(column.name)
            if isinstance(column.type, TIMESTAMP)
            else column
            for column in table.columns
            if column.name != "id"
        ]
        order = table.c.id if "id" in table.c else sa.text("1, 2, 3")
        read = connection.execute(sa.select(*columns).order_by(order)).mappings()
        found[table.name] = [{name: hours(value) for name, value in row.items()} for row in read]
    return found


def clear(database: Database) -> None:
    with database.transaction() as connection:
        for table in reversed(TABLES):
            connection.execute(sa.delete(table))


study_uids = st.sampled_from(["1.2.9", "1.2.9", "1.2.9", "1.2.10"])
one_or_none = st.sampled_from(["", "a", "b"])
whole_hours = st.integers(0, 9).map(lambda count: count * HOUR)


@st.composite
def arrivals(draw: st.DrawFn) -> Arrival:
    """Of few studies, instances, contents and patients, so that they meet."""
    study, sop, content = draw(study_uids), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    stored = make_stored_instance(
        study_instance_uid=study,
        series_instance_uid=f"{study}.{draw(st.integers(1, 2))}",
        sop_instance_uid=f"9.{sop}",
        sop_class_uid=draw(st.sampled_from([DIGITAL_X_RAY] * 3 + [BASIC_TEXT_SR])),
        path=f"instances/{study}/9.{sop}.{content}.dcm",
        sha256=f"{content:064x}",
        patient_key=draw(one_or_none),
        identity=Identity(**{name: draw(one_or_none) for name in Identity.__dataclass_fields__}),
    )
    return Arrival(stored=stored, quiet=draw(whole_hours), ready=draw(whole_hours))


def time_goes_by(connection: Connection, gone: timedelta) -> None:
    for table in TABLES:
        times = [column for column in table.columns if isinstance(column.type, TIMESTAMP)]
        connection.execute(sa.update(table).values({column: column - gone for column in times}))


def add_job(connection: Connection, uid: str, values: dict[str, object], due: timedelta) -> None:
    """A job of the study's present revision, if there is the study and not the job."""
    times = (func.now() + due, func.now())
    row = (db.study.c.revision, *(sa.literal(one) for one in values.values()), *times)
    made = sa.select(db.study.c.study_instance_uid, *row).where(
        db.study.c.study_instance_uid == uid
    )
    names = ["study_instance_uid", "revision", *values, "due_at", "nudged_at"]
    insert = postgresql.insert(db.job).from_select(names, made)
    connection.execute(insert.on_conflict_do_nothing())


def set_study(connection: Connection, uid: str, values: dict[str, object]) -> None:
    mine = db.study.c.study_instance_uid == uid
    connection.execute(sa.update(db.study).where(mine).values(values))


def delete_pixels(connection: Connection, uid: str, sop: int) -> None:
    marked = (db.instance.c.study_instance_uid == uid, db.instance.c.sop_instance_uid == f"9.{sop}")
    connection.execute(sa.update(db.instance).where(*marked).values(pixels_deleted_at=func.now()))
    set_study(connection, uid, {"has_pixels": False})


job_values = st.fixed_dictionaries(
    {
        "state": st.sampled_from(["queued", "queued", "running", "drafted", "refused", "failed"]),
        "attempts": st.integers(0, 1),
        "model": st.sampled_from(["demo", "demo", "other"]),
    }
)
study_values = st.sampled_from(
    [
        *[{"state": "complete"}] * 4,
        {"state": "deleting"},
        dict.fromkeys(Identity.__dataclass_fields__),  # as of an earlier version
    ]
)
between: st.SearchStrategy[Step] = st.one_of(
    st.builds(partial, st.just(time_goes_by), gone=whole_hours),
    st.builds(partial, st.just(add_job), uid=study_uids, values=job_values, due=whole_hours),
    st.builds(partial, st.just(set_study), uid=study_uids, values=study_values),
    st.builds(partial, st.just(delete_pixels), uid=study_uids, sop=st.integers(1, 2)),
)
groups = st.lists(arrivals(), min_size=1, max_size=5)


def by_function(connection: Connection, group: list[Arrival]) -> tuple[int, list[int]]:
    statement = studies._REGISTER.format("%s")
    said = connection.exec_driver_sql(statement, (studies._encoded(group),)).scalar_one()
    return said["written"], said["gone"]


def take(database: Database, step: list[Arrival] | Step, register_all: RegisterAll) -> object:
    with database.transaction() as connection:
        return register_all(connection, step) if isinstance(step, list) else step(connection)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(groups | between, min_size=3, max_size=12))
def test_the_function_does_what_its_specification_does(
    database: Database, other_database: Database, steps: list[list[Arrival] | Step]
) -> None:
    ends = []
    for one, register_all in ((database, by_function), (other_database, registering.register)):
        clear(one)
        said = [take(one, step, register_all) for step in steps]
        with one.transaction() as connection:
            ends.append((said, rows(connection)))
    assert ends[0] == ends[1]


def test_two_receivers_that_take_the_same_studies_in_opposite_order_do_not_wait_in_a_ring(
    database: Database,
) -> None:
    together = threading.Barrier(2)

    def receive(group: list[Arrival]) -> int:
        together.wait()
        with database.transaction() as connection:
            return studies.register(connection, group)

    with ThreadPoolExecutor(2) as pool:
        for number in range(10):
            stored = [make_stored_instance(study_instance_uid=f"1.{n}") for n in range(20)]
            group = [Arrival(stored=one, quiet=MINUTE, ready=MINUTE) for one in stored]
            # Those of the first round make the studies, the others find them.
            again = [replace(one, stored=replace(one.stored, sha256=f"{number}")) for one in group]
            assert list(pool.map(receive, [group, again[::-1]])) == [20, 20]


@pytest.mark.parametrize("values", [{"state": "deleting"}, {}], ids=["study", "pixels"])
def test_what_was_deleted_is_not_registered_as_if_it_were_there(
    database: Database, stored_instance: StoredInstanceFactory, values: dict[str, object]
) -> None:
    stored = stored_instance(sop_instance_uid="9.1")
    register(database, stored)
    uid = stored.study_instance_uid
    with database.transaction() as connection:
        set_study(connection, uid, values) if values else delete_pixels(connection, uid, 1)
        before = rows(connection)
    with pytest.raises(OutOfResources):
        register(database, stored)
    with database.transaction() as connection:
        assert rows(connection) == before
