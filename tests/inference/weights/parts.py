"""Small recipes for tests of what happens after the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from inference.weights.recipe import Part, Recipe

MODEL = "tiny"
PACKED = "language.packed.weight"


def tensors() -> dict[str, Tensor]:
    """One that may be packed, and plain ones of awkward sizes."""
    generator = torch.Generator().manual_seed(0)
    shapes = {PACKED: (64, 128), "odd": (3,), "scalar": (), "matrix": (5, 7), "even": (2, 4)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def recipe(folder: Path, content: Mapping[str, Tensor] | None = None) -> Recipe:
    """A recipe over tensors in memory, with one copied and one hashed file in ``folder``."""
    content = tensors() if content is None else content
    words, source = folder / "words.txt", folder / "source.bin"
    words.write_text("clear\n")
    source.write_bytes(b"published")
    return Recipe(
        model=MODEL,
        config={"width": 128, "eps": 1e-5, "sizes": (1, 2)},
        parts=[
            Part(
                name=name,
                shape=tuple(tensor.shape),
                read=tensor.clone,
                packed=name == PACKED,
            )
            for name, tensor in content.items()
        ],
        files={"vocab.txt": words},
        sources={"tiny/source.bin": source},
        licence="research only",
    )
