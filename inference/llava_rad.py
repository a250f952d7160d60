"""LLaVA-Rad: ViT-B/14, two-layer projector, Vicuna-7B with its adapter merged, CLIP retrieval.

Zambrano Chaves et al., Nature Communications 16:3108 (2025). Own implementation from the facts of
microsoft/LLaVA-Rad at 1fc4409; proven against its outputs in tests/inference/test_llava_rad.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image as PilImage
from torch import Tensor, nn
from transformers import BertConfig

from inference import prompt, vision
from inference.embeddings import TextEncoder, TextTower, WordPiece
from inference.hub import LLAVA_RAD, Needed, terms
from inference.llava import Llava
from inference.prompt import HISTORY_TOKENS, Prompt
from inference.vision import VisionConfig, VisionEncoder
from inference.weights import llava_rad as published
from inference.weights.artefact import Artefact
from inference.weights.load import module
from inference.weights.recipe import Recipe


class LlavaRad(Llava):
    """A ``ReportModel`` over prepared weights."""

    MODEL = "llava-rad"
    NAME = "LLaVA-Rad"
    VERSION = "1.0"
    MANUFACTURER = "Microsoft Research"
    PROMPT_ID = prompt.PROMPT_ID
    MAX_NEW_TOKENS = 256  # scripts/eval.sh of LLaVA-Rad
    TRACE_NAMES = ("vision_features", "projected_features")

    needs: ClassVar[tuple[Needed, ...]] = LLAVA_RAD

    @classmethod
    def recipe(cls, source: Path, base: Path | None) -> Recipe:
        """How the published folders become prepared weights.

        Raises:
            ModelUnavailable: a file or tensor is missing, unknown or wrongly shaped.
        """
        made = published.recipe(source, base, model=cls.MODEL)
        return replace(made, licence=terms(cls.needs))

    def load_networks(self, artefact: Artefact) -> None:
        """Tower, projector and text tower; the last always computes in float32."""
        sizes = VisionConfig(**artefact.config["vision"])
        hidden = artefact.config["language"]["hidden_size"]
        projector = nn.Sequential(
            nn.Linear(sizes.width, hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )
        bert = BertConfig.from_dict(artefact.config["text"])
        here = partial(module, artefact, device=self.device)
        self.vision = here(VisionEncoder(sizes), "vision.", dtype=self.dtype)
        self.projector = here(projector, "projector.", dtype=self.dtype)
        self.text_tower = TextTower(
            words=WordPiece(artefact.file("vocab.txt").read_text("utf-8").splitlines()),
            network=here(TextEncoder(bert, sizes.embedding), "text.", dtype=torch.float32),
        )

    def preprocess(self, image: PilImage.Image) -> Tensor:
        """Pillow image -> (3, S, S) float32, exactly as LLaVA-Rad's evaluation does."""
        return vision.preprocess(image, self.vision.config.image_size)

    def prompt(self, history: str | None) -> Prompt:
        """The published question, with or without an indication."""
        return prompt.build(self.tokenise, history)

    def fit(self, history: str | None) -> str | None:
        """The history cut to ``HISTORY_TOKENS``; None if blank."""
        return prompt.fit(self.tokenise, history)

    @property
    def longest_prompt(self) -> int:
        """Question, lead-in of the indication and the longest indication."""
        return len(self.prompt("")) + HISTORY_TOKENS
