"""What a prepared model is made of, said by each plug-in and carried out by ``prepare``.

A recipe is drawn up without reading a weight: it knows every tensor that will be written, and every
tensor of the published files has its place in it or on the list of those that are left out. What
is missing, unexpected or wrongly shaped is named before the first byte is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from inference.findings import ModelUnavailable
from inference.llama import FUSED, Llama, LlamaConfig

_NAMED = 10  # faults in one message: enough to see the pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One tensor of the prepared model."""

    name: str  #: e.g. "language.layers.0.self_attn.qkv_proj.weight"
    shape: tuple[int, ...]
    read: Callable[[], Tensor]  #: any float type; called once, in order
    packed: bool = False  #: a projection that NF4 packs


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that ``prepare`` writes."""

    model: str  #: entry-point name
    config: Mapping[str, Any]  #: all sizes and constants that loading needs; JSON
    parts: Sequence[Part]
    files: Mapping[str, Path]  #: name in the prepared folder -> file copied as it is
    sources: Mapping[str, Path]  #: e.g. "vicuna/config.json" -> file; hashed into the manifest
    licence: str = ""  #: of the sources, in words for the manifest; it holds for the result too


class Tensors(Protocol):
    """Published tensors, read one at a time."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor there is."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A tensor to be filled, and the published ones that lie in it one below the other."""

    name: str
    shape: tuple[int, ...]
    published: tuple[str, ...]  #: all equally tall
    packed: bool = False

    def wanted(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the published tensors."""
        rows, *rest = self.shape or (1,)
        shape = (rows // len(self.published), *rest) if self.shape else ()
        return dict.fromkeys(self.published, shape)


def same_names(network: nn.Module, prefix: str, published: str) -> list[Place]:
    """Places of a network whose tensors are published under its own names behind ``published``."""
    return [
        Place(name=prefix + name, shape=tuple(tensor.shape), published=(published + name,))
        for name, tensor in network.state_dict().items()
    ]


def language_places(config: LlamaConfig, *, body: str = "model.") -> list[Place]:
    """Places of the language model: published as Llama with ``body`` before all but the head."""
    with torch.device("meta"):
        network = Llama(config)
    return [
        _language_place(name, tuple(tensor.shape), body)
        for name, tensor in network.state_dict().items()
    ]


def _language_place(name: str, shape: tuple[int, ...], body: str) -> Place:
    block, _, last = name.removesuffix(".weight").rpartition(".")
    whole = name if name == "lm_head.weight" else body + name
    pieces = tuple(f"{body}{block}.{piece}.weight" for piece in FUSED.get(last, ()))
    return Place(
        name=f"language.{name}", shape=shape, published=pieces or (whole,), packed=bool(pieces)
    )


def parts(places: Sequence[Place], tensors: Tensors, *, what: str) -> list[Part]:
    """Fill the places with exactly these tensors.

    Raises:
        ModelUnavailable: naming each missing, unexpected or wrongly shaped tensor.
    """
    wanted = {k: v for place in places for k, v in place.wanted().items()}
    account(what, wanted, tensors.shapes)
    return [
        Part(
            name=place.name,
            shape=place.shape,
            read=partial(_stacked, tensors, place.published),
            packed=place.packed,
        )
        for place in places
    ]


def account(
    what: str,
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    *,
    fix: str = "download it again",
) -> None:
    """Compare names and shapes; ``what`` names the files.

    Raises:
        ModelUnavailable: naming each missing, unexpected or wrongly shaped tensor.
    """
    faults = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    faults += [f"{name} is unexpected" for name in found.keys() - wanted.keys()]
    faults += [
        f"{name} is {found[name]}, not {wanted[name]}"
        for name in wanted.keys() & found.keys()
        if wanted[name] != found[name]
    ]
    if faults:
        more = f"; and {len(faults) - _NAMED} more" * (len(faults) > _NAMED)
        raise ModelUnavailable(f"{what}: {'; '.join(sorted(faults)[:_NAMED])}{more}: {fix}")


def _stacked(tensors: Tensors, names: Sequence[str]) -> Tensor:
    if len(names) == 1:
        return tensors.read(names[0])
    return torch.cat([tensors.read(name) for name in names])
