"""Tables: what an administrator reads at one glance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from dicom_node.associations import Reason, RefusedAssociation
from dicom_node.cli import tables
from dicom_node.config import Settings
from dicom_node.doctor import Check
from dicom_node.heartbeats import Process
from dicom_node.status import Status

MODEL = {"model": "demo", "algorithm": "Demo 1", "device": "cpu", "state": "busy"}
STATUS = Status(
    settings=Settings(), database_up=True, studies={}, jobs={}, deliveries={}, worrying={}
)
NOW = datetime(2026, 11, 23, tzinfo=UTC)
STRANGER = RefusedAssociation(
    calling_ae_title='ST"[red]\x1b[2J',
    called_ae_title="OTHER",
    address="10.0.0.9",
    contexts=("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.1"),
    reason=Reason.WRONG_CALLED_TITLE,
    count=7,
    first=NOW,
    last=NOW,
)


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        pytest.param({"state": "idle"}, "gpu@h:1 idle", id="without-model"),
        pytest.param(MODEL, "gpu@h:1 busy: Demo 1 on cpu", id="nothing-known-yet"),
        pytest.param(
            {
                **MODEL,
                "slots": 8,
                "busy": 2,
                "seconds_per_report": 3.21,
                "tokens_per_pass": 2.46,
            },
            "gpu@h:1 busy: Demo 1 on cpu, 2 of 8 slots in use, 3.2 s per report, "
            "2.5 tokens per pass",
            id="at-work",
        ),
    ],
)
def test_a_worker_is_one_line(
    facts: Mapping[str, object], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    now = datetime.now(UTC)
    process = Process(name="gpu@h:1", role="gpu", facts=facts, last_seen=now, up=True)
    tables.show_status(replace(STATUS, processes=[process]))
    (worker,) = [row for row in capsys.readouterr().out.splitlines() if row.startswith("worker")]
    assert worker.split(maxsplit=1)[1].strip() == line


def test_a_refused_association_is_shown_with_its_fix_and_steers_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tables.show_status(replace(STATUS, refused=[STRANGER]))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    (line,) = [row for row in shown.splitlines() if row.startswith("ST")]
    assert line.startswith(r'ST"[red]\x1b[2J to OTHER  10.0.0.9  7 ')
    assert "1.2.840.10008.5.1.4.1.1.2 and 1 more" in line
    assert 'at the sender: called AE title "DICOMNODE"' in shown


def test_lines_to_paste_are_not_shown_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    stranger = replace(STRANGER, reason=Reason.UNKNOWN_TITLE, calling_ae_title="NEW")
    tables.show_status(replace(STATUS, refused=[stranger]))
    shown = capsys.readouterr().out
    assert "[[peers]]" not in shown
    assert "`dicom-node doctor` shows the lines to paste" in shown


def test_a_fix_of_several_lines_stands_below_the_checks_as_it_is_to_be_pasted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = '[[peers]]\nname = "new"\nhost = "[red]"\nae_title = "' + 300 * "x" + '"'
    tables.show_checks(
        [
            Check(name="disk", passed=True, text="plenty"),
            Check(name="node", passed=False, text="down", fix="start it"),
            Check(name="to pacs", passed=False, text="it is down", tried=False),
            Check(name="caller NEW", passed=True, text="turned away", fix=lines),
        ]
    )
    shown = capsys.readouterr().out
    rows = [row.split() for row in shown.splitlines()]
    assert rows[1] == ["disk", "ok", "plenty"]
    assert rows[2] == ["node", "FAULT", "down", "start", "it"]
    assert rows[3] == ["to", "pacs", "-", "not", "tried:", "it", "is", "down"]
    assert rows[4] == ["caller", "NEW", "note", "turned", "away", "lines", "below"]
    assert shown.endswith(
        f"\n# caller NEW: if it may send, paste into the configuration\n{lines}\n"
    )
