from __future__ import annotations

from collections.abc import Iterator

import pydicom
import pytest


@pytest.fixture(autouse=True)
def strict_out() -> Iterator[None]:
    """Make pydicom raise where we would write an illegal value."""
    settings = pydicom.config.settings
    before = settings.writing_validation_mode
    settings.writing_validation_mode = pydicom.config.RAISE
    yield
    settings.writing_validation_mode = before
