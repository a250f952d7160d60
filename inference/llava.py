"""What models of the LLaVA kind share: see, splice, write, and say how.

An image encoder gives N feature rows, a projector brings them to the language model's width, and
they take the place of the image mark in the prompt. ``llava_rad`` and ``cxr_llava`` say with which
networks, which preprocessing and which words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from PIL import Image as PilImage
from pydicom import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
)
from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn

from inference.embeddings import CONTEXT, TextTower
from inference.findings import (
    Algorithm,
    Embedding,
    Findings,
    Image,
    InferenceError,
    ModelFailure,
    ModelUnavailable,
)
from inference.generate import Engine, Limits
from inference.models import Options, Trace
from inference.prompt import Prompt
from inference.vision import VisionConfig
from inference.weights.artefact import Artefact
from inference.weights.load import language

MOST_SLOTS = 16  # the largest batch that CUDA graphs are made for
SPARE_BYTES = 2**30  # of the device, for what a pass needs beside weights, keys and values
POSITION_STEP = 64  # slots are a multiple of this long

_RADIOGRAPHS = frozenset(
    {
        ComputedRadiographyImageStorage,
        DigitalXRayImageStorageForPresentation,
        SecondaryCaptureImageStorage,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One image after the encoder."""

    tokens: Tensor  #: (1, N, W) rows of the encoder that the model was trained on
    features: Tensor  #: (1, N, D) projected into the language model's width
    vector: Tensor  #: (E,) float32, norm 1, on the CPU


class Encoder(Protocol):
    """An image encoder that knows its sizes."""

    config: VisionConfig

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, S, S) -> tokens (B, N, W) and vectors (B, E) of norm 1."""
        ...


class Llava(ABC):
    """A ``ReportModel`` over prepared weights. Thread-safe: the engine has the device to itself."""

    MODEL: ClassVar[str]  #: entry point, and what the prepared weights say they are for
    NAME: ClassVar[str]
    VERSION: ClassVar[str]
    MANUFACTURER: ClassVar[str]
    DEMO: ClassVar = False
    PROMPT_ID: ClassVar[str]  #: changes with any word of the prompt; recorded with each draft
    PREPROCESS: ClassVar = "mimic-jpg-v1"
    MAX_NEW_TOKENS: ClassVar[int]
    vision: Encoder
    projector: nn.Module
    text_tower: TextTower | None = None  #: places texts beside images; not every model has one
    #: names of encoder rows and projected rows in a trace
    TRACE_NAMES: ClassVar[tuple[str, str]]

    def __init__(self, artefact: Artefact, *, device: torch.device, options: Options) -> None:
        self.artefact = artefact
        self.device = device
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        self.pieces = _pieces(artefact.file("tokenizer.model"))
        self.load_networks(artefact)
        self.language = language(artefact, device)
        self.limits = Limits(
            max_new_tokens=min(options.max_new_tokens or self.MAX_NEW_TOKENS, self.MAX_NEW_TOKENS),
            seconds=options.report_seconds or None,
        )
        positions = self._positions()
        self.slots = options.slots or self._fitting_slots(positions)
        self.engine = Engine(
            self.language,
            slots=self.slots,
            positions=positions,
            draft_tokens=options.draft_tokens,
        )
        self.algorithm = self._describe(artefact)

    @classmethod
    def load(
        cls, path: Path | None, *, device: str = "auto", options: Options | None = None
    ) -> Self:
        """Load from a folder written by ``models prepare``.

        Raises:
            ModelUnavailable: no folder given, files missing or changed, no such device.
        """
        if path is None:
            raise ModelUnavailable(
                f"{cls.NAME} ships no weights: run `dicom-node models prepare --model {cls.MODEL}` "
                "and set [model] path to its output"
            )
        artefact = Artefact.open(path, model=cls.MODEL)
        return cls(artefact, device=find_device(device), options=options or Options())

    # --- what a model of this kind says -------------------------------------------------------

    @abstractmethod
    def load_networks(self, artefact: Artefact) -> None:
        """Load all but the language model onto ``device``: ``vision``, ``projector``, ..."""

    @abstractmethod
    def preprocess(self, image: PilImage.Image) -> Tensor:
        """Pillow image -> (C, S, S) float32."""

    @abstractmethod
    def prompt(self, history: str | None) -> Prompt:
        """The question about an image, with the history as ``fit`` gave it."""

    @abstractmethod
    def fit(self, history: str | None) -> str | None:
        """The history as this model will be given it; None if it takes none."""

    @property
    @abstractmethod
    def longest_prompt(self) -> int:
        """Ids that a prompt can have at most, without the image."""

    # --- the ReportModel ----------------------------------------------------------------------

    def accepts(self, header: Dataset) -> bool:
        """Projection radiographs; whether it is a frontal chest is ``inference.selection``'s."""
        return header.get("Modality") in ("CR", "DX") and header.get("SOPClassUID") in _RADIOGRAPHS

    def read(self, images: Sequence[Image], history: str | None) -> Findings:
        """Draft the findings of one image; the text is exactly what the model wrote.

        Raises:
            ModelFailure: out of device memory, not-finite numbers, or out of time.
        """
        (image,) = images  # these models were trained on single images
        given = self.fit(history)
        pixels = self.preprocess(PilImage.fromarray(image.pixels))
        views: list[View] = []

        def embed() -> Tensor:
            views.append(self.see(pixels))
            return self.splice(views[0].features, self.prompt(given))

        answer = self.engine.generate(embed, limits=self.limits)
        text = self.decode(answer.ids)
        return Findings(
            text=text,
            algorithm=self.algorithm,
            image_embedding=self._embedding(views[0].vector),
            text_embedding=self.embed_text(text) if self.text_tower else None,
            history=given,
            seconds=answer.seconds,
            prompt_tokens=answer.prompt_tokens,
            generated_tokens=len(answer.ids),
            passes=answer.passes,
            accepted_drafts=answer.accepted,
        )

    def embed_text(self, text: str) -> Embedding:
        """Place a text in the space of the images.

        Raises:
            InferenceError: there is no text tower, or the device failed.
        """
        tower = self._text_tower()
        ids = tower.words.batch([text])
        vectors = self.engine.call(lambda: tower.network(ids.to(self.device)).cpu())
        return self._embedding(vectors[0])

    def embed_image(self, image: Image) -> Embedding:
        """Place an image in the space of the texts."""
        pixels = self.preprocess(PilImage.fromarray(image.pixels))
        return self._embedding(self.engine.call(partial(self.see, pixels)).vector)

    def learn(self, texts: Iterable[str]) -> None:
        """Take past drafts as hints for what comes next."""
        for text in texts:
            self.engine.learn(self.tokenise(text))

    def close(self) -> None:
        """End the device thread."""
        self.engine.close()

    # --- the stages ---------------------------------------------------------------------------

    @property
    def image_tokens(self) -> int:
        """Rows an image takes, N."""
        return self.vision.config.tokens

    def see(self, pixels: Tensor) -> View:
        """(C, S, S) -> one view, text and retrieval from one pass; on the device thread only."""
        tokens, vectors = self.vision(pixels[None].to(self.device, self.dtype))
        # The copy waits for the device, so the time taken here is the encoder's own.
        return View(tokens=tokens, features=self.projector(tokens), vector=vectors[0].cpu())

    def splice(self, features: Tensor, prompt: Prompt) -> Tensor:
        """Prompt embeddings (1, T, D) with the N feature rows in place of the image mark."""
        embed = self.language.embed
        before, after = (
            embed(torch.tensor([ids], device=self.device)) for ids in (prompt.before, prompt.after)
        )
        return torch.cat([before, features, after], dim=1)

    def tokenise(self, text: str) -> list[int]:
        """Text -> ids without BOS. Names of special tokens in the text stay plain text."""
        ids: list[int] = self.pieces.encode(text)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text without special tokens and outer blanks."""
        pieces = self.pieces
        plain = [i for i in ids if not (pieces.is_control(i) or pieces.is_unknown(i))]
        return str(pieces.decode(plain)).strip()

    def trace(
        self, image: PilImage.Image | None, indication: str | None = None, text: str | None = None
    ) -> Trace:
        """Every stage of one image, and the embedding of one text."""
        arrays: dict[str, Tensor] = {}
        document: dict[str, Any] = {}
        if image is not None:
            seen, document = self._trace_image(image, indication)
            arrays |= seen
        if text is not None:
            ids = self._text_tower().words.batch([text])[0]
            arrays["text_input_ids"] = F.pad(ids, (0, CONTEXT - len(ids)))  # as upstream pads
            arrays["text_embedding"] = torch.from_numpy(self.embed_text(text).vector)
        return Trace(arrays=arrays, document=document)

    def _trace_image(
        self, image: PilImage.Image, indication: str | None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        pixels, prompt = self.preprocess(image), self.prompt(self.fit(indication))
        view = self.engine.call(partial(self.see, pixels))
        embeds = self.engine.call(partial(self.splice, view.features, prompt))
        answer = self.engine.generate(lambda: embeds, limits=self.limits)
        names = ("pixel_values", *self.TRACE_NAMES, "first_logits", "image_embedding")
        logits = self.engine.call(partial(self._first_logits, embeds))
        stages = (pixels, view.tokens[0], view.features[0], logits, view.vector)
        document = {
            "prompt": prompt.text,
            "input_ids": prompt.ids,
            "generated_ids": list(answer.ids),
            "text": self.decode(answer.ids),
        }
        return dict(zip(names, (s.float().cpu() for s in stages), strict=True)), document

    def _first_logits(self, embeds: Tensor) -> Tensor:
        cache = self.language.place(slots=1, positions=embeds.shape[1])
        return self.language.prefill(embeds, cache, 0)

    def _text_tower(self) -> TextTower:
        if self.text_tower is None:
            raise InferenceError(f"{self.NAME} places no texts: search by --image or --study")
        return self.text_tower

    def _embedding(self, vector: Tensor) -> Embedding:
        if not torch.isfinite(vector).all():
            raise ModelFailure("the retrieval vector is not finite")
        return Embedding(vector=vector.numpy(), digest=self.algorithm.digest)

    # --- sizes and names ----------------------------------------------------------------------

    def _positions(self) -> int:
        """Tokens that one report can take, image and answer included."""
        most = self.image_tokens + self.longest_prompt + self.limits.max_new_tokens
        return -(-most // POSITION_STEP) * POSITION_STEP

    def _fitting_slots(self, positions: int) -> int:
        """As many as the device's free memory holds; one on a CPU, which batching hardly helps."""
        if self.device.type == "cpu":
            return 1
        config = self.language.config
        slot = 2 * positions * config.hidden_size * config.num_hidden_layers * self.dtype.itemsize
        free, _ = torch.cuda.mem_get_info(self.device)
        fitting = (free - SPARE_BYTES) // slot
        if fitting < 1:
            raise ModelUnavailable(
                f"{self.device} has {free / 2**30:.1f} GiB free; one report needs "
                f"{(slot + SPARE_BYTES) / 2**30:.1f} GiB more than the weights"
            )
        return int(min(fitting, MOST_SLOTS))

    def _describe(self, artefact: Artefact) -> Algorithm:
        packed = artefact.scheme != "none"
        return Algorithm(
            name=self.NAME,
            version=f"{self.VERSION}+{artefact.scheme}" if packed else self.VERSION,
            manufacturer=self.MANUFACTURER,
            digest=artefact.digest,
            parameters={
                "quantisation": artefact.quantisation,
                "decoding": f"greedy, at most {self.limits.max_new_tokens} tokens",
                "prompt": self.PROMPT_ID,
                "preprocess": self.PREPROCESS,
            },
            demo=self.DEMO,
        )


def _pieces(path: Path) -> SentencePieceProcessor:
    try:
        return SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ModelUnavailable(f"{path} can't be read: {error}") from error


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
