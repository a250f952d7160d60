"""A worker's parts without Celery: a node, a model that is found as any plug-in, a context."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from dicom_node.config import Jobs, Model, Peer, Results, Settings
from dicom_node.config import Node as NodeSettings
from dicom_node.db import Database
from tests.pacs import Pacs
from tests.worker import rule_model
from tests.worker.rule_model import RuleModel
from tests.worker.study import Study
from worker import pipeline
from worker.host import ModelHost
from worker.tasks import Context

_TEXT_ONLY = Results()
ELSEWHERE = Peer(name="pacs", ae_title="PACS", host=("10.0.0.5",), roles=("destination",))


def open_node(
    database: Database,
    data: Path,
    *peers: Peer,
    results: Results = _TEXT_ONLY,
    **jobs: float,
) -> pipeline.Node:
    """A node as a worker process opens it."""
    settings = Settings(
        node=NodeSettings(data=data),
        model=Model(name=rule_model.NAME),
        jobs=Jobs.model_validate(jobs),
        results=results,
        peers=peers,
    )
    return pipeline.open_node(settings, database)


def install(site: Path, name: str, plug_in: type[RuleModel]) -> None:
    """Make a model's distribution in a folder of the module path."""
    information = site / f"{name}_model-1.0.dist-info"
    information.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}-model\nVersion: 1.0\n"
    (information / "METADATA").write_text(metadata)
    entry = f"{name} = {plug_in.__module__}:{plug_in.__name__}\n"
    (information / "entry_points.txt").write_text(f"[dicom_node.models]\n{entry}")


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The rule model's distribution, so that its entry point is found as that of any plug-in."""
    site = tmp_path_factory.mktemp("site")
    install(site, rule_model.NAME, RuleModel)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield


@pytest.fixture
def host(installed: None) -> ModelHost:
    """The model as a worker holds it."""
    return ModelHost(Model(name=rule_model.NAME))


@pytest.fixture
def model(host: ModelHost) -> RuleModel:
    """The model inside the host."""
    return cast(RuleModel, host.model)


@pytest.fixture
def node(database: Database, tmp_path: Path) -> pipeline.Node:
    """A node with one destination that nobody calls here."""
    return open_node(database, tmp_path, ELSEWHERE)


@pytest.fixture
def study(node: pipeline.Node) -> Study:
    """A study of that node, still empty."""
    return Study(node=node)


@pytest.fixture
def context(node: pipeline.Node, host: ModelHost) -> Context:
    """A worker process of that node."""
    return Context(node=node, name="gpu@test", host=host)


@pytest.fixture
def pacs_node(database: Database, tmp_path: Path, peer_scp: Pacs) -> pipeline.Node:
    """A node whose destination answers."""
    return open_node(database, tmp_path, peer_scp.peer())
