"""When: which report has which slot, and what each pass feeds.

Continuous batching: a report keeps its slot from prefill to end, and a freed slot is filled before
the next pass. No thread, no clock but the reports' own: ``step`` is all that happens, so that tests
can drive every order of events.
"""

from __future__ import annotations

from collections import deque

from inference.findings import ModelFailure
from inference.generate.device import delivering
from inference.generate.ngrams import Drafts, Ngrams
from inference.generate.passes import NOT_FINITE, Passes, Row
from inference.generate.report import Report
from inference.llama import EOS_ID, Llama

# What a checked token costs decides how doubtful a draft may be. On a CPU it is about a quarter of
# a pass (docs/benchmarks.md), on a GPU little. Simulated on 300 unseen reports of Open-i, after
# 2,000 learnt ones, three tokens a draft: decoding gets 1.61 times faster on a CPU, 1.59 at 0.3.
LEAST_LIKELY = {"cpu": 0.4, "cuda": 0.1}
MOST_DRAFTED = 3  # live slots; from 4 on the fused 4-bit kernels are full (serving.md section 4)
ALIGNMENT = 8  # positions; CUDA's attention kernels copy masks of other lengths


class Slots:
    """A queue of reports and the slots they go through. For one thread only."""

    def __init__(
        self,
        language: Llama,
        *,
        slots: int,
        positions: int,
        draft_tokens: int,
        drafts: Drafts | None = None,
    ) -> None:
        # A draft that the answer has no room for is still written before it is rejected.
        most = -(-(positions + draft_tokens) // ALIGNMENT) * ALIGNMENT
        self.cache = language.place(slots=slots, positions=most)
        self.passes = Passes(language, self.cache, queries=draft_tokens + 1)
        self.positions = positions
        self.draft_tokens = draft_tokens
        least_likely = LEAST_LIKELY.get(language.device.type, 0.0)
        self.drafts = Ngrams(least_likely=least_likely) if drafts is None else drafts
        self.waiting: deque[Report] = deque()
        self.reports: list[Report | None] = [None] * slots
        self._unclean: set[int] = set()

    @property
    def live(self) -> dict[int, Report]:
        """Reports that hold a slot, by slot."""
        return {slot: report for slot, report in enumerate(self.reports) if report}

    def submit(self, report: Report) -> None:
        """Put a report at the end of the queue."""
        self.waiting.append(report)

    def step(self) -> bool:
        """Drop what is cancelled or late, fill free slots, run one pass. False: nothing is left.

        Whatever goes wrong with a report goes to its caller.
        """
        self._drop()
        self._admit()
        if live := self.live:
            self._decode(live)
        return bool(self.live or self.waiting)

    def _drop(self) -> None:
        for report in (*self.live.values(), *self.waiting):
            with delivering(report.answer):
                report.check_limits()
        self._release()
        self.waiting = deque(report for report in self.waiting if not report.answer.done())

    def _admit(self) -> None:
        """Fill the lowest slots first: a pass covers all slots up to the highest in use."""
        for slot in range(len(self.reports)):
            while self.waiting and not self.reports[slot]:
                self.reports[slot] = report = self.waiting.popleft()
                with delivering(report.answer):
                    self._prefill(slot, report)
                self._release()

    def _prefill(self, slot: int, report: Report) -> None:
        report.mark()
        self._clean(slot)
        x = report.embed()  # (1, T, D)
        report.prompt_tokens = x.shape[1]
        self._check_length(report)
        report.mark()
        self._take(report, [], [self.passes.prefill(x, slot)])
        report.mark()

    def _check_length(self, report: Report) -> None:
        new = report.limits.max_new_tokens
        if report.prompt_tokens + new > self.positions:
            raise ValueError(
                f"a prompt of {report.prompt_tokens} tokens and {new} new ones do not fit in a "
                f"slot of {self.positions}"
            )

    def _decode(self, live: dict[int, Report]) -> None:
        with delivering(*(report.answer for report in live.values())):
            drafts = {slot: self._draft(report, len(live)) for slot, report in live.items()}
            said = self.passes.decode(
                {
                    slot: Row([report.ids[-1], *drafts[slot]], report.position)
                    for slot, report in live.items()
                }
            )
            for slot, report in live.items():
                report.passes += 1
                with delivering(report.answer):
                    self._take(report, drafts[slot], said[slot])
        self._release()

    def _draft(self, report: Report, live: int) -> list[int]:
        """A guess; the token after it comes from the model, so one less than there is room for."""
        most = min(self.draft_tokens, report.room - 1) if live <= MOST_DRAFTED else 0
        return self.drafts.propose(report.ids, most)

    def _take(self, report: Report, draft: list[int], said: list[int]) -> None:
        # Any query, rejected ones included: under a mask 0 times NaN is NaN.
        if NOT_FINITE in said:
            raise ModelFailure("the model's logits are not finite")
        report.take(draft, said)

    def _release(self) -> None:
        """Free the slots of reports that are complete or have failed."""
        for slot, report in self.live.items():
            if not report.answer.done() and report.complete:
                self._finish(report)
            if report.answer.done():
                self.reports[slot] = None
                if report.answer.exception():
                    self._unclean.add(slot)

    def _finish(self, report: Report) -> None:
        if report.ids[-1] == EOS_ID:  # one that was cut off teaches a wrong end
            self.drafts.learn(report.ids[:-1])
        report.deliver()

    def _clean(self, slot: int) -> None:
        """Rid a slot of a failed report's numbers, which may be not finite."""
        if slot in self._unclean:
            self.cache.clear(slot)
            self._unclean.remove(slot)
