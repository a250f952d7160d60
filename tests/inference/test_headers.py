"""Reading headers leniently: pydicom's settings are the process's, its readers are threads."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from threading import Barrier

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, config

from inference import headers


def checks() -> tuple[int, int]:
    return config.settings.reading_validation_mode, config.settings.writing_validation_mode


OFF = (config.IGNORE, config.IGNORE)


def test_a_wrong_value_is_no_warning_inside_and_one_again_outside() -> None:
    with headers.tolerant():
        Dataset().StudyDate = "yesterday"
    with pytest.warns(UserWarning, match="Invalid value for VR DA"):
        Dataset().StudyDate = "yesterday"


def test_a_block_that_fails_switches_the_checks_on_again() -> None:
    before = checks()
    with pytest.raises(KeyError), headers.tolerant():
        raise KeyError
    assert checks() == before != OFF


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(0, 3), max_size=12))
def test_the_checks_are_off_while_anybody_is_inside(steps: list[int]) -> None:
    """Each step lets one of four threads in, or out again, in any order."""
    before, filters = checks(), list(warnings.filters)
    inside: dict[int, AbstractContextManager[None]] = {}
    for who in steps:
        if who in inside:
            inside.pop(who).__exit__(None, None, None)
        else:
            inside[who] = headers.tolerant()
            inside[who].__enter__()
        assert checks() == (OFF if inside else before)
    for block in inside.values():
        block.__exit__(None, None, None)
    assert checks() == before
    assert list(warnings.filters) == filters


def test_threads_that_come_and_go_leave_the_checks_as_they_were() -> None:
    before, threads = checks(), 8
    together = Barrier(threads)

    def read(_: int) -> set[tuple[int, int]]:
        together.wait()
        seen = set()
        for _ in range(200):
            with headers.tolerant():
                seen.add(checks())
        return seen

    with ThreadPoolExecutor(threads) as pool:
        assert set().union(*pool.map(read, range(threads))) == {OFF}
    assert checks() == before
