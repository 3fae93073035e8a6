"""Packed attention in Triton against the reference: on the GPU where there is one, else in the interpreter."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from embedtune.kernels import dispatch
from embedtune.kernels.attention import grouped, packed_layout, reference, tiles, varlen
from embedtune.kernels.attention.tiles import Blocks, Table
from embedtune.kernels.dispatch import choose_attention
from tests.kernels.poison import poisoned_memory
from tests.kernels.test_attention import VISIBILITIES, assert_same, needs_cuda, random_bias, random_inputs, run

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

from embedtune.kernels.attention import triton as fast  # noqa: E402

TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
DTYPES = [
    torch.float16,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(DEVICE == "cpu", reason="Triton's interpreter multiplies bf16 as if it were integers"),
    ),
]
LENGTHS = {
    "one token": (1,),
    "single tokens": (1, 1, 1),
    "whole": (3, 16, 17, 31, 32),
    "cut": (33, 64),
    "unsorted": (40, 2, 33, 16, 1),
}
ODD = (1, 17, 40)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles and steps so small that sequences of 40 tokens are cut and take several rounds."""
    table = Table({16: Blocks(16, 1), 32: Blocks(16, 1)}, (32, Blocks(16, 4)))
    for tables in (tiles.FORWARD, tiles.BACKWARD):
        for key in tables:
            monkeypatch.setitem(tables, key, table)
    monkeypatch.setattr(fast, "BIAS_PROGRAMS", 16)  # two parts for two heads of 40 tokens


def compare(lengths: tuple[int, ...], inputs: list[Tensor], causal: bool = False, window: int | None = None) -> None:
    dtype = inputs[0].dtype
    exact = [x.detach().double() for x in inputs]
    expected = run(reference.packed_attention, exact, lengths, causal, window)
    with poisoned_memory():
        actual = run(fast.packed_attention, inputs, lengths, causal, window, device=DEVICE)
    assert [x.dtype for x in actual[:4]] == [dtype] * 4
    assert_same(actual, expected, TOLERANCES[dtype])


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("visibility", VISIBILITIES)
def test_triton_is_the_reference(visibility: str, biased: bool) -> None:
    inputs = [*random_inputs(ODD, heads=2, key_heads=2, size=24, dtype=torch.float32)]
    if biased:
        inputs.append(random_bias(ODD, heads=2, dtype=torch.float32))
    compare(ODD, inputs, *VISIBILITIES[visibility])


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    inputs = random_inputs(ODD, heads=2, key_heads=2, size=24, dtype=dtype)
    compare(ODD, [*inputs, random_bias(ODD, heads=2, dtype=dtype)], causal=True)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", LENGTHS)
def test_sequences_of_every_kind(name: str) -> None:
    lengths = LENGTHS[name]
    inputs = [
        *random_inputs(lengths, heads=1, key_heads=1, size=5, dtype=torch.float32),
        random_bias(lengths, heads=1, dtype=torch.float32),
    ]
    compare(lengths, inputs)


@pytest.mark.usefixtures("small_tiles")
def test_heads_share_keys_and_values() -> None:
    lengths = (3, 33)
    inputs = random_inputs(lengths, heads=4, key_heads=2, size=16, dtype=torch.float32)
    compare(lengths, [*inputs, random_bias(lengths, dtype=torch.float32)], causal=True)


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
def test_with_the_tiles_of_the_product(biased: bool) -> None:
    lengths = (2, 20, 130)
    inputs = [*random_inputs(lengths, heads=1, key_heads=1, size=32, dtype=torch.float32)]
    compare(lengths, [*inputs, *([random_bias(lengths, heads=1, dtype=torch.float32)] if biased else [])])


@pytest.mark.usefixtures("small_tiles")
def test_the_bias_may_be_of_a_wider_dtype_and_frozen() -> None:
    """As under autocast, where the table stays fp32: its gradient is fp32 and the output is not."""
    inputs = [*random_inputs((3, 9), heads=1, key_heads=1, dtype=torch.float16)]
    inputs.append(random_bias((3, 9), heads=1, dtype=torch.float32))
    assert run(fast.packed_attention, inputs, (3, 9), device=DEVICE)[-1].dtype == torch.float32
    compare((3, 9), inputs)
    query, key, value, bias = (x.detach().to(DEVICE) for x in inputs)
    out = fast.packed_attention(
        query.requires_grad_(), key, value, packed_layout((3, 9), DEVICE), scale=1, bias_HLL=bias
    )
    (grad,) = torch.autograd.grad(out.sum(), query)
    assert grad.dtype == torch.float16


def test_inputs_as_the_models_hand_them_over() -> None:
    """(1, H, T, D) turned around, slices of one fused projection, and a gradient that is a view."""
    lengths, tokens = (3, 17), 20
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(tokens, 4, 3 * 8, generator=generator).to(DEVICE).requires_grad_()
    heads_first = torch.randn(4, 8, tokens, generator=generator).to(DEVICE).requires_grad_()
    results = []
    for attend in (reference.packed_attention, fast.packed_attention):
        query, key = projection[..., :8], projection[..., 8:16]
        value = heads_first.permute(2, 0, 1)
        # The reference's products on a GPU can't be deterministic, which poisoned memory asks for.
        with poisoned_memory() if attend is fast.packed_attention else nullcontext():
            out = attend(query, key, value, packed_layout(lengths, DEVICE), scale=0.3)
            factors_H = torch.arange(4.0, device=DEVICE)
            loss = (out.transpose(0, 1)[..., ::2] * factors_H).sum() + out[::3].sum()
            results.append((out.detach(), *torch.autograd.grad(loss, (projection, heads_first))))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_a_sequence_does_not_see_its_neighbours() -> None:
    """Its output and gradients are the same to the last bit, even if a neighbour holds NaN."""
    lengths = (9, 9, 40)
    inputs = random_inputs(lengths, heads=1, key_heads=1, dtype=torch.float32)
    before = run(fast.packed_attention, inputs, lengths, device=DEVICE)
    spoilt = [x.detach().clone() for x in inputs]
    for x in spoilt:
        x[9:18] = torch.nan
    after = run(fast.packed_attention, spoilt, lengths, device=DEVICE)
    for was, now in zip(before, after, strict=True):
        assert torch.equal(was[:9], now[:9])
        assert torch.equal(was[18:], now[18:])
        assert now[9:18].isnan().all()


def test_what_cuda_gets_without_varlen(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    choose_attention.cache_clear()
    with caplog.at_level("INFO", logger="embedtune"):
        assert choose_attention("cuda", torch.float32, 32) is fast.packed_attention
        assert choose_attention("cuda", torch.bfloat16, 12) is fast.packed_attention
        assert choose_attention("cuda", torch.bfloat16, 32, biased=True) is fast.packed_attention
        assert choose_attention("cuda", torch.float64, 32) is grouped.packed_attention
        assert choose_attention("cuda", torch.float32, 264) is grouped.packed_attention
    assert "Triton, because varlen flash takes fp16 and bf16, not torch.float32" in caplog.text
    assert "and Triton's takes head sizes up to 256, not 264" in caplog.text
    choose_attention.cache_clear()


def test_an_old_card_gets_the_grouped_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    choose_attention.cache_clear()
    assert choose_attention("cuda", torch.float16, 32) is grouped.packed_attention
    assert choose_attention("cuda", torch.float32, 32, biased=True) is grouped.packed_attention
    choose_attention.cache_clear()


def test_short_texts_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton where half of the tokens are in texts that are short enough; the device's memory is not touched."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(dispatch, "SHORT_LENGTH", 20)
    monkeypatch.setattr(varlen, "packed_attention", lambda *args, **options: torch.zeros(0))
    choose_attention.cache_clear()
    attend = choose_attention("cuda", torch.float16, 8)
    for lengths, tokens in (((4, 20, 21), 45), ((4, 9, 21), 0), ((3,), 3)):
        query, key, value = (x.detach().to(DEVICE) for x in random_inputs(lengths, dtype=torch.float16))
        assert len(attend(query, key, value, packed_layout(lengths, DEVICE), scale=1.0)) == tokens
    choose_attention.cache_clear()


GPU_LENGTHS = (1, 2, 13, 15, 16, 17, 31, 33, 64, 65, 128, 129, 255, 257, 300, 513)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("visibility", ["full", "causal", "window"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("size", [16, 32, 64, 80, 128, 256])
def test_every_tile_of_the_product(size: int, dtype: torch.dtype, visibility: str, biased: bool) -> None:
    inputs = [*random_inputs(GPU_LENGTHS, heads=2, key_heads=1, size=size, dtype=dtype)]
    if biased:
        inputs.append(random_bias(GPU_LENGTHS, heads=2, dtype=dtype))
    compare(GPU_LENGTHS, inputs, *VISIBILITIES[visibility])


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_to_the_last_bit_each_time(dtype: torch.dtype) -> None:
    inputs = [*random_inputs(GPU_LENGTHS, size=64, dtype=dtype), random_bias(GPU_LENGTHS, dtype=dtype)]
    first, second = (run(fast.packed_attention, inputs, GPU_LENGTHS, device="cuda") for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
