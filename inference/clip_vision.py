"""The image encoder of CXR-LLaVA: (B, 1, S, S) pixels -> (B, N, W) tokens and (B, E) vectors.

A plain CLIP ViT under open_clip's weight names, which the published checkpoint uses. It differs
from inference/vision.py, LLaVA-Rad's encoder, in its names, a norm before the blocks, the norm's
eps, no layer scale and the place where the tokens are taken: here after the last norm.
Source: ECOFRI/CXR_LLaVA at b7403b7, CXR_LLAVA_HF/VisualTransformer.py.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.vision import HEAD_WIDTH, VisionConfig

CHANNELS = 1  # grey: version 2 of the model
MLP_RATIO = 4
NORM_EPS = 1e-5  # torch's LayerNorm, not timm's 1e-6


class Block(nn.Module):
    """Pre-norm transformer block with the exact GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = nn.MultiheadAttention(width, width // HEAD_WIDTH, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, MLP_RATIO * width),
                gelu=nn.GELU(),
                c_proj=nn.Linear(MLP_RATIO * width, width),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + N, W) -> (B, 1 + N, W)."""
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Transformer(nn.Module):
    """The blocks, under the name open_clip gives them."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + N, W) -> (B, 1 + N, W)."""
        out: Tensor = self.resblocks(x)
        return out


class ClipVision(nn.Module):
    """The ``vision_tower.*`` half of the published checkpoint."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, patch = config.width, config.patch
        self.config = config
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + config.tokens, width))
        self.proj = nn.Parameter(torch.zeros(width, config.embedding))
        self.conv1 = nn.Conv2d(CHANNELS, width, kernel_size=patch, stride=patch, bias=False)
        self.ln_pre = nn.LayerNorm(width, eps=NORM_EPS)
        self.transformer = Transformer(width, config.depth)
        self.ln_post = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, S, S) -> tokens (B, N, W) without CLS, vectors (B, E) float32 of norm 1.

        The vectors are CLIP's image embedding; the checkpoint holds no text tower to match it.
        """
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)  # (B, N, W), rows top to bottom
        summary = self.class_embedding.expand(len(patches), 1, -1)  # (B, 1, W)
        x = torch.cat([summary, patches], dim=1) + self.positional_embedding  # (B, 1 + N, W)
        x = self.ln_post(self.transformer(self.ln_pre(x)))
        vectors = (x[:, 0] @ self.proj).float()
        return x[:, 1:], F.normalize(vectors, dim=-1)
