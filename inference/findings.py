"""The frozen vocabulary between the model side and the DICOM side.

The only module of ``inference`` that ``dicom_node`` may read: standard library and numpy, no torch.

    InferenceError              something the model side could not do
      UnreadablePixels          the image can't be decoded or has no contrast (never retried)
      ModelUnavailable          weights missing or unloadable (an administrator must act)
      ModelFailure              the device gave out or produced NaN (may work the second time)
        DeviceLost              nothing will work again in this process
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatVector = npt.NDArray[np.float32]
GreyImage = npt.NDArray[np.uint8]


class InferenceError(Exception):
    """The model side could not do what was asked."""

    code = "model.failed"  #: stable word for job reasons
    retry = False  #: may a later attempt succeed?


class UnreadablePixels(InferenceError):
    """The pixels of an image can't be used: ``code`` is a refusal code of pixel-pipeline 2.1."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class ModelUnavailable(InferenceError):
    """The configured model can't be loaded."""

    code = "model.unavailable"


class ModelFailure(InferenceError):
    """The model ran and failed: out of device memory, NaN in the logits."""

    code = "model.failed"
    retry = True


class DeviceLost(ModelFailure):
    """The device is in a state that only a new process can leave (a sticky CUDA error)."""

    code = "model.device_lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """Which model wrote a draft, in the words of PS3.16 TID 4019 and PS3.3 C.7.5.2."""

    name: str  #: e.g. "LLaVA-Rad"; goes into titles, so it says DEMO MODEL when it is one
    version: str  #: e.g. "1.0+nf4"
    manufacturer: str
    digest: str  #: SHA-256 (hex) over the weights as loaded; one vector space per digest
    parameters: Mapping[str, str] = field(default_factory=dict)
    #: ordered: quantisation, decoding, prompt id, preprocess id, ...
    demo: bool = False  #: True: knows phantoms only, never a reading of a patient


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """One vector for retrieval."""

    vector: FloatVector  #: (D,) float32, L2 norm 1
    digest: str  #: digest of the model whose space it lives in


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image as the models take it: after ``mimic-jpg-v1`` (or a file taken as it is)."""

    pixels: GreyImage  #: (H, W) uint8, MONOCHROME2 polarity
    sop_instance_uid: str
    preprocess: str = "mimic-jpg-v1"  #: id of the conversion
    sha256: str = ""  #: of the 8-bit pixels before the JPEG round trip
    warnings: tuple[str, ...] = ()  #: for status and the provenance text


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the model said about one study."""

    text: str  #: findings section, exactly as generated (never rewritten)
    algorithm: Algorithm
    image_embedding: Embedding | None  #: from the same vision pass as the text
    text_embedding: Embedding | None  #: of ``text``; None where the model has no text tower
    history: str | None  #: the indication that was given to the model, if any
    seconds: Mapping[str, float]  #: {"wait", "vision", "prefill", "decode"}
    impression: str | None = None  #: only when the model wrote one
    prompt_tokens: int = 0  #: image rows included
    generated_tokens: int = 0
    passes: int = 0  #: of the language model after the prompt
    accepted_drafts: int = 0  #: drafted tokens that the model agreed to
