"""What of a draft is kept."""

from __future__ import annotations

import pytest
import torch

from inference.generate.report import Limits, Report
from inference.llama import EOS_ID


def report_with(ids: list[int], *, limit: int = 10) -> Report:
    return Report(
        embed=lambda: torch.zeros(1, 4, 8),
        limits=Limits(max_new_tokens=limit),
        ids=ids,
        prompt_tokens=4,
    )


@pytest.mark.parametrize(
    ("draft", "said", "ids", "accepted"),
    [
        pytest.param([], [5], [9, 5], 0, id="no draft"),
        pytest.param([5, 6, 7], [5, 6, 7, 8], [9, 5, 6, 7, 8], 3, id="all right"),
        pytest.param([5, 6, 7], [5, 4, 7, 8], [9, 5, 4], 1, id="right, then wrong"),
        pytest.param([5, 6, 7], [4, 6, 7, 8], [9, 4], 0, id="wrong, then right"),
        pytest.param([5, EOS_ID], [5, EOS_ID, 8], [9, 5, EOS_ID], 2, id="ends in the draft"),
        pytest.param([5, 6], [5, EOS_ID, 7], [9, 5, EOS_ID], 1, id="ends instead of the draft"),
    ],
)
def test_a_draft_is_kept_as_far_as_the_model_agrees(
    draft: list[int], said: list[int], ids: list[int], accepted: int
) -> None:
    report = report_with([9])
    report.take(draft, said)
    assert report.ids == ids
    assert report.accepted == accepted


def test_a_draft_beyond_the_limit_is_cut() -> None:
    report = report_with([9], limit=3)
    report.take([5, 6, 7], [5, 6, 7, 8])
    assert report.ids == [9, 5, 6]
    assert report.accepted == 2
    assert report.complete


def test_the_newest_token_stands_after_prompt_and_answer() -> None:
    assert report_with([9]).position == 4
    assert report_with([9, 5, 6]).position == 6


def test_a_report_without_limits_goes_on() -> None:
    report_with([9]).check_limits()
