"""The PACS that drafts go to, for tests that need no hospital."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pynetdicom.association import Association

from tests.pacs import Pacs


@contextmanager
def destination() -> Iterator[Pacs]:
    """A PACS that stores, lists and remembers."""
    made = Pacs()
    try:
        yield made
    finally:
        made.stop()
        collect()


def collect() -> None:
    """Collect what broken associations leave, here and not in somebody else's test.

    pynetdicom 3.0.4 does not close a socket that the other side has reset: shutdown(2) fails first.
    """
    for thread in threading.enumerate():
        if isinstance(thread, Association):
            thread.join(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
