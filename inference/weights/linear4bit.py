"""bitsandbytes' 4-bit layer, with a second way through it for prompts on a CPU.

On a CPU with AVX512-BF16 bitsandbytes 0.50 repacks a layer's codes for its kernel, which unpacks
them again for every four rows: right for decoding, and ten times slower than necessary for a prompt
(docs/benchmarks.md). With many rows a band of weights is unpacked once and multiplied by torch.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from bitsandbytes.functional import get_4bit_type
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torch import Tensor

MANY = 64  # rows from which unpacking pays; as fast at 57 (11008 x 4096, two cores)

_TILE = 32  # weight rows whose codes lie together
_BAND = 1024  # weight rows unpacked at a time: 8 to 22 MB, which a server's cache holds


class UnpackingLinear4bit(Linear4bit):
    """The same layer and numbers; both ways multiply in bfloat16 and sum in float32."""

    weight: Params4bit

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N) in the type of ``x``."""
        many = x.numel() >= MANY * x.shape[-1]
        if not many or x.device.type != "cpu" or not self.support_avx512bf16_for_cpu:
            return self._kernel(x)
        if not self._repacked:
            self._kernel(x[..., :1, :])  # the first pass of all repacks
        return self._unpacked(x) if self._repacked else self._kernel(x)

    def _kernel(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x)
        return out

    @property
    def _repacked(self) -> bool:
        return bool(getattr(self.weight.quant_state, "packing_format_for_cpu", False))

    def _unpacked(self, x: Tensor) -> Tensor:
        packed: Tensor = self.weight.data
        scales: Tensor = self.weight.quant_state.absmax
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        out = x.new_empty(len(rows), self.out_features)
        for first in range(0, self.out_features, _BAND):
            band = slice(first, first + _BAND)
            out[:, band] = F.linear(rows, unpack(packed[band], scales[:, band]))
        return out.view(*x.shape[:-1], -1)


def unpack(codes: Tensor, scales: Tensor) -> Tensor:
    """What bitsandbytes repacked for its CPU kernel -> weights.

    Thirty-two rows lie together, column pair by column pair. Of a pair's 32 bytes the first two
    hold columns 2k and 2k + 1 of row 0 (low four bits) and of row 16 (high), the next two those of
    rows 1 and 17, and so on (``_convert_weight_packed_for_cpu`` in its functional.py).

    Args:
        codes: (N, K / 2) uint8, N a multiple of 32.
        scales: (K / block, N) bfloat16.

    Returns:
        (N, K) bfloat16.
    """
    rows, columns = codes.shape[0], 2 * codes.shape[1]
    words = codes.reshape(-1).view(torch.int16).int() & 0xFFFF
    pairs = _pairs().index_select(0, words).view(torch.int32)
    pairs = pairs.view(rows // _TILE, columns // 2, _TILE // 2, 2)  # tile, pair, row, half of tile
    weights = pairs.permute(0, 3, 2, 1).contiguous().view(torch.bfloat16)
    blocks = weights.view(rows, len(scales), -1)
    return blocks.mul_(scales.t()[..., None]).view(rows, columns)


@cache
def _pairs() -> Tensor:
    """Two bytes of codes -> four weights, as one int64: low halves, then high halves."""
    values: Tensor = get_4bit_type("nf4", device="cpu")  # type: ignore[no-untyped-call]
    words = torch.arange(1 << 16)
    first, second = words & 0xFF, words >> 8
    codes = torch.stack([first & 15, second & 15, first >> 4, second >> 4], dim=-1)
    return values.bfloat16()[codes].view(torch.int64)[:, 0]
