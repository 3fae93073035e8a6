"""GELU compiled for this CPU against torch's in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from embedtune.kernels.activation import native, reference
from embedtune.kernels.dispatch import choose_activation
from embedtune.kernels.native import build
from tests.kernels.poison import poisoned_memory

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=f"nothing is compiled here: {build.why_not()}")

TOLERANCES = {torch.float32: 5e-7, torch.bfloat16: 2**-8, torch.float16: 2**-11 + 1e-6}
SIZES = [1, 15, 16, 63, 64, 65, 8192, 20_000]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_it_is_torchs(size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (4 * torch.randn(size, generator=generator)).to(dtype)
    grad = torch.randn(size, generator=generator).to(dtype)
    exact = x.double()
    expected = functional.gelu(exact)
    expected_grad = torch.ops.aten.gelu_backward(grad.double(), exact)
    with poisoned_memory():
        out, grad_x = native.gelu_and_backward(x, grad.clone())
    assert out.dtype == grad_x.dtype == dtype
    tolerance = TOLERANCES[dtype]
    assert (out.double() - expected).abs().le(tolerance * expected.abs() + 2e-7 * exact.abs()).all()
    error = (grad_x.double() - expected_grad).abs()
    assert error.le(tolerance * expected_grad.abs() + 3e-7 * grad.double().abs().clamp(min=1)).all()


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_values_that_are_no_numbers(dtype: torch.dtype) -> None:
    x = torch.tensor([math.nan, math.inf, 0.0, -0.0, 30.0, -30.0], dtype=dtype)
    out, grad_x = native.gelu_and_backward(x, torch.ones_like(x))
    torch.testing.assert_close(out[1:].tolist(), [math.inf, 0.0, 0.0, 30.0, 0.0])
    torch.testing.assert_close(grad_x[2:].tolist(), [0.5, 0.5, 1.0, 0.0])
    assert out[0].isnan()
    assert grad_x[0].isnan()


def test_what_does_not_lie_side_by_side() -> None:
    x, grad = torch.randn(2, 40, 33)
    out, grad_x = native.gelu_and_backward(x.T, grad.T)
    expected, expected_grad = reference.gelu_and_backward(x.T.contiguous(), grad.T.contiguous())
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(grad_x, expected_grad)


def test_the_bits_do_not_depend_on_the_threads() -> None:
    x, grad = torch.randn(2, 100_001)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(native.gelu_and_backward(x, grad.clone()))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_gradient_of_another_shape_or_dtype() -> None:
    x = torch.randn(6)
    for grad in (torch.randn(5), torch.randn(6).double()):
        with pytest.raises(ValueError, match=r"expected a gradient of \(6,\), torch\.float32, got"):
            native.gelu_and_backward(x, grad)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_it_is_chosen_on_the_cpu(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    choose_activation.cache_clear()
    with caplog.at_level("INFO", logger="embedtune"):
        assert choose_activation("cpu", dtype) is native.gelu_and_backward
        assert choose_activation("cpu", torch.float64) is reference.gelu_and_backward
    assert "activation: compiled for this CPU, because the device is cpu and the dtype" in caplog.text
    assert "torch's operations, because the device is cpu and compiled GELU takes fp32, bf16 and fp16" in caplog.text
