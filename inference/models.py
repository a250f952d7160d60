"""The door for report models: one protocol, found by name in the entry points."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

from pydicom import Dataset

from inference.findings import Algorithm, Embedding, Findings, Image, ModelUnavailable

GROUP = "dicom_node.models"


@runtime_checkable
class ReportModel(Protocol):
    """What a model must do to draft reports here.

    A plug-in is a class in the entry-point group ``dicom_node.models`` whose class method
    ``load(path, *, device)`` returns such an object.
    """

    algorithm: Algorithm  #: name, version, weights digest: PS3.16 TID 4019
    device: object  #: where it runs; ``str`` names it

    def accepts(self, header: Dataset) -> bool:
        """Say from the header alone whether this is an image the model was made for."""
        ...

    def read(self, images: Sequence[Image], history: str | None) -> Findings:
        """Draft the findings of one study.

        Raises:
            ModelFailure: the device gave out; a second attempt may work.
        """
        ...

    def embed_text(self, text: str) -> Embedding:
        """Place a text in the space of the images."""
        ...

    def embed_image(self, image: Image) -> Embedding:
        """Place an image in the space of the texts."""
        ...


def names() -> list[str]:
    """Names that ``load`` knows, sorted."""
    return sorted(entry_points(group=GROUP).names)


def load(name: str, *, path: Path | None, device: str = "auto") -> ReportModel:
    """Find a model by entry point and load its weights.

    ``path``: folder with the weights, None where the model brings its own. ``device``: "cpu",
    "cuda" or "auto" (CUDA if there is one).

    Raises:
        ModelUnavailable: unknown name, plug-in broken, weights missing or unloadable.
    """
    found = entry_points(group=GROUP, name=name)
    if not found:
        raise ModelUnavailable(f"no model is called {name!r}; known: {', '.join(names())}")
    (entry,) = found
    try:
        plug_in = entry.load()
    except (ImportError, AttributeError) as error:
        raise ModelUnavailable(f"model {name} ({entry.value}) can't be loaded: {error}") from error
    model = plug_in.load(path, device=device)
    if not isinstance(model, ReportModel):
        raise ModelUnavailable(f"model {name} ({entry.value}) is no ReportModel")
    return model
