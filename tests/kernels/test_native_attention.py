"""Attention compiled for this CPU against the reference, in outputs and every gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from embedtune.kernels.attention import native, packed_layout, reference
from embedtune.kernels.dispatch import choose_attention
from embedtune.kernels.native import build
from tests.kernels.poison import poisoned_memory
from tests.kernels.test_attention import LENGTHS, VISIBILITIES, assert_same, random_bias, random_inputs, run

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=f"nothing is compiled here: {build.why_not()}")

MIXED = (1, 2, 17, 131, 300)
TOLERANCES = {torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
SEVERAL_THREADS = 3


def check(lengths: tuple[int, ...], inputs: tuple[Tensor, ...], visibility: str) -> None:
    exact = [x.detach().double() for x in inputs]
    expected = run(reference.packed_attention, exact, lengths, *VISIBILITIES[visibility])
    with poisoned_memory():
        actual = run(native.packed_attention, inputs, lengths, *VISIBILITIES[visibility])
    dtype = inputs[0].dtype
    assert {x.dtype for x in actual} == {dtype}
    assert_same(actual, expected, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("name", LENGTHS)
def test_short_texts(name: str, visibility: str, dtype: torch.dtype) -> None:
    check(LENGTHS[name], random_inputs(LENGTHS[name], dtype=dtype), visibility)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [8, 16, 20, 32, 64, 80, 128, 256])
def test_head_sizes(size: int, dtype: torch.dtype) -> None:
    check(MIXED, random_inputs(MIXED, heads=2, key_heads=2, size=size, dtype=dtype), "full")


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (False, 40), (True, 290), (False, 1)])
def test_what_is_seen_over_several_blocks(causal: bool, window: int | None, key_heads: int) -> None:
    """Rows and keys of a text that is longer than a block of either, of query heads that share keys or don't."""
    lengths = (3, 530, 257)
    inputs = random_inputs(lengths, key_heads=key_heads, size=16, dtype=torch.float32)
    expected = run(reference.packed_attention, [x.detach().double() for x in inputs], lengths, causal, window)
    with poisoned_memory():
        actual = run(native.packed_attention, inputs, lengths, causal, window)
    assert actual[1].shape[1:] == (4, 16)
    assert actual[2].shape[1:] == (key_heads, 16)
    assert_same(actual, expected, TOLERANCES[torch.float32])


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_inputs_as_the_models_hand_them_over(dtype: torch.dtype) -> None:
    """Columns of one product, heads before tokens, and a gradient that is a view."""
    tokens = sum(MIXED)
    product = torch.randn(tokens, 3 * 64, dtype=torch.float64)
    heads_first = torch.randn(4, tokens, 16, dtype=torch.float64)
    results = []
    for attend, kind in ((reference.packed_attention, torch.float64), (native.packed_attention, dtype)):
        leaf, first = (x.to(dtype).to(kind).requires_grad_() for x in (product, heads_first))
        query, key, _ = (part.view(tokens, 4, 16) for part in torch.split(leaf, 64, dim=1))
        value = first.transpose(0, 1)
        assert not any(x.is_contiguous() for x in (query, key, value))
        with poisoned_memory():
            out = attend(query, key, value, packed_layout(MIXED), scale=0.3)
            loss = (out.transpose(0, 1)[..., ::2] * torch.arange(4.0)[:, None, None]).sum() + out[::3].sum()
            results.append((out.detach(), *torch.autograd.grad(loss, (leaf, first))))
    assert_same(results[1], results[0], TOLERANCES[dtype])


def test_values_that_do_not_lie_side_by_side() -> None:
    query, key, value = torch.randn(3, 20, 2, 8, 2)[..., 0]
    assert query.stride(2) == 2
    out = native.packed_attention(query, key, value, packed_layout((20,)), scale=0.3)
    expected = reference.packed_attention(query, key, value, packed_layout((20,)), scale=0.3)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_what_is_not_a_number_stays_in_its_text(where: str, bad: float) -> None:
    lengths = (9, 70, 300)
    tensors = [x.detach() for x in random_inputs(lengths, size=16, dtype=torch.float32)]
    before = run(native.packed_attention, tensors, lengths)
    tensors[("query", "key", "value").index(where)][20, 1, 3] = bad
    expected = run(reference.packed_attention, tensors, lengths)
    actual = run(native.packed_attention, tensors, lengths)
    for old, got, wanted in zip(before, actual, expected, strict=True):
        assert torch.equal(got[:9], old[:9])
        assert torch.equal(got[79:], old[79:])
        assert torch.equal(got.isfinite(), wanted.isfinite())
    assert not actual[0][9:79].isfinite().all()


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_bits_do_not_depend_on_the_threads(dtype: torch.dtype) -> None:
    lengths = (5, 90, 17, 40, 300, 8)
    inputs = random_inputs(lengths, key_heads=2, size=32, dtype=dtype)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, SEVERAL_THREADS):
            torch.set_num_threads(count)
            results += [run(native.packed_attention, inputs, lengths) for _ in range(2)]
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_sequence_does_not_see_its_neighbours() -> None:
    lengths = (9, 9, 10)
    query, key, value = (x.detach() for x in random_inputs(lengths, dtype=torch.float32))
    before = native.packed_attention(query, key, value, packed_layout(lengths), scale=0.3)
    for x in (query, key, value):
        x[9:18] = 1e4
    after = native.packed_attention(query, key, value, packed_layout(lengths), scale=0.3)
    assert torch.equal(before[:9], after[:9])
    assert torch.equal(before[18:], after[18:])
    assert not torch.equal(before[9:18], after[9:18])


def test_what_is_kept_grows_with_the_tokens_only() -> None:
    """Query, key, value, output and one number a row: no probabilities."""
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    inputs = random_inputs((600,), size=8, dtype=torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        native.packed_attention(*inputs, packed_layout((600,)), scale=0.3)
    assert sorted(x.numel() for x in kept) == [600 * 4, *[600 * 4 * 8] * 4]


def test_no_second_derivative() -> None:
    inputs = random_inputs((5,), dtype=torch.float32)
    out = native.packed_attention(*inputs, packed_layout((5,)), scale=0.3)
    (grad,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()  # type: ignore[no-untyped-call]


def test_what_it_refuses() -> None:
    inputs = random_inputs((2, 3), dtype=torch.float32)
    layout = packed_layout((2, 3))
    with pytest.raises(ValueError, match=r"takes no bias, got one of shape \(4, 6, 6\)"):
        native.packed_attention(*inputs, layout, scale=1.0, bias_HLL=random_bias((2, 3)))
    with pytest.raises(ValueError, match=r"takes fp32, bf16 and fp16, not torch\.float64"):
        native.packed_attention(*random_inputs((2, 3)), layout, scale=1.0)
    with pytest.raises(ValueError, match="head sizes up to 256, not 257"):
        native.packed_attention(*random_inputs((2, 3), size=257, dtype=torch.float32), layout, scale=1.0)
    with pytest.raises(ValueError, match="a layout of 6 tokens"):
        native.packed_attention(*inputs, packed_layout((2, 4)), scale=1.0)
    with pytest.raises(ValueError, match="do not fit each other"):
        native.packed_attention(inputs[0], inputs[1], inputs[2][:, :2], layout, scale=1.0)
    with pytest.raises(ValueError, match="expected one dtype"):
        native.packed_attention(inputs[0], inputs[1].half(), inputs[2], layout, scale=1.0)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_it_is_chosen_on_the_cpu(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    choose_attention.cache_clear()
    with caplog.at_level("INFO", logger="embedtune"):
        assert choose_attention("cpu", dtype, 32) is native.packed_attention
    assert f"packed attention: compiled for this CPU, because the device is cpu and the dtype {dtype}" in caplog.text


def test_powers_of_two() -> None:
    """Every value is within 2 units in the last place, and what is beyond the range becomes 0, infinity or NaN."""
    x = torch.cat([torch.linspace(-126, 127.4, 2**20), torch.linspace(-1, 1, 2**16)])
    exact = torch.exp2(x.double())
    unit = torch.exp2(torch.floor(x.double()) - 23)
    assert ((_exp2(x).double() - exact).abs() / unit).max() < 2
    special = _exp2(torch.tensor([0.0, 1.0, -3.0, -127.0, -math.inf, 129.0, math.inf, math.nan] * 2))
    assert special[:7].tolist() == [1.0, 2.0, 0.125, 0.0, 0.0, math.inf, math.inf]
    assert special[7].isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_to_half_precision_is_torchs(dtype: torch.dtype) -> None:
    """Every number of half precision, the midpoints between them, and what lies beside those."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).float()
    every = every[every.isfinite()].sort().values
    middle = (every[1:] / 2 + every[:-1] / 2).float()
    around = [torch.nextafter(middle, torch.tensor(way)) for way in (-math.inf, math.inf)]
    largest = torch.tensor([65519.0, 65520.0, 65521.0, 3.4e38, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 6e-8])
    x = torch.cat([every, middle, *around, largest])
    got = torch.empty_like(x)
    build.load().round_trip(1 if dtype == torch.bfloat16 else 2, x.data_ptr(), got.data_ptr(), len(x))
    torch.testing.assert_close(got, x.to(dtype).float(), rtol=0, atol=0, equal_nan=True)


def _exp2(x: Tensor) -> Tensor:
    assert len(x) % 16 == 0
    out = torch.full_like(x, math.nan)
    build.load().exp2_values(x.data_ptr(), out.data_ptr(), len(x))
    return out
