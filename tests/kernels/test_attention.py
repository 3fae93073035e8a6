"""Every fast packed attention against the reference, in outputs and every gradient."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from embedtune.kernels.attention import PackedLayout, grouped, packed_layout, reference
from embedtune.kernels.dispatch import PackedAttention, choose_attention
from tests.kernels.poison import poisoned_memory

LENGTHS = {
    "odd": (1, 3, 3, 4, 7, 9, 11, 13, 17, 31),
    "one sequence": (23,),
    "one token": (1,),
    "single tokens": (1, 1, 1, 1),
    "equal": (8, 8, 8, 8, 8),
    "padded groups only": (9, 10, 19, 20),
    "unsorted": (19, 2, 20, 1, 1, 18, 5, 17),
}
VISIBILITIES = {
    "full": (False, None),
    "causal": (True, None),
    "window": (False, 3),
    "causal window": (True, 3),
    "window of one": (False, 1),
    "window as long as the longest": (False, 31),
}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}


def random_inputs(
    lengths: Sequence[int], *, heads: int = 4, key_heads: int = 4, size: int = 8, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = sum(lengths)
    return tuple(  # type: ignore[return-value]
        torch.randn(tokens, count, size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for count in (heads, key_heads, key_heads)
    )


def random_bias(lengths: Sequence[int], *, heads: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of three positions more than the longest sequence has."""
    generator = torch.Generator().manual_seed(2)
    length = max(lengths) + 3
    return torch.randn(heads, length, length, generator=generator, dtype=torch.float64).to(dtype)


def run(
    attend: PackedAttention,
    inputs: Sequence[Tensor],
    lengths: Sequence[int],
    causal: bool = False,
    window: int | None = None,
    device: str = "cpu",
) -> tuple[Tensor, ...]:
    """The output and the gradients of query, key, value and bias, for a fixed random gradient of the output.

    `inputs` are query, key and value, or those and the bias.
    """
    leaves = [x.detach().to(device).requires_grad_() for x in inputs]
    query_THD, key_TKD, value_TKD, *biases = leaves
    bias_HLL = biases[0] if biases else None
    layout = packed_layout(lengths, device)
    scale = inputs[0].shape[-1] ** -0.5
    out_THD = attend(
        query_THD, key_TKD, value_TKD, layout, scale=scale, causal=causal, window=window, bias_HLL=bias_HLL
    )
    generator = torch.Generator().manual_seed(1)
    grad_THD = torch.randn(out_THD.shape, generator=generator, dtype=torch.float64)
    return out_THD.detach(), *torch.autograd.grad(out_THD, leaves, grad_THD.to(out_THD))


def assert_same(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    assert len(actual) == len(expected)
    for name, got, wanted in zip(("output", "query", "key", "value", "bias"), actual, expected, strict=False):
        assert got.shape == wanted.shape
        error = (got.cpu().double() - wanted.cpu().double()).abs().max().item()
        bound = tolerance * max(1.0, wanted.abs().max().item())
        assert error <= bound, f"{name}: off by {error:.2g}, expected at most {bound:.2g}"  # NaN fails too


def test_the_reference_is_softmax_attention() -> None:
    """By hand for two sequences; everything else is held to the reference."""
    query, key, value = (x.detach() for x in random_inputs((2, 3), heads=1, key_heads=1, size=4))
    out = reference.packed_attention(query, key, value, packed_layout((2, 3)), scale=0.5)
    for start, stop in ((0, 2), (2, 5)):
        q, k, v = (x[start:stop, 0] for x in (query, key, value))
        weights = (0.5 * q @ k.T).exp()
        torch.testing.assert_close(out[start:stop, 0], weights / weights.sum(1, keepdim=True) @ v)


def test_the_reference_adds_the_bias_of_each_position() -> None:
    """Torch's own attention with the bias as its mask, in the output and every gradient."""
    lengths = (2, 3)
    inputs = [*random_inputs(lengths), random_bias(lengths)]

    def stock(
        query_THD: Tensor,
        key_TKD: Tensor,
        value_TKD: Tensor,
        layout: PackedLayout,
        *,
        scale: float,
        causal: bool = False,
        window: int | None = None,
        bias_HLL: Tensor | None = None,
    ) -> Tensor:
        assert bias_HLL is not None
        outputs = []
        for start, stop in ((0, 2), (2, 5)):
            query, key, value = (x[start:stop].transpose(0, 1) for x in (query_THD, key_TKD, value_TKD))
            bias = bias_HLL[:, : stop - start, : stop - start]
            out_HLD = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
            outputs.append(out_HLD.transpose(0, 1))
        return torch.cat(outputs)

    assert_same(run(reference.packed_attention, inputs, lengths), run(stock, inputs, lengths), 1e-12)


def test_what_a_token_sees() -> None:
    """With keys of zero a token's output is the mean of the values that it sees."""
    value = torch.arange(6.0).reshape(6, 1, 1)
    zeros = torch.zeros(6, 1, 1)
    expected = {
        (False, None): [0.5, 0.5, 3.5, 3.5, 3.5, 3.5],
        (True, None): [0.0, 0.5, 2.0, 2.5, 3.0, 3.5],
        (False, 2): [0.5, 0.5, 2.5, 3.0, 4.0, 4.5],
        (True, 2): [0.0, 0.5, 2.0, 2.5, 3.5, 4.5],
    }
    layout = packed_layout((2, 4))
    for attend in (reference.packed_attention, grouped.packed_attention):
        for (causal, window), means in expected.items():
            out = attend(zeros, zeros, value, layout, scale=1.0, causal=causal, window=window)
            assert out.flatten().tolist() == pytest.approx(means)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("name", LENGTHS)
def test_grouped_is_the_reference(name: str, visibility: str, dtype: torch.dtype) -> None:
    lengths = LENGTHS[name]
    inputs = random_inputs(lengths, dtype=dtype)
    exact = [x.detach().double() for x in inputs]
    expected = run(reference.packed_attention, exact, lengths, *VISIBILITIES[visibility])
    with poisoned_memory():
        actual = run(grouped.packed_attention, inputs, lengths, *VISIBILITIES[visibility])
    assert {x.dtype for x in actual} == {dtype}
    assert_same(actual, expected, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("name", LENGTHS)
def test_grouped_with_a_bias_is_the_reference(name: str, visibility: str, dtype: torch.dtype) -> None:
    lengths = LENGTHS[name]
    inputs = [*random_inputs(lengths, dtype=dtype), random_bias(lengths, dtype=dtype)]
    exact = [x.detach().double() for x in inputs]
    expected = run(reference.packed_attention, exact, lengths, *VISIBILITIES[visibility])
    with poisoned_memory():
        actual = run(grouped.packed_attention, inputs, lengths, *VISIBILITIES[visibility])
    assert {x.dtype for x in actual} == {dtype}
    assert_same(actual, expected, TOLERANCES[dtype])


@pytest.mark.parametrize("attend", [reference.packed_attention, grouped.packed_attention])
def test_the_bias_may_be_of_a_wider_dtype(attend: PackedAttention) -> None:
    """As under autocast, where the table stays fp32: its gradient is fp32 and the output is not."""
    lengths = LENGTHS["odd"]
    inputs = [*random_inputs(lengths, dtype=torch.bfloat16), random_bias(lengths, dtype=torch.float32)]
    actual = run(attend, inputs, lengths)
    assert [x.dtype for x in actual] == [torch.bfloat16] * 4 + [torch.float32]
    expected = run(reference.packed_attention, [x.detach().double() for x in inputs], lengths)
    assert_same(actual, expected, TOLERANCES[torch.bfloat16])


def test_the_bias_is_left_as_it_was() -> None:
    """One sequence alone, where what the scores start from has the shape of the bias."""
    query, key, value = (x.detach() for x in random_inputs((5,)))
    bias = random_bias((5,))[:, :5, :5].contiguous()
    before = bias.clone()
    grouped.packed_attention(query, key, value, packed_layout((5,)), scale=0.3, bias_HLL=bias)
    assert torch.equal(bias, before)


@pytest.mark.parametrize("key_heads", [1, 2])
@pytest.mark.parametrize("visibility", VISIBILITIES)
def test_grouped_heads_share_keys_and_values(visibility: str, key_heads: int) -> None:
    inputs = [*random_inputs(LENGTHS["odd"], key_heads=key_heads), random_bias(LENGTHS["odd"])]
    expected = run(reference.packed_attention, inputs, LENGTHS["odd"], *VISIBILITIES[visibility])
    actual = run(grouped.packed_attention, inputs, LENGTHS["odd"], *VISIBILITIES[visibility])
    assert (actual[1].shape[1], actual[2].shape[1]) == (4, key_heads)
    assert_same(actual, expected, 1e-12)


def test_inputs_as_the_models_hand_them_over() -> None:
    """(1, H, T, D) turned around, slices of one fused projection, and a gradient that is a view."""
    lengths = LENGTHS["odd"]
    tokens = sum(lengths)
    projection = torch.randn(tokens, 4, 3 * 8, dtype=torch.float64, requires_grad=True)
    heads_first = torch.randn(4, tokens, 8, dtype=torch.float64, requires_grad=True)
    results = []
    for attend in (reference.packed_attention, grouped.packed_attention):
        query, key = projection[..., :8], projection[..., 8:16]
        value = heads_first.transpose(0, 1)
        assert not any(x.is_contiguous() for x in (query, key, value))
        with poisoned_memory():
            out = attend(query, key, value, packed_layout(lengths), scale=0.3)
            loss = (out.transpose(0, 1)[..., ::2] * torch.arange(4.0)).sum() + out[::3].sum()
            results.append((out.detach(), *torch.autograd.grad(loss, (projection, heads_first))))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_gradcheck() -> None:
    lengths = (2, 3, 3)
    inputs = (*random_inputs(lengths, heads=2, key_heads=1, size=3), random_bias(lengths, heads=2).requires_grad_())
    layout = packed_layout(lengths)

    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        return grouped.packed_attention(query, key, value, layout, scale=0.7, causal=True, bias_HLL=bias)

    assert torch.autograd.gradcheck(attend, inputs)


def test_a_sequence_does_not_see_its_neighbours() -> None:
    """Its output is the same to the last bit, whatever a neighbour in its group holds."""
    lengths = (9, 9, 10)
    query, key, value = (x.detach() for x in random_inputs(lengths, dtype=torch.float32))
    layout = packed_layout(lengths)
    assert [group.count for group in layout.groups] == [2, 1]
    before = grouped.packed_attention(query, key, value, layout, scale=0.3)
    for x in (query, key, value):
        x[9:18] = 1e4
    after = grouped.packed_attention(query, key, value, layout, scale=0.3)
    assert torch.equal(before[:9], after[:9])
    assert torch.equal(before[18:], after[18:])
    assert not torch.equal(before[9:18], after[9:18])


@pytest.mark.parametrize("order", ["ascending", "shuffled"])
def test_groups_are_runs_of_one_length(order: str) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = sorted(torch.randint(1, 30, (500,), generator=generator).tolist())
    if order == "shuffled":
        lengths = [lengths[i] for i in torch.randperm(500, generator=generator).tolist()]
    layout = packed_layout(lengths)
    assert [length for group in layout.groups for length in [group.length] * group.count] == lengths
    assert layout.groups[0].start == 0
    assert [group.start for group in layout.groups[1:]] == [group.stop for group in layout.groups[:-1]]
    assert layout.groups[-1].stop == sum(lengths)
    if order == "ascending":
        assert len(layout.groups) == len(set(lengths))


def test_layout_tells_where_sequences_begin() -> None:
    layout = packed_layout((3, 1, 4))
    assert layout.cu_seqlens.tolist() == [0, 3, 4, 8]
    assert layout.cu_seqlens.dtype == torch.int32
    assert layout.max_length == 4
    assert layout.sequence_of_token_T.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("lengths", [(), (3, 0, 2), (-1,)])
def test_lengths_that_make_no_sense(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="lengths must be non-empty and positive"):
        packed_layout(lengths)


def test_what_the_cpu_gets_without_a_compiled_version(caplog: pytest.LogCaptureFixture) -> None:
    choose_attention.cache_clear()
    with caplog.at_level("INFO", logger="embedtune"):
        assert choose_attention("cpu", torch.float64, 32) is grouped.packed_attention
        assert choose_attention("cpu", torch.float32, 32, biased=True) is grouped.packed_attention
    assert "grouped bmm, because the device is cpu and compiled attention takes fp32, bf16 and fp16" in caplog.text
    assert "grouped bmm, because the device is cpu and compiled attention takes no attention bias" in caplog.text


def test_a_bias_without_triton_needs_the_grouped_version(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No device is touched: the choice is made before the card is looked at."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    choose_attention.cache_clear()
    with caplog.at_level("INFO", logger="embedtune"):
        assert choose_attention("cuda", torch.bfloat16, 32, biased=True) is grouped.packed_attention
    assert "grouped bmm, because varlen flash takes no attention bias and triton is not installed" in caplog.text
    choose_attention.cache_clear()


def test_varlen_refuses_a_bias() -> None:
    from embedtune.kernels.attention import varlen

    inputs = random_inputs((2, 3))
    with pytest.raises(ValueError, match=r"takes no bias, got one of shape \(4, 6, 6\)"):
        varlen.packed_attention(*inputs, packed_layout((2, 3)), scale=1.0, bias_HLL=random_bias((2, 3)))


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("name", LENGTHS)
def test_varlen_is_the_reference(name: str, visibility: str, dtype: torch.dtype, key_heads: int) -> None:
    from embedtune.kernels.attention import varlen

    if torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("varlen flash needs compute capability 8.0 or newer")
    inputs = random_inputs(LENGTHS[name], key_heads=key_heads, size=32, dtype=dtype)
    exact = [x.detach().double() for x in inputs]
    expected = run(reference.packed_attention, exact, LENGTHS[name], *VISIBILITIES[visibility])
    actual = run(varlen.packed_attention, inputs, LENGTHS[name], *VISIBILITIES[visibility], device="cuda")
    assert {x.dtype for x in actual} == {dtype}
    assert_same(actual, expected, 5e-2 if dtype == torch.bfloat16 else 1e-2)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("name", LENGTHS)
def test_grouped_on_cuda_is_the_reference(name: str, visibility: str, biased: bool) -> None:
    inputs = [*random_inputs(LENGTHS[name]), *([random_bias(LENGTHS[name])] if biased else [])]
    expected = run(reference.packed_attention, inputs, LENGTHS[name], *VISIBILITIES[visibility])
    actual = run(grouped.packed_attention, inputs, LENGTHS[name], *VISIBILITIES[visibility], device="cuda")
    assert_same(actual, expected, 1e-10)


@pytest.mark.gpu
@needs_cuda
def test_what_cuda_gets() -> None:
    choose_attention.cache_clear()
    assert choose_attention("cuda", torch.float64, 32) is grouped.packed_attention
    if torch.cuda.get_device_capability()[0] >= 8:
        for dtype, biased in ((torch.float16, False), (torch.float16, True), (torch.float32, False)):
            assert choose_attention("cuda", dtype, 32, biased=biased) is not grouped.packed_attention
