"""Four bits a weight, NF4 with double quantisation (Dettmers et al., QLoRA), by bitsandbytes.

Only this module and ``linear4bit`` know bitsandbytes. It is imported late, because an old one must
be named before its import fails. Packed tensors are kept under bitsandbytes' own names and are made
here, where no forward pass ever ran: its CPU kernels repack weights in place at the first pass, and
what is saved afterwards is silently ruined.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import torch
from packaging.specifiers import SpecifierSet
from torch import Tensor

from inference.findings import ModelUnavailable

if TYPE_CHECKING:
    from inference.weights.linear4bit import UnpackingLinear4bit

BLOCK = 64  # weights that share a scale; bitsandbytes' default, as in LLaVA-Rad's 4-bit loader
QUANTISATION = f"nf4 (block {BLOCK}, double)"

# Kernels and state were checked on this line only; older ones repack differently.
REQUIRED = ">=0.50.2,<0.51"
SUPPORTED = SpecifierSet(REQUIRED)

#: What stands beside a packed weight, by the end of its name (bitsandbytes' QuantState).
STATE = (
    ".absmax",
    ".quant_map",
    ".nested_absmax",
    ".nested_quant_map",
    ".quant_state.bitsandbytes__nf4",
)

# The CPU's packed kernels want whole tiles; everything else would fail at the first pass only.
_TILE = (32, BLOCK)  # rows, columns


def check_bitsandbytes() -> str:
    """Version of the installed bitsandbytes.

    Raises:
        ModelUnavailable: it is not installed, or not one that was checked.
    """
    fix = f"pip install 'bitsandbytes{REQUIRED}'"
    try:
        installed = version("bitsandbytes")
    except PackageNotFoundError as error:
        raise ModelUnavailable(f"bitsandbytes is not installed: {fix}") from error
    if installed not in SUPPORTED:
        raise ModelUnavailable(f"bitsandbytes {installed} can't be used here: {fix}")
    return installed


def check_shapes(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """See whether weights (out, in) can be packed.

    Raises:
        ModelUnavailable: naming one that does not divide into the kernels' tiles.
    """
    for name, shape in shapes.items():
        if any(side % tile for side, tile in zip(shape, _TILE, strict=True)):
            raise ModelUnavailable(f"{name} is {shape}; NF4 needs multiples of {_TILE}")


def pack(weight: Tensor) -> dict[str, Tensor]:
    """Quantise (out, in) on the CPU -> packed bytes under "" and their state under ``STATE``."""
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(
        weight.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
    )
    named: dict[str, Tensor] = state.as_dict(packed=True)
    return {"": packed} | {f".{name}": tensor for name, tensor in named.items()}


def linear(
    tensors: Mapping[str, Tensor], *, compute: torch.dtype, device: torch.device
) -> UnpackingLinear4bit:
    """Build a layer without bias from what ``pack`` gave; nothing is quantised."""
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn.modules import Params4bit

    from inference.weights.linear4bit import UnpackingLinear4bit

    state = {name[1:]: tensor for name, tensor in tensors.items() if name}
    out, into = QuantState.from_dict(dict(state), device=torch.device("cpu")).shape
    layer = UnpackingLinear4bit(  # type: ignore[no-untyped-call]
        into, out, bias=False, compute_dtype=compute, quant_type="nf4", device="meta"
    )
    layer.weight = Params4bit.from_prequantized(tensors[""], state, device=device, module=layer)
    return layer
