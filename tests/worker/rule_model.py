"""A true report model without a network: what it says follows from the image by a rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from inference.findings import Algorithm, Embedding, Findings, Image, InferenceError
from inference.models import Options

NAME = "rule"
DIMENSIONS = 8


class RuleModel:
    """The same image always gets the same text and the same vector."""

    knows_texts = True  #: False: as a model without a text tower

    def __init__(self, digest: str = "rule", options: Options | None = None) -> None:
        self.options = options or Options()
        self.slots = self.options.slots or 1
        self.algorithm = Algorithm(
            name="Rule",
            version="1",
            manufacturer="tests",
            digest=digest,
        )
        self.device: object = "cpu"
        self.seen: list[str] = []  #: SOP Instance UIDs of the images that were read
        self.told: list[str | None] = []  #: the indications that came with them
        self.learnt: list[str] = []  #: past drafts it was reminded of
        self.words = ""  #: what it writes instead of its measurement
        self.shorten: Callable[[str | None], str | None] = lambda history: history
        self.while_reading: Callable[[], None] = lambda: None  #: what happens meanwhile

    @classmethod
    def load(cls, path: Path | None, *, device: str, options: Options) -> RuleModel:
        """How the entry point makes one."""
        return cls(options=options)

    def accepts(self, header: Dataset) -> bool:
        """Radiographs."""
        return header.get("Modality") in ("CR", "DX")

    def read(self, images: Sequence[Image], history: str | None) -> Findings:
        """One sentence about the picture's brightness."""
        (image,) = images
        self.seen.append(image.sop_instance_uid)
        self.told.append(history)
        self.while_reading()
        text = self.words or f"The mean grey level is {image.pixels.mean():.3f}."
        return Findings(
            text=text,
            algorithm=self.algorithm,
            image_embedding=self.embed_image(image),
            text_embedding=self.embed_text(text) if self.knows_texts else None,
            history=self.shorten(history),
            seconds={"read": 0.0},
            generated_tokens=12,
            passes=5,
        )

    def close(self) -> None:
        """Nothing is held."""

    def learn(self, texts: Iterable[str]) -> None:
        """Keep them for the test to see."""
        self.learnt.extend(texts)

    def embed_text(self, text: str) -> Embedding:
        """How often which letters occur."""
        if not self.knows_texts:
            raise InferenceError("Rule places no texts: search by --image or --study")
        counts = np.bincount(np.frombuffer(text.encode(), np.uint8) % DIMENSIONS)
        return self._embedding(counts)

    def embed_image(self, image: Image) -> Embedding:
        """The picture's rows, coarsely."""
        bands = np.array_split(image.pixels.mean(axis=1), DIMENSIONS)
        return self._embedding(np.array([band.mean() for band in bands]))

    def _embedding(self, values: npt.NDArray[Any]) -> Embedding:
        vector = np.zeros(DIMENSIONS, np.float32)
        vector[: len(values)] = values
        return Embedding(vector=vector / np.linalg.norm(vector), digest=self.algorithm.digest)
