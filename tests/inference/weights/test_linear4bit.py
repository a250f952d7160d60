"""A prompt on a CPU goes another way through a 4-bit layer than a token, to the same numbers."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu, dequantize_4bit, has_avx512bf16
from torch import Tensor

from inference.weights import nf4
from inference.weights.linear4bit import MANY, UnpackingLinear4bit, unpack

needs_kernel = pytest.mark.skipif(
    not has_avx512bf16(), reason="bitsandbytes has its packed kernel on AVX512-BF16 CPUs only"
)


def weight(rows: int, columns: int) -> Tensor:
    draw = torch.Generator().manual_seed(rows)
    return torch.randn(rows, columns, generator=draw).half()


def layer(rows: int, columns: int) -> UnpackingLinear4bit:
    packed = nf4.pack(weight(rows, columns))
    built = nf4.linear(packed, compute=torch.float32, device=torch.device("cpu"))
    return built.eval().requires_grad_(False)


def inputs(rows: int, columns: int) -> Tensor:
    return torch.randn(1, rows, columns, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("rows", "columns"), [(32, 64), (96, 128), (1056, 64), (64, 11008)])
def test_unpacking_gives_the_dequantised_weights(rows: int, columns: int) -> None:
    built = layer(rows, columns)
    wanted = dequantize_4bit(built.weight.data, built.weight.quant_state).float()
    codes, state = _convert_weight_packed_for_cpu(built.weight.data, built.weight.quant_state)
    found = unpack(codes, state.absmax)
    assert found.shape == (rows, columns)
    # scale, value and product are each rounded to bfloat16's eight bits
    torch.testing.assert_close(found.float(), wanted, rtol=3 * 2**-8, atol=0)


@needs_kernel
@pytest.mark.parametrize("rows", [MANY, MANY + 1, 300])
def test_a_prompt_gives_the_numbers_of_the_kernel(rows: int) -> None:
    built, x = layer(1056, 128), inputs(rows, 128)  # a band of 1024 rows and a short one
    with torch.inference_mode():
        found = built(x)
        plain = torch.cat([built(x[:, i : i + 1]) for i in range(rows)], dim=1)
    assert found.shape == (1, rows, 1056)
    assert found.dtype == torch.float32
    assert (found - plain).norm() / plain.norm() < 0.004


@needs_kernel
def test_the_first_pass_may_be_a_prompt_or_a_token() -> None:
    x = inputs(MANY, 64)
    prompt_first, token_first = layer(64, 64), layer(64, 64)
    with torch.inference_mode():
        first = prompt_first(x)
        token_first(x[:, :1])
        assert torch.equal(first, token_first(x))
        assert torch.equal(prompt_first(x[:, :1]), token_first(x[:, :1]))


@needs_kernel
def test_only_prompts_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    plainly = UnpackingLinear4bit._unpacked

    def counted(self: UnpackingLinear4bit, x: Tensor) -> Tensor:
        rows.append(x.shape[1])
        return plainly(self, x)

    monkeypatch.setattr(UnpackingLinear4bit, "_unpacked", counted)
    built = layer(64, 64)
    with torch.inference_mode():
        for many in (1, 4, MANY - 1, MANY, 200):
            built(inputs(many, 64))
    assert rows == [MANY, 200]


def test_without_the_kernel_bitsandbytes_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    built = layer(64, 64)
    built.support_avx512bf16_for_cpu = False
    monkeypatch.delattr(UnpackingLinear4bit, "_unpacked")
    x = inputs(MANY, 64)
    wanted = x @ dequantize_4bit(built.weight.data, built.weight.quant_state).float().T
    with torch.inference_mode():
        assert (built(x) - wanted).norm() / wanted.norm() < 1e-3
