"""retention: what the verb prints, and what it deletes by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dicom_node import account
from dicom_node.cli import keeping, wiring
from dicom_node.config import Retention
from dicom_node.db import Database
from tests.dicom_node.retained import ROOMY, Site, open_site

STUDY = "2.25.7"


@pytest.fixture
def site(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    opened = open_site(database, tmp_path / "data")
    monkeypatch.setattr(wiring, "database", lambda _: database)
    yield opened
    opened.close()


def shown(
    site: Site, capsys: pytest.CaptureFixture[str], keep: Retention | None = None
) -> dict[str, Any]:
    """The document of ``retention --json``."""
    changes = {"disk": ROOMY, "retention": keep or site.settings.retention}
    settings = site.settings.model_copy(update=changes)
    keeping.show(settings, limit=10, as_json=True)
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_the_plan_is_one_document(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.finished(STUDY)
    document = shown(site, capsys)
    assert document["disk"]["high_percent"] == 100
    assert 0 < document["disk"]["used_percent"] < 100
    (row,) = document["studies"]
    assert (row["study_instance_uid"], row["state"], row["kept_because"]) == (
        STUDY,
        "complete",
        None,
    )
    assert row["pixels_go_at"] < row["metadata_goes_at"]
    assert row["pixels_deleted_at"] is None


def test_a_study_that_is_kept_says_why(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.receive(STUDY)
    (row,) = shown(site, capsys)["studies"]
    assert row["kept_because"] == "images are still arriving"
    site.draft(STUDY)
    (row,) = shown(site, capsys, Retention(pixels_days=0))["studies"]
    assert row["kept_because"] == "retention.pixels_days = 0"


def test_people_read_a_table(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.finished(STUDY)
    site.pass_days(31)
    site.receive(f"{STUDY}.1")
    site.apply()
    keeping.show(site.settings, limit=10, as_json=False)
    said = capsys.readouterr().out
    assert "above 95 % the pixels of finished studies go" in said
    rows = {line.split()[0]: line for line in said.splitlines() if line.startswith(STUDY)}
    assert " gone 20" in rows[STUDY]
    assert rows[f"{STUDY}.1"].rstrip().endswith("images are still arriving")


def test_what_is_due_is_deleted_by_hand(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.finished(STUDY)
    site.pass_days(31)
    settings = site.settings.model_copy(update={"disk": ROOMY})
    keeping.apply(settings, as_json=False)
    keeping.apply(settings, as_json=True)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "deleted: the pixels of 1 studies, all of 0",
        '{"deleted": {"pixels": 0, "metadata": 0}}',
    ]
    assert site.deleted(STUDY)


def test_a_studys_account_says_which_pixels_are_deleted(site: Site) -> None:
    site.finished(STUDY)
    site.pass_days(31)
    site.apply()
    site.receive(STUDY)
    with site.database.transaction() as connection:
        document = account.to_json(account.of(connection, STUDY))
    times = [one["pixels_deleted_at"] for one in document["instances"]]
    assert times.count(None) == 1
    assert len(times) == 2
