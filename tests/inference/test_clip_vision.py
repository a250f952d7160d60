"""CXR-LLaVA's encoder, one property at a time; its numbers are proven in test_cxr_llava.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from inference.clip_vision import Block, ClipVision
from inference.vision import VisionConfig

CONFIG = VisionConfig(image_size=48, patch=16, width=128, depth=2, embedding=24)


@pytest.fixture(scope="module")
def encoder() -> ClipVision:
    torch.manual_seed(0)
    encoder = ClipVision(CONFIG).eval()
    for weight in encoder.parameters():
        nn.init.normal_(weight, std=0.1)
    return encoder


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(2, 1, 48, 48, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_an_image_becomes_a_row_per_patch_and_a_unit_vector(
    encoder: ClipVision, pixels: Tensor
) -> None:
    tokens, vectors = encoder(pixels)
    assert tokens.shape == (2, 9, 128)
    assert vectors.shape == (2, 24)
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(2))


@torch.inference_mode()
def test_images_of_a_batch_do_not_see_each_other(encoder: ClipVision, pixels: Tensor) -> None:
    together, alone = encoder(pixels), encoder(pixels[1:])
    for rows, row in zip(together, alone, strict=True):
        assert torch.allclose(rows[1:], row, atol=1e-5)


@torch.inference_mode()
def test_a_block_is_torchs_own_pre_norm_layer(encoder: ClipVision) -> None:
    # An implementation of the same paper that is not ours: exact GELU, eps 1e-5, two heads of 64.
    block = encoder.transformer.resblocks[0]
    reference = nn.TransformerEncoderLayer(
        128, 2, 512, dropout=0.0, activation="gelu", norm_first=True, batch_first=True
    ).eval()
    names = {"ln_1.": "norm1.", "ln_2.": "norm2.", "attn.": "self_attn.",
             "mlp.c_fc.": "linear1.", "mlp.c_proj.": "linear2."}  # fmt: skip
    reference.load_state_dict(renamed(block.state_dict(), names))
    rows = torch.randn(1, 10, 128, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(block(rows), reference(rows), atol=1e-5)


def renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    return {
        names[old] + key.removeprefix(old): tensor
        for key, tensor in state.items()
        for old in names
        if key.startswith(old)
    }


@torch.inference_mode()
def test_rows_come_after_the_last_norm_and_without_cls(encoder: ClipVision, pixels: Tensor) -> None:
    kept: list[Tensor] = []
    hook = encoder.ln_post.register_forward_hook(lambda *args: kept.append(args[2]))
    tokens, vectors = encoder(pixels)
    hook.remove()
    (normed,) = kept
    assert torch.equal(tokens, normed[:, 1:])
    direction = normed[:, 0] @ encoder.proj
    assert torch.allclose(vectors, direction / direction.norm(dim=-1, keepdim=True))


def test_names_are_open_clips(encoder: ClipVision) -> None:
    block = {
        "ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias",
        "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias",
        "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias",
    }  # fmt: skip
    around = {
        "class_embedding", "positional_embedding", "proj", "conv1.weight",
        "ln_pre.weight", "ln_pre.bias", "ln_post.weight", "ln_post.bias",
    }  # fmt: skip
    blocks = {f"transformer.resblocks.{n}.{name}" for n in range(CONFIG.depth) for name in block}
    assert encoder.state_dict().keys() == around | blocks


def test_the_published_width_gives_sixteen_heads() -> None:
    with torch.device("meta"):
        assert Block(1024).attn.num_heads == 16
