"""The fused LoRA linear against its formula, in outputs and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from embedtune.kernels.linear import fused, reference
from embedtune.kernels.linear.mask import draw_mask

Linear = Callable[..., Tensor]
SCALING = 0.7


def tensors(
    *, dtype: torch.dtype = torch.float64, adapter_dtype: torch.dtype | None = None, tokens: int = 7
) -> dict[str, Tensor]:
    """Inputs of 5 features, outputs of 3, rank 2."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    frozen = {"weight_OI": random(3, 5).to(dtype), "bias_O": random(3).to(dtype)}
    adapter = {"lora_a_RI": random(2, 5), "lora_b_OR": random(3, 2)}
    return {
        "x_TI": random(tokens, 5).to(dtype).requires_grad_(),
        "mask_TI": random(tokens, 5) > -0.5,
        **frozen,
        **{name: value.to(adapter_dtype or dtype).requires_grad_() for name, value in adapter.items()},
    }


def run(linear: Linear, given: dict[str, Tensor], *, bias: bool, dropped: bool) -> dict[str, Tensor]:
    """The output and the gradient of everything that requires one."""
    used = dict(given)
    out_TO = linear(
        used["x_TI"],
        used["mask_TI"] if dropped else None,
        used["weight_OI"],
        used["bias_O"] if bias else None,
        used["lora_a_RI"],
        used["lora_b_OR"],
        SCALING,
    )
    wanted = {name: x for name, x in used.items() if x.requires_grad}
    grad_TO = torch.randn(out_TO.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad(out_TO, list(wanted.values()), grad_TO.to(out_TO))
    return {"out": out_TO.detach(), **dict(zip(wanted, gradients, strict=True))}


@pytest.mark.parametrize("needs_x_gradient", [True, False])
@pytest.mark.parametrize("dropped", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_fused_is_the_formula(
    dtype: torch.dtype, tolerance: float, bias: bool, dropped: bool, needs_x_gradient: bool
) -> None:
    given = tensors(dtype=dtype)
    given["x_TI"].requires_grad_(needs_x_gradient)
    expected = run(reference.lora_linear, given, bias=bias, dropped=dropped)
    actual = run(fused.lora_linear, given, bias=bias, dropped=dropped)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.parametrize("dropped", [True, False])
def test_adapter_in_fp32_on_a_bf16_model(dropped: bool) -> None:
    given = tensors(dtype=torch.bfloat16, adapter_dtype=torch.float32, tokens=64)
    exact = {
        name: x if name == "mask_TI" else x.detach().double().requires_grad_(x.requires_grad)
        for name, x in given.items()
    }
    expected = run(reference.lora_linear, exact, bias=True, dropped=dropped)
    actual = run(fused.lora_linear, given, bias=True, dropped=dropped)
    assert actual["out"].dtype == actual["x_TI"].dtype == torch.bfloat16
    assert actual["lora_a_RI"].dtype == actual["lora_b_OR"].dtype == torch.float32
    for name, value in expected.items():
        error = (actual[name].double() - value).abs().max() / value.abs().max()
        assert error < 0.02, name


@pytest.mark.parametrize("dropped", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(bias: bool, dropped: bool) -> None:
    given = tensors(tokens=3)

    def linear(x_TI: Tensor, lora_a_RI: Tensor, lora_b_OR: Tensor) -> Tensor:
        return fused.lora_linear(
            x_TI,
            given["mask_TI"] if dropped else None,
            given["weight_OI"],
            given["bias_O"] if bias else None,
            lora_a_RI,
            lora_b_OR,
            SCALING,
        )

    inputs = tuple(given[name] for name in ("x_TI", "lora_a_RI", "lora_b_OR"))
    assert torch.autograd.gradcheck(linear, inputs)


def test_the_frozen_weight_gets_no_gradient() -> None:
    given = tensors()
    weight, bias = given["weight_OI"].requires_grad_(), given["bias_O"]
    adapter = (given["lora_a_RI"], given["lora_b_OR"])
    fused.lora_linear(given["x_TI"], None, weight, bias, *adapter, SCALING).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is None
    assert bias.grad is None
    assert all(parameter.grad is not None for parameter in adapter)


def test_inputs_are_left_as_they_were() -> None:
    given = tensors()
    before = {name: x.detach().clone() for name, x in given.items()}
    run(fused.lora_linear, given, bias=True, dropped=True)
    assert all(torch.equal(given[name], value) for name, value in before.items())


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("trained_bias", [False, True])
def test_the_weight_may_be_made_when_needed_and_the_bias_trained(made: bool, trained_bias: bool) -> None:
    given = tensors()
    given["bias_O"].requires_grad_(trained_bias)
    expected = run(reference.lora_linear, given, bias=True, dropped=False)
    asked: list[torch.dtype] = []
    weight_OI = given["weight_OI"]

    def make(dtype: torch.dtype) -> Tensor:
        asked.append(dtype)
        return weight_OI.to(dtype)

    def linear(x_TI: Tensor, mask_TI: Tensor | None, _: Tensor, *others: Any) -> Tensor:
        return fused.lora_linear(x_TI, mask_TI, make if made else weight_OI, *others)

    actual = run(linear, given, bias=True, dropped=False)
    assert ("bias_O" in actual) == trained_bias
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=name)
    assert asked == ([torch.float64] * 2 if made else [])  # once forward, once backward: it is not kept


@pytest.mark.parametrize("bias", [False, True])
def test_frozen_linear_is_the_formula(bias: bool) -> None:
    given = tensors()
    given["bias_O"].requires_grad_(bias)
    inputs = [given["x_TI"], *([given["bias_O"]] if bias else [])]
    results = []
    for linear in (reference.frozen_linear, fused.frozen_linear):
        out_TO = linear(given["x_TI"], lambda dtype: given["weight_OI"].to(dtype), given["bias_O"])
        results.append([out_TO, *torch.autograd.grad(out_TO.square().sum(), inputs)])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_fp32_weights_compute_in_the_dtype_of_the_input() -> None:
    """So do weights that are trained under autocast."""
    given = tensors(dtype=torch.bfloat16, adapter_dtype=torch.float32, tokens=16)
    in_fp32 = {**given, "weight_OI": given["weight_OI"].float(), "bias_O": given["bias_O"].float().requires_grad_()}
    expected = run(fused.lora_linear, given, bias=True, dropped=False)
    actual = run(fused.lora_linear, in_fp32, bias=True, dropped=False)
    assert actual.pop("bias_O").dtype == torch.float32
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def test_a_mask_keeps_as_many_values_as_it_should_and_follows_the_random_state() -> None:
    torch.manual_seed(0)
    mask_TI = draw_mask(301, 333, 0.1, torch.device("cpu"))
    assert mask_TI.dtype == torch.bool
    assert mask_TI.shape == (301, 333)
    # 4.5 standard deviations, and the same for each quarter of the 64 bits that four values come from.
    assert mask_TI.float().mean().item() == pytest.approx(0.9, abs=0.0043)
    quarters = [mask_TI.flatten()[part::4].float().mean().item() for part in range(4)]
    assert quarters == pytest.approx([0.9] * 4, abs=0.0086)
    other_TI = draw_mask(301, 333, 0.1, torch.device("cpu"))
    assert not torch.equal(other_TI, mask_TI)
    torch.manual_seed(0)
    assert torch.equal(draw_mask(301, 333, 0.1, torch.device("cpu")), mask_TI)


@pytest.mark.parametrize("dropout", [1e-6, 0.5, 0.999999])
def test_masks_of_extreme_chances(dropout: float) -> None:
    torch.manual_seed(0)
    assert draw_mask(100, 100, dropout, torch.device("cpu")).float().mean().item() == pytest.approx(
        1 - dropout, abs=0.02
    )
