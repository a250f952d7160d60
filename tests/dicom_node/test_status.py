"""Status: healthy only when nobody needs to do anything, and what to do when somebody must."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import func

from dicom_node import associations, circuits, db, deliveries, fetches, heartbeats, jobs, remedies
from dicom_node.associations import Reason, Refused
from dicom_node.config import Peer, Reconciliation, Settings
from dicom_node.db import Database
from dicom_node.deliveries import Delivery
from dicom_node.drafts import Draft
from dicom_node.fetches import Found
from dicom_node.reports.final import Claim
from dicom_node.status import LOW_BYTES, WORRYING_ATTEMPTS, Status, snapshot, to_json
from tests.conftest import DraftFactory, JobFactory, StudyFactory
from tests.dicom_node.reports.made import final, kept
from tests.dicom_node.states import MINUTE, claimed

PEER = Peer(name="pacs", ae_title="PACS", host=("10.0.0.5",))
SETTINGS = Settings(peers=(PEER,))
PLENTY = 10 * LOW_BYTES
READER = {
    "model": "demo",
    "demo": True,
    "device": "cpu",
    "state": "idle",
    "slots": 4,
    "busy": 0,
    "seconds_per_report": 1.5,
    "tokens_per_pass": 2.5,
}

#: interface.md, `status --json`: the keys that must be there
STATUS = {
    "version",
    "healthy",
    "problems",
    "node",
    "database",
    "broker",
    "workers",
    "studies",
    "jobs",
    "deliveries",
    "peers",
    "refused_associations",
    "storage",
}
PROBLEM = {"code", "text", "fix"}
NODE = {"ae_title", "host", "port", "up"}
WORKER = {"name", "model", "device", "state", "seconds_per_report", "last_seen"}
PEER_KEYS = {"name", "last_received", "last_sent", "failures"}
REFUSED = {"calling_ae_title", "address", "reason", "count", "last"}

STRANGER = Refused(
    calling_ae_title="STRANGER",
    called_ae_title="DICOMNODE",
    address="10.0.0.9",
    contexts=("1.2.840.10008.1.1",),
    reason=Reason.UNKNOWN_TITLE,
)
STORAGE = {"free_bytes", "state"}


@pytest.fixture
def running(database: Database) -> Database:
    """A database in which everything beats."""
    with database.transaction() as connection:
        node = {"broker_up": True, "free_bytes": PLENTY}
        heartbeats.beat(connection, "node@host:1", "node", node)
        heartbeats.beat(connection, "gpu@host:2", "gpu", READER)
        heartbeats.beat(connection, "net@host:3", "net", {"state": "idle"})
    return database


def codes(database: Database | None) -> list[str]:
    return [one.code for one in snapshot(database, SETTINGS).problems]


def document(status: Status) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(json.dumps(to_json(status)))
    return read


def silence(database: Database, role: str) -> None:
    with database.transaction() as connection:
        connection.execute(
            sa.update(db.process)
            .where(db.process.c.role == role)
            .values(last_seen=func.now() - timedelta(minutes=2))
        )


def facts(database: Database, **changes: object) -> None:
    with database.transaction() as connection:
        node = {"broker_up": True, "free_bytes": PLENTY, **changes}
        heartbeats.beat(connection, "node@host:1", "node", node)


def reader(database: Database, **changes: object) -> None:
    with database.transaction() as connection:
        heartbeats.beat(connection, "gpu@host:2", "gpu", {**READER, **changes})


def held_delivery(database: Database, draft: Draft) -> Delivery:
    with database.transaction() as connection:
        deliveries.create(connection, draft.study_instance_uid, draft.sop_instance_uid, (PEER,))
        (made,) = deliveries.of_study(connection, draft.study_instance_uid)
        held = deliveries.claim(connection, made.id, at_once=9, lease=MINUTE, worker="net")
    assert held is not None
    return held


# -- problems --------------------------------------------------------------------------------------


def test_a_node_in_which_everything_beats_is_healthy(running: Database) -> None:
    found = snapshot(running, SETTINGS)
    assert found.problems == ()
    assert found.warnings == ()
    assert found.healthy


def test_a_node_that_does_not_run_is_named_part_by_part(database: Database) -> None:
    assert codes(database) == ["node", "worker-gpu", "worker-net"]


@pytest.mark.parametrize(
    ("role", "code"), [("node", "node"), ("gpu", "worker-gpu"), ("net", "worker-net")]
)
def test_a_process_that_fell_silent_is_a_problem(running: Database, role: str, code: str) -> None:
    silence(running, role)
    assert codes(running) == [code]


def test_a_broker_that_does_not_answer_the_node_is_a_problem(running: Database) -> None:
    facts(running, broker_up=False)
    assert codes(running) == ["broker"]
    assert document(snapshot(running, SETTINGS))["broker"] == {"up": False}


def test_little_free_space_is_a_problem(running: Database) -> None:
    facts(running, free_bytes=LOW_BYTES - 1)
    assert codes(running) == ["storage"]
    assert document(snapshot(running, SETTINGS))["storage"] == {
        "free_bytes": LOW_BYTES - 1,
        "state": "low",
    }


def certificate(database: Database, **tls: str) -> Status:
    facts(database, tls=tls)
    return snapshot(database, SETTINGS)


@pytest.mark.parametrize(
    ("days", "problems", "warnings"),
    [(31, [], []), (29, [], ["certificate"]), (6, ["certificate"], [])],
)
def test_a_certificate_that_ends_soon_is_a_warning_and_then_a_problem(
    running: Database, days: int, problems: list[str], warnings: list[str]
) -> None:
    ends = (datetime.now(UTC) + timedelta(days=days, minutes=5)).replace(microsecond=0)
    found = certificate(running, certificate_expires=ends.isoformat())
    assert [one.code for one in found.problems] == problems
    assert [one.code for one in found.warnings] == warnings
    for one in (*found.problems, *found.warnings):
        assert f"ends on {ends.date()}, in {days} days" in one.text
    assert document(found)["tls"]["certificate_expires"] == ends.isoformat()


def test_certificates_that_can_t_be_used_are_a_problem(running: Database) -> None:
    fault = "tls.certificate: /etc/node.pem: has expired"
    found = certificate(running, fault=fault)
    assert [one.code for one in found.problems] == ["certificate"]
    assert fault in found.problems[0].text
    assert document(found)["tls"] == {"port": None, "certificate_expires": None, "fault": fault}


def test_a_node_without_tls_has_no_certificate_to_speak_of(running: Database) -> None:
    found = document(certificate(running))
    assert found["tls"] == {"port": None, "certificate_expires": None, "fault": None}
    assert found["healthy"]


def test_a_failed_job_is_a_problem_until_it_is_queued_again(
    running: Database, job_factory: JobFactory
) -> None:
    held = claimed(running, job_factory())
    with running.transaction() as connection:
        jobs.fail(connection, held, "bug", "KeyError")
    assert codes(running) == ["jobs"]
    with running.transaction() as connection:
        jobs.requeue_ended(connection, study_instance_uid=None)
    assert codes(running) == []


def test_a_failed_job_is_no_problem_once_a_later_one_of_its_study_is_drafted(
    running: Database, job_factory: JobFactory, study_factory: StudyFactory
) -> None:
    uid = study_factory()
    with running.transaction() as connection:
        for revision in (1, 2):
            job_id = jobs.create(connection, uid, revision, "demo")
            assert job_id is not None
            held = jobs.claim(connection, job_id, lease=MINUTE, worker="w")
            assert held is not None
            if revision == 1:
                jobs.fail(connection, held, "bug", "KeyError")
            else:
                jobs.drafted(connection, held, {})
    assert codes(running) == []
    assert snapshot(running, SETTINGS).jobs == {"drafted": 1, "failed": 1}


def test_a_refused_job_is_no_problem(running: Database, job_factory: JobFactory) -> None:
    held = claimed(running, job_factory())
    with running.transaction() as connection:
        jobs.refuse(connection, held, "NOT_CHEST", "nothing says chest")
    assert codes(running) == []


def test_a_failed_delivery_is_a_problem_until_its_draft_is_superseded(
    running: Database, draft_factory: DraftFactory
) -> None:
    draft = draft_factory()
    held = held_delivery(running, draft)
    with running.transaction() as connection:
        deliveries.fail(connection, held, "refused")
    assert codes(running) == ["deliveries"]
    draft_factory(study_instance_uid=draft.study_instance_uid, revision=2, version=2)
    assert codes(running) == []


def test_a_delivery_that_keeps_failing_is_a_problem_that_names_its_peer(
    running: Database, draft_factory: DraftFactory
) -> None:
    held = held_delivery(running, draft_factory())
    with running.transaction() as connection:
        deliveries.retry_later(connection, held, MINUTE, "unreachable")
    assert codes(running) == []
    with running.transaction() as connection:
        connection.execute(sa.update(db.delivery).values(attempts=WORRYING_ATTEMPTS))
    (problem,) = snapshot(running, SETTINGS).problems
    assert problem.code == "peer"
    assert "dicom-node doctor pacs" in problem.fix


def test_a_peer_that_is_left_alone_is_one_problem_that_says_since_when_and_why(
    running: Database, draft_factory: DraftFactory
) -> None:
    held = held_delivery(running, draft_factory())
    reason = "peer: pacs (PACS@10.0.0.5:104) can't be reached: no TCP connection"
    with running.transaction() as connection:
        circuits.failed(connection, "pacs", reason, open_after=1, back_off=lambda _: MINUTE)
        deliveries.retry_later(connection, held, MINUTE, reason)
        connection.execute(sa.update(db.delivery).values(attempts=WORRYING_ATTEMPTS))
    found = document(snapshot(running, SETTINGS))
    (problem,) = found["problems"]
    assert problem["code"] == "circuit"
    assert problem["text"].startswith("1 drafts wait for pacs, which fails since 20")
    assert problem["text"].endswith(f"is tried now and then: {reason}")
    assert "dicom-node doctor pacs" in problem["fix"]
    (circuit,) = found["circuits"]
    assert circuit["since"] < circuit["next_attempt"]
    assert {key: circuit[key] for key in ("peer", "failures", "reason", "waiting")} == {
        "peer": "pacs",
        "failures": 1,
        "reason": reason,
        "waiting": 1,
    }
    with running.transaction() as connection:
        deliveries.answered(connection, "pacs")
    assert document(snapshot(running, SETTINGS))["circuits"] == []


def test_a_peer_that_is_left_alone_is_no_problem_where_nothing_waits_for_it(
    running: Database,
) -> None:
    with running.transaction() as connection:
        for name in ("pacs", "removed from the configuration"):
            circuits.failed(connection, name, "busy", open_after=1, back_off=lambda _: MINUTE)
    found = snapshot(running, SETTINGS)
    assert found.healthy
    assert [one.peer for one in found.circuits] == ["pacs"]


def test_what_is_answered_with_success_and_not_proven_raises_an_alarm_after_a_while(
    running: Database, draft_factory: DraftFactory
) -> None:
    held = held_delivery(running, draft_factory())
    with running.transaction() as connection:
        deliveries.sent(connection, held, held.draft_uid, None)
        deliveries.unproven(connection, held, MINUTE, "not yet proven by find")
    assert codes(running) == []
    with running.transaction() as connection:
        connection.execute(sa.update(db.delivery).values(sent_at=func.now() - timedelta(hours=1)))
    (problem,) = snapshot(running, SETTINGS).problems
    text = "1 drafts were answered with success and are not proven at pacs"
    assert (problem.code, problem.text) == ("unproven", text)
    assert "dicom-node deliveries --peer pacs" in problem.fix


def test_what_a_peer_took_and_does_not_have_stays_an_alarm_while_it_is_sent_again(
    running: Database, draft_factory: DraftFactory
) -> None:
    held = held_delivery(running, draft_factory())
    lie = "peer.unproven: the peer answered success, and does not have it (find)"
    with running.transaction() as connection:
        deliveries.sent(connection, held, held.draft_uid, None)
        deliveries.missing(connection, held.id, held.draft_uid, lie, MINUTE)
        connection.execute(sa.update(db.delivery).values(attempts=WORRYING_ATTEMPTS))
    assert codes(running) == ["unproven"]


def test_a_database_that_is_away_is_the_only_problem(tmp_path: Path) -> None:
    away = Database(f"postgresql+psycopg://user@/name?host={tmp_path}")
    for database in (away, None):
        found = document(snapshot(database, SETTINGS))
        assert [one["code"] for one in found["problems"]] == ["database"]
        assert (found["database"], found["broker"]) == ({"up": False}, {"up": False})
        assert found["storage"] == {"free_bytes": None, "state": "unknown"}
        assert set(found) >= STATUS


def test_a_database_without_tables_says_what_to_run(empty_database_url: str) -> None:
    empty = Database(empty_database_url)
    (problem,) = snapshot(empty, SETTINGS).problems
    empty.dispose()
    assert "dicom-node db upgrade" in problem.text


def test_a_node_without_destinations_is_warned_of(running: Database) -> None:
    found = snapshot(running, Settings())
    assert [one.code for one in found.warnings] == ["no-destination"]
    assert found.healthy


@pytest.mark.parametrize(
    ("seconds", "pace"),
    [
        (None, "minutes for a report"),
        (45.4, "45 seconds for a report"),
        (200.0, "3.3 minutes for a report"),
    ],
)
def test_a_model_on_a_cpu_says_what_a_report_takes_and_that_nothing_is_wrong(
    running: Database, seconds: float | None, pace: str
) -> None:
    reader(running, model="llava-rad", demo=False, seconds_per_report=seconds)
    found = snapshot(running, SETTINGS)
    (said,) = found.warnings
    assert (said.code, said.text) == ("cpu", f"llava-rad takes {pace} on this CPU")
    assert found.healthy


def test_a_model_on_a_gpu_is_not_spoken_of(running: Database) -> None:
    reader(running, model="llava-rad", demo=False, device="cuda")
    assert snapshot(running, SETTINGS).warnings == ()


# -- the document ----------------------------------------------------------------------------------


def test_the_document_has_the_keys_of_the_interface(
    running: Database, draft_factory: DraftFactory
) -> None:
    held = held_delivery(running, draft_factory())
    with running.transaction() as connection:
        deliveries.fail(connection, held, "refused")
        associations.refused(connection, STRANGER)
    found = document(snapshot(running, SETTINGS))
    assert set(found) >= STATUS
    assert set(found["node"]) >= NODE
    assert set(found["storage"]) >= STORAGE
    for rows, keys in (
        (found["problems"], PROBLEM),
        (found["workers"], WORKER),
        (found["peers"], PEER_KEYS),
        (found["refused_associations"], REFUSED),
    ):
        assert rows
        assert all(set(row) >= keys for row in rows)
    assert found["node"] == {"ae_title": "DICOMNODE", "host": "0.0.0.0", "port": 11112, "up": True}
    assert found["deliveries"] == {"failed": 1}
    assert found["jobs"] == {"queued": 1}
    assert found["studies"] == {"receiving": 1}
    assert not found["healthy"]


def test_workers_are_those_that_are_alive(running: Database) -> None:
    silence(running, "net")
    (worker,) = document(snapshot(running, SETTINGS))["workers"]
    assert worker["name"] == "gpu@host:2"
    assert (worker["model"], worker["device"], worker["state"]) == ("demo", "cpu", "idle")
    assert worker["seconds_per_report"] == 1.5
    assert (worker["slots"], worker["busy"], worker["tokens_per_pass"]) == (4, 0, 2.5)


def test_a_peer_tells_what_passed(
    running: Database, study_factory: StudyFactory, draft_factory: DraftFactory
) -> None:
    def of_peer() -> dict[str, Any]:
        (row,) = document(snapshot(running, SETTINGS))["peers"]
        found: dict[str, Any] = row
        return found

    nothing = {"name": "pacs", "last_received": None, "last_sent": None, "failures": 0}
    assert of_peer() == nothing
    study_factory(calling_ae_title="SOMEBODY ELSE")
    assert of_peer() == nothing
    uid = study_factory(calling_ae_title="PACS")
    assert of_peer()["last_received"] is not None
    held = held_delivery(running, draft_factory(study_instance_uid=uid))
    with running.transaction() as connection:
        deliveries.sent(connection, held, held.draft_uid, None)
        deliveries.fail(connection, held, "not proven")
    assert of_peer()["last_sent"] is not None
    assert of_peer()["failures"] == 1


def test_what_came_under_the_query_title_came_from_the_peer_too(
    running: Database, study_factory: StudyFactory
) -> None:
    def last_received(peer: Peer) -> datetime | None:
        return snapshot(running, Settings(peers=(peer,))).peers[0].last_received

    two_titles = PEER.model_copy(update={"query_ae_title": "PACSQR"})
    study_factory(calling_ae_title="PACSQR")
    under_query_title = last_received(two_titles)
    assert under_query_title is not None
    assert last_received(PEER) is None
    study_factory(calling_ae_title="PACS")
    newest = last_received(two_titles)
    assert newest == last_received(PEER)
    assert newest is not None
    assert newest > under_query_title


def test_a_refused_association_is_told_with_all_that_mends_it(running: Database) -> None:
    with running.transaction() as connection:
        associations.refused(connection, STRANGER)
    (told,) = document(snapshot(running, SETTINGS))["refused_associations"]
    assert told.pop("first") == told.pop("last")
    assert told == {
        "calling_ae_title": "STRANGER",
        "called_ae_title": "DICOMNODE",
        "address": "10.0.0.9",
        "tls": False,
        "contexts": ["1.2.840.10008.1.1"],
        "code": "unknown-title",
        "reason": "no peer with this AE title may send",
        "fix": remedies.fix(SETTINGS, STRANGER),
        "count": 1,
    }
    assert told["fix"].startswith("[[peers]]")


def test_a_status_is_read_well_within_a_second(running: Database) -> None:
    started = time.monotonic()
    snapshot(running, SETTINGS)
    assert time.monotonic() - started < 1


# -- worklists -------------------------------------------------------------------------------------


def test_a_worklist_that_is_not_answered_is_a_warning_that_says_since_when(
    running: Database,
) -> None:
    ris = Peer(name="ris", ae_title="RIS", host=("10.0.0.6",), roles=("worklist",))
    settings = SETTINGS.model_copy(update={"peers": (*SETTINGS.peers, ris)})
    now = sa.func.now()
    with running.transaction() as connection:
        for name in ("ris", "no longer asked"):
            connection.execute(
                sa.insert(db.worklist_answer).values(
                    peer=name, answered_at=now, failed_at=now, fault="no TCP connection"
                )
            )
    status = snapshot(running, settings)
    (warning,) = [one for one in status.warnings if one.code == "worklist"]
    assert "orders of ris are not known since 2" in warning.text
    assert warning.text.endswith("no TCP connection")
    assert "dicom-node doctor ris" in warning.fix
    assert status.healthy
    with running.transaction() as connection:
        connection.execute(sa.update(db.worklist_answer).values(failed_at=None, fault=None))
    assert "worklist" not in [one.code for one in snapshot(running, settings).warnings]


# -- what peers have -------------------------------------------------------------------------------


def test_a_study_that_does_not_come_is_a_warning_that_says_why(running: Database) -> None:
    with running.transaction() as connection:
        for number, state in enumerate(("failed", "due", "fetched")):
            found = Found(study_instance_uid=f"2.25.{number}", study_date="", peer="pacs")
            fetches.want(connection, found, fetches.MISSED)
            connection.execute(
                sa.update(db.fetch)
                .where(db.fetch.c.study_instance_uid == f"2.25.{number}")
                .values(state=state, attempts=number * 4, reason="0xA801", claimed_at=sa.func.now())
            )
    status = snapshot(running, SETTINGS)
    (warning,) = [one for one in status.warnings if one.code == "fetch"]
    assert warning.text == "2 studies do not come from pacs, 1 of them were given up: 0xA801"
    assert "dicom-node doctor pacs" in warning.fix
    assert status.healthy
    assert document(status)["fetches"] == {"due": 1, "failed": 1, "fetched": 1}


def test_a_peer_that_does_not_tell_what_it_has_is_a_warning(running: Database) -> None:
    asked = Peer(name="archive", ae_title="ARCHIVE", host=("10.0.0.7",), roles=("query",))
    settings = SETTINGS.model_copy(
        update={"peers": (*SETTINGS.peers, asked), "reconciliation": Reconciliation(days=1)}
    )

    def warnings() -> list[str]:
        found = snapshot(running, settings).warnings
        return [one.text for one in found if one.code == "reconciliation"]

    assert warnings() == ["archive has not told what it has since ever"]
    with running.transaction() as connection:
        connection.execute(
            sa.insert(db.reconciled_day).values(
                peer="archive", study_date="20260304", found=3, missing=0
            )
        )
    assert warnings() == []
    assert document(snapshot(running, settings))["reconciliation"]["archive"] is not None
    with running.transaction() as connection:
        old = sa.func.now() - timedelta(hours=4)
        connection.execute(sa.update(db.reconciled_day).values(asked_at=old))
    assert len(warnings()) == 1


# -- final reports ---------------------------------------------------------------------------------


def test_reports_without_a_study_are_a_warning_that_says_where_to_look(running: Database) -> None:
    kept(running, final())
    status = snapshot(running, SETTINGS)
    (warning,) = [one for one in status.warnings if one.code == "reports"]
    assert warning.text.startswith("1 final reports")
    assert "dicom-node reports list --parked" in warning.fix
    assert document(status)["reports"] == {"parked": 1}
    assert status.healthy


def test_matched_reports_are_counted_and_no_warning(
    running: Database, study_factory: StudyFactory
) -> None:
    kept(running, final(claim=Claim(study_instance_uid=study_factory())))
    status = snapshot(running, SETTINGS)
    assert status.reports == {"matched": 1}
    assert "reports" not in [one.code for one in status.warnings]
