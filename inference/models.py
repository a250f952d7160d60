"""The door for report models: two protocols, found by name in the entry points."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from pydicom import Dataset

from inference.findings import Algorithm, Embedding, Findings, Image, ModelUnavailable

if TYPE_CHECKING:  # torch takes seconds to import, and listing names needs none of it
    from torch import Tensor

    from inference.hub import Needed
    from inference.weights.recipe import Recipe

GROUP = "dicom_node.models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a model is run, whichever it is. 0 always means: the model's or machine's own."""

    slots: int = 0  #: reports at once; 0: as many as the device's memory holds
    draft_tokens: int = 3  #: tokens guessed ahead and checked in one pass; 0: none
    max_new_tokens: int = 0  #: 0: the model's own limit
    report_seconds: float = 0  #: time-out of one report; 0: none


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Every stage of one image or text, for comparison with another implementation."""

    arrays: Mapping[str, Tensor]  #: names as in interface.md, without batch dimension
    document: Mapping[str, Any]  #: prompt, ids and text, as JSON


@runtime_checkable
class ReportModel(Protocol):
    """A loaded model. Its methods may be called from several threads at once."""

    algorithm: Algorithm  #: name, version, weights digest: PS3.16 TID 4019
    device: object  #: where it runs; ``str`` names it
    slots: int  #: how many reports it can write at once

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
        """Place a text in the space of the images.

        Raises:
            InferenceError: this model has no such space.
        """
        ...

    def embed_image(self, image: Image) -> Embedding:
        """Place an image in the space of the texts."""
        ...

    def learn(self, texts: Iterable[str]) -> None:
        """Take past drafts of this model as hints; they make it faster, never write other words."""
        ...

    def close(self) -> None:
        """Give the device back; nothing may be asked afterwards."""
        ...


class PlugIn(Protocol):
    """What the entry-point group ``dicom_node.models`` holds: a class.

    One whose weights are prepared here also has ``recipe`` and ``needs`` (:class:`Preparable`).
    """

    def load(self, path: Path | None, *, device: str, options: Options) -> ReportModel:
        """Load the weights in ``path``; None where the model brings its own."""
        ...


@runtime_checkable
class Preparable(Protocol):
    """A plug-in whose published weights ``models prepare`` turns into one file."""

    needs: ClassVar[tuple[Needed, ...]]  #: what a site must bring; empty: it comes with us

    def recipe(self, source: Path, base: Path | None) -> Recipe:
        """Say how the published folders become the prepared tensors."""
        ...

    def trace(self, *args: Any, **kwargs: Any) -> Trace:
        """See :meth:`inference.llava.Llava.trace`."""
        ...


def names() -> list[str]:
    """Names that ``find`` knows, sorted."""
    return sorted(entry_points(group=GROUP).names)


def find(name: str) -> PlugIn:
    """Import a plug-in by its entry point.

    Raises:
        ModelUnavailable: unknown name, or the plug-in is broken.
    """
    found = entry_points(group=GROUP, name=name)
    if not found:
        raise ModelUnavailable(f"no model is called {name!r}; known: {', '.join(names())}")
    (entry,) = found
    # Nothing that a model imports may reach a hub; read once, at the first import of its client.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        plug_in: PlugIn = entry.load()
    except (ImportError, AttributeError) as error:
        raise ModelUnavailable(f"model {name} ({entry.value}) can't be loaded: {error}") from error
    return plug_in


def load(
    name: str, *, path: Path | None, device: str = "auto", options: Options | None = None
) -> ReportModel:
    """Find a model by entry point and load its weights.

    ``path``: folder with the prepared weights, None where the model brings its own. ``device``:
    "cpu", "cuda" or "auto" (CUDA if there is one).

    Raises:
        ModelUnavailable: unknown name, plug-in broken, weights missing or unloadable.
    """
    model = find(name).load(path, device=device, options=options or Options())
    if not isinstance(model, ReportModel):
        raise ModelUnavailable(f"model {name} is no ReportModel")
    return model


def preparable(name: str) -> Preparable:
    """Find a plug-in whose weights can be prepared.

    Raises:
        ModelUnavailable: there is none of this name, or it brings no recipe.
    """
    plug_in = find(name)
    if not isinstance(plug_in, Preparable):
        raise ModelUnavailable(f"model {name} has nothing to prepare")
    return plug_in
