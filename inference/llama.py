"""The language model: Llama's decoder over key/value slots.

Our own decoder instead of transformers' (docs/decisions/own-decoder.md): its projections are fused
(q|k|v and gate|up), its keys and values live in fixed slots, and a pass has fixed shapes, which
continuous batching, checked drafts and CUDA graphs need. Numbers are those of transformers'
``LlamaForCausalLM``, its specification in tests/inference/test_llama.py.

Letters in shapes: B rows, Q new tokens a row, T prompt tokens, D width, H heads, d head width,
P positions of a slot, K positions attended, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BOS_ID = 1  # Llama 2 (and so Vicuna): tokenizer.model
EOS_ID = 2

#: What a fused projection is made of, in the order of its rows, under the published names.
FUSED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """Sizes and constants, under the names of a published Llama ``config.json``."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    rms_norm_eps: float
    rope_theta: float = 10_000.0

    @property
    def head_width(self) -> int:
        """Channels of a head, d."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def of(cls, published: Mapping[str, Any]) -> LlamaConfig:
        """Take what a Llama 2 ``config.json`` says.

        Raises:
            KeyError: a size is missing.
            ValueError: it describes another kind of decoder than this one.
        """
        heads = published["num_attention_heads"]
        rope = published.get("rope_parameters") or {}  # transformers 5 writes it here
        said = {**published, **rope}
        expected = {
            "num_key_value_heads": heads,  # grouped heads came with other models
            "head_dim": published["hidden_size"] // heads,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "rope_scaling": None,
            "rope_type": "default",
            "attention_bias": False,
            "mlp_bias": False,
        }
        for key, value in expected.items():
            if said.get(key) not in (None, value):
                raise ValueError(f"{key} is {said[key]!r}; only {value!r} is known here")
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        return cls(
            **{name: int(published[name]) for name in names},
            num_attention_heads=heads,
            rms_norm_eps=float(published["rms_norm_eps"]),
            rope_theta=float(said.get("rope_theta") or 10_000.0),
        )


class Cache:
    """Keys and values of every slot, allocated once: out of memory happens at start or never.

    Nothing is ever shifted or cleared between reports: a position is written before the mask lets
    anybody read it. Only not-finite numbers must go (``clear``), for 0 times NaN is NaN.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        slots: int,
        positions: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (slots, config.num_attention_heads, positions, config.head_width)
        layers = range(config.num_hidden_layers)
        self.rotary = RotaryTable(config, positions, device)
        self.keys = [_zeros(shape, device, dtype) for _ in layers]  # (S, H, P, d) each
        self.values = [_zeros(shape, device, dtype) for _ in layers]
        self.slots = slots
        self.positions = positions

    def clear(self, slot: int) -> None:
        """Forget what a slot holds; needed after not-finite numbers only."""
        for tensor in (*self.keys, *self.values):
            tensor[slot].zero_()


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros; on a CPU only what a report has reached takes memory (calloc; torch's would all)."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    content = np.zeros(prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(content).view(dtype).view(shape)


@dataclass(frozen=True, slots=True)
class Prefill:
    """A prompt from position 0 on, into one slot."""

    cache: Cache
    slot: int
    positions: Tensor  #: (1, T): 0, 1, 2, ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(1, T, H, d) each -> (1, T, H, d): causal over the new keys, which are kept."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        tokens = k.shape[2]
        self.cache.keys[layer][self.slot, :, :tokens] = k[0]
        self.cache.values[layer][self.slot, :, :tokens] = v[0]
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class Decode:
    """One pass over the first B slots, each row at positions of its own."""

    cache: Cache
    positions: Tensor  #: (B, Q) int64
    mask: Tensor  #: (B, 1, Q, K) bool: may this token see that position?

    @classmethod
    def of(cls, cache: Cache, positions: Tensor, keys: int) -> Decode:
        """``keys``: positions looked at, K; must exceed every position of a row that matters."""
        visible = torch.arange(keys, device=positions.device) <= positions[:, None, :, None]
        return cls(cache, positions, visible)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, Q, H, d) each -> (B, Q, H, d): over what the slots hold, new keys included."""
        rows, keys = len(q), self.mask.shape[-1]
        row = torch.arange(rows, device=q.device)[:, None]  # (B, 1)
        held = self.cache.keys[layer], self.cache.values[layer]
        for kept, new in zip(held, (k, v), strict=True):
            kept[row, :, self.positions] = new
        k, v = (kept[:rows, :, :keys] for kept in held)
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=self.mask)
        return mixed.transpose(1, 2)


Pass = Prefill | Decode


class RotaryTable:
    """Cosines and sines of every position (Su et al., RoFormer; in halves, as Llama does)."""

    def __init__(self, config: LlamaConfig, positions: int, device: torch.device) -> None:
        steps = torch.arange(0, config.head_width, 2, device=device).float() / config.head_width
        angles = torch.arange(positions, device=device).float()[:, None] / config.rope_theta**steps
        both = torch.cat([angles, angles], dim=-1)
        self.cos, self.sin = both.cos(), both.sin()  # (P, d), float32: half would be too coarse

    def turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turn (B, T, H, d) by its positions (B, T) or (1, T)."""
        cos, sin = (table[positions][:, :, None].to(x.dtype) for table in (self.cos, self.sin))
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin


class RMSNorm(nn.Module):
    """Root mean square norm with a learnt factor per channel."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps = config.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Self-attention with one projection for q|k|v; the pass says over what."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, layer: int, run: Pass) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        batch, tokens, width = x.shape
        qkv = self.qkv_proj(x).view(batch, tokens, 3 * self.heads, -1)
        # q and k in one go
        turned = run.cache.rotary.turn(qkv[:, :, : 2 * self.heads], run.positions)
        q, k = turned.chunk(2, dim=2)
        mixed = run.attend(layer, q, k, qkv[:, :, 2 * self.heads :])
        out: Tensor = self.o_proj(mixed.reshape(batch, tokens, width))
        return out


class Mlp(nn.Module):
    """SwiGLU with one projection for gate|up."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        wide = config.intermediate_size
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * wide, bias=False)
        self.down_proj = nn.Linear(wide, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        out: Tensor = self.down_proj(F.silu(gate) * up)
        return out


class Layer(nn.Module):
    """Pre-norm decoder layer."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, layer: int, run: Pass) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.self_attn(self.input_layernorm(x), layer, run)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Llama(nn.Module):
    """Embeddings, decoder layers and head; the published tensors' names without ``model.``."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return self.norm.weight.dtype

    def place(self, *, slots: int, positions: int) -> Cache:
        """Make room for ``slots`` reports of at most ``positions`` tokens."""
        return Cache(
            self.config, slots=slots, positions=positions, device=self.device, dtype=self.dtype
        )

    def embed(self, ids: Tensor) -> Tensor:
        """Ids (...) -> rows (..., D); the table may be of a smaller type than is computed in."""
        rows: Tensor = self.embed_tokens(ids).to(self.dtype)
        return rows

    def prefill(self, x: Tensor, cache: Cache, slot: int) -> Tensor:
        """Prompt embeddings (1, T, D) into a slot -> logits (V,) of the next token, float32."""
        positions = torch.arange(x.shape[1], device=x.device)[None]
        x = self._decoded(x, Prefill(cache, slot, positions))
        return self._logits(x[0, -1])

    def decode(self, ids: Tensor, positions: Tensor, cache: Cache, keys: int) -> Tensor:
        """One pass: ids and positions (B, Q) of the first B slots -> logits (B, Q, V), float32.

        ``keys``: positions looked at; the caller rounds them up, so that shapes stay few.
        """
        x = self._decoded(self.embed(ids), Decode.of(cache, positions, keys))
        return self._logits(x)

    def _decoded(self, x: Tensor, run: Pass) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x, number, run)
        return x

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.norm(x)).float()
        return logits
