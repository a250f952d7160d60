"""LLaVA-Rad: encoder, projector and language model; image features spliced into the prompt.

Zambrano Chaves et al., Nature Communications 16:3108 (2025). Own implementation from the facts of
microsoft/LLaVA-Rad at 1fc4409; proven against its outputs in tests/inference/test_llava_rad.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from PIL import Image as PilImage
from pydicom import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
)
from torch import Tensor

from inference import prompt, weights
from inference.embeddings import WordPiece
from inference.findings import (
    Algorithm,
    Embedding,
    Findings,
    Image,
    ModelFailure,
    ModelUnavailable,
)
from inference.generate import MAX_NEW_TOKENS, Generation, greedy
from inference.vision import preprocess

PREPROCESS = "mimic-jpg-v1"  # the training images are MIMIC-CXR-JPG

_RADIOGRAPHS = frozenset(
    {
        ComputedRadiographyImageStorage,
        DigitalXRayImageStorageForPresentation,
        SecondaryCaptureImageStorage,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One image after the tower."""

    features: Tensor  #: (1, N, D) projected into the language model's width
    vector: Tensor  #: (E,) float32, norm 1, on the CPU


@contextmanager
def device_errors() -> Iterator[None]:
    """Map what torch raises when the device gives out.

    Raises:
        ModelFailure: out of memory, or the device failed.
    """
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
        raise ModelFailure(f"the device gave out: {type(error).__name__}") from error


class LlavaRad:
    """A ``ReportModel`` over weights in the published layout."""

    NAME: ClassVar = "LLaVA-Rad"
    VERSION: ClassVar = "1.0"
    MANUFACTURER: ClassVar = "Microsoft Research"
    DEMO: ClassVar = False

    def __init__(
        self, source: weights.Source, *, device: torch.device, quantise: bool = True
    ) -> None:
        self.networks = weights.load(source, device=device, quantise=quantise)
        self.device = device
        self.pieces = source.pieces()
        self.words = WordPiece(source.words())
        self.algorithm = self._describe(source.digest(), quantised=quantise)

    @classmethod
    def load(cls, path: Path | None, *, device: str = "auto") -> Self:
        """Load from a folder that holds ``llava-rad`` and ``vicuna-*``, in 4 bits.

        Raises:
            ModelUnavailable: no folder given, files missing or wrong, no such device.
        """
        if path is None:
            raise ModelUnavailable(f"{cls.NAME} ships no weights: set [model] path to their folder")
        return cls(weights.Source.within(path), device=find_device(device))

    def accepts(self, header: Dataset) -> bool:
        """Projection radiographs; whether it is a frontal chest is ``inference.selection``'s."""
        return header.get("Modality") in ("CR", "DX") and header.get("SOPClassUID") in _RADIOGRAPHS

    @device_errors()
    def read(self, images: Sequence[Image], history: str | None) -> Findings:
        """Draft the findings of one image; the text is exactly what the model wrote.

        Raises:
            ModelFailure: out of device memory, or not-finite numbers.
        """
        (image,) = images  # the model was trained on single images
        given = prompt.fit(self.tokenise, history)
        start = time.perf_counter()
        view = self.see(image)
        seen = time.perf_counter()
        answer = greedy(self.networks.language, self.embed_prompt(view.features, given))
        text = self.decode(answer)
        return Findings(
            text=text,
            algorithm=self.algorithm,
            image_embedding=self._embedding(view.vector),
            text_embedding=self.embed_text(text),
            history=given,
            seconds={
                "vision": seen - start,
                "prefill": answer.prefill_seconds,
                "decode": answer.decode_seconds,
            },
            generated_tokens=len(answer.ids),
        )

    @device_errors()
    @torch.inference_mode()
    def embed_text(self, text: str) -> Embedding:
        """Place a text in the space of the images; what follows 256 word pieces is not read."""
        ids = self.words.batch([text]).to(self.device)
        return self._embedding(self.networks.text(ids)[0].cpu())

    @device_errors()
    def embed_image(self, image: Image) -> Embedding:
        """Place an image in the space of the texts."""
        return self._embedding(self.see(image).vector)

    # --- the stages, one by one --------------------------------------------------------------

    def see(self, image: Image) -> View:
        """One pass of the tower over an image."""
        size = self.networks.vision.config.image_size
        return self.encode(preprocess(PilImage.fromarray(image.pixels), size))

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> View:
        """(3, S, S) float32 -> projected features and retrieval vector."""
        dtype = self.networks.vision.trunk.cls_token.dtype
        features, vectors = self.networks.vision(pixels[None].to(self.device, dtype))
        # The copy waits for the device, so the time taken here is the tower's own.
        return View(features=self.networks.projector(features), vector=vectors[0].cpu())

    @torch.inference_mode()
    def embed_prompt(self, features: Tensor, history: str | None) -> Tensor:
        """Prompt embeddings (1, T, D) with the N image rows in place of the image mark."""
        ids = prompt.token_ids(self.tokenise, history)
        at = ids.index(prompt.IMAGE_ID)
        embed = self.networks.language.get_input_embeddings()
        before, after = (
            embed(torch.tensor([part], device=self.device)) for part in (ids[:at], ids[at + 1 :])
        )
        return torch.cat([before, features, after], dim=1)

    def tokenise(self, text: str) -> list[int]:
        """Text -> ids without BOS. Names of special tokens in the text stay plain text."""
        ids: list[int] = self.pieces.encode(text)
        return ids

    def decode(self, answer: Generation) -> str:
        """Ids -> text without special tokens and outer blanks."""
        ids = [i for i in answer.ids if not self.pieces.is_control(i)]
        return str(self.pieces.decode(ids)).strip()

    def _embedding(self, vector: Tensor) -> Embedding:
        if not torch.isfinite(vector).all():
            raise ModelFailure("the retrieval vector is not finite")
        return Embedding(vector=vector.numpy(), digest=self.algorithm.digest)

    def _describe(self, digest: str, *, quantised: bool) -> Algorithm:
        return Algorithm(
            name=self.NAME,
            version=f"{self.VERSION}+nf4" if quantised else self.VERSION,
            manufacturer=self.MANUFACTURER,
            digest=digest,
            parameters={
                "quantisation": weights.QUANTISATION if quantised else "none",
                "decoding": f"greedy, at most {MAX_NEW_TOKENS} tokens",
                "prompt": prompt.PROMPT_ID,
                "preprocess": PREPROCESS,
            },
            demo=self.DEMO,
        )


def find_device(name: str) -> torch.device:
    """Turn "cpu", "cuda" or "auto" (CUDA if there is one) into a device.

    Raises:
        ModelUnavailable: CUDA was asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelUnavailable("device cuda was asked for, and torch finds none")
    return torch.device(name)
