"""The golden data: tiny checkpoints in the published layout and what upstream's code makes of them.

A case compares every stage of one of our models with upstream's arrays; a difference is given in
units of the tolerance that the golden README states, so 1 is the limit. Ids and texts must be the
same: 0, or infinity.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PilImage
from safetensors.torch import load_file
from torch import Tensor

from inference.llava import Llava
from inference.prompt import Prompt

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
MISSING = f"no golden data in {GOLDEN}"

#: by the first part of an array's name (golden/*/README.md)
TOLERANCE = {
    "pixel_values": 1e-6,
    "vision_features": 1e-4,
    "vision_tokens": 1e-4,
    "projected_features": 1e-4,
    "projected": 1e-4,
    "inputs_embeds": 1e-4,
    "first_logits": 1e-3,
    "sequence_logits": 1e-3,
    "merged": 1e-6,
    "retrieval": 1e-5,
}


@dataclass(frozen=True)
class Case:
    """One checkpoint with its expected arrays, ids and texts."""

    folder: Path  #: .../case-*

    @cached_property
    def arrays(self) -> dict[str, Tensor]:
        return load_file(self.folder / "expected.safetensors")

    @cached_property
    def facts(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "expected.json").read_text())
        return content

    @property
    def samples(self) -> list[dict[str, Any]]:
        samples: list[dict[str, Any]] = self.facts["samples"]
        return samples

    @property
    def images(self) -> list[str]:
        return list(self.facts["images"])

    def picture(self, name: str) -> PilImage.Image:
        return PilImage.open(self.folder.parent / "images" / f"{name}.png")

    def difference(self, name: str, found: Tensor) -> float:
        """How far off an array is, in tolerances; infinite if its shape is another."""
        wanted = self.arrays[name]
        if found.shape != wanted.shape:
            return math.inf
        off = float((found.double() - wanted.double()).abs().max())
        return off / TOLERANCE[name.split("/")[0]]


def seen(model: Llava, case: Case) -> Iterator[tuple[str, float]]:
    """Pixels, encoder rows and projected rows of every image."""
    for image in case.images:
        pixels = model.preprocess(case.picture(image))
        view = model.engine.call(lambda pixels=pixels: model.see(pixels))
        tokens, projected = model.TRACE_NAMES
        stages = {
            f"pixel_values/{image}": pixels,
            f"{tokens}/{image}": view.tokens[0],
            f"{projected}/{image}": view.features[0],
        }
        for name, found in stages.items():
            if name in case.arrays:
                yield name, case.difference(name, found)


def written(
    model: Llava, case: Case, sample: dict[str, Any], prompt: Prompt, text: str
) -> Iterator[tuple[str, float]]:
    """Prompt, embeddings, logits, ids and text of one sample."""
    name = sample["id"]
    yield f"prompt/{name}", _same(prompt.text, sample["prompt"])
    yield f"input_ids/{name}", _same(prompt.ids, sample["input_ids"])
    pixels = model.preprocess(case.picture(sample["image"]))
    embeds = model.engine.call(lambda: model.splice(model.see(pixels).features, prompt))
    logits = model.engine.call(lambda: sequence_logits(model, embeds, sample["generated_ids"]))
    stages = {
        f"inputs_embeds/{name}": embeds[0],
        f"first_logits/{name}": logits[0],
        f"sequence_logits/{name}": logits,
    }
    for array, found in stages.items():
        if array in case.arrays:
            yield array, case.difference(array, found)
    answer = model.engine.generate(lambda: embeds, limits=model.limits)
    yield f"generated_ids/{name}", _same(list(answer.ids), sample["generated_ids"])
    yield f"text/{name}", _same(model.decode(answer.ids), text)


def sequence_logits(model: Llava, embeds: Tensor, ids: list[int]) -> Tensor:
    """Teacher-forced logits (n, V) of an answer: the prompt's last row, then one pass over it."""
    tokens = embeds.shape[1]
    cache = model.language.place(slots=1, positions=tokens + len(ids))
    first = model.language.prefill(embeds, cache, 0)[None]
    if len(ids) == 1:
        return first
    positions = torch.arange(tokens, tokens + len(ids) - 1)[None]
    rest = model.language.decode(torch.tensor([ids[:-1]]), positions, cache, cache.positions)
    return torch.cat([first, rest[0]])


def _same(found: object, wanted: object) -> float:
    return 0.0 if found == wanted else math.inf
