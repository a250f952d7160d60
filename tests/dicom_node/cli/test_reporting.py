"""reports and evaluate feedback: what the verbs print, and when they fail."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dicom_node import cli, db
from dicom_node.cli import logs, wiring
from dicom_node.db import Database
from dicom_node.reports.final import Claim
from tests.conftest import DraftFactory, StudyFactory
from tests.dicom_node.reports.documents import STUDY
from tests.dicom_node.reports.made import final, identity, kept
from tests.dicom_node.reports.test_intake import message

Command = Callable[..., int]
ALGORITHM = {"name": "LLaVA-Rad", "version": "1.0", "digest": "abcdef0123456789"}


@pytest.fixture
def dicom_node(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """``dicom_node(*arguments)``: run a command on this test's database; its exit code."""
    monkeypatch.setattr(wiring, "database", lambda _: database)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logs, "quiet_libraries", lambda: None)  # other tests read their logs

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["dicom-node", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


def test_files_are_taken_and_counted(
    dicom_node: Command,
    study_factory: StudyFactory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study_factory(study_instance_uid=STUDY, identity=identity("MRN0012345"))
    file = tmp_path / "report.hl7"
    file.write_bytes(message())
    assert dicom_node("reports", "import", str(file)) == 0
    assert dicom_node("reports", "import", str(file)) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{file}: matched 1",
        f"{file}: already here 1",
    ]


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_taken(
    dicom_node: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.hl7", tmp_path / "bad.hl7"
    good.write_bytes(message())
    bad.write_bytes(b"PID|1||SECRET\r")
    assert dicom_node("reports", "import", str(bad), str(good), str(tmp_path / "gone")) == 1
    captured = capsys.readouterr()
    assert captured.out == f"{good}: parked 1\n"
    assert f"dicom-node: {bad}: " in captured.err
    assert f"dicom-node: {tmp_path / 'gone'}: No such file" in captured.err
    assert "2 of 3 files were not taken" in captured.err
    assert "SECRET" not in captured.err


def test_reports_are_listed_without_what_they_say(
    database: Database,
    dicom_node: Command,
    study_factory: StudyFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uid = study_factory()
    kept(database, final("SECRET", claim=Claim(study_instance_uid=uid)))
    kept(database, final("SECRET", claim=Claim(accession_number="SECRET")))
    assert dicom_node("reports", "list") == 0
    table = capsys.readouterr().out
    assert uid in table
    assert "no such study is here" in table
    assert dicom_node("reports", "list", "--parked", "--json") == 0
    found = capsys.readouterr().out
    (parked,) = json.loads(found)["reports"]
    assert (parked["state"], parked["reason"]) == ("parked", "no such study is here")
    assert "SECRET" not in table + found


def test_feedback_is_told_by_model_and_week(
    database: Database,
    dicom_node: Command,
    draft_factory: DraftFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for text in ("Left pleural effusion.", "Clear."):
        draft = draft_factory(text="Left pleural effusion.", record={"algorithm": ALGORITHM})
        kept(database, final(text, claim=Claim(study_instance_uid=draft.study_instance_uid)))
    assert dicom_node("evaluate", "feedback", "--weeks", "1", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["algorithm_name"], row["n"], row["accepted"], row["rejected"]) == (
        "LLaVA-Rad",
        2,
        1,
        1,
    )
    assert row["labels"]["Pleural Effusion"]["added"] == 1
    assert dicom_node("evaluate", "feedback") == 0
    table = capsys.readouterr().out
    assert "LLaVA-Rad 1.0 (abcdef012345)" in table
    assert "Pleural Effusion" in table


def test_only_the_weeks_asked_for_are_told(
    database: Database,
    dicom_node: Command,
    draft_factory: DraftFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    draft = draft_factory(text="Clear.", record={"algorithm": ALGORITHM})
    kept(database, final("Clear.", claim=Claim(study_instance_uid=draft.study_instance_uid)))
    with database.transaction() as connection:
        for table, column in ((db.draft, "created_at"), (db.report, "received_at")):
            connection.execute(table.update().values({column: "2024-03-11T09:00:00Z"}))

    assert dicom_node("evaluate", "feedback", "--weeks", "4", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"rows": []}
    assert dicom_node("evaluate", "feedback", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["week"] == "2024-W11"
