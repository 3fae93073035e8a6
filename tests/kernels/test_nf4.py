"""bitsandbytes' NF4 kernels against the definition of the format."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from embedtune.kernels.nf4 import bnb, reference

CPU = torch.device("cpu")
SHAPES = [
    (384, 384),
    (1024, 4096),
    # Rows that are no whole number of blocks: bitsandbytes' AVX-512 kernel alone takes wrong scales there.
    (312, 1248),
    (48, 80),
    (24, 48),
    # A last block that is not full.
    (33, 7),
    (3, 3),
]


def random_weight(shape: tuple[int, int]) -> Tensor:
    return 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def by_definition(quantised: Any, shape: tuple[int, int]) -> Tensor:
    state = quantised.quant_state
    second = state.state2
    return reference.dequantize(quantised.data, state.absmax, second.code, second.absmax, state.offset, shape)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dequantised_values_are_those_of_the_definition(shape: tuple[int, int], device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    quantised = bnb.quantize(random_weight(shape), torch.device(device))
    expected_OI = by_definition(quantised, shape)
    exact_OI = bnb.dequantize(quantised, torch.float32)
    assert exact_OI.shape == shape
    torch.testing.assert_close(exact_OI, expected_OI, atol=1e-7, rtol=1e-6)
    for dtype in (torch.bfloat16, torch.float16):
        rounded_OI = bnb.dequantize(quantised, dtype)
        assert rounded_OI.dtype == dtype
        torch.testing.assert_close(rounded_OI.float(), expected_OI, atol=1e-7, rtol=2**-8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_value_becomes_the_nearest_level_of_its_block(shape: tuple[int, int]) -> None:
    weight_OI = random_weight(shape)
    quantised = bnb.quantize(weight_OI, CPU)
    error_W = (bnb.dequantize(quantised, torch.float32) - weight_OI).flatten().abs()
    scale_W = torch.cat(
        [block.abs().max().expand(len(block)) for block in torch.split(weight_OI.flatten(), reference.BLOCK)]
    )
    widest_gap = max(b - a for a, b in zip(reference.LEVELS, reference.LEVELS[1:], strict=False))
    # Half the widest gap between levels, and the error of the 8-bit scale.
    assert bool((error_W <= scale_W * (widest_gap / 2 + 0.05)).all())
    assert quantised.data.numel() == (weight_OI.numel() + 1) // 2


def test_quantising_twice_gives_the_same() -> None:
    first, second = (bnb.quantize(random_weight((96, 128)), CPU) for _ in range(2))
    assert torch.equal(first.data, second.data)
    assert torch.equal(bnb.dequantize(first, torch.float32), bnb.dequantize(second, torch.float32))
