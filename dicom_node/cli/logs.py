"""What goes to stderr: our own records, and of other libraries' only what is ours to show."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """For every command: keep other libraries' chatter and quotations out of our output."""
    # Celery and pynetdicom tell every message; ours tell every decision.
    for name in ("celery", "kombu", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Says at every start that a kernel for the CPU can't be fetched; nothing is ever fetched.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # pydicom's records and warnings quote the value they complain of: a patient's name, say.
    # pynetdicom's tracebacks, of an answer that it can't decode, do the same; we map its errors.
    for name in ("pydicom", "pynetdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")


def log_to_stderr() -> None:
    """For the long-running verbs: one line per record."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
