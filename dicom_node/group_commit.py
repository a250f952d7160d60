"""Many threads, one commit: whoever comes first commits for all who came meanwhile.

A commit waits for the disk, and while it does others become ready; they are made durable together
by the next one. Nobody hands over to another thread for it: alone, one pays for one commit only.
What each must do for itself before (its file) it does while the group's rows are being written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from dicom_node.errors import NodeError

T = TypeVar("T")


class _Group(Generic[T]):
    def __init__(self) -> None:
        self.items: list[T] = []
        self.prepared: list[threading.Event] = []
        self.faults: dict[int, Exception] = {}  # of preparing, by place
        self.errors: list[Exception | None] = []  # of all, in the end
        self.ended = threading.Event()


class GroupCommit(Generic[T]):
    """Commits items in groups.

    Parameters
    ----------
    commit
        Makes all the items durable, or none of them and raises. Its second argument waits until
        every item is prepared and is to be called before the last step: what can be done before
        is done meanwhile. For one thread at a time.
    """

    def __init__(self, commit: Callable[[Sequence[T], Callable[[], None]], None]) -> None:
        self._commit = commit
        self._committing = threading.Lock()
        self._lock = threading.Lock()
        self._group: _Group[T] = _Group()

    def __call__(self, item: T, prepare: Callable[[], None]) -> None:
        """Return when the item is durable; raise why it is not.

        Parameters
        ----------
        prepare
            What must be done for this item before its group is committed.
        """
        with self._lock:
            group = self._group
            place = len(group.items)
            group.items.append(item)
            group.prepared.append(threading.Event())
        if place == 0:
            self._lead(group, prepare)
        else:
            _prepare(group, place, prepare)
            group.ended.wait()
        error = group.errors[place]
        if error is not None:
            raise error

    def _lead(self, group: _Group[T], prepare: Callable[[], None]) -> None:
        at_once = self._committing.acquire(blocking=False)
        if not at_once:
            _prepare(group, 0, prepare)
            self._committing.acquire()
        try:
            with self._lock:
                self._group = _Group()

            def prepared(places: Sequence[int]) -> None:
                if at_once and not group.prepared[0].is_set():
                    _prepare(group, 0, prepare)
                for place in places:
                    group.prepared[place].wait()
                    if place in group.faults:
                        raise group.faults[place]

            group.errors = self._commit_all(group.items, prepared)
        finally:
            self._committing.release()
            group.ended.set()

    def _commit_all(
        self, items: Sequence[T], prepared: Callable[[Sequence[int]], None]
    ) -> list[Exception | None]:
        error = self._attempt(items, lambda: prepared(range(len(items))))
        if error is None or isinstance(error, NodeError) or len(items) == 1:
            return [error] * len(items)
        # One item's fault, an error of ours, must not become the others'.
        return [
            self._attempt([item], partial(prepared, [place])) for place, item in enumerate(items)
        ]

    def _attempt(self, items: Sequence[T], prepared: Callable[[], None]) -> Exception | None:
        try:
            self._commit(items, prepared)
        except Exception as error:
            return error
        return None


def _prepare(group: _Group[T], place: int, prepare: Callable[[], None]) -> None:
    try:
        prepare()
    except Exception as error:
        group.faults[place] = error
    finally:
        group.prepared[place].set()
