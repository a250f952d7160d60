"""conformance: the verb that writes the DICOM Conformance Statement."""

from __future__ import annotations

import sys
from pathlib import Path

from dicom_node.cli import guard
from dicom_node.config import Settings
from dicom_node.errors import OutOfResources


def conformance(settings: Settings, output: Path | None) -> None:
    """Print the statement, or write it to a file.

    Raises
    ------
    OutOfResources
        The file can't be written.
    """
    guard.check()

    from dicom_node.conformance import statement
    from worker import records

    text = statement(settings, records.classes)
    if output is None:
        sys.stdout.write(text)
        return
    try:
        output.write_text(text, "utf-8")
    except OSError as error:
        raise OutOfResources(f"{output}: {error.strerror}") from error
