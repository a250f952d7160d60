"""The image encoder: (B, 3, S, S) pixels -> (B, N, D) features and (B, E) retrieval vectors.

A plain ViT with the weight names of timm's ``VisionTransformer``, because the published checkpoint
uses them. timm itself stays out: it pulls torchvision, whose build kills a CPU torch beside it.
One pass gives both results; the text needs block -2, the retrieval vector needs the last block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PilImage
from torch import Tensor, nn

# LLaVA-Rad feeds OpenAI CLIP's statistics to a DINOv2 trunk (open_clip 2.23.0, constants.py);
# the ImageNet numbers of timm's own DINOv2 entry would be wrong here.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

HEAD_WIDTH = 64  # ViT-B/14: 768 / 12
NORM_EPS = 1e-6  # timm's LayerNorm, not torch's 1e-5
SELECT_LAYER = -2  # mm_vision_select_layer of the published config.json


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """Sizes of the encoder, as read off its tensors."""

    image_size: int  #: pixels a side
    patch: int  #: pixels a side
    width: int
    depth: int
    embedding: int  #: width of the retrieval vector

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch

    @property
    def tokens(self) -> int:
        """Patches of an image, N."""
        return self.grid**2

    @classmethod
    def of(cls, state: Mapping[str, Tensor], *, image_size: int) -> VisionConfig:
        """Read the sizes off a ``trunk.* / head.*`` state dict: the JSON names only the model."""
        width, _, patch, _ = state["trunk.patch_embed.proj.weight"].shape
        depth = 1 + max(int(k.split(".")[2]) for k in state if k.startswith("trunk.blocks."))
        embedding = state["head.proj.weight"].shape[0]
        return cls(
            image_size=image_size, patch=patch, width=width, depth=depth, embedding=embedding
        )


def preprocess(image: PilImage.Image, size: int) -> Tensor:
    """Pillow image -> (3, size, size) float32, exactly as LLaVA-Rad's evaluation does.

    Shorter side to ``size`` (bicubic with Pillow's antialiasing), long side truncated, centre crop
    with Python's half-to-even rounding, CLIP statistics. Parts of non-square images are cut off;
    padding would be off the training distribution.
    """
    square = crop(image.convert("RGB"), size, PilImage.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)  # (3, S, S) uint8
    return normalise(pixels)


def crop(image: PilImage.Image, size: int, resample: PilImage.Resampling) -> PilImage.Image:
    """Shorter side to ``size``, then the centre ``size`` x ``size``."""
    resized = resize(image, size, resample)
    left, top = (round((side - size) / 2) for side in resized.size)
    return resized.crop((left, top, left + size, top + size))


def resize(image: PilImage.Image, size: int, resample: PilImage.Resampling) -> PilImage.Image:
    """Shorter side to ``size``; the longer one is truncated to whole pixels."""
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    return image.resize((width, height), resample)


def normalise(pixels: Tensor) -> Tensor:
    """(..., 3, S, S) uint8 -> float32 with CLIP's mean and standard deviation."""
    mean = torch.tensor(CLIP_MEAN, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(CLIP_STD, device=pixels.device).view(3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention in three lines, (B, H, N, 64) each.

    Used in training: the CPU backward of torch's fused attention took 40 % of a step.
    """
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)  # (B, H, N, N)
    return scores.softmax(dim=-1) @ v


class Attention(nn.Module):
    """Multi-head self-attention with one fused qkv projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, -1)  # (B, N, 3, H, 64)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, 64) each
        attend = plain_attention if self.training else F.scaled_dot_product_attention
        mixed = attend(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        out: Tensor = self.proj(mixed)
        return out


class Mlp(nn.Module):
    """Linear, exact GELU, linear; four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class LayerScale(nn.Module):
    """A learnt factor per channel (DINOv2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        scaled: Tensor = x * self.gamma
        return scaled


class Block(nn.Module):
    """Pre-norm transformer block with layer scale after attention and MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        x = x + self.ls2(self.mlp(self.norm2(x)))
        return x


class PatchEmbed(nn.Module):
    """Cut into patches and project each: a convolution whose stride is its kernel."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, N, D), rows of patches top to bottom."""
        patches: Tensor = self.proj(pixels).flatten(2).transpose(1, 2)
        return patches


class Trunk(nn.Module):
    """The vision transformer without its head."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.width, config.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.tokens, config.width))
        self.blocks = nn.ModuleList(Block(config.width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)

    def before_last(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 1 + N, D): output of the second last block, CLS first."""
        x: Tensor = self.patch_embed(pixels)  # (B, N, D)
        cls_token = self.cls_token.expand(len(x), -1, -1)  # (B, 1, D)
        x = torch.cat([cls_token, x], dim=1) + self.pos_embed  # (B, 1 + N, D)
        for block in self.blocks[: SELECT_LAYER + 1]:
            x = block(x)
        return x

    def summary(self, x: Tensor) -> Tensor:
        """Output of the second last block -> (B, D): last block, final norm, CLS row."""
        out: Tensor = self.norm(self.blocks[-1](x))[:, 0]
        return out


class Head(nn.Module):
    """open_clip's linear projection into the space shared with text."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.width, config.embedding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, E)."""
        out: Tensor = self.proj(x)
        return out


class VisionEncoder(nn.Module):
    """Trunk and head: the ``visual.*`` half of the published CLIP checkpoint."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config)
        self.head = Head(config)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) -> features (B, N, D) without CLS or final norm, vectors (B, E) of norm 1.

        The price of the retrieval vector is one block of twelve; upstream runs it too, unused.
        """
        x = self.trunk.before_last(pixels)
        vectors = self.head(self.trunk.summary(x)).float()
        return x[:, 1:], F.normalize(vectors, dim=-1)
