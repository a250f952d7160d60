"""Reports as rows: kept once, never overwritten; which of them stands is worked out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy import func

from dicom_node import db
from dicom_node.db import Database
from dicom_node.reports import store
from dicom_node.reports.final import Claim, FinalReport, Verdict
from dicom_node.reports.matching import Claimed, Outcome
from dicom_node.reports.store import CurrentReport, Report, standing
from dicom_node.storage import Identity
from tests.conftest import BASIC_TEXT_SR, StudyFactory
from tests.dicom_node.reports.made import (
    HOUR,
    MORNING,
    arrived,
    final,
    identity,
    keep,
    kept,
    row,
)
from tests.dicom_node.states import transitions

# -- which stands ----------------------------------------------------------------------------------


def version(number: int, verdict: Verdict = "final", **changes: object) -> Report:
    """The ``number``-th report of a study; verified ``number`` hours after the morning."""
    values: dict[str, object] = {
        "id": number,
        "study_instance_uid": "1.2.3",
        "source": "hl7",
        "source_uid": f"M{number}",
        "state": "matched",
        "reason": None,
        "verdict": verdict,
        "order_key": "order",
        "sections": {"findings": f"Text {number}."},
        "text": f"Text {number}.",
        "author_role": "",
        "predecessors": (),
        "verified_at": MORNING + number * HOUR,
        "received_at": MORNING + number * HOUR,
        "indexed_at": None,
        "claim": Claimed(study_instance_uid="", identity=Identity()),
        **changes,
    }
    return Report(**values)  # type: ignore[arg-type]


def text(*reports: Report) -> str | None:
    found = standing(reports)
    return found.text if found else None


def test_nothing_final_is_no_report() -> None:
    assert text() is None


def test_the_latest_verified_stands_whenever_it_came() -> None:
    late = version(1, verified_at=MORNING + 9 * HOUR)
    assert text(late, version(2)) == "Text 1."
    assert text(version(1), version(2)) == "Text 2."


def test_of_one_that_names_no_time_the_time_it_came_counts() -> None:
    assert text(version(1), version(2, verified_at=None)) == "Text 2."


def test_a_correction_replaces_what_was_verified_at_the_same_time() -> None:
    assert text(version(1), version(2, "corrected", verified_at=MORNING + HOUR)) == "Text 2."


def test_an_addendum_is_appended_and_never_replaces() -> None:
    assert text(version(1), version(2, "addendum")) == "Text 1.\n\nText 2."
    assert text(version(1, "addendum")) is None


def test_a_correction_makes_the_addenda_before_it_void() -> None:
    assert text(version(1), version(2, "addendum"), version(3, "corrected")) == "Text 3."


def test_an_addendum_to_another_order_is_not_appended() -> None:
    assert text(version(1), version(2, "addendum", order_key="other")) == "Text 1."


def test_an_addendum_is_appended_to_the_document_that_it_names() -> None:
    addendum = version(2, "addendum", order_key="other", predecessors=("M1",))
    assert text(version(1), addendum) == "Text 1.\n\nText 2."


def test_addenda_stand_in_the_order_of_their_verification() -> None:
    second = version(2, "addendum", verified_at=MORNING + 9 * HOUR)
    assert text(version(1), second, version(3, "addendum")) == "Text 1.\n\nText 3.\n\nText 2."


def test_a_withdrawal_takes_back_all_of_its_order_that_came_before() -> None:
    withdrawal = version(3, "withdrawn")
    assert text(version(1), version(2, "corrected"), withdrawal) is None
    assert text(version(1, order_key="other"), version(2), withdrawal) == "Text 1."
    assert text(version(1), withdrawal, version(4)) == "Text 4."


def test_a_replaced_document_does_not_stand_though_it_was_verified_later() -> None:
    old = version(1, verified_at=MORNING + 9 * HOUR)
    assert text(old, version(2, "corrected", predecessors=("M1",))) == "Text 2."
    assert text(version(2, "corrected", predecessors=("M1",)), old) == "Text 2."


def test_two_documents_that_replace_each_other_or_themselves_do_no_harm() -> None:
    assert text(version(1, predecessors=("M1",))) == "Text 1."
    assert text(version(1, predecessors=("M2",)), version(2, predecessors=("M1",))) is None


def test_a_report_with_addenda_is_compared_in_one_piece() -> None:
    found = standing([version(1), version(2, "addendum"), version(3, "addendum")])
    assert isinstance(found, CurrentReport)
    assert found.final().sections == {"findings": "Text 1.", "addendum": "Text 2.\n\nText 3."}
    assert found.final().text.split() == found.text.split()


# -- rows ------------------------------------------------------------------------------------------


def count(database: Database) -> int:
    with database.transaction() as connection:
        return connection.scalar(sa.select(func.count()).select_from(db.report)) or 0


def test_a_report_is_kept_as_it_was_read(database: Database, study_factory: StudyFactory) -> None:
    uid = study_factory(identity=identity("P1"))
    report = final(
        source="sr",
        source_uid="1.2.9",
        verdict="corrected",
        claim=Claim(study_instance_uid=uid, patient_id="P1"),
        sections={"findings": "Small effusion.", "impression": "Effusion."},
        author_role="radiologist",
        predecessors=("1.2.8",),
    )
    found = kept(database, report)
    assert (found.source, found.source_uid, found.verdict) == ("sr", "1.2.9", "corrected")
    assert (found.state, found.study_instance_uid, found.reason) == ("matched", uid, None)
    assert found.sections == report.sections
    assert found.text == report.text
    assert (found.author_role, found.predecessors) == ("radiologist", ["1.2.8"])
    assert (found.verified_at, found.indexed_at) == (MORNING, None)
    assert transitions(database, uid, "report") == [(None, "matched")]


def test_no_identifier_is_kept_in_the_clear(database: Database) -> None:
    claim = Claim(accession_number="SECRET-A", patient_id="SECRET-P", patient_issuer="SECRET-I")
    kept(database, final(claim=claim))
    with database.transaction() as connection:
        values = connection.execute(sa.select(db.report)).one()
    assert "SECRET" not in repr(values)


def test_the_same_report_twice_is_one_row(database: Database) -> None:
    report = final()
    assert keep(database, report, sha256="a", part=0) is not None
    assert keep(database, report, sha256="a", part=0) is None
    assert keep(database, report, sha256="a", part=1) is not None
    assert keep(database, report, sha256="b", part=0) is not None
    assert count(database) == 3


def test_what_postgres_cannot_hold_is_left_out(database: Database) -> None:
    found = kept(database, final("A\0B\udc80C", source_uid="M\0"))
    assert (found.text, found.source_uid) == ("AB?C", "M")


def test_the_newest_come_first_and_only_the_parked_if_asked(
    database: Database, study_factory: StudyFactory
) -> None:
    uid = study_factory()
    first = kept(database, final(claim=Claim(study_instance_uid="1.9")))
    second = kept(database, final(claim=Claim(study_instance_uid=uid)))
    with database.transaction() as connection:
        assert [one.id for one in store.newest(connection, state=None, limit=9)] == [
            second.id,
            first.id,
        ]
        (parked,) = store.newest(connection, state="parked", limit=9)
        assert len(store.newest(connection, state=None, limit=1)) == 1
    assert parked.id == first.id


def test_a_study_knows_its_current_report(database: Database, study_factory: StudyFactory) -> None:
    uid = study_factory()
    claim = Claim(study_instance_uid=uid)
    kept(database, final("First.", claim=claim))
    kept(database, final("Second.", verdict="corrected", claim=claim))
    with database.transaction() as connection:
        found = store.current(connection, uid)
        assert store.current(connection, "1.9") is None
        assert store.studies_with_reports(connection) == [uid]
    assert found is not None
    assert found.text == "Second."
    assert count(database) == 2  # the first is still there


# -- what waits ------------------------------------------------------------------------------------


def waiting(database: Database, *, limit: int = 50) -> list[int]:
    with database.transaction() as connection:
        return [one.id for one in store.to_look_for_again(connection, limit=limit)]


def age(database: Database, column: sa.Column[object], by: timedelta) -> None:
    with database.transaction() as connection:
        connection.execute(sa.update(column.table).values({column: column - by}))


@pytest.mark.parametrize(
    "claim",
    [
        Claim(study_instance_uid="1.2.3.9", patient_id="P1"),
        Claim(accession_number="A1", patient_id="P1"),
        Claim(patient_id="P1", study_date="20240311"),
    ],
    ids=["study", "order", "day"],
)
def test_a_parked_report_waits_for_what_it_claims(
    database: Database, study_factory: StudyFactory, claim: Claim
) -> None:
    parked = kept(database, final(claim=claim))
    assert parked.state == "parked"
    study_factory(identity=identity("P2", accession="A2", day="20240311"))
    assert waiting(database) == []
    here = identity("P1", accession="A1", day="20240311")
    study_factory(study_instance_uid="1.2.3.9", identity=here)
    assert waiting(database) == [parked.id]


def test_a_report_that_was_tried_since_its_study_came_waits_no_more(
    database: Database, study_factory: StudyFactory
) -> None:
    uid = study_factory(identity=identity("P2"))
    kept(database, final(claim=Claim(study_instance_uid=uid, patient_id="P1")))
    age(database, db.study.c.received_at, timedelta(minutes=2))
    assert waiting(database) == []
    study_factory(study_instance_uid=uid, identity=identity("P2"))  # one more image
    assert len(waiting(database)) == 1


def test_of_very_many_the_longest_untried_come_first(
    database: Database, study_factory: StudyFactory
) -> None:
    claim = Claim(accession_number="A1", patient_id="P1")
    first, second = (kept(database, final(claim=claim)) for _ in range(2))
    study_factory(identity=identity("P2", accession="A1"))
    assert waiting(database, limit=1) == [first.id]
    with database.transaction() as connection:
        store.settle(connection, first, Outcome(state="parked", reason="no"))
    assert waiting(database, limit=1) == [second.id]


def test_a_report_that_leaves_is_in_its_studys_history(
    database: Database, study_factory: StudyFactory
) -> None:
    uid = study_factory()
    moved = kept(database, final(claim=Claim(study_instance_uid=uid)))
    with database.transaction() as connection:
        store.indexed(connection, [moved])
        store.settle(connection, moved, Outcome(state="parked", reason="not this one"))
    found = row(database, moved.id)
    assert (found.state, found.study_instance_uid) == ("parked", None)
    with database.transaction() as connection:
        store.settle(connection, found, Outcome(state="parked", reason="no such study"))
    assert row(database, moved.id).reason == "no such study"
    assert transitions(database, uid, "report") == [(None, "matched"), ("matched", "parked")]


def nudged(database: Database, *, every: timedelta = timedelta(0)) -> list[int]:
    with database.transaction() as connection:
        return store.nudge(connection, every=every)


def test_only_matched_reports_that_are_not_indexed_are_due(
    database: Database, study_factory: StudyFactory
) -> None:
    due = kept(database, final(claim=Claim(study_instance_uid=study_factory())))
    kept(database, final(claim=Claim(study_instance_uid="1.9")))
    assert nudged(database) == [due.id]
    assert nudged(database, every=timedelta(minutes=1)) == []  # a moment ago
    with database.transaction() as connection:
        store.indexed(connection, [due])
    assert nudged(database) == []


def test_when_a_report_leaves_a_study_the_others_are_indexed_again(
    database: Database, study_factory: StudyFactory
) -> None:
    claim = Claim(study_instance_uid=study_factory())
    first, second = (kept(database, final(claim=claim)) for _ in range(2))
    with database.transaction() as connection:
        store.indexed(connection, [first, second])
        store.settle(connection, second, Outcome(state="parked", reason="not this one"))
    assert nudged(database) == [first.id]


# -- SR documents nobody has looked at -------------------------------------------------------------


def unread(database: Database, *, limit: int = 20) -> Sequence[tuple[str, datetime]]:
    with database.transaction() as connection:
        found = store.unread(connection, limit=limit)
    return [(one.sop_instance_uid, at) for one, at in found]


def look(database: Database, uid: str, at: datetime, *, path: str = "instances/1.dcm") -> None:
    with database.transaction() as connection:
        query = sa.select(db.instance.c.sha256).where(db.instance.c.sop_instance_uid == uid)
        sha256 = connection.scalar(query.order_by(db.instance.c.revision.desc()).limit(1))
        report: FinalReport = final(source="sr", source_uid=uid, verdict="ignored")
        document = arrived(report, sha256=sha256, path=path, received_at=at)
        store.keep(connection, document, Outcome(state="ignored"))


def test_each_document_is_looked_at_once_the_oldest_first(
    database: Database, study_factory: StudyFactory
) -> None:
    study_factory()  # an image is none
    for number in range(3):
        study_factory(sop_class_uid=BASIC_TEXT_SR, sop_instance_uid=f"1.2.{number}")
    found = unread(database)
    assert [uid for uid, _ in found] == ["1.2.0", "1.2.1", "1.2.2"]
    assert len(unread(database, limit=2)) == 2
    for uid, at in found:
        look(database, uid, at)
    assert unread(database) == []


def test_other_bytes_under_a_uid_are_looked_at_again(
    database: Database, study_factory: StudyFactory
) -> None:
    uid = study_factory(sop_class_uid=BASIC_TEXT_SR, sop_instance_uid="1.2.0")
    look(database, *unread(database)[0])
    study_factory(study_instance_uid=uid, sop_class_uid=BASIC_TEXT_SR, sop_instance_uid="1.2.0")
    assert [found for found, _ in unread(database)] == ["1.2.0"]


def test_a_document_from_a_file_does_not_hide_received_ones(
    database: Database, study_factory: StudyFactory
) -> None:
    study_factory(sop_class_uid=BASIC_TEXT_SR, sop_instance_uid="1.2.0")
    age(database, db.instance.c.received_at, timedelta(days=1))
    kept(database, final(source="sr", source_uid="1.2.7"), path="reports/aa/x.dcm")
    assert len(unread(database)) == 1
