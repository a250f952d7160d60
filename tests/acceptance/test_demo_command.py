"""``dicom-node demo``: what ``./run demo`` does once everything is installed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.acceptance.running_node import mentioning


def test_demo_shows_draft_search_and_status_and_leaves_no_process(
    tmp_path: Path, say: Callable[[str], None]
) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "dicom_node.cli", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    say(f"demo: {time.monotonic() - started:.1f} s")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for expected in ("DRAFT", "left pleural effusion", "search", "healthy", "delivered 4", "files"):
        assert expected in done.stdout
    assert mentioning(tmp_path) == []
    assert len(list((tmp_path / "data/demo/pacs").glob("*.dcm"))) == 4
