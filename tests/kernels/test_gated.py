"""The second half of a gated feed-forward layer against its formula, in outputs and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from embedtune.kernels.gated import fused, reference
from embedtune.kernels.gated.reference import Activation
from tests.kernels.poison import poisoned_memory
from tests.kernels.test_layer import DEVICES, HIDDEN, INNER, TOLERANCES, Given

ACTIVATIONS: tuple[Activation, ...] = ("gelu", "gelu_pytorch_tanh", "silu")


def run(
    module: Any, given: Given, activation: Activation, *, adapted: bool = True, whole: bool = False
) -> list[Tensor]:
    """The output, and every gradient; the two inputs may be parts of one tensor."""
    if whole:
        before_TF, gate_TF = given.leaf(given.tokens, 2 * INNER).chunk(2, dim=-1)
    else:
        before_TF, gate_TF = given.leaf(given.tokens, INNER), given.leaf(given.tokens, INNER)
    down = given.linear(INNER, HIDDEN, adapted=adapted, made=False)
    out_TE = module.gate_and_project(before_TF, gate_TF, down, activation, given.mask(INNER))
    direction_TE = torch.randn(out_TE.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [out_TE.detach(), *torch.autograd.grad(out_TE, given.leaves, direction_TE.to(out_TE))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"adapted": False}, {"trained": True}, {"masked": True}, {"whole": True, "masked": True}], ids=str
)
@pytest.mark.parametrize("tokens", [1, 131])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fused_is_the_formula(
    activation: Activation, tokens: int, options: dict[str, Any], dtype: torch.dtype, device: str
) -> None:
    ways = {name: options[name] for name in ("adapted", "whole") if name in options}
    kinds = {name: options[name] for name in ("trained", "masked") if name in options}
    expected = run(reference, Given(dtype, device, tokens=tokens, exact=True, **kinds), activation, **ways)
    actual = run(fused, Given(dtype, device, tokens=tokens, **kinds), activation, **ways)
    assert len(actual) == len(expected) >= 2
    for got, wanted in zip(actual, expected, strict=True):
        assert got.shape == wanted.shape
        assert (got.double() - wanted).norm() <= TOLERANCES[dtype] * wanted.norm()  # NaN fails too


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_inputs_are_left_as_they_were_and_nothing_unwritten(activation: Activation) -> None:
    untouched, given = Given(torch.float64), Given(torch.float64)
    run(reference, untouched, activation)
    with poisoned_memory():
        results = run(fused, given, activation)
    assert all(bool(result.isfinite().all()) for result in results)
    assert all(torch.equal(one, other) for one, other in zip(given.leaves, untouched.leaves, strict=True))
