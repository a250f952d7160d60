"""Whatever the order of events, every report says what the plain loop says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor
from transformers import LlamaForCausalLM

from inference.findings import ModelFailure
from inference.generate.ngrams import Drafts, Ngrams
from inference.generate.report import Generation, Limits, Report
from inference.generate.slots import Slots
from inference.llama import EOS_ID, Llama
from tests.inference import plain
from tests.inference.generate.conftest import NEW_TOKENS
from tests.inference.generate.drafters import Broken, Noisy, Right, Silent, Wrong
from tests.inference.plain import Case

POSITIONS = 80  # the longest prompt of the pool and 40 new tokens
DRAFTERS: dict[str, Callable[[Sequence[Case]], Drafts]] = {
    "right": Right,
    "noisy": Noisy,
    "wrong": Wrong,
    "silent": Silent,
    "n-grams": lambda pool: Ngrams(),
}


@pytest.fixture(autouse=True)
def as_on_the_device_thread() -> Iterator[None]:
    with torch.inference_mode():
        yield


class Ward:
    """Slots under test: submits, runs, and knows what the plain loop would have said."""

    def __init__(
        self,
        language: Llama,
        drafts: Drafts | None = None,
        *,
        slots: int = 1,
        draft_tokens: int = 3,
        positions: int = POSITIONS,
    ) -> None:
        self.slots = Slots(
            language, slots=slots, positions=positions, draft_tokens=draft_tokens, drafts=drafts
        )

    def submit(self, embeds: Tensor, limits: Limits | None = None) -> Report:
        report = Report(embed=lambda: embeds, limits=limits or Limits(max_new_tokens=NEW_TOKENS))
        self.slots.submit(report)
        return report

    def run(self) -> None:
        for _ in range(1000):
            if not self.slots.step():
                return
        raise AssertionError("the slots never come to rest")

    def say(self, embeds: Tensor, limits: Limits | None = None) -> Generation:
        report = self.submit(embeds, limits)
        self.run()
        return report.answer.result(timeout=0)


def ended_by(answer: Future[Generation]) -> str:
    """The words of a report's failure."""
    return str(answer.exception(timeout=0))


def long_one(pool: Sequence[Case]) -> Case:
    return next(case for case in pool if len(case.answer.ids) == NEW_TOKENS)


def short_one(pool: Sequence[Case]) -> Case:
    return next(case for case in pool if 5 < len(case.answer.ids) < NEW_TOKENS)


# -- equal to the plain loop ----------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_every_report_says_what_the_plain_loop_says(
    weights: Llama, pool: list[Case], slots: int, drafter: str
) -> None:
    ward = Ward(weights, DRAFTERS[drafter](pool), slots=slots)
    reports = [ward.submit(case.embeds) for case in pool]
    ward.run()
    said = [report.answer.result(timeout=0).ids for report in reports]
    assert said == [case.answer.ids for case in pool]


@pytest.mark.parametrize("draft_tokens", [0, 1, 7])
def test_the_length_of_drafts_changes_no_text(
    weights: Llama, pool: list[Case], draft_tokens: int
) -> None:
    ward = Ward(weights, Noisy(pool), slots=3, draft_tokens=draft_tokens)
    assert [ward.say(case.embeds).ids for case in pool] == [case.answer.ids for case in pool]


def test_a_long_prompt_is_read_in_full(published: LlamaForCausalLM, weights: Llama) -> None:
    embeds = torch.randn(1, 250, 64, generator=torch.Generator().manual_seed(5))
    expected = plain.greedy(published, embeds, max_new_tokens=20)
    assert expected.margin > plain.CLEAR
    ward = Ward(weights, slots=2, positions=600)
    said = ward.say(embeds, Limits(max_new_tokens=20))
    assert said.ids == expected.ids  # looks at 256 positions first and at 512 in the end


def test_an_answer_can_be_eos_alone(weights: Llama, pool: list[Case]) -> None:
    case = next(case for case in pool if len(case.answer.ids) == 1)
    said = Ward(weights).say(case.embeds)
    assert said.ids == (EOS_ID,)
    assert said.passes == 0


@pytest.mark.parametrize("limit", [1, 2, 5, 6, 7])
def test_an_answer_never_exceeds_its_limit_inside_a_draft(
    weights: Llama, pool: list[Case], limit: int
) -> None:
    case = long_one(pool)
    said = Ward(weights, Right(pool)).say(case.embeds, Limits(max_new_tokens=limit))
    assert said.ids == case.answer.ids[:limit]


def test_nothing_follows_an_eos_inside_a_draft(weights: Llama, pool: list[Case]) -> None:
    class Talkative(Right):
        """Goes on after EOS."""

        def propose(self, ids: Sequence[int], tokens: int) -> list[int]:
            return [*super().propose(ids, tokens), 7, 7, 7][: max(tokens, 0)]

    case = short_one(pool)
    assert Ward(weights, Talkative(pool)).say(case.embeds).ids == case.answer.ids


# -- what it took ---------------------------------------------------------------------------------


def test_right_drafts_save_passes(weights: Llama, pool: list[Case]) -> None:
    case = long_one(pool)
    said = Ward(weights, Right(pool)).say(case.embeds)
    assert said.passes == 10  # 1 token from the prefill, then 9 passes of 4 and one of 3
    assert said.accepted == NEW_TOKENS - 1 - said.passes


def test_wrong_drafts_cost_no_more_passes_than_none(weights: Llama, pool: list[Case]) -> None:
    case = long_one(pool)
    said = Ward(weights, Wrong(pool)).say(case.embeds)
    assert (said.passes, said.accepted) == (NEW_TOKENS - 1, 0)


def test_with_four_reports_in_work_nothing_is_drafted(weights: Llama, pool: list[Case]) -> None:
    case = long_one(pool)
    ward = Ward(weights, Right(pool), slots=4)
    reports = [ward.submit(case.embeds) for _ in range(4)]
    ward.run()
    assert [report.accepted for report in reports] == [0, 0, 0, 0]


def test_times_and_lengths_are_told(weights: Llama, pool: list[Case]) -> None:
    case = short_one(pool)
    said = Ward(weights).say(case.embeds)
    assert said.prompt_tokens == case.embeds.shape[1]
    assert list(said.seconds) == ["wait", "vision", "prefill", "decode"]
    assert min(said.seconds.values()) >= 0
    assert said.seconds["decode"] > 0


def test_the_node_learns_from_what_it_says(weights: Llama, pool: list[Case]) -> None:
    case = short_one(pool)
    ward = Ward(weights)
    first, second = ward.say(case.embeds), ward.say(case.embeds)
    assert first.ids == second.ids
    assert second.passes < first.passes


def test_only_finished_reports_are_learnt(weights: Llama, pool: list[Case]) -> None:
    drafts = Silent(pool)
    ward = Ward(weights, drafts)
    ward.say(long_one(pool).embeds)  # was cut off
    ward.say(short_one(pool).embeds)
    assert drafts.learnt == [list(short_one(pool).answer.ids[:-1])]


# -- slots ----------------------------------------------------------------------------------------


def test_a_rejected_draft_leaves_no_trace(weights: Llama, pool: list[Case]) -> None:
    ward = Ward(weights, Wrong(pool))
    for case in [*pool, *reversed(pool)]:
        assert ward.say(case.embeds).ids == case.answer.ids


def test_a_freed_slot_is_filled_before_the_next_pass(weights: Llama, pool: list[Case]) -> None:
    short, long = short_one(pool), long_one(pool)
    ward = Ward(weights, Silent(pool), slots=2)
    reports = [ward.submit(case.embeds) for case in (short, long, long)]
    for _ in range(len(short.answer.ids)):
        ward.slots.step()
    assert reports[0].answer.done()
    assert ward.slots.live == {0: reports[2], 1: reports[1]}


def test_neighbours_do_not_meet(weights: Llama, pool: list[Case]) -> None:
    ward = Ward(weights, slots=3)
    reports = [ward.submit(case.embeds) for case in pool[:3]]
    ward.slots.step()
    late = ward.submit(pool[3].embeds)
    ward.run()
    said = [report.answer.result(timeout=0).ids for report in (*reports, late)]
    assert said == [case.answer.ids for case in pool[:4]]


# -- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_fail_their_report_only(
    weights: Llama, pool: list[Case], value: float
) -> None:
    case = long_one(pool)
    ward = Ward(weights, slots=2)
    healthy = ward.submit(case.embeds)
    ill = ward.submit(torch.full_like(case.embeds, value))
    ward.run()
    assert ended_by(ill.answer) == "the model's logits are not finite"
    assert healthy.answer.result(timeout=0).ids == case.answer.ids


def test_a_slot_recovers_from_numbers_that_are_not_finite(weights: Llama, pool: list[Case]) -> None:
    shortest = min(pool, key=lambda case: case.embeds.shape[1])
    ward = Ward(weights)
    ward.submit(torch.full((1, 40, 64), float("nan")))
    assert ward.say(shortest.embeds).ids == shortest.answer.ids


def test_numbers_that_are_not_finite_are_seen_in_a_later_pass(
    published: LlamaForCausalLM, pool: list[Case]
) -> None:
    case = long_one(pool)
    weights = plain.ours(published)
    weights.embed_tokens.weight[case.answer.ids[2]] = float("nan")
    ward = Ward(weights, Silent(pool))
    report = ward.submit(case.embeds)
    ward.run()
    assert ended_by(report.answer) == "the model's logits are not finite"
    assert tuple(report.ids) == case.answer.ids[:3]


def test_a_cancelled_report_frees_its_slot(weights: Llama, pool: list[Case]) -> None:
    case, cancelled = long_one(pool), threading.Event()
    ward = Ward(weights, Noisy(pool))
    report = ward.submit(case.embeds, Limits(max_new_tokens=NEW_TOKENS, cancelled=cancelled))
    after = ward.submit(case.embeds)
    for _ in range(3):
        ward.slots.step()
    cancelled.set()
    ward.run()
    assert ended_by(report.answer) == "the report was cancelled"
    assert 1 < len(report.ids) < NEW_TOKENS
    assert after.answer.result(timeout=0).ids == case.answer.ids


def test_a_report_cancelled_in_the_queue_never_starts(weights: Llama, pool: list[Case]) -> None:
    cancelled = threading.Event()
    ward = Ward(weights)
    ward.submit(long_one(pool).embeds)
    report = ward.submit(pool[0].embeds, Limits(cancelled=cancelled))
    ward.slots.step()
    cancelled.set()
    ward.run()
    assert ended_by(report.answer) == "the report was cancelled"
    assert report.prompt_tokens == 0


def test_a_late_report_ends(weights: Llama, pool: list[Case]) -> None:
    ward = Ward(weights)
    report = ward.submit(long_one(pool).embeds, Limits(max_new_tokens=NEW_TOKENS, seconds=0))
    after = ward.submit(pool[0].embeds)
    ward.run()
    assert ended_by(report.answer).startswith("the report took longer than 0 s")
    assert after.answer.result(timeout=0).ids == pool[0].answer.ids


def test_waiting_does_not_count_as_time_taken(weights: Llama, pool: list[Case]) -> None:
    ward = Ward(weights)
    ward.submit(long_one(pool).embeds)
    waiting = ward.submit(pool[0].embeds, Limits(seconds=0))
    for _ in range(5):
        ward.slots.step()
    assert not waiting.answer.done()


def test_a_report_that_does_not_fit_is_refused(weights: Llama, pool: list[Case]) -> None:
    with pytest.raises(ValueError, match="9 tokens and 72 new ones do not fit in a slot of 80"):
        Ward(weights).say(torch.zeros(1, 9, 64), Limits(max_new_tokens=72))


def test_a_report_that_just_fits_is_written(weights: Llama, pool: list[Case]) -> None:
    case = long_one(pool)
    positions = case.embeds.shape[1] + NEW_TOKENS
    ward = Ward(weights, Wrong(pool), draft_tokens=7, positions=positions)
    assert ward.say(case.embeds).ids == case.answer.ids


def test_what_embedding_raises_goes_to_its_caller_only(weights: Llama, pool: list[Case]) -> None:
    def embed() -> Tensor:
        raise OSError("no such image")

    ward = Ward(weights)
    report = Report(embed=embed, limits=Limits())
    ward.slots.submit(report)
    after = ward.submit(pool[0].embeds)
    ward.run()
    assert ended_by(report.answer) == "no such image"
    assert after.answer.result(timeout=0).ids == pool[0].answer.ids


def test_a_device_that_gives_out_fails_the_reports_of_the_pass(
    weights: Llama, pool: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_out(*given: object) -> Tensor:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    case = long_one(pool)
    ward = Ward(weights, slots=2)
    with monkeypatch.context() as patch:
        patch.setattr(weights, "decode", give_out)
        report = ward.submit(case.embeds)
        ward.run()
    error = report.answer.exception(timeout=0)
    assert isinstance(error, ModelFailure)
    assert str(error) == "the device is out of memory"
    assert ward.say(case.embeds).ids == case.answer.ids


def test_a_fault_in_the_drafts_hangs_nobody(weights: Llama, pool: list[Case]) -> None:
    with pytest.raises(LookupError, match="no such table"):
        Ward(weights, Broken(pool)).say(long_one(pool).embeds)


# -- any order of all of it -----------------------------------------------------------------------


class Arrivals(RuleBasedStateMachine):
    """Reports come, are cancelled, fail and end between any two passes."""

    def __init__(self, weights: Llama, pool: Sequence[Case]) -> None:
        super().__init__()
        self.weights = weights
        self.pool = pool
        self.submitted: list[tuple[Report, tuple[int, ...]]] = []
        self.ill: list[Report] = []

    @initialize(
        slots=st.sampled_from([1, 2, 3, 5, 8]),
        drafter=st.sampled_from(sorted(DRAFTERS)),
        draft_tokens=st.sampled_from([0, 1, 3]),
    )
    def open(self, slots: int, drafter: str, draft_tokens: int) -> None:
        drafts = DRAFTERS[drafter](self.pool)
        self.ward = Ward(self.weights, drafts, slots=slots, draft_tokens=draft_tokens)

    @rule(which=st.integers(0, 15), limit=st.integers(1, NEW_TOKENS))
    def arrive(self, which: int, limit: int) -> None:
        case = self.pool[which]
        limits = Limits(max_new_tokens=limit, cancelled=threading.Event())
        self.submitted.append((self.ward.submit(case.embeds, limits), case.answer.ids[:limit]))

    @rule(tokens=st.integers(1, 40))
    def an_ill_one_arrives(self, tokens: int) -> None:
        embeds = torch.full((1, tokens, 64), float("nan"))
        self.ill.append(self.ward.submit(embeds))

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.ward.slots.step()

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        report, _ = data.draw(st.sampled_from(self.submitted))
        assert report.limits.cancelled
        report.limits.cancelled.set()

    @invariant()
    def what_was_said_is_a_part_of_what_the_plain_loop_says(self) -> None:
        for report, expected in self.submitted:
            assert tuple(report.ids) == expected[: len(report.ids)]

    @invariant()
    def who_has_a_slot_is_not_done(self) -> None:
        if self.submitted or self.ill:
            assert not any(report.answer.done() for report in self.ward.slots.live.values())

    def teardown(self) -> None:
        if self.submitted or self.ill:
            self.ward.run()
        assert all(ended_by(report.answer).endswith("not finite") for report in self.ill)
        for report, expected in self.submitted:
            self._ended_well(report, expected)

    def _ended_well(self, report: Report, expected: tuple[int, ...]) -> None:
        if report.answer.exception(timeout=0) is None:
            assert report.answer.result(timeout=0).ids == expected
        else:
            assert ended_by(report.answer) == "the report was cancelled"
            assert report.limits.cancelled
            assert report.limits.cancelled.is_set()


def test_any_order_of_events_gives_the_plain_loops_words(weights: Llama, pool: list[Case]) -> None:
    run_state_machine_as_test(
        lambda: Arrivals(weights, pool),  # type: ignore[arg-type]  # anything that makes one will do
        settings=settings(max_examples=150, stateful_step_count=25, deadline=None, database=None),
    )
