"""Triton kernels against torch's operations: on the GPU where there is one, otherwise in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from embedtune.kernels.activation import reference as plain_activation
from embedtune.kernels.dispatch import choose_activation, choose_norm
from embedtune.kernels.norm import LayerNorm
from embedtune.kernels.norm import reference as plain_norm
from tests.kernels.poison import poisoned_memory

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

from embedtune.kernels.activation import triton as fast_activation  # noqa: E402
from embedtune.kernels.norm import triton as fast_norm  # noqa: E402

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SHAPES = [(1, 1), (3, 12), (5, 384), (2, 1000), (4, 1025)]


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * drawn + 0.5).to(DEVICE, dtype)


def assert_close(actual: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert actual.shape == exact.shape
    assert (actual.double() - exact).norm() <= TOLERANCES[dtype] * exact.norm()  # NaN fails too


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("tokens", "size"), SHAPES)
def test_add_norm_and_its_backward(tokens: int, size: int, dtype: torch.dtype) -> None:
    x_TE, residual_TE, grad_TE = (random(tokens, size, dtype=dtype, seed=seed) for seed in range(3))
    norm = LayerNorm(random(size, dtype=dtype, seed=3), random(size, dtype=dtype, seed=4), 1e-5)
    exact_norm = LayerNorm(norm.weight_E.double(), norm.bias_E.double(), norm.eps)
    with poisoned_memory():
        actual = fast_norm.add_norm(x_TE.clone(), residual_TE, norm)
        grad_sum_TE = fast_norm.norm_backward(grad_TE, *actual[1:], norm)
    assert actual.out_TE.dtype == grad_sum_TE.dtype == dtype
    assert_close(actual.sum_TE, x_TE.double() + residual_TE.double(), dtype)
    sum_TE = actual.sum_TE.double()  # what was rounded is what is normalised
    expected = plain_norm.add_norm(sum_TE.clone(), torch.zeros_like(sum_TE), exact_norm)
    assert_close(actual.out_TE, expected.out_TE, dtype)
    assert_close(actual.mean_T, expected.mean_T, dtype)
    assert_close(actual.rstd_T, expected.rstd_T, dtype)
    exact_grad_TE = plain_norm.norm_backward(grad_TE.double(), *expected[1:], exact_norm)
    if size > 1:  # one value is its own mean: its gradient is nothing but rounding
        assert_close(grad_sum_TE, exact_grad_TE, dtype)


def test_weights_of_another_dtype() -> None:
    """Such as norms that are kept in fp32 under a bf16 encoder."""
    x_TE, residual_TE = (random(3, 12, dtype=torch.bfloat16, seed=seed) for seed in range(2))
    norm = LayerNorm(random(12, dtype=torch.float32, seed=3), random(12, dtype=torch.float32, seed=4), 1e-5)
    expected = plain_norm.add_norm(x_TE.clone(), residual_TE, norm)
    actual = fast_norm.add_norm(x_TE.clone(), residual_TE, norm)
    assert_close(actual.out_TE, expected.out_TE.double(), torch.bfloat16)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (7, 13), (3, 2049)])
def test_gelu_and_its_backward(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, grad = (random(*shape, dtype=dtype, seed=seed) for seed in range(2))
    expected = plain_activation.gelu_and_backward(x.double(), grad.double())
    with poisoned_memory():
        actual = fast_activation.gelu_and_backward(x, grad.clone())
    for got, wanted in zip(actual, expected, strict=True):
        assert got.dtype == dtype
        assert_close(got, wanted, dtype)


def test_plain_gelu_is_what_autograd_makes_of_it() -> None:
    x = random(7, 13, dtype=torch.float64).requires_grad_()
    grad = random(7, 13, dtype=torch.float64, seed=1)
    out = torch.nn.functional.gelu(x)
    (expected,) = torch.autograd.grad(out, x, grad)
    again, actual = plain_activation.gelu_and_backward(x.detach(), grad.clone())
    assert torch.equal(again, out)
    torch.testing.assert_close(actual, expected)


def test_what_is_chosen(caplog: pytest.LogCaptureFixture) -> None:
    choose_norm.cache_clear()
    choose_activation.cache_clear()
    with caplog.at_level("INFO", logger="embedtune"):
        assert choose_norm("cpu", torch.float32, 384)[0] is plain_norm.add_norm
        assert choose_activation("cpu", torch.float64) is plain_activation.gelu_and_backward
        assert choose_norm("cuda", torch.bfloat16, 384)[0] is fast_norm.add_norm
        assert choose_activation("cuda", torch.bfloat16) is fast_activation.gelu_and_backward
        assert choose_norm("cuda", torch.float64, 384)[0] is plain_norm.add_norm
        assert choose_norm("cuda", torch.bfloat16, 10_000)[0] is plain_norm.add_norm
    assert "residual and norm: torch's operations, because the device is cpu" in caplog.text
    assert "residual and norm: Triton, because the device is CUDA and the dtype torch.bfloat16" in caplog.text
