"""Speed of the slot engine beside transformers' ``generate``: ``python -m bench.generate --toy``.

The same command measures a 7B on a GPU and a smaller model of the same kind on a CPU. See README.md
for what is measured and what is not.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import corpus
from bench.contestants import (
    CONTESTANTS,
    Contestant,
    Course,
    Ours,
    OursDrafting,
    OursHalf,
    OursHalfDrafting,
    Sample,
    Theirs,
    TheirsNF4,
)
from bench.corpus import Corpus, Ids
from dicom_node.cli import logs
from inference.llama import LlamaConfig

GIGA = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is measured."""

    name: str
    sizes: LlamaConfig
    prompt_tokens: int
    batches: tuple[int, ...]
    past: int = 2000  #: reports that the table of n-grams has seen before
    runs: int = 5
    contestants: tuple[str, ...] = tuple(kind.name for kind in CONTESTANTS)


VICUNA = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    rms_norm_eps=1e-5,
)
TINY = LlamaConfig(
    vocab_size=1024,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    rms_norm_eps=1e-5,
)

SETTINGS = {
    # Vicuna-7B under LLaVA-Rad's prompt: 1,369 image rows and 57 tokens of text.
    "7b": Setting(
        name="7b",
        sizes=VICUNA,
        prompt_tokens=1426,
        batches=(1, 8, 16),
    ),
    # A quarter of the 7B, in depth and in vocabulary, under a prompt of the same length, so that
    # layers, head and attention keep their shares: 1.6 G parameters, 1 GB in 4 bits, more than
    # three times the largest cache it was run on (300 MB, a server's): a pass reads memory.
    "toy": Setting(
        name="toy",
        sizes=replace(VICUNA, vocab_size=8000, num_hidden_layers=8),
        prompt_tokens=1426,
        batches=(1, 4),
        runs=3,
    ),
    # For the tests: says nothing about speed.
    "tiny": Setting(
        name="tiny",
        sizes=TINY,
        prompt_tokens=16,
        batches=(1, 4),
        past=50,
        runs=2,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: medians over the runs."""

    contestant: str
    batch: int
    seconds_per_report: float  #: wall time over reports, prefill included
    prefill_seconds: float  #: per report
    decode_tokens_per_second: float
    tokens_per_pass: float  #: of all reports of the batch
    passes: int
    pass_ms: float
    floor_percent: float  #: time that reading the bytes of a pass takes, of the time it took
    memory_gb: float  #: that building and warming up took: weights, slots, work space


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Everything that is printed."""

    setting: dict[str, Any]
    machine: dict[str, Any]
    bandwidth_gb_per_second: float
    rows: tuple[Row, ...]
    ratios: dict[str, float]


def measure(setting: Setting, reports: Corpus, device: torch.device) -> Outcome:
    """Build all contestants, then let each run the same reports in turn."""
    bandwidth = copy_bandwidth(device)
    sets = _sets(setting, reports.reports)
    course = Course(
        sizes=setting.sizes,
        prompt_tokens=setting.prompt_tokens,
        rows=max(setting.batches),
        longest=max(len(report) for group in sets.values() for report in group),
        device=device,
    )
    built, memory = _build(course, setting, sets)
    for one in built:
        one.learn(reports.reports[: setting.past])
    samples = _interleaved(setting, built, sets)
    for one in built:
        one.close()
    rows = tuple(
        _row(one, batch, samples[one.name, batch], bandwidth, memory[one.name])
        for batch in setting.batches
        for one in built
    )
    return Outcome(
        setting=asdict(setting) | {"corpus": reports.source},
        machine=machine(device),
        bandwidth_gb_per_second=bandwidth / GIGA,
        rows=rows,
        ratios=ratios(rows),
    )


# --- running ----------------------------------------------------------------------------------

Sets = dict[tuple[int, int], Sequence[Ids]]  #: by run and batch; run 0 is the warm-up


def _sets(setting: Setting, reports: Sequence[Ids]) -> Sets:
    """Reports that nobody has learnt before, another set for every run and batch."""
    fresh = iter(reports[setting.past :])
    return {
        (run, batch): [next(fresh) for _ in range(batch)]
        for run in range(setting.runs + 1)
        for batch in setting.batches
    }


def _build(
    course: Course, setting: Setting, sets: Sets
) -> tuple[list[Contestant], dict[str, float]]:
    built: list[Contestant] = []
    memory = {}
    for kind in CONTESTANTS:
        if kind.name not in setting.contestants:
            continue
        with _memory(course.device) as taken:
            one = kind(course)
            for batch in setting.batches:
                one.run(sets[0, batch])
        built.append(one)
        memory[one.name] = taken[0]
    return built, memory


@contextmanager
def _memory(device: torch.device) -> Iterator[list[float]]:
    """Bytes that the block made us grow by; on CUDA at their peak."""
    gc.collect()
    taken = [0.0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield taken
        taken[0] = torch.cuda.max_memory_allocated(device) - before
    else:
        before = psutil.Process().memory_info().rss
        yield taken
        gc.collect()
        taken[0] = psutil.Process().memory_info().rss - before


def _interleaved(
    setting: Setting, built: Sequence[Contestant], sets: Sets
) -> dict[tuple[str, int], list[Sample]]:
    """Everybody in turn, so that a busy moment of the machine hits all alike."""
    samples: dict[tuple[str, int], list[Sample]] = {}
    turns = [
        (one, run, batch)
        for run in range(1, setting.runs + 1)
        for batch in setting.batches
        for one in built
    ]
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        for one, run, batch in progress.track(turns, description="reports"):
            samples.setdefault((one.name, batch), []).append(one.run(sets[run, batch]))
    return samples


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that copying reads and writes, best of ten."""
    size = 2**30 if device.type == "cuda" else 2**28
    source = torch.ones(size, device=device)  # float32: 4 GiB, 1 GiB
    target = torch.empty_like(source)
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        target.copy_(source)
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return 2 * source.nbytes / min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- figures ----------------------------------------------------------------------------------


def _row(
    one: Contestant, batch: int, samples: Sequence[Sample], bandwidth: float, memory: float
) -> Row:
    pass_seconds = statistics.median(s.decode_seconds / s.passes for s in samples)
    answer = statistics.mean(s.tokens / s.reports for s in samples)
    floor = one.pass_bytes(batch, answer) / bandwidth
    return Row(
        contestant=one.name,
        batch=batch,
        seconds_per_report=statistics.median(s.seconds / s.reports for s in samples),
        prefill_seconds=statistics.median(s.prefill_seconds / s.reports for s in samples),
        decode_tokens_per_second=statistics.median(s.tokens / s.decode_seconds for s in samples),
        tokens_per_pass=sum(s.tokens for s in samples) / sum(s.passes for s in samples),
        passes=round(statistics.median(s.passes for s in samples)),
        pass_ms=1e3 * pass_seconds,
        floor_percent=100 * floor / pass_seconds,
        memory_gb=memory / GIGA,
    )


#: What is compared where it matters, one report at a time: the first over the second.
_RATIOS: dict[str, tuple[str, type[Contestant], type[Contestant]]] = {
    "decode tokens/s, engine with drafts over HF 16 bit": (
        "decode_tokens_per_second",
        OursDrafting,
        Theirs,
    ),
    "decode tokens/s, engine without drafts over HF 16 bit": (
        "decode_tokens_per_second",
        Ours,
        Theirs,
    ),
    "decode tokens/s, drafts on over off, NF4": ("decode_tokens_per_second", OursDrafting, Ours),
    "decode tokens/s, drafts on over off, 16 bit": (
        "decode_tokens_per_second",
        OursHalfDrafting,
        OursHalf,
    ),
    "s/report, HF NF4 (bnb) over engine with drafts": (
        "seconds_per_report",
        TheirsNF4,
        OursDrafting,
    ),
}


def ratios(rows: Sequence[Row]) -> dict[str, float]:
    """Those of ``_RATIOS`` whose two contestants ran."""
    single = {row.contestant: row for row in rows if row.batch == 1}
    return {
        words: getattr(single[first.name], figure) / getattr(single[second.name], figure)
        for words, (figure, first, second) in _RATIOS.items()
        if {first.name, second.name} <= single.keys()
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware, versions, date and commit: what a figure is worth nothing without."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else _cpu(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "memory_gb": psutil.virtual_memory().total / GIGA,
        "versions": {p: version(p) for p in ("torch", "transformers", "bitsandbytes")},
        "python": platform.python_version(),
        "date": date.today().isoformat(),
        "commit": _commit(),
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def _commit() -> str:
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told.stdout.strip()


# --- the table --------------------------------------------------------------------------------

_COLUMNS = {
    "batch": "{row.batch}",
    "s/report": "{row.seconds_per_report:.2f}",
    "of it prefill": "{row.prefill_seconds:.2f}",
    "decode tokens/s": "{row.decode_tokens_per_second:.1f}",
    "passes": "{row.passes}",
    "tokens/pass": "{row.tokens_per_pass:.2f}",
    "ms/pass": "{row.pass_ms:.1f}",
    "% of floor": "{row.floor_percent:.0f}",
    "GB": "{row.memory_gb:.1f}",
}


def show(outcome: Outcome, console: Console) -> None:
    """The table, what it was measured on and how."""
    table = Table(title=f"bench.generate, {outcome.setting['name']} size")
    table.add_column("")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for row in outcome.rows:
        cells = (cell.format(row=row) for cell in _COLUMNS.values())
        table.add_row(row.contestant, *cells, end_section=row.contestant == OursDrafting.name)
    console.print(table)
    for name, ratio in outcome.ratios.items():
        console.print(f"{ratio:6.2f}  {name} (batch 1)")
    console.print(_note(outcome))


def _note(outcome: Outcome) -> str:
    setting, told = outcome.setting, outcome.machine
    sizes = setting["sizes"]
    versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    return (
        f"\n{told['device']}, {told['threads']} threads, load {told['load']:.1f}; {versions}; "
        f"{told['date']}, commit {told['commit']}.\n"
        f"Random weights, {sizes['num_hidden_layers']} layers, width {sizes['hidden_size']}, MLP "
        f"{sizes['intermediate_size']}; prompt of {setting['prompt_tokens']} tokens; medians of "
        f"{setting['runs']} interleaved runs; no image encoder.\n"
        f"Floor: bytes of weights, keys and values of a pass over the measured copy bandwidth, "
        f"{outcome.bandwidth_gb_per_second:.0f} GB/s.\n"
        f"Every pass of ours is computed in full, then its choice is replaced by the next token of "
        f"a given report ({setting['corpus']}); the drafts come from the n-grams of "
        f"{setting['past']} other reports, and learn on. HF writes as many tokens of its own."
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--toy", action="store_const", const="toy", dest="size", help="for a CPU")
    size.add_argument("--tiny", action="store_const", const="tiny", dest="size", help="for a test")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--runs", type=int)
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--prompt-tokens", type=int)
    names = [kind.name for kind in CONTESTANTS]
    parser.add_argument("--contestants", nargs="+", choices=names, help="default: all")
    parser.add_argument("--reports", type=Path, default=corpus.REPORTS, help="CSV with findings")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    arguments = parser.parse_args()
    logs.quiet_libraries()
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    outcome = measure(_setting(arguments), corpus.read(arguments.reports), device)
    if arguments.json:
        print(json.dumps(asdict(outcome), indent=1))
    else:
        show(outcome, Console(width=120))


def _setting(arguments: argparse.Namespace) -> Setting:
    chosen = SETTINGS[arguments.size or "7b"]
    given = {
        name: value
        for name in ("runs", "batches", "prompt_tokens", "contestants")
        if (value := getattr(arguments, name)) is not None
    }
    return replace(chosen, **given)


if __name__ == "__main__":
    main()
