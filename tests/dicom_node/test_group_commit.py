"""Many threads and one commit: nobody returns before he is durable, and nobody is forgotten."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.errors import OutOfResources
from dicom_node.group_commit import GroupCommit

PATIENCE = 20.0  #: seconds; far above what a loaded machine needs, so that only a fault reaches it


def nothing() -> None:
    """Prepared already."""


class Log:
    """A commit that notes its groups; it can be held up, and fail.

    Parameters
    ----------
    faults
        What a commit raises that holds this item.
    """

    def __init__(self, faults: dict[int, Exception] | None = None) -> None:
        self.groups: list[list[int]] = []
        self.attempts = 0
        self.committing = threading.Event()  #: a commit runs
        self.go_on = threading.Event()
        self.go_on.set()
        self._faults = faults or {}
        self._alone = threading.Lock()

    def __call__(self, items: Sequence[int], prepared: Callable[[], None]) -> None:
        assert self._alone.acquire(blocking=False), "two commits at a time"
        try:
            self.attempts += 1
            self.committing.set()
            assert self.go_on.wait(PATIENCE)
            prepared()
            for item in items:
                if item in self._faults:
                    raise self._faults[item]
            self.groups.append(list(items))
        finally:
            self._alone.release()


class Crowd:
    """Threads that commit: the first alone, the others while its commit is held up."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.commit = GroupCommit(log)
        self.prepared: Counter[int] = Counter()

    def one(self, item: int, prepare: Callable[[], None] = nothing) -> Exception | None:
        def noted() -> None:
            self.prepared[item] += 1
            prepare()

        try:
            self.commit(item, noted)
        except Exception as error:
            return error
        return None

    def together(self, items: Sequence[int]) -> list[Exception | None]:
        """How each ended; all but the first are one group."""
        self.log.go_on.clear()
        with ThreadPoolExecutor(len(items)) as pool:
            ends: list[Future[Exception | None]] = [pool.submit(self.one, items[0])]
            assert self.log.committing.wait(PATIENCE)
            ends += [pool.submit(self.one, item) for item in items[1:]]
            while len(self.commit._group.items) < len(items) - 1:
                assert not ends[0].done()
            self.log.go_on.set()
            return [end.result(PATIENCE) for end in ends]


def test_alone_one_is_committed_at_once_and_in_the_own_thread() -> None:
    threads = []
    commit = GroupCommit[int](lambda items, prepared: threads.append(threading.current_thread()))
    commit(1, nothing)
    assert threads == [threading.current_thread()]


def test_who_comes_while_a_commit_runs_is_committed_with_the_others_by_the_next() -> None:
    crowd = Crowd(Log())
    assert crowd.together([*range(10)]) == [None] * 10
    first, second = crowd.log.groups
    assert first == [0]
    assert sorted(second) == [*range(1, 10)]
    assert crowd.prepared == Counter(range(10))


@settings(deadline=None, max_examples=30)
@given(
    batches=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    broken=st.sets(st.integers(0, 20), max_size=2),
    away=st.sets(st.integers(0, 20), max_size=2),
)
def test_every_item_is_committed_exactly_once_or_its_caller_knows(
    batches: list[int], broken: set[int], away: set[int]
) -> None:
    faults: dict[int, Exception] = {item: ZeroDivisionError() for item in broken}
    faults |= {item: OutOfResources("away") for item in away}
    crowd = Crowd(Log(faults))
    ends: dict[int, Exception | None] = {}
    for size in batches:
        items = [*range(len(ends), len(ends) + size)]
        ends |= zip(items, crowd.together(items), strict=True)
    committed = Counter(item for group in crowd.log.groups for item in group)
    assert committed == Counter(item for item, error in ends.items() if error is None)
    assert crowd.prepared == Counter(ends.keys())


def test_threads_that_race_are_all_committed_once() -> None:
    crowd = Crowd(Log())
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(crowd.one, range(2000))) == {None}
    assert sorted(item for group in crowd.log.groups for item in group) == [*range(2000)]
    assert crowd.prepared == Counter(range(2000))


def test_what_is_away_is_away_for_the_whole_group() -> None:
    away = OutOfResources("database: away")
    crowd = Crowd(Log({3: away}))
    assert crowd.together([0, 1, 2, 3, 4]) == [None, *[away] * 4]
    assert crowd.log.attempts == 2
    assert crowd.one(5) is None


def test_a_bug_with_one_item_does_not_become_the_others() -> None:
    bug = ZeroDivisionError()
    crowd = Crowd(Log({3: bug}))
    assert crowd.together([0, 1, 2, 3, 4]) == [None, None, None, bug, None]
    assert sorted(map(len, crowd.log.groups)) == [1, 1, 1, 1]


# -- what is done meanwhile ------------------------------------------------------------------------


def test_nothing_is_committed_before_all_of_the_group_are_prepared() -> None:
    log, slow = Log(), threading.Event()
    crowd = Crowd(log)
    log.go_on.clear()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(crowd.one, 0)
        assert log.committing.wait(PATIENCE)
        log.committing.clear()
        others = [pool.submit(crowd.one, 1), pool.submit(crowd.one, 2, wait_for(slow))]
        while len(crowd.commit._group.items) < 2:
            assert not first.done()
        log.go_on.set()
        assert first.result(PATIENCE) is None
        assert log.committing.wait(PATIENCE)  # the rows are being written while the file is
        with pytest.raises(TimeoutError):
            others[0].result(0.05)
        assert log.groups == [[0]]
        slow.set()
        assert [one.result(PATIENCE) for one in others] == [None, None]


def wait_for(event: threading.Event) -> Callable[[], None]:
    def wait() -> None:
        assert event.wait(PATIENCE)

    return wait


def test_alone_one_is_prepared_while_the_rows_are_being_written() -> None:
    steps: list[str] = []

    def commit(items: Sequence[int], prepared: Callable[[], None]) -> None:
        steps.append("rows")
        prepared()
        prepared()  # of a second attempt: it is not done again
        steps.append("commit")

    GroupCommit(commit)(1, lambda: steps.append("file"))
    assert steps == ["rows", "file", "commit"]


def test_what_cannot_be_prepared_is_not_committed() -> None:
    def prepare() -> None:
        raise OutOfResources("the disk is full")

    crowd = Crowd(Log())
    assert isinstance(crowd.one(1, prepare), OutOfResources)
    assert crowd.log.groups == []
    assert crowd.one(2) is None


@pytest.mark.parametrize("leads", [True, False], ids=["of the leader", "of another"])
def test_a_bug_in_preparing_one_does_not_become_the_others(leads: bool) -> None:
    def prepare() -> None:
        raise ZeroDivisionError

    log = Log()
    crowd = Crowd(log)
    log.go_on.clear()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(crowd.one, 0)
        assert log.committing.wait(PATIENCE)
        ends = []
        for number, broken in enumerate((leads, not leads), 1):
            ends.append(pool.submit(crowd.one, number, prepare if broken else nothing))
            while len(crowd.commit._group.items) < number:
                assert not first.done()
        log.go_on.set()
        told = [end.result(PATIENCE) for end in ends]
    assert [isinstance(one, ZeroDivisionError) for one in told] == [leads, not leads]
    assert [one for group in log.groups for one in group] == [0, 2 if leads else 1]


def test_where_the_commit_ends_before_they_are_prepared_all_know_it() -> None:
    away = OutOfResources("database: away")
    prepared: list[int] = []

    def commit(items: Sequence[int], wait: Callable[[], None]) -> None:
        raise away

    with pytest.raises(OutOfResources):
        GroupCommit(commit)(1, lambda: prepared.append(1))
    assert prepared == []  # its caller drops the file
