"""A report model that reads only in company: it shows that studies are read at once."""

from __future__ import annotations

from pathlib import Path
from threading import Barrier

from inference.models import Options
from tests.conftest import PATIENCE
from tests.worker.rule_model import RuleModel


class MeetingModel(RuleModel):
    """Waits in each reading until all its slots are taken."""

    @classmethod
    def load(cls, path: Path | None, *, device: str, options: Options) -> MeetingModel:
        """How the entry point makes one."""
        model = cls(options=options)
        everybody = Barrier(model.slots, timeout=PATIENCE)

        def meet() -> None:
            everybody.wait()

        model.while_reading = meet
        return model
