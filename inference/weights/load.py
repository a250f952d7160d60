"""Prepared folder -> networks. Nothing is quantised here, and nothing is asked of a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from inference.llama import Llama, LlamaConfig
from inference.weights import nf4
from inference.weights.artefact import PREPARE, Artefact
from inference.weights.recipe import account

if TYPE_CHECKING:  # see nf4
    from inference.weights.linear4bit import UnpackingLinear4bit

Network = TypeVar("Network", bound=nn.Module)

#: Rows of it are looked up and widened then: 0.26 GB less for a 7B on a CPU, the same numbers.
_TABLE = frozenset({"embed_tokens.weight"})


def language(artefact: Artefact, device: torch.device) -> Llama:
    """The language model, computing in float16 on CUDA and in float32 on the CPU.

    Raises:
        ModelUnavailable: a tensor is missing, unexpected, wrongly shaped or changed.
    """
    with torch.device("meta"):  # 7 B random values would only be thrown away
        network = Llama(LlamaConfig(**artefact.config["language"]))
    compute = torch.float16 if device.type == "cuda" else torch.float32
    return module(artefact, network, "language.", dtype=compute, device=device, keep=_TABLE)


def module(
    artefact: Artefact,
    network: Network,
    prefix: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    keep: frozenset[str] = frozenset(),
) -> Network:
    """Give a network exactly the tensors under ``prefix``, ready to compute in ``dtype``.

    ``keep``: names that stay in the type they are stored in.

    Tensors go to the device one by one. Projections that were packed become 4-bit layers.

    Raises:
        ModelUnavailable: a tensor is missing, unexpected, wrongly shaped or changed.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    packed = _packed(artefact, prefix)
    found = {
        name.removeprefix(prefix): entry.shape
        for name, entry in artefact.entries.items()
        if name.startswith(prefix) and not name.endswith(nf4.STATE)
    }
    layers = {name: _layer(artefact, prefix + name, dtype, device) for name in packed}
    unpacked = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
    account(str(artefact.folder), wanted, found | unpacked, fix=PREPARE)
    for name, layer in layers.items():
        network.set_submodule(name.removesuffix(".weight"), layer)
    plain = wanted.keys() - packed
    state = {name: artefact.read(prefix + name).to(device) for name in plain}
    for name in plain - keep:
        state[name] = state[name].to(dtype)
    network.load_state_dict(state, strict=False, assign=True)  # the packed ones have theirs
    return network.to(device).eval().requires_grad_(False)


def _packed(artefact: Artefact, prefix: str) -> set[str]:
    """Names, without prefix, of the weights that are stored in 4 bits."""
    mark = nf4.STATE[-1]
    return {
        name.removeprefix(prefix).removesuffix(mark)
        for name in artefact.entries
        if name.startswith(prefix) and name.endswith(mark)
    }


def _layer(
    artefact: Artefact, name: str, dtype: torch.dtype, device: torch.device
) -> UnpackingLinear4bit:
    tensors = {ending: artefact.read(name + ending) for ending in ("", *nf4.STATE)}
    return nf4.linear(tensors, compute=dtype, device=device)
