"""A study's way through the worker: from stored instances to a kept draft, or to a reason."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa
from pydicom import Dataset
from pydicom.dataset import FileDataset
from pydicom.uid import JPEG2000Lossless

from dicom_node import account, db, deliveries, drafts, orders, retrieval
from dicom_node.config import Peer, Results
from dicom_node.db import Database
from dicom_node.drafts import Draft
from dicom_node.errors import Unreadable
from dicom_node.jobs import Job, LeaseLost
from dicom_node.orders import Told
from dicom_node.priorities import ROUTINE, STAT
from dicom_node.results import objects, text_sr
from dicom_node.results.record import DraftRecord
from dicom_node.storage import Identity, identity_key
from inference.demo.dicom import ACQUIRED
from inference.findings import ModelFailure
from tests.conftest import DIGITAL_X_RAY
from tests.dicom_node.states import MINUTE, claimed, expire
from tests.worker.conftest import ELSEWHERE, open_node
from tests.worker.rule_model import RuleModel
from tests.worker.study import Study, phantom
from worker import pipeline
from worker.host import ModelHost
from worker.pipeline import Node

NOTHING = timedelta(0)
LATER = ACQUIRED + timedelta(minutes=5)


def analyse(node: Node, host: ModelHost, job_id: int) -> Job:
    """Claim the job and run the pipeline on it."""
    held = claimed(node.database, job_id)
    pipeline.analyse(node, host, held)
    return held


def read(study: Study, host: ModelHost) -> Job:
    """Queue what is due of the study and read it; the job as it is then."""
    analyse(study.node, host, study.queue())
    return study.job


def document(node: Node, draft: Draft) -> Dataset:
    return pydicom.dcmread(node.storage.path(draft.path))


def count(database: Database, table: sa.Table) -> int:
    with database.transaction() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0


# -- one frontal image -----------------------------------------------------------------------------


def test_a_frontal_image_becomes_a_kept_draft(study: Study, host: ModelHost) -> None:
    image = study.receive()
    job = read(study, host)
    assert (job.state, job.reason) == ("drafted", None)
    assert job.choice == {"sop_instance_uid": image, "rule": "2.2-1/PA+2.3-only"}
    (draft,) = study.account.drafts
    assert (draft.version, draft.kind, draft.model, draft.job_id) == (1, "text_sr", "rule", job.id)
    assert draft.text.startswith("The mean grey level is ")
    assert [one["sop_instance_uid"] for one in draft.inputs] == [image]


def test_a_drafts_file_is_what_its_row_says(study: Study, host: ModelHost) -> None:
    image = study.receive()
    read(study, host)
    (draft,) = study.account.drafts
    kept = study.node.storage.path(draft.path).read_bytes()
    assert hashlib.sha256(kept).hexdigest() == draft.sha256
    sr = pydicom.dcmread(BytesIO(kept))
    assert sr.SOPInstanceUID == draft.sop_instance_uid
    assert sr.SeriesInstanceUID == draft.series_instance_uid
    assert sr.StudyInstanceUID == study.uid
    assert sr.PatientID == "SECRET-ID"
    assert draft.text in text_sr.text(sr)
    evidence = sr.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert [one.ReferencedSOPInstanceUID for one in evidence.ReferencedSOPSequence] == [image]


def test_a_draft_is_on_its_way_to_every_destination(
    database: Database, tmp_path: Path, host: ModelHost
) -> None:
    shadow = ELSEWHERE.model_copy(update={"name": "shadow", "mode": "shadow"})
    source = ELSEWHERE.model_copy(update={"name": "source", "roles": ("source",)})
    study = Study(node=open_node(database, tmp_path, ELSEWHERE, shadow, source))
    study.receive()
    read(study, host)
    assert {one.peer: one.state for one in study.account.deliveries} == {
        "pacs": "due",
        "shadow": "withheld",
    }


def test_a_draft_can_be_found_by_its_image_and_by_its_text(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    study.receive()
    read(study, host)
    (draft,) = study.account.drafts
    with study.node.database.transaction() as connection:
        (by_text,) = retrieval.nearest(
            connection, model.embed_text(draft.text), kind="report", limit=5
        )
        image = retrieval.stored(connection, study.uid, "image")
    assert by_text.score == pytest.approx(1, abs=1e-6)
    assert by_text.text == draft.text
    assert image is not None
    assert image.digest == model.algorithm.digest


def test_a_model_that_places_no_texts_leaves_its_drafts_findable_by_image(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    model.knows_texts = False
    study.receive()
    assert read(study, host).state == "drafted"
    with study.node.database.transaction() as connection:
        assert retrieval.stored(connection, study.uid, "image") is not None
        assert retrieval.stored(connection, study.uid, "report") is None


def test_a_model_that_fails_leaves_nothing_behind(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    def fail() -> None:
        raise ModelFailure("out of device memory")

    study.receive()
    model.while_reading = fail
    with pytest.raises(ModelFailure):
        read(study, host)
    assert study.account.drafts == []
    assert study.job.state == "running"


# -- the indication --------------------------------------------------------------------------------


def requested(study: Study, reason: str) -> FileDataset:
    image = phantom(1, study.uid)
    image.RequestAttributesSequence[0].ReasonForTheRequestedProcedure = reason
    return image


def told(study: Study) -> str:
    """The study's draft as a radiologist reads it."""
    (draft,) = study.account.drafts
    return text_sr.text(document(study.node, draft))


def test_the_indication_reaches_the_model_and_the_draft_says_where_it_was(
    study: Study, host: ModelHost, model: RuleModel, caplog: pytest.LogCaptureFixture
) -> None:
    study.keep(requested(study, "Cough, SECRET-NAME"))
    read(study, host)
    assert model.told == ["Cough, SECRET-NAME"]
    source = "RequestAttributesSequence > ReasonForTheRequestedProcedure"
    (draft,) = study.account.drafts
    assert draft.record["history"] == "Cough, SECRET-NAME"
    assert draft.record["history_source"] == source
    assert "REQUEST\nCough, SECRET-NAME\n" in told(study)
    assert f"Request from: {source}" in told(study)
    events = [str(one.reason) for one in study.account.events]
    assert "SECRET" not in caplog.text + "".join(events)


def test_a_model_that_shortens_the_indication_is_quoted_with_what_it_read(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    model.shorten = lambda history: history and history[:5]
    study.keep(requested(study, "Cough since Monday"))
    read(study, host)
    assert "REQUEST\nCough\n" in told(study)
    assert "Monday" not in told(study)
    assert "Request from: " in told(study)


def test_a_model_that_takes_no_indication_has_neither_request_nor_source(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    model.shorten = lambda _: None
    study.keep(requested(study, "Cough"))
    read(study, host)
    (draft,) = study.account.drafts
    assert (draft.record["history"], draft.record["history_source"]) == (None, None)
    assert "REQUEST" not in told(study)
    assert "Request from" not in told(study)


def test_an_image_without_indication_is_read_without(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    study.receive()
    read(study, host)
    assert model.told == [None]
    assert "REQUEST" not in told(study)


# -- the order -------------------------------------------------------------------------------------

FROM_RIS = "Modality Worklist ris > ReasonForTheRequestedProcedure"


def ordered(study: Study, patient: str = "SECRET-ID", **changes: Any) -> None:
    """The RIS has an order for the study; the study says that it is SECRET-ID's."""
    told = Told(
        source="worklist",
        peer="ris",
        order_key=orders.order_key("A1"),
        study_instance_uid=study.uid,
        identity=Identity(patient_id_key=identity_key(patient)),
        indication="Cough, SECRET-NAME",
        indication_source=FROM_RIS,
        priority=STAT,
    )
    with study.node.database.transaction() as connection:
        orders.keep(connection, [replace(told, **changes)])
        his = {"patient_id_key": identity_key("SECRET-ID")}
        connection.execute(sa.update(db.study).values(his))


def test_where_the_image_gives_no_reason_the_orders_is_told_with_its_source(
    study: Study, host: ModelHost, model: RuleModel, caplog: pytest.LogCaptureFixture
) -> None:
    study.receive()
    ordered(study)
    read(study, host)
    assert model.told == ["Cough, SECRET-NAME"]
    assert f"REQUEST\nCough, SECRET-NAME\nRequest from: {FROM_RIS}\n" in told(study)
    assert account.to_json(study.account)["indication"] == {"source": FROM_RIS}
    events = [str(one.reason) for one in study.account.events]
    assert "SECRET" not in caplog.text + "".join(events)


def test_the_images_own_reason_goes_before_the_orders(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    study.keep(requested(study, "Fall"))
    ordered(study)
    read(study, host)
    assert model.told == ["Fall"]
    assert "Request from: RequestAttributesSequence > " in told(study)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"patient": "ANOTHER"}, id="another patient's"),
        pytest.param({"cancelled": True}, id="cancelled"),
        pytest.param({"indication": " . "}, id="says nothing"),
    ],
)
def test_an_order_that_is_not_the_studys_is_not_told(
    study: Study, host: ModelHost, model: RuleModel, changes: dict[str, Any]
) -> None:
    study.receive()
    ordered(study, **changes)
    read(study, host)
    assert model.told == [None]
    assert "REQUEST" not in told(study)


def test_an_order_that_changes_after_the_draft_makes_no_other(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    study.receive()
    ordered(study)
    read(study, host)
    ordered(study, indication="Fall")
    study.again()
    read(study, host)
    assert model.told == ["Cough, SECRET-NAME"]


@pytest.mark.parametrize("said_by", ["order", "image", "nobody"])
def test_the_draft_is_as_urgent_as_order_or_image(
    study: Study, host: ModelHost, said_by: str
) -> None:
    image = phantom(1, study.uid)
    if said_by == "image":
        image.RequestedProcedurePriority = "STAT"
    study.keep(image)
    if said_by == "order":
        ordered(study)
    read(study, host)
    (delivery,) = study.account.deliveries
    assert delivery.priority == (ROUTINE if said_by == "nobody" else STAT)


# -- which image -----------------------------------------------------------------------------------


def test_a_lateral_alone_waits_while_the_study_is_being_received(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    study.receive(view_position="LL")
    job = read(study, host)
    assert (job.state, job.attempts, job.reason) == ("queued", 0, "not yet: NOT_FRONTAL")
    assert job.due_at == study.account.study.settle_at
    assert model.seen == []


def test_a_lateral_alone_is_refused_when_the_study_is_complete(
    study: Study, host: ModelHost
) -> None:
    study.receive(view_position="LL", quiet=NOTHING)
    job = read(study, host)
    assert job.state == "refused"
    assert job.choice == {"refusal": {"code": "NOT_FRONTAL", "text": "view is lateral"}}
    assert study.account.drafts == []


def test_a_frontal_that_follows_a_waiting_lateral_is_read_in_the_same_revision(
    study: Study, host: ModelHost
) -> None:
    lateral = study.receive(view_position="LL")
    read(study, host)
    frontal = study.receive(seed=2)
    job = read(study, host)
    assert (job.state, job.revision) == ("drafted", 1)
    assert job.choice is not None
    assert job.choice["sop_instance_uid"] == frontal
    (draft,) = study.account.drafts
    evidence = document(study.node, draft).CurrentRequestedProcedureEvidenceSequence[0]
    referenced = {
        one.ReferencedSOPInstanceUID
        for series in evidence.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }
    assert referenced == {lateral, frontal}


def test_a_frontal_after_a_refusal_is_read_in_a_new_revision(study: Study, host: ModelHost) -> None:
    study.receive(view_position="LL", quiet=NOTHING)
    read(study, host)
    study.receive(seed=2)
    assert (read(study, host).state, study.job.revision) == ("drafted", 2)


def test_the_next_best_image_is_read_when_the_best_can_not_be_decoded(
    study: Study, host: ModelHost
) -> None:
    broken = phantom(1, study.uid, view_position="PA")
    study.keep(broken, transfer_syntax=JPEG2000Lossless)
    whole = study.receive(seed=2, view_position="AP")
    job = read(study, host)
    assert job.choice == {"sop_instance_uid": whole, "rule": "2.2-1/AP+2.3-only"}


def test_a_study_whose_only_image_can_not_be_decoded_is_refused(
    study: Study, host: ModelHost
) -> None:
    broken = phantom(1, study.uid)
    study.keep(broken, transfer_syntax=JPEG2000Lossless, quiet=NOTHING)
    job = read(study, host)
    assert job.state == "refused"
    assert str(job.reason).startswith("UNDECODABLE: ")


def test_an_object_that_no_parser_gets_through_is_passed_over(
    study: Study, host: ModelHost, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = study.keep_bytes(
        b"\x08\x00\x05\x00CS\xff\xff" + b"\x00" * 20,
        sop_instance_uid="2.25.666",
        sop_class_uid=DIGITAL_X_RAY,
    )
    study.node.storage.path(study.account.instances[0].path).write_bytes(b"no Part 10 file")
    image = study.receive()
    job = read(study, host)
    assert job.choice is not None
    assert job.choice["sop_instance_uid"] == image
    assert f"instance {damaged} can't be parsed" in caplog.text


def test_an_image_that_the_model_was_not_made_for_is_not_read(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    image = phantom(1, study.uid)
    image.Modality = "OT"
    study.keep(image, quiet=NOTHING)
    assert read(study, host).state == "refused"
    assert model.seen == []


def test_detector_data_are_refused_by_the_rule_that_names_them(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    image = phantom(1, study.uid)
    # PS3.4 B.5: Digital X-Ray Image Storage - For Processing
    image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1.1"
    image.PresentationIntentType = "FOR PROCESSING"
    study.keep(image, quiet=NOTHING)
    job = read(study, host)
    assert job.choice is not None
    assert job.choice["refusal"]["code"] == "FOR_PROCESSING"
    assert model.seen == []


def test_a_file_that_is_gone_is_unreadable(study: Study, host: ModelHost) -> None:
    study.receive()
    (instance,) = study.account.instances
    study.node.storage.path(instance.path).unlink()
    with pytest.raises(Unreadable, match="No such file"):
        read(study, host)


# -- when more arrives -----------------------------------------------------------------------------


def test_a_better_image_supersedes_the_draft(study: Study, host: ModelHost) -> None:
    study.receive(view_position="AP")
    read(study, host)
    better = study.receive(seed=2, view_position="PA")
    job = read(study, host)
    assert (job.state, job.revision) == ("drafted", 2)
    first, second = study.account.drafts
    assert (first.version, first.superseded_by) == (1, second.sop_instance_uid)
    assert (second.version, second.superseded_by) == (2, None)
    assert [one["sop_instance_uid"] for one in second.inputs] == [better]
    sr = document(study.node, second)
    reference = sr.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert reference.SeriesInstanceUID == first.series_instance_uid
    named = reference.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert named == first.sop_instance_uid
    assert {one.draft_uid: one.state for one in study.account.deliveries} == {
        first.sop_instance_uid: "dropped",
        second.sop_instance_uid: "due",
    }


def test_a_repeated_exposure_supersedes_the_draft(study: Study, host: ModelHost) -> None:
    study.receive()
    read(study, host)
    study.receive(seed=2, acquired=LATER)
    read(study, host)
    assert [one.version for one in study.account.drafts] == [1, 2]


def test_a_draft_that_is_sent_already_stays_sent_when_it_is_superseded(
    study: Study, host: ModelHost
) -> None:
    study.receive(view_position="AP")
    read(study, host)
    (delivery,) = study.account.deliveries
    with study.node.database.transaction() as connection:
        held = deliveries.claim(connection, delivery.id, at_once=9, lease=MINUTE, worker="net")
        assert held is not None
        deliveries.sent(connection, held, held.draft_uid, None)
        deliveries.delivered(connection, held, "none")
    study.receive(seed=2, view_position="PA")
    read(study, host)
    assert [one.state for one in study.account.deliveries] == ["delivered", "due"]


def test_a_late_lateral_leaves_the_draft_as_it_is(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    frontal = study.receive()
    read(study, host)
    (draft,) = study.account.drafts
    study.receive(seed=2, view_position="LL")
    job = read(study, host)
    assert (job.state, job.revision) == ("drafted", 2)
    assert job.reason == f"the input is unchanged: draft {draft.sop_instance_uid} stands"
    assert study.account.drafts == [draft]
    assert [one.state for one in study.account.deliveries] == ["due"]
    assert model.seen == [frontal]


def test_other_bytes_of_the_same_image_are_read_again(study: Study, host: ModelHost) -> None:
    study.receive(sop_instance_uid="2.25.500")
    read(study, host)
    study.receive(seed=2, sop_instance_uid="2.25.500")
    read(study, host)
    first, second = study.account.drafts
    assert first.inputs != second.inputs
    assert second.version == 2


# -- the same job again ----------------------------------------------------------------------------


def test_a_drafted_study_that_is_queued_again_gets_no_second_draft(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    image = study.receive()
    read(study, host)
    before = study.account.drafts
    study.again()
    job = read(study, host)
    assert job.state == "drafted"
    assert "stands" in str(job.reason)
    assert study.account.drafts == before
    assert model.seen == [image]


def test_a_drafted_study_is_read_again_by_another_model_of_the_same_name(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    study.receive()
    read(study, host)
    study.again()
    model.algorithm = replace(model.algorithm, digest="other weights")
    read(study, host)
    assert [one.version for one in study.account.drafts] == [1, 2]


def test_a_worker_that_dies_before_the_commit_costs_a_repeat_but_no_second_object(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    study.receive()
    job_id = study.queue()

    def lease_is_over_and_somebody_else_has_it() -> None:
        expire(study.node.database, db.job, job_id)
        claimed(study.node.database, job_id, worker="other")

    model.while_reading = lease_is_over_and_somebody_else_has_it
    with pytest.raises(LeaseLost):
        analyse(study.node, host, job_id)
    (left,) = study.node.storage.path("drafts").rglob("*.dcm")
    before = left.read_bytes()
    model.while_reading = lambda: None
    expire(study.node.database, db.job, job_id)
    analyse(study.node, host, job_id)
    (draft,) = study.account.drafts
    assert study.node.storage.path(draft.path) == left
    assert left.read_bytes() == before


def test_a_worker_that_lost_its_lease_writes_no_row(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    study.receive()
    job_id = study.queue()

    def lose() -> None:
        expire(study.node.database, db.job, job_id)
        claimed(study.node.database, job_id, worker="other")

    model.while_reading = lose
    with pytest.raises(LeaseLost):
        analyse(study.node, host, job_id)
    for table in (db.draft, db.delivery, db.embedding):
        assert count(study.node.database, table) == 0
    assert study.job.state == "running"


def test_two_revisions_that_are_read_at_once_leave_one_live_draft(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    study.receive(view_position="AP")
    first = study.queue()

    def a_better_image_comes_and_another_worker_reads_it() -> None:
        model.while_reading = lambda: None
        study.receive(seed=2, view_position="PA")
        analyse(study.node, other, study.queue())

    other = ModelHost(study.node.settings.model)
    model.while_reading = a_better_image_comes_and_another_worker_reads_it
    analyse(study.node, host, first)
    waiting, done = study.account.jobs
    assert (waiting.state, done.state) == ("queued", "drafted")
    assert waiting.reason == "another draft of this study was kept meanwhile"
    analyse(study.node, host, first)
    assert [one.state for one in study.account.jobs] == ["drafted", "drafted"]
    (draft,) = study.account.drafts
    assert draft.job_id == done.id
    assert [one.state for one in study.account.deliveries] == ["due"]


def test_an_image_that_comes_while_the_model_reads_is_read_in_the_next_revision(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    study.receive(view_position="AP")
    job_id = study.queue()
    arrived: list[str] = []

    def arrive() -> None:
        model.while_reading = lambda: None
        arrived.append(study.receive(seed=2, view_position="PA"))

    model.while_reading = arrive
    analyse(study.node, host, job_id)
    assert study.account.study.revision == 2
    read(study, host)
    with study.node.database.transaction() as connection:
        live = drafts.current(connection, study.uid)
    assert live is not None
    assert (live.version, [one["sop_instance_uid"] for one in live.inputs]) == (2, arrived)


# -- opening a node --------------------------------------------------------------------------------


def test_every_process_of_an_installation_has_the_same_identity(
    database: Database, tmp_path: Path
) -> None:
    one, other = (open_node(database, tmp_path / name) for name in ("a", "b"))
    assert one.identity == other.identity
    with database.transaction() as connection:
        stored = connection.scalar(sa.select(db.installation.c.id))
    assert one.identity.installation_id == str(stored)


def test_a_job_without_a_study_row_is_unreadable(node: Node, host: ModelHost) -> None:
    nothing = Job(
        id=1,
        study_instance_uid="1.2.3",
        revision=1,
        model="rule",
        state="running",
        attempts=1,
        claims=1,
        choice=None,
        reason=None,
        started_at=None,
        due_at=ACQUIRED,
    )
    with pytest.raises(Unreadable, match=r"1\.2\.3"):
        pipeline.analyse(node, host, nothing)


# -- what else is made of a reading ----------------------------------------------------------------

EVERYTHING = Results(coded_sr=True, pdf=True, capture=True, gsps=True, hl7=True, fhir=True)


def test_one_reading_gives_every_kind_that_the_site_wants(
    database: Database, tmp_path: Path, host: ModelHost
) -> None:
    ris = Peer(name="ris", protocol="hl7", host=("10.0.0.6",), roles=("destination",))
    ehr = Peer(name="ehr", protocol="fhir", url="https://ehr/fhir", roles=("destination",))
    study = Study(node=open_node(database, tmp_path, ELSEWHERE, ris, ehr, results=EVERYTHING))
    study.receive()
    read(study, host)
    kept = {one.kind: one for one in study.account.drafts}
    assert set(kept) == set(EVERYTHING.kinds)
    assert len({one.text for one in kept.values()}) == 1
    for one in kept.values():
        of = DraftRecord.from_json(json.dumps(one.record))
        assert objects.encode(of).file == study.node.storage.path(one.path).read_bytes()
    sent = {(one.peer, of_uid(study, one.draft_uid).kind) for one in study.account.deliveries}
    imaging = {("pacs", kind) for kind in ("text_sr", "coded_sr", "pdf", "capture", "gsps")}
    assert sent == imaging | {("ris", "hl7"), ("ehr", "fhir")}


def of_uid(study: Study, uid: str) -> Draft:
    return next(one for one in study.account.drafts if one.sop_instance_uid == uid)


def test_a_new_version_replaces_each_kind_by_its_own(
    database: Database, tmp_path: Path, host: ModelHost
) -> None:
    results = Results(coded_sr=True, pdf=True)
    study = Study(node=open_node(database, tmp_path, ELSEWHERE, results=results))
    study.receive(view_position="AP")
    read(study, host)
    study.receive(seed=2, view_position="PA")
    read(study, host)
    first, second = study.account.drafts[:3], study.account.drafts[3:]
    assert {one.version for one in second} == {2}
    for old in first:
        assert old.superseded_by is not None
        new = of_uid(study, old.superseded_by)
        assert new.kind == old.kind
        assert new.record["predecessor"]["sop_instance_uid"] == old.sop_instance_uid


def test_a_draft_carries_the_labels_of_its_text_and_who_read_them(
    study: Study, host: ModelHost, model: RuleModel
) -> None:
    model.words = "Small left pleural effusion. No pneumothorax."
    study.receive()
    read(study, host)
    (draft,) = study.account.drafts
    said = [(one["label"], one["presence"]) for one in draft.record["labels"]]
    assert said == [("Pleural Effusion", "present"), ("Pneumothorax", "absent")]
    sr = document(study.node, draft)
    names = [one.ManufacturerModelName for one in sr.ContributingEquipmentSequence]
    assert "dicom-node rule labeler" in names


# -- the status SR ---------------------------------------------------------------------------------


@pytest.fixture
def telling(database: Database, tmp_path: Path) -> Study:
    """A study of a node that tells the radiologist when there is no draft."""
    results = Results(on_no_input="status-sr")
    return Study(node=open_node(database, tmp_path, ELSEWHERE, results=results))


def test_a_radiologist_is_told_that_there_is_no_draft_and_why(
    telling: Study, host: ModelHost, model: RuleModel
) -> None:
    telling.receive(view_position="LL", quiet=NOTHING)
    assert read(telling, host).state == "refused"
    (said,) = telling.account.drafts
    assert (said.kind, said.version, said.text, list(said.inputs)) == ("text_sr", 1, "", [])
    text = text_sr.text(document(telling.node, said))
    assert text.startswith(
        "AI-GENERATED DRAFT NOT PRODUCED - NOT FOR DIAGNOSIS: NOT_FRONTAL (view is lateral). "
        "A radiologist must read this study as usual."
    )
    assert "FINDINGS" not in text
    assert [one.state for one in telling.account.deliveries] == ["due"]
    assert model.seen == []


def test_the_same_reason_is_told_once(telling: Study, host: ModelHost) -> None:
    telling.receive(view_position="LL", quiet=NOTHING)
    read(telling, host)
    telling.receive(seed=2, view_position="LL", quiet=NOTHING)
    assert read(telling, host).state == "refused"
    assert len(telling.account.drafts) == 1


def test_a_frontal_that_comes_later_replaces_the_word_that_there_is_no_draft(
    telling: Study, host: ModelHost
) -> None:
    telling.receive(view_position="LL", quiet=NOTHING)
    read(telling, host)
    telling.receive(seed=2)
    read(telling, host)
    said, draft = telling.account.drafts
    assert said.superseded_by == draft.sop_instance_uid
    assert draft.version == 2
    assert draft.record["predecessor"]["sop_instance_uid"] == said.sop_instance_uid


def test_a_draft_that_is_there_is_not_taken_back(telling: Study, host: ModelHost) -> None:
    frontal = telling.receive()
    read(telling, host)
    (instance,) = telling.account.instances
    telling.node.storage.path(instance.path).write_bytes(b"no Part 10 file")
    telling.receive(seed=2, view_position="LL", quiet=NOTHING)
    assert read(telling, host).state == "refused"
    (draft,) = telling.account.drafts
    assert [one["sop_instance_uid"] for one in draft.inputs] == [frontal]


def test_a_study_without_any_image_is_not_talked_about(telling: Study, host: ModelHost) -> None:
    report = phantom(1, telling.uid)
    del report.PixelData
    telling.keep(report, quiet=NOTHING)
    assert read(telling, host).state == "refused"
    assert telling.account.drafts == []


def test_a_page_of_ours_that_comes_back_is_no_evidence(study: Study, host: ModelHost) -> None:
    page = phantom(2, study.uid)
    page.ManufacturerModelName = "dicom-node"
    study.keep(page)
    image = study.receive()
    read(study, host)
    (draft,) = study.account.drafts
    assert [one["sop_instance_uid"] for one in draft.record["evidence"]] == [image]
