"""The JSON documents have the shapes that interface.md fixes; ``status`` is light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dicom_node import scu
from tests.acceptance import phantoms
from tests.acceptance.running_node import MODALITY, RunningNode

pytestmark = pytest.mark.alone

# A list holds the shape of its items. More keys may be there than are named.
STATUS: dict[str, Any] = {
    "version": str,
    "healthy": bool,
    "problems": [{"code": str, "text": str, "fix": str}],
    "node": {"ae_title": str, "host": str, "port": int, "up": bool},
    "database": {"up": bool},
    "broker": {"up": bool},
    "workers": [
        {
            "name": str,
            "model": str | None,
            "device": str | None,
            "state": str,
            "seconds_per_report": float | None,
            "last_seen": str,
        }
    ],
    "studies": {},
    "jobs": {},
    "deliveries": {},
    "peers": [
        {
            "name": str,
            "last_received": str | None,
            "last_sent": str | None,
            "failures": int,
        }
    ],
    "refused_associations": [
        {"calling_ae_title": str, "address": str, "reason": str, "count": int, "last": str}
    ],
    "storage": {"free_bytes": int, "state": str},
}
STUDY: dict[str, Any] = {
    "study_instance_uid": str,
    "state": str,
    "revision": int,
    "instances": [{"sop_instance_uid": str, "sop_class_uid": str, "path": str, "sha256": str}],
    "jobs": [{"id": int, "revision": int, "model": str, "state": str, "attempts": int}],
    "drafts": [
        {
            "sop_instance_uid": str,
            "series_instance_uid": str,
            "kind": str,
            "text": str,
            "superseded_by": str | None,
            "deliveries": [{"peer": str, "state": str, "proof": str | None}],
        }
    ],
    "events": [{"at": str, "from": str | None, "to": str, "reason": str | None}],
}
CHOICE = {"sop_instance_uid": str, "rule": str}
REFUSAL = {"refusal": {"code": str, "text": str}}
SEARCH: dict[str, Any] = {
    "model": str,
    "hits": [
        {
            "study_instance_uid": str,
            "kind": str,
            "score": float,
            "text": str,
            "same_patient": bool,
        }
    ],
}


def assert_shape(found: Any, shape: Any, where: str = "") -> None:
    """Every named key is there with a value of its type."""
    if isinstance(shape, dict):
        assert shape.keys() <= found.keys(), where
        for key, inner in shape.items():
            assert_shape(found[key], inner, f"{where}.{key}")
    elif isinstance(shape, list):
        assert isinstance(found, list), where
        for item in found:
            assert_shape(item, shape[0], f"{where}[]")
    else:
        assert isinstance(found, shape), f"{where} is {found!r}"


@pytest.fixture(scope="module")
def study(node: RunningNode, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A drafted study, of two; a stranger was turned away."""
    with pytest.raises(Exception, match="calling AE title is not recognised"):
        scu.echo(node.peer, "STRANGER")
    folder = tmp_path_factory.mktemp("sent")
    sent = [
        one
        for index in (20_000, 20_002)
        for one in phantoms.make(folder, index, frozenset({"cardiomegaly"}))
    ]
    outcomes = scu.send_files([one.path for one in sent], node.peer, MODALITY)
    assert [one.failure for one in outcomes if one.failure] == []
    node.wait_ended(*(one.study_instance_uid for one in sent))
    return sent[0].study_instance_uid


def test_status_has_its_shape(study: str, node: RunningNode) -> None:
    found = node.json("status")
    assert_shape(found, STATUS)
    assert found["healthy"] is True
    assert found["jobs"]["drafted"] >= 1
    assert found["deliveries"]["delivered"] >= 1
    assert len(found["workers"]) == 2
    assert {one["name"] for one in found["peers"]} == {"modality", "pacs", "ris"}
    assert "STRANGER" in {one["calling_ae_title"] for one in found["refused_associations"]}


def test_study_has_its_shape(study: str, node: RunningNode) -> None:
    found = node.json("study", study)
    assert_shape(found, STUDY)
    assert_shape(found["choice"], CHOICE)
    assert found["instances"]
    assert found["events"]
    assert found["drafts"][0]["deliveries"] == [
        found["drafts"][0]["deliveries"][0] | {"peer": "pacs", "state": "delivered"}
    ]


def test_a_refused_study_names_the_refusal(node: RunningNode, tmp_path: Path) -> None:
    (one,) = phantoms.make(tmp_path, 20_001, frozenset(), views=("LL",))
    assert scu.send_files([one.path], node.peer, MODALITY)[0].failure is None
    node.wait_ended(one.study_instance_uid)
    found = node.json("study", one.study_instance_uid)
    assert_shape(found, {key: shape for key, shape in STUDY.items() if key != "drafts"})
    assert_shape(found["choice"], REFUSAL)
    assert found["choice"]["refusal"]["code"] == "NOT_FRONTAL"
    assert found["drafts"] == []


def test_search_has_its_shape(study: str, node: RunningNode) -> None:
    found = node.json("search", "--study", study, "--kind", "report", "--limit", "2")
    assert_shape(found, SEARCH)
    assert 1 <= len(found["hits"]) <= 2
    assert study not in {one["study_instance_uid"] for one in found["hits"]}


def test_status_imports_nothing_that_takes_long(study: str, node: RunningNode) -> None:
    program = (
        "import sys, json\n"
        "from dicom_node.cli import app\n"
        "app(['status', '--config', sys.argv[1]], standalone_mode=False)\n"
    )
    # `status` ends the process with its exit code, so the list is printed on the way out.
    listing = "import atexit, sys\natexit.register(lambda: print(' '.join(sys.modules)))\n"
    done = subprocess.run(
        [sys.executable, "-c", listing + program, str(node.file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    modules = set(done.stdout.splitlines()[-1].split())
    assert "dicom_node.status" in modules
    # The heavy ones: 0.6 s and more each. How long it takes is `bench/status.py`'s business.
    assert modules.isdisjoint({"torch", "pynetdicom", "pydicom", "alembic", "highdicom"})
