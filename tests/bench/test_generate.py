"""The benchmark in its smallest form: who runs does what it says; speeds mean nothing here."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from rich.console import Console

from bench import corpus, generate
from bench.contestants import (
    CONTESTANTS,
    Course,
    Ours,
    OursDrafting,
    OursHalf,
    OursHalfDrafting,
    Reciter,
    Theirs,
    TheirsNF4,
    peer,
    reciter,
)
from bench.corpus import Corpus
from bench.generate import SETTINGS, Outcome, Row
from inference.llama import EOS_ID, Llama

CPU = torch.device("cpu")
TINY = replace(SETTINGS["tiny"], runs=1, past=20)
SIZES = TINY.sizes
COURSE = Course(sizes=SIZES, prompt_tokens=TINY.prompt_tokens, rows=2, longest=24, device=CPU)
REPORTS = ((*range(10, 30), EOS_ID), (7, 8, EOS_ID))


@pytest.fixture(scope="module")
def phantoms() -> Corpus:
    return corpus.read(Path("there-is-no-such-file.csv"))


@pytest.fixture(scope="module")
def outcome(phantoms: Corpus) -> Outcome:
    return generate.measure(TINY, phantoms, CPU)


def test_without_the_real_reports_phantoms_speak(phantoms: Corpus) -> None:
    assert "phantoms" in phantoms.source
    assert all(report[-1] == EOS_ID and len(report) > 3 for report in phantoms.reports)
    assert max(max(report) for report in phantoms.reports) < SIZES.vocab_size


def test_the_engine_writes_the_given_reports_at_any_batch(phantoms: Corpus) -> None:
    for kind in (Ours, OursDrafting):
        one = kind(COURSE)
        one.learn(REPORTS)
        together, alone = one.run(REPORTS), one.run(REPORTS[:1])  # it checks what was written
        one.close()
        assert (together.tokens, alone.tokens) == (22, 20)


def test_drafts_save_passes_on_a_report_that_was_learnt() -> None:
    one = OursDrafting(COURSE)
    one.learn(REPORTS)
    assert one.run(REPORTS[:1]).passes == 7  # 20 tokens; seen once, the third is too doubtful
    one.close()


def test_the_script_changes_the_choice_and_nothing_else() -> None:
    language = reciter(SIZES, CPU)
    language.script = torch.zeros(1, 64, dtype=torch.int64)
    language.text = REPORTS[0]
    x = torch.randn(1, 8, SIZES.hidden_size)
    cache = language.place(slots=1, positions=32)
    said = language.prefill(x, cache, 0)
    plain = Llama.prefill(language, x, cache, 0)
    assert isinstance(language, Reciter)
    assert (said != plain).nonzero().tolist() == [[REPORTS[0][0]]]


def test_the_peers_run_the_same_shapes() -> None:
    for kind in (Theirs, TheirsNF4):
        one = kind(COURSE)
        sample = one.run(REPORTS)
        assert (sample.tokens, sample.passes) == (22, 20)
        assert 0 < sample.prefill_seconds < sample.seconds


def test_the_peer_has_the_layers_that_bitsandbytes_makes() -> None:
    layers = [m for m in peer(SIZES, CPU, quantised=True).modules() if isinstance(m, Linear4bit)]
    assert {type(layer) for layer in layers} == {Linear4bit}  # not ours, which unpacks prompts
    assert len(layers) == 7 * SIZES.num_hidden_layers


def test_four_bits_read_less_per_pass_than_sixteen() -> None:
    bytes_read = {}
    for kind in CONTESTANTS:
        one = kind(COURSE)
        bytes_read[kind] = one.pass_bytes(1, 20)
        one.close()
    assert bytes_read[TheirsNF4] < bytes_read[Theirs]
    assert bytes_read[Ours] == pytest.approx(bytes_read[OursDrafting], rel=1e-3)


def test_every_contestant_has_a_row_for_every_batch(outcome: Outcome) -> None:
    rows = {(row.contestant, row.batch) for row in outcome.rows}
    assert rows == {(one.name, batch) for one in CONTESTANTS for batch in TINY.batches}
    assert all(row.seconds_per_report > row.prefill_seconds > 0 for row in outcome.rows)


def test_the_table_names_machine_commit_and_corpus(outcome: Outcome) -> None:
    page = StringIO()
    generate.show(outcome, Console(file=page, width=120))
    for word in (outcome.machine["commit"], outcome.machine["date"], "cores", "phantoms", "floor"):
        assert word in page.getvalue()


def test_some_can_run_without_the_others(phantoms: Corpus) -> None:
    pair = (Ours.name, OursDrafting.name)
    outcome = generate.measure(replace(TINY, contestants=pair), phantoms, CPU)
    assert {row.contestant for row in outcome.rows} == set(pair)
    assert list(outcome.ratios) == ["decode tokens/s, drafts on over off, NF4"]


def test_ratios_are_of_one_report_at_a_time() -> None:
    def row(name: str, batch: int, speed: float) -> Row:
        return Row(
            contestant=name,
            batch=batch,
            seconds_per_report=100 / speed,
            prefill_seconds=1,
            decode_tokens_per_second=speed,
            tokens_per_pass=1,
            passes=1,
            pass_ms=1,
            floor_percent=1,
            memory_gb=1,
        )

    speeds = {Theirs.name: 2.0, TheirsNF4.name: 1.0, Ours.name: 4.0, OursDrafting.name: 8.0}
    speeds |= {OursHalf.name: 2.0, OursHalfDrafting.name: 6.0}
    rows = [row(name, 1, speed) for name, speed in speeds.items()]
    rows += [row(name, 8, 1.0) for name in speeds]
    assert list(generate.ratios(rows).values()) == [4, 2, 2, 3, 8]
