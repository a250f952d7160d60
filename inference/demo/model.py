"""The demo model: LLaVA-Rad's classes and loader over the small weights that travel with us."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from inference.hub import Needed
from inference.llava_rad import LlavaRad
from inference.models import Options

PUBLISHED = Path(__file__).parent / "weights"  # the published layout, made by inference.demo.train
PREPARED = Path(__file__).parent / "prepared"  # from PUBLISHED by `models prepare`


class DemoModel(LlavaRad):
    """Knows synthetic phantoms only; what it says of a patient means nothing."""

    MODEL = "demo"
    NAME = "DEMO MODEL (phantoms only)"
    MANUFACTURER = "dicom-node"
    DEMO = True

    needs: ClassVar[tuple[Needed, ...]] = ()  # it comes with us

    @classmethod
    def load(
        cls, path: Path | None = None, *, device: str = "auto", options: Options | None = None
    ) -> Self:
        """Load the bundled weights, or others of the same kind from ``path``."""
        return super().load(path or PREPARED, device=device, options=options)
