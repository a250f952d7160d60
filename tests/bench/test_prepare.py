"""What the measurement of the published size is made of, at the smallest size."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import prepare, synthetic


def test_a_prepared_model_is_measured_and_loaded_afresh(tmp_path: Path) -> None:
    published, prepared = tmp_path / "published", tmp_path / "prepared"
    published.mkdir()
    synthetic.write(published, "tiny")
    made = prepare._prepare(published, prepared)
    assert made["bytes"] > 100_000
    loaded = prepare._load(prepared)
    assert loaded["algorithm"].endswith("nf4")
    assert 0 < loaded["rss"] <= loaded["peak_rss"] * 1.2


def test_memory_is_watched_from_outside_children_included(tmp_path: Path) -> None:
    (tmp_path / "hungry.py").write_text(
        "import subprocess, sys\n"
        "code = 'x = bytearray(200_000_000); import time; time.sleep(1)'\n"
        "subprocess.run([sys.executable, '-c', code], check=True)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        done = prepare.watched(("hungry",))
    assert done.peak_rss > 200_000_000


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="No module named"):
        prepare.watched(("there_is_no_such_module",))


def test_bytes_are_shown_in_both_units() -> None:
    told = {"peak_rss": 7 * 2**30, "seconds": 1.234}
    assert prepare._figures(told) == "peak_rss 7.52 GB (7.00 GiB), seconds 1.2"
