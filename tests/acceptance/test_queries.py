"""Orthanc and DCMTK's dcmqrscp are asked: what was missed comes once, and the right priors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom.dataset import Dataset
from sqlalchemy import func

from dicom_node import db, fetches, reconciliation, studies
from dicom_node.config import Node as NodeSettings
from dicom_node.config import Peer, Reconciliation, Settings
from dicom_node.db import Database
from dicom_node.priors import of_study
from dicom_node.registering import Registrar
from dicom_node.scu import send_files
from dicom_node.storage import StoredInstance
from inference.demo import dicom, phantom
from inference.demo.dicom import DemoPatient
from tests.acceptance.askable import Askable, askable
from tests.acceptance.running_node import MODALITY, RunningNode, running, wait_for
from tests.dicom_node import network
from tests.pacs import Pacs
from tests.ports import free_port
from tests.query_pacs import chest
from worker import pipeline, tasks
from worker.tasks import Context

US = "DICOMNODE"
KINDS = ("Orthanc", "dcmqrscp")
SECONDS = 120.0  #: far above what a loaded machine needs, so that only a fault reaches it


# -- both PACS, both ways, in one process ----------------------------------------------------------


@pytest.fixture(scope="module")
def our_port() -> int:
    """Where the node will listen: a PACS is told before it does."""
    return free_port()


@pytest.fixture(scope="module")
def hospital(
    our_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Askable]]:
    """Both PACS, holding nothing yet."""
    with ExitStack() as stack:
        yield {
            kind: stack.enter_context(
                askable(
                    kind,
                    tmp_path_factory.mktemp("askable") / kind,
                    port=free_port(),
                    node=US,
                    node_port=our_port,
                )
            )
            for kind in KINDS
        }


@dataclass
class Site:
    """A node in this process: its SCP, its sweep and its worker."""

    context: Context
    port: int
    patient_id: str

    @property
    def database(self) -> Database:
        return self.context.database

    def sweep(self) -> None:
        """One round of the reconciliation, and a worker that does what it finds."""
        reconciliation.Sweep(self.database, self.context.node.settings)()
        self.fetch()

    def fetch(self) -> None:
        while True:
            with self.database.transaction() as connection:
                due = fetches.nudge(connection, every=timedelta(0), per_hour=1000)
            if not due:
                return
            for fetch_id in due:
                tasks.fetch(self.context, fetch_id)

    def search_priors(self) -> None:
        with self.database.transaction() as connection:
            connection.execute(sa.update(db.study).values(settle_at=func.now()))
            studies.settle(connection, ["demo"], fetches.search)
            due = fetches.nudge_searches(connection, every=timedelta(0))
        for search_id in due:
            tasks.search_priors(self.context, search_id)
        self.fetch()

    def kept(self) -> set[str]:
        with self.database.transaction() as connection:
            return set(connection.scalars(sa.select(db.instance.c.sop_instance_uid)))

    def claims(self) -> list[int]:
        with self.database.transaction() as connection:
            return list(connection.scalars(sa.select(db.fetch.c.claims)))

    def image(self, **changes: Any) -> Dataset:
        """Of this test's patient, whom no other test has."""
        return chest(**{"PatientID": self.patient_id, **changes})


@pytest.fixture(params=[(kind, way) for kind in KINDS for way in ("move", "get")], ids="-".join)
def way(request: pytest.FixtureRequest, hospital: dict[str, Askable]) -> tuple[Askable, Peer]:
    """A PACS, and how it is asked to give what it has."""
    kind, retrieve = request.param
    return hospital[kind], hospital[kind].peer(retrieve=retrieve)


@pytest.fixture
def site(
    way: tuple[Askable, Peer], database: Database, tmp_path: Path, our_port: int
) -> Iterator[Site]:
    """A node that asks this PACS."""
    settings = Settings(
        node=NodeSettings(data=tmp_path),
        reconciliation=Reconciliation(days=1, patience_minutes=0, priors=3),
        peers=(way[1],),
    )
    context = Context(node=pipeline.open_node(settings, database), name="net@test", host=None)
    registrar = Registrar(settings, database, context.node.storage)

    def register(stored: StoredInstance) -> None:
        registrar.register(stored, lambda: None)

    with network.running(tmp_path, way[1], network.SOURCE, register=register, port=our_port):
        yield Site(context, our_port, patient_id=f"P{time.monotonic_ns()}")
    registrar.close()


def today(days: int = 0) -> str:
    return f"{date.today() + timedelta(days=days):%Y%m%d}"


def test_a_missed_study_is_found_and_fetched_once(way: tuple[Askable, Peer], site: Site) -> None:
    missed = site.image(StudyDate=today())
    second = site.image(StudyDate=today(), StudyInstanceUID=missed.StudyInstanceUID)
    # Of two days ago: nobody asks for it.
    before = site.image(StudyDate=today(-2))
    ct = site.image(StudyDate=today(), Modality="CT")
    way[0].load(missed, second, before, ct)
    for _ in range(3):
        site.sweep()
    ours = {missed.SOPInstanceUID, second.SOPInstanceUID}
    kept = site.kept()
    assert ours <= kept
    assert not {before.SOPInstanceUID, ct.SOPInstanceUID} & kept
    # What other tests left of today came too, each with one claim.
    assert {*site.claims()} <= {0, 1}
    with site.database.transaction() as connection:
        again = connection.scalar(
            sa.select(func.count()).select_from(db.instance).where(db.instance.c.revision > 1)
        )
    assert again == 0


def test_of_a_study_that_came_in_part_the_rest_is_fetched_once(
    way: tuple[Askable, Peer], site: Site
) -> None:
    came = site.image(StudyDate=today())
    late = site.image(StudyDate=today(), StudyInstanceUID=came.StudyInstanceUID)
    _received(site, came)
    way[0].load(came)
    site.sweep()
    uid = str(came.StudyInstanceUID)
    with site.database.transaction() as connection:
        assert fetches.of_study(connection, uid) is None, "it is whole"
    way[0].load(late)
    for _ in range(3):
        site.sweep()
    assert {came.SOPInstanceUID, late.SOPInstanceUID} <= site.kept()
    with site.database.transaction() as connection:
        row = fetches.of_study(connection, uid)
    assert row is not None
    assert (row.purpose, row.state, row.claims) == ("incomplete", "fetched", 1)


def test_the_priors_are_of_the_right_patient_only(way: tuple[Askable, Peer], site: Site) -> None:
    current = site.image(StudyDate=today())
    mine = [site.image(StudyDate=day) for day in ("20250101", "20240101")]
    wrong = [
        site.image(StudyDate="20250201", PatientID=f"{site.patient_id}X"),  # the same name
        site.image(StudyDate="20250202", IssuerOfPatientID="ELSEWHERE"),
        site.image(StudyDate="20250203", PatientBirthDate="19800101"),
    ]
    later = site.image(StudyDate=today(1))
    way[0].load(*mine, *wrong, later)
    _received(site, current)
    site.search_priors()
    site.search_priors()
    wanted = {one.SOPInstanceUID for one in (current, *mine)}
    assert site.kept() == wanted
    with site.database.transaction() as connection:
        shown = of_study(connection, str(current.StudyInstanceUID))
        jobs = connection.scalars(sa.select(db.job.c.study_instance_uid)).all()
    assert [one.study_instance_uid for one in shown] == [one.StudyInstanceUID for one in mine]
    assert {one.state for one in shown} == {"here"}
    assert jobs == [current.StudyInstanceUID]


def _received(site: Site, image: Dataset) -> None:
    """A modality sends it to us."""
    path = site.context.node.settings.node.data / "sent.dcm"
    image.save_as(path, enforce_file_format=True)
    us = Peer(name="us", ae_title=US, host=("127.0.0.1",), port=site.port)
    (outcome,) = send_files([path], us, MODALITY)
    assert outcome.failure is None


# -- a whole node, killed between two sweeps -------------------------------------------------------

MORE = """
[reconciliation]
days = 1
every_minutes = 0.05
patience_minutes = 0
priors = 2

[[peers]]
name = "orthanc"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {Orthanc}
roles = ["source", "query"]

[[peers]]
name = "dcmqrscp"
ae_title = "QRSCP"
host = "127.0.0.1"
port = {dcmqrscp}
roles = ["query"]
retrieve = "get"
"""


def radiograph(patient: DemoPatient, day: str, seed: int) -> Dataset:
    """A phantom that the demo model reads."""
    image = dicom.to_dx(phantom.render(phantom.scene(seed)), patient=patient)
    image.StudyDate = day
    image.IssuerOfPatientID = "HOSPITAL"
    return image


@pytest.fixture
def whole(pacs: Pacs, tmp_path: Path) -> Iterator[tuple[RunningNode, dict[str, Askable]]]:
    """A node and both PACS, which it asks every three seconds."""
    ports = {kind: free_port() for kind in KINDS}
    with ExitStack() as stack:
        more = MORE.format(**ports)
        home = tmp_path / "node"
        home.mkdir()
        node = stack.enter_context(running(home, pacs_title="PACS", pacs_port=pacs.port, more=more))
        known = {"node": US, "node_port": node.settings.node.port}
        yield (
            node,
            {
                kind: stack.enter_context(askable(kind, tmp_path / kind, port=port, **known))
                for kind, port in ports.items()
            },
        )


def swept(node: RunningNode) -> None:
    """Until both peers have answered another round since now."""
    with node.database.transaction() as connection:
        now = connection.scalar(sa.select(func.now()))

    def done() -> bool | None:
        with node.database.transaction() as connection:
            rows = connection.execute(
                sa.select(
                    db.reconciled_day.c.peer, func.min(db.reconciled_day.c.asked_at)
                ).group_by(db.reconciled_day.c.peer)
            ).all()
        return (len(rows) == 2 and all(at > now for _, at in rows)) or None

    wait_for("both peers are asked again", SECONDS, done)


@pytest.mark.slow
def test_a_missed_study_is_read_once_and_a_new_one_gets_its_priors_through_kill_9(
    whole: tuple[RunningNode, dict[str, Askable]], tmp_path: Path
) -> None:
    node, hospital = whole
    missed = radiograph(DemoPatient(patient_id="MISSED"), today(), 1)
    hospital["Orthanc"].load(missed)
    (found,) = node.wait_ended(str(missed.StudyInstanceUID))
    assert [one["state"] for one in found["jobs"]] == ["drafted"]
    node.kill("everything")
    node.wait_healthy()
    swept(node)
    (found,) = node.wait_ended(str(missed.StudyInstanceUID))
    assert (len(found["instances"]), len(found["drafts"]), found["revision"]) == (1, 1, 1)
    with node.database.transaction() as connection:
        fetched = fetches.of_study(connection, str(missed.StudyInstanceUID))
    assert fetched is not None
    assert (fetched.state, fetched.claims, fetched.peer) == ("fetched", 1, "orthanc")
    assert node.json("reconcile", "--peer", "orthanc")["days"][1]["missing"] == []

    patient = DemoPatient(patient_id="HAS-PRIORS")
    priors = {
        "Orthanc": radiograph(patient, "20240101", 2),
        "dcmqrscp": radiograph(patient, "20250101", 3),
    }
    for kind, prior in priors.items():
        wrong = radiograph(DemoPatient(patient_id="NAMESAKE"), "20250202", 4)
        hospital[kind].load(prior, wrong)
    current = radiograph(patient, today(), 5)
    path = tmp_path / "current.dcm"
    current.save_as(path, enforce_file_format=True)
    (sent,) = send_files([path], node.peer, MODALITY)
    assert sent.failure is None
    uid = str(current.StudyInstanceUID)

    def shown() -> list[dict[str, Any]] | None:
        study = node.study(uid)
        rows = study["priors"] if study else []
        return rows if len(rows) == 2 and all(one["state"] == "here" for one in rows) else None

    rows = wait_for("both priors are here", SECONDS, shown)
    assert [one["study_instance_uid"] for one in rows] == [
        priors["dcmqrscp"].StudyInstanceUID,
        priors["Orthanc"].StudyInstanceUID,
    ]
    for prior in priors.values():
        told = wait_for("it is complete", SECONDS, lambda prior=prior: _complete(node, prior))
        assert (told["jobs"], told["drafts"]) == ([], [])
    listed = node.json("priors", uid)["priors"]
    assert [one["state"] for one in listed] == ["here", "here"]


def _complete(node: RunningNode, image: Dataset) -> dict[str, Any] | None:
    found = node.study(str(image.StudyInstanceUID))
    return found if found and found["state"] == "complete" else None
