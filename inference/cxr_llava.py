"""CXR-LLaVA v2: a grey CLIP encoder, one linear projector and Llama 2 chat.

Lee et al., European Radiology 35:4374 (2025). Own implementation from the facts of ECOFRI/CXR_LLaVA
at b7403b7 (CXR_LLAVA_HF.py); proven against its outputs in tests/inference/test_cxr_llava.py.

It differs from LLaVA-Rad in what it is asked: one fixed question, without the indication. And it
has no text tower, so it places images but no texts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image as PilImage
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from torch import Tensor, nn

from inference.clip_vision import ClipVision
from inference.findings import UnreadablePixels
from inference.hub import CXR_LLAVA, Needed, terms
from inference.llama import BOS_ID
from inference.llava import Llava
from inference.prompt import IMAGE_MARK, Prompt
from inference.vision import VisionConfig, resize
from inference.weights import cxr_llava as published
from inference.weights.artefact import Artefact
from inference.weights.load import module
from inference.weights.recipe import Recipe

# CXR_LLAVA_HF.py: write_radiologic_report, write_differential_diagnosis, and what they share.
SYSTEM = (
    "You are a helpful radiologist. Try to interpret chest x ray image and answer to the question "
    "that user provides."
)
REPORT = (
    "Write a radiologic report on the given chest radiograph, including information about "
    "atelectasis, cardiomegaly, consolidation, pulmonary edema, pleural effusion, and pneumothorax."
)
BOS_TEXT = "<s>"

BRIGHTEST = 255  # upstream refuses deeper pictures too


def parts(question: str) -> tuple[str, str]:
    """The prompt between ``<s>`` and the image, and behind it.

    Llama 2's chat template as transformers before 4.44 wrote it unasked: the checkpoint's tokeniser
    names none. It strips what the user says, of which the image mark is the start.
    """
    before = f"[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n"
    asked = f"\n{question}".rstrip()
    return before, f"{asked} [/INST]"


def preprocess(image: PilImage.Image, size: int, *, mean: float, std: float) -> Tensor:
    """Pillow image -> (1, size, size) float32, exactly as upstream's CLIP processor does.

    Shorter side to ``size``, long side truncated, centre crop with a floor (LLaVA-Rad rounds).
    LANCZOS because upstream passes ``resample=True``, and Pillow's 1 is LANCZOS.

    Raises:
        UnreadablePixels: more than 8 bits.
    """
    if np.max(np.asarray(image)) > BRIGHTEST:
        raise UnreadablePixels("UNDECODABLE", f"not an 8-bit picture: {image.mode}")
    resized = resize(image.convert("L"), size, PilImage.Resampling.LANCZOS)
    left, top = ((side - size) // 2 for side in resized.size)
    square = resized.crop((left, top, left + size, top + size))
    pixels = torch.from_numpy(np.array(square))[None]  # (1, S, S) uint8
    return (pixels.float() / BRIGHTEST - mean) / std


def without_blank(pieces: SentencePieceProcessor) -> SentencePieceProcessor:
    """The same pieces, but no blank is put before a text."""
    model = ModelProto.FromString(pieces.serialized_model_proto())
    model.normalizer_spec.add_dummy_prefix = False
    return SentencePieceProcessor(model_proto=model.SerializeToString())


class CxrLlava(Llava):
    """A ``ReportModel`` over prepared weights. Its drafts never see an indication."""

    MODEL = "cxr-llava"
    NAME = "CXR-LLaVA"
    VERSION = "2.0"
    MANUFACTURER = "ECOFRI"
    PROMPT_ID = "cxr-llava-v2-report"
    # CXR_LLAVA_HF.py: min(512, 2048 - prompt - 1), and the prompt is never long enough to matter.
    MAX_NEW_TOKENS = 512
    TRACE_NAMES = ("vision_tokens", "projected")

    needs: ClassVar[tuple[Needed, ...]] = CXR_LLAVA

    @classmethod
    def recipe(cls, source: Path, base: Path | None) -> Recipe:
        """Say how the published folder becomes the prepared tensors.

        Raises:
            ModelUnavailable: a file or tensor is missing, unknown or wrong; or a base was given.
        """
        made = published.recipe(source, base, model=cls.MODEL)
        return replace(made, licence=terms(cls.needs))

    def load_networks(self, artefact: Artefact) -> None:
        """Load encoder and projector, and learn how the prompt is cut into pieces."""
        config = artefact.config
        self.mean, self.std = config["mean"], config["std"]
        # After the literal <s> only "legacy" tokenisers put a blank.
        self.first_pieces = self.pieces if config["legacy"] else without_blank(self.pieces)
        sizes = VisionConfig(**config["vision"])
        with torch.device("meta"):
            vision = ClipVision(sizes)
            projector = nn.Linear(sizes.width, config["language"]["hidden_size"])
        self.vision = module(artefact, vision, "vision.", device=self.device, dtype=self.dtype)
        self.projector = module(
            artefact, projector, "projector.", device=self.device, dtype=self.dtype
        )

    def preprocess(self, image: PilImage.Image) -> Tensor:
        """Pillow image -> (1, S, S) float32."""
        return preprocess(image, self.vision.config.image_size, mean=self.mean, std=self.std)

    def prompt(self, history: str | None) -> Prompt:
        """The question of every draft; ``fit`` has dropped the history."""
        return self.ask(REPORT)

    def ask(self, question: str) -> Prompt:
        """Any question about an image, in the model's chat.

        Two BOS: the tokeniser puts one before a text that starts with one. The checkpoint is used
        that way upstream.
        """
        before, after = parts(question)
        return Prompt(
            text=BOS_TEXT + before + IMAGE_MARK + after,
            before=(BOS_ID, BOS_ID, *self.first_pieces.encode(before)),
            after=self.tokenise(after),
        )

    def fit(self, history: str | None) -> None:
        """Take no history: upstream's question has no place for one."""

    @property
    def longest_prompt(self) -> int:
        """Ids of the one prompt there is, without the image."""
        return len(self.ask(REPORT))
