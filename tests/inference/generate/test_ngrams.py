"""Guesses come from what followed known contexts, and the table stays small."""

from __future__ import annotations

import pytest

from inference.generate.ngrams import Ngrams
from inference.llama import BOS_ID, EOS_ID


def taught(*reports: list[int]) -> Ngrams:
    table = Ngrams()
    for report in reports:
        table.learn(report)
    return table


def test_an_empty_table_has_no_guess() -> None:
    assert Ngrams().propose([5, 6], 3) == []


def test_a_known_report_is_guessed_from_its_start_to_its_end() -> None:
    table = taught([5, 6, 7, 8])
    assert table.propose([], 3) == [5, 6, 7]
    assert table.propose([5, 6], 3) == [7, 8, EOS_ID]


def test_nothing_is_guessed_after_the_end() -> None:
    assert taught([5, 6]).propose([5], 7) == [6, EOS_ID]


def test_no_room_means_no_guess() -> None:
    assert taught([5, 6]).propose([5], 0) == []
    assert taught([5, 6]).propose([5], -1) == []


def test_a_longer_context_outweighs_a_shorter_one() -> None:
    table = taught([3, 5, 6], [4, 5, 7], [4, 5, 7])
    assert table.propose([3, 5], 1) == [6]
    assert table.propose([9, 5], 1) == [7]


def test_what_was_seen_often_outweighs_a_single_sighting() -> None:
    table = taught([3, 5, 6], *([n, 5, 7] for n in range(10, 60)))
    assert table.propose([9, 3, 5], 1) == [7]  # though "3, 5" was only ever followed by 6


def test_a_context_is_at_most_eight_tokens() -> None:
    same = list(range(21, 29))
    table = taught([11, *same, 31], [12, *same, 32])
    assert table.propose([11, *same], 1) == [32]  # 11 and 12 are out of sight
    assert table.propose([11, *same[:-1]], 1) == [28]


def test_likelihoods_are_mixed_from_the_shortest_context_to_the_longest() -> None:
    table = taught([5, 6], [5, 6], [5, 7])
    token, share = table._likeliest((BOS_ID, 5))
    short = 2 / (3 + 4)  # two of three sightings, and four of nothing known
    assert token == 6
    assert share == pytest.approx((2 + 4 * short) / (3 + 4))


def test_the_most_frequent_follower_wins() -> None:
    assert taught([5, 6], [5, 6], [5, 7]).propose([5], 1) == [6]


def test_a_tie_goes_to_the_newest() -> None:
    assert taught([5, 6], [5, 7]).propose([5], 1) == [7]
    assert taught([5, 7], [5, 6]).propose([5], 1) == [6]


def test_an_unknown_token_ends_the_guess() -> None:
    assert taught([5, 6]).propose([40], 3) == []


def test_a_doubtful_guess_is_not_made() -> None:
    table = Ngrams(least_likely=0.5)
    for follower in (7, 7, 7, 8):
        table.learn([5, 6, follower])
    assert table.propose([5, 6], 1) == [7]  # three of four, in three contexts
    for follower in (9, 10):
        table.learn([5, 6, follower])
    assert table.propose([5, 6], 1) == []


def test_a_chain_ends_where_it_has_become_doubtful() -> None:
    table = Ngrams(least_likely=0.4)
    for report in ([5, 6, 7], [5, 6, 8], [5, 6, 9]):
        table.learn(report)
    assert table.propose([5], 3) == [6]


def test_one_sighting_is_no_certainty() -> None:
    table = Ngrams(least_likely=0.5)
    table.learn([5, 6])
    assert table.propose([5], 1) == []
    table.learn([5, 6])
    assert table.propose([5], 1) == [6]


def test_the_contexts_not_met_for_longest_give_way() -> None:
    table = Ngrams(capacity=30)  # a report of two tokens makes five contexts and the start
    others = ([n, n + 10] for n in range(10, 17))
    for report in ([5, 6], [7, 8], next(others), next(others), [7, 8], *others):
        table.learn(report)
    assert len(table) == 30
    assert table.propose([7], 1) == [8]
    assert table.propose([5], 1) == []
