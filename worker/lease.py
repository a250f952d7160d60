"""Keeping a lease while the work lasts: the holder is alive as long as it renews."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from sqlalchemy import Connection

from dicom_node.db import Database
from dicom_node.errors import OutOfResources

logger = logging.getLogger(__name__)


@contextmanager
def kept(
    database: Database, lease: timedelta, renew: Callable[[Connection], bool]
) -> Iterator[None]:
    """Renew a lease three times per period until the block ends.

    A renewal that fails is only logged: the block's own last step names its token and changes
    nothing once the lease is lost.
    """
    done = threading.Event()

    def keep() -> None:
        while not done.wait(lease.total_seconds() / 3):
            try:
                with database.transaction() as connection:
                    held = renew(connection)
            except OutOfResources as error:
                logger.warning("lease not renewed: %s", error)
                continue
            if not held:
                logger.warning("lease lost")
                return

    thread = threading.Thread(target=keep, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
