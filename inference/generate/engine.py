"""The slot engine for callers in other threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from inference.findings import ModelUnavailable
from inference.generate.device import DeviceThread
from inference.generate.report import Generation, Limits, Report
from inference.generate.slots import Slots
from inference.llama import Llama

T = TypeVar("T")


class Engine:
    """Continues prompts greedily, many at once. Thread-safe; must be closed."""

    def __init__(
        self, language: Llama, *, slots: int, positions: int, draft_tokens: int = 3
    ) -> None:
        """Take the memory of all slots, so that it runs out now or never.

        Args:
            language: on its device, in evaluation mode.
            slots: reports in work at a time.
            positions: tokens of one report, prompt and answer.
            draft_tokens: guessed per pass, when few slots are in use; 0 means none.

        Raises:
            ModelUnavailable: the device has no room for that many slots.
        """
        try:
            self._slots = Slots(
                language, slots=slots, positions=positions, draft_tokens=draft_tokens
            )
        except torch.OutOfMemoryError as error:
            raise ModelUnavailable(
                f"{language.device} has no memory for {slots} slots of {positions} tokens; "
                "set fewer [model] slots"
            ) from error
        self.slots = slots
        self._thread = DeviceThread(self._slots.step)

    @property
    def busy(self) -> int:
        """Slots in use now."""
        return len(self._slots.live)

    def generate(self, embed: Callable[[], Tensor], *, limits: Limits) -> Generation:
        """Continue a prompt until EOS or a limit; blocks.

        Args:
            embed: makes the prompt embeddings (1, T, D); called on the device thread, once there
                is a free slot.
            limits: when to end.

        Raises:
            ModelFailure: not-finite logits, cancelled, out of time, or the device gave out.
            ValueError: prompt and ``max_new_tokens`` do not fit in a slot.
            Exception: what ``embed`` raised.
        """
        report = Report(embed=embed, limits=limits)
        self._thread.post(partial(self._slots.submit, report), report.answer)
        return report.answer.result()

    def call(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the device thread between two passes; blocks.

        Raises:
            ModelFailure: the device gave out, or the engine was closed.
            Exception: what ``work`` raised.
        """
        return self._thread.call(work)

    def learn(self, ids: Sequence[int]) -> None:
        """Take a past report's ids, without EOS, as a source of drafts."""
        self.call(partial(self._slots.drafts.learn, ids))

    def close(self) -> None:
        """End the device thread; whoever still waits gets a ``ModelFailure``."""
        self._thread.close()
