"""The encoder, one property at a time; its numbers are proven in test_llava_rad.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PilImage
from torch import Tensor

from inference.vision import (
    CLIP_MEAN,
    CLIP_STD,
    Attention,
    VisionConfig,
    VisionEncoder,
    crop,
    plain_attention,
    preprocess,
)

CONFIG = VisionConfig(image_size=56, patch=14, width=128, depth=3, embedding=24)
BICUBIC = PilImage.Resampling.BICUBIC


@pytest.fixture(scope="module")
def encoder() -> VisionEncoder:
    torch.manual_seed(0)
    encoder = VisionEncoder(CONFIG).eval()
    for weight in encoder.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return encoder


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))


def test_grey_values_get_clips_statistics() -> None:
    pixels = preprocess(PilImage.new("L", (80, 60), 128), 28)
    wanted = [(128 / 255 - m) / s for m, s in zip(CLIP_MEAN, CLIP_STD, strict=True)]
    assert pixels.shape == (3, 28, 28)
    assert torch.allclose(pixels[:, 3, 5], torch.tensor(wanted))


@pytest.mark.parametrize(
    ("width", "height", "left", "top"),
    [
        pytest.param(10, 13, 0, 2, id="1.5 rounds to 2, the even one"),
        pytest.param(10, 15, 0, 2, id="2.5 rounds to 2, the even one"),
        pytest.param(17, 10, 4, 0, id="3.5 rounds to 4"),
    ],
)
def test_the_crop_is_centred_half_to_even(width: int, height: int, left: int, top: int) -> None:
    stored = np.arange(width * height, dtype=np.uint8).reshape(height, width)
    cut = np.array(crop(PilImage.fromarray(stored), 10, PilImage.Resampling.NEAREST))
    assert (cut == stored[top : top + 10, left : left + 10]).all()


def test_the_long_side_is_truncated() -> None:
    image = PilImage.fromarray(np.random.default_rng(0).integers(0, 256, (37, 30), np.uint8))
    wanted = image.resize((28, 34), BICUBIC).crop((0, 3, 28, 31))  # 28 * 37 / 30 = 34.53
    assert crop(image, 28, BICUBIC).tobytes() == wanted.tobytes()


@given(st.integers(1, 90), st.integers(1, 90))
def test_every_shape_becomes_a_square(width: int, height: int) -> None:
    assert preprocess(PilImage.new("L", (width, height)), 14).shape == (3, 14, 14)


def test_sizes_are_read_off_the_tensors(encoder: VisionEncoder) -> None:
    assert VisionConfig.of(encoder.state_dict(), image_size=56) == CONFIG


def test_names_are_timms(encoder: VisionEncoder) -> None:
    names = set(encoder.state_dict())
    assert {"trunk.cls_token", "trunk.pos_embed", "trunk.patch_embed.proj.bias"} <= names
    block = {name for name in names if name.startswith("trunk.blocks.2.")}
    parts = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    wanted = {f"trunk.blocks.2.{p}.{kind}" for p in parts for kind in ("weight", "bias")}
    assert block == wanted | {"trunk.blocks.2.ls1.gamma", "trunk.blocks.2.ls2.gamma"}
    assert "head.proj.weight" in names
    assert "head.proj.bias" not in names


def test_one_pass_gives_features_and_unit_vectors(encoder: VisionEncoder, pixels: Tensor) -> None:
    features, vectors = encoder(pixels)
    assert features.shape == (2, 16, 128)
    assert vectors.shape == (2, 24)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2))


def test_features_need_neither_the_last_block_nor_the_norm(
    encoder: VisionEncoder, pixels: Tensor
) -> None:
    features, vectors = encoder(pixels)
    other = VisionEncoder(CONFIG).eval()
    other.load_state_dict(encoder.state_dict())
    for module in (other.trunk.blocks[-1], other.trunk.norm):
        for weight in module.parameters():
            torch.nn.init.normal_(weight)
    changed_features, changed_vectors = other(pixels)
    assert torch.equal(features, changed_features)
    assert not torch.allclose(vectors, changed_vectors, atol=1e-2)


def test_images_of_a_batch_do_not_mix(encoder: VisionEncoder, pixels: Tensor) -> None:
    together, _ = encoder(pixels)
    alone, _ = encoder(pixels[1:])
    assert torch.allclose(together[1:], alone, atol=1e-5)


def test_training_attention_equals_the_fused_one() -> None:
    torch.manual_seed(0)
    attention, x = Attention(128), torch.randn(2, 9, 128)
    assert torch.allclose(attention.train()(x), attention.eval()(x), atol=1e-6)


def test_attention_weights_by_similarity() -> None:
    q = torch.tensor([[1.0, 0.0]])
    k, v = torch.tensor([[2.0, 0.0], [0.0, 5.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    weight = 1 / (1 + np.exp(-2 / np.sqrt(2)))  # softmax of (2, 0) / sqrt(width 2)
    assert plain_attention(q, k, v)[0].tolist() == pytest.approx([weight, 1 - weight])
