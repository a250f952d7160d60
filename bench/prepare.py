"""From published files to a report, at the published size: ``python -m bench.prepare --size 7b``.

A synthetic checkpoint goes through the real commands: ``models prepare``, a fresh process that
loads the result on the CPU, a node that drafts one phantom. Everything is deleted at the end, after
Ctrl-C as well. The 7B needs 20 GB of disc and takes some ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from bench import node, synthetic

POLL_SECONDS = 0.05
START_SECONDS = 600.0  # a node that loads 4 GB from a cold disc
REPORT_SECONDS = 3600.0
NEW_TOKENS = 20

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A command that has ended."""

    seconds: float
    peak_rss: int  #: bytes, mapped files included, of it and its children together
    output: str


def measure(size: str, folder: Path, say: Say) -> dict[str, Any]:
    """Everything in turn, below an existing empty folder."""
    published, prepared = folder / "published", folder / "prepared"
    published.mkdir()
    began = time.monotonic()
    synthetic.write(published, size)
    written = {"seconds": time.monotonic() - began, "bytes": _bytes_below(published)}
    say(f"synthetic checkpoint of size {size}: {_figures(written)}")
    preparing = _prepare(published, prepared)
    say(f"models prepare: {_figures(preparing)}")
    shutil.rmtree(published)
    loading = _load(prepared)
    say(f"load on the CPU in a fresh process: {_figures(loading)}")
    report = _report(folder / "node", prepared)
    say(f"one report of {NEW_TOKENS} tokens on the CPU: {_figures(report)}")
    return {"synthetic": written, "prepare": preparing, "load": loading, "report": report}


def _prepare(published: Path, prepared: Path) -> dict[str, Any]:
    command = ("dicom_node.cli", "models", "prepare", "--model", "llava-rad")
    done = watched((*command, "--source", str(published), "--output", str(prepared)))
    return {
        "seconds": done.seconds,
        "peak_rss": done.peak_rss,
        "bytes": _bytes_below(prepared),
    }


def _load(prepared: Path) -> dict[str, Any]:
    done = watched(("bench.load", str(prepared)))
    told: dict[str, Any] = json.loads(done.output)
    return told | {"peak_rss": done.peak_rss}


def _report(folder: Path, prepared: Path) -> dict[str, Any]:
    """What ``status`` says after one phantom."""
    with node.running(folder, model=prepared, tokens=NEW_TOKENS) as running:
        began = time.monotonic()
        running.wait_for_worker(START_SECONDS, reports=False)
        started = time.monotonic() - began
        running.send_phantom()
        worker = running.wait_for_worker(REPORT_SECONDS, reports=True)
    told = ("algorithm", "device", "slots", "seconds_per_report", "tokens_per_pass")
    return {"start_seconds": started} | {name: worker[name] for name in told}


def watched(module_and_arguments: Sequence[str]) -> Watched:
    """Run a module's command line to its end, looking at its memory from outside.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    began = time.monotonic()
    peak = 0
    command = [sys.executable, "-m", *module_and_arguments]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                peak = max(peak, _rss(process.pid))
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        said = output.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(module_and_arguments)}: {said}")
    return Watched(seconds=time.monotonic() - began, peak_rss=peak, output=said)


def _rss(pid: int) -> int:
    try:
        process = psutil.Process(pid)
        tree = [process, *process.children(recursive=True)]
        return sum(one.memory_info().rss for one in tree)
    except psutil.NoSuchProcess:
        return 0


def _bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _figures(told: dict[str, Any]) -> str:
    """Bytes as GB and GiB, numbers short."""
    words = []
    for name, value in told.items():
        if name in ("bytes", "rss", "peak_rss"):
            value = f"{value / 1e9:.2f} GB ({value / 2**30:.2f} GiB)"
        elif isinstance(value, float):
            value = f"{value:.1f}"
        words.append(f"{name} {value}")
    return ", ".join(words)


def _stop(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)  # through every `finally`


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=synthetic.SIZES, default="tiny")
    parser.add_argument("--folder", type=Path, help="where there is room; default: $TMPDIR")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _stop)
    out = sys.stderr if arguments.json else sys.stdout
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=arguments.folder) as folder:
        told = measure(arguments.size, Path(folder), lambda text: print(text, file=out, flush=True))
    if arguments.json:
        print(json.dumps(told | {"cores": os.cpu_count()}, indent=1))


if __name__ == "__main__":
    main()
