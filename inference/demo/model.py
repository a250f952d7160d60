"""The demo model: LLaVA-Rad's classes and loader over the small weights that travel with us."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from inference.llava_rad import LlavaRad

WEIGHTS = Path(__file__).parent / "weights"  # made by inference.demo.train


class DemoModel(LlavaRad):
    """Knows synthetic phantoms only; what it says of a patient means nothing."""

    NAME: ClassVar = "DEMO MODEL (phantoms only)"
    MANUFACTURER: ClassVar = "dicom-node"
    DEMO: ClassVar = True

    @classmethod
    def load(cls, path: Path | None = None, *, device: str = "auto") -> Self:
        """Load the bundled weights, or others of the same kind from ``path``."""
        return super().load(path or WEIGHTS, device=device)
