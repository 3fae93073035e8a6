"""The fused parts of a post-norm layer against their formulas, in outputs and every gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from embedtune.kernels.layer import fused, reference
from embedtune.kernels.linear.adapted import AdaptedLinear
from embedtune.kernels.norm import LayerNorm
from tests.kernels.poison import poisoned_memory

HIDDEN, INNER, RANK = 12, 20, 3
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 3e-3}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=(pytest.mark.gpu, needs_cuda))]
ALL, NONE, SOME = (True, True, True), (False, False, False), (True, False, True)


class Given:
    """Random tensors on one device, the same for every run; what is trained is in fp32 or wider.

    `exact` holds the values of `dtype` in fp64. Weights, biases and norms may be `trained`, and the
    inputs of adapters `masked`.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: str = "cpu",
        *,
        tokens: int = 7,
        exact: bool = False,
        trained: bool = False,
        masked: bool = False,
    ) -> None:
        self.dtype, self.device, self.tokens, self.exact = dtype, device, tokens, exact
        self.trained, self.masked = trained, masked
        self.generator = torch.Generator().manual_seed(0)
        self.leaves: list[Tensor] = []
        """What gets a gradient."""

    def random(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        drawn = torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale
        rounded = drawn.to(self.device, dtype or self.dtype)
        return rounded.double() if self.exact else rounded

    def leaf(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        self.leaves.append(self.random(*shape, scale=scale, dtype=dtype).requires_grad_())
        return self.leaves[-1]

    def weight(self, *shape: int, scale: float = 1.0, add: float = 0.0) -> Tensor:
        """Frozen, or trained in fp32 or wider."""
        if not self.trained:
            return add + self.random(*shape, scale=scale)
        drawn = add + self.random(*shape, scale=scale, dtype=torch.promote_types(self.dtype, torch.float32))
        self.leaves.append(drawn.requires_grad_())
        return drawn

    def mask(self, features: int) -> Tensor | None:
        drawn = torch.randn(self.tokens, features, generator=self.generator, dtype=torch.float64) > -0.5
        return drawn.to(self.device) if self.masked else None

    def linear(self, inputs: int, outputs: int, *, adapted: bool, made: bool) -> AdaptedLinear:
        weight, bias = self.weight(outputs, inputs, scale=inputs**-0.5), self.weight(outputs)
        frozen = (lambda dtype: weight.to(dtype)) if made else weight
        if not adapted:
            return AdaptedLinear(frozen, bias)
        dtype = torch.promote_types(self.dtype, torch.float32)
        a_RI = self.leaf(RANK, inputs, scale=inputs**-0.5, dtype=dtype)
        return AdaptedLinear(frozen, bias, a_RI, self.leaf(outputs, RANK, scale=0.3, dtype=dtype))

    def norm(self, size: int) -> LayerNorm:
        return LayerNorm(self.weight(size, scale=0.3, add=1.0), self.weight(size), 1e-12)


Adapted = Sequence[bool]


def project(module: Any, given: Given, adapted: Adapted, made: bool) -> Any:
    x_TI = given.leaf(given.tokens, HIDDEN)
    sizes = zip((HIDDEN, 8, INNER), adapted, strict=True)
    linears = [given.linear(HIDDEN, size, adapted=has, made=made) for size, has in sizes]
    return module.project(x_TI, linears, given.mask(HIDDEN))


def project_add_norm(module: Any, given: Given, adapted: Adapted, made: bool) -> Any:
    x_TI, residual_TE = given.leaf(given.tokens, INNER), given.leaf(given.tokens, HIDDEN)
    linear = given.linear(INNER, HIDDEN, adapted=adapted[0], made=made)
    return module.project_add_norm(x_TI, linear, residual_TE, given.norm(HIDDEN), given.mask(INNER))


def feed_forward_add_norm(module: Any, given: Given, adapted: Adapted, made: bool) -> Any:
    x_TE = given.leaf(given.tokens, HIDDEN)
    up = given.linear(HIDDEN, INNER, adapted=adapted[0], made=made)
    down = given.linear(INNER, HIDDEN, adapted=adapted[1], made=made)
    return module.feed_forward_add_norm(x_TE, up, down, given.norm(HIDDEN), (given.mask(HIDDEN), given.mask(INNER)))


Part = Callable[[Any, Given, Adapted, bool], Any]
parts = pytest.mark.parametrize("part", [project, project_add_norm, feed_forward_add_norm])


def run(part: Part, module: Any, given: Given, *, adapted: Adapted = ALL, made: bool = False) -> list[Tensor]:
    """The outputs, and the gradients of the inputs and of every adapter, for fixed random gradients of the outputs."""
    outputs = part(module, given, adapted, made)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out) for out in outputs]
    return [out.detach() for out in outputs] + list(torch.autograd.grad(outputs, given.leaves, directions))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("adapted", [ALL, SOME, NONE], ids=["all", "some", "none"])
@pytest.mark.parametrize("tokens", [1, 7, 130])
@pytest.mark.parametrize(
    "options", [{}, {"trained": True}, {"masked": True}, {"trained": True, "masked": True}], ids=str
)
@parts
def test_fused_is_the_formula(
    part: Part, options: dict[str, Any], tokens: int, adapted: Adapted, dtype: torch.dtype, device: str
) -> None:
    expected = run(part, reference, Given(dtype, device, tokens=tokens, exact=True, **options), adapted=adapted)
    actual = run(part, fused, Given(dtype, device, tokens=tokens, **options), adapted=adapted)
    assert len(actual) == len(expected) >= 2
    for got, wanted in zip(actual, expected, strict=True):
        assert got.shape == wanted.shape
        assert (got.double() - wanted).norm() <= TOLERANCES[dtype] * wanted.norm()  # NaN fails too


@pytest.mark.parametrize("masked", [False, True])
@parts
def test_weights_may_be_made_when_they_are_needed(part: Part, masked: bool) -> None:
    kept, made = (run(part, fused, Given(torch.float64, masked=masked), made=made) for made in (False, True))
    assert all(torch.equal(one, other) for one, other in zip(made, kept, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [{}, {"trained": True, "masked": True}], ids=str)
@parts
def test_nothing_is_left_unwritten(part: Part, options: dict[str, Any], device: str) -> None:
    given = Given(torch.float32, device, tokens=33, **options)
    with poisoned_memory():
        results = run(part, fused, given)
    assert all(bool(result.isfinite().all()) for result in results)


@pytest.mark.parametrize("options", [{}, {"trained": True, "masked": True}], ids=str)
@parts
def test_inputs_are_left_as_they_were(part: Part, options: dict[str, Any]) -> None:
    untouched, given = Given(torch.float64, **options), Given(torch.float64, **options)
    run(part, reference, untouched)
    run(part, fused, given)
    assert all(torch.equal(one, other) for one, other in zip(given.leaves, untouched.leaves, strict=True))


@parts
def test_an_input_that_needs_no_gradient_gets_none(part: Part) -> None:
    """As in the lowest layer, whose input comes from frozen embeddings."""
    given = Given(torch.float64)
    leaf = given.leaf
    inputs: list[Tensor] = []

    def leaf_or_constant(*shape: int, **options: Any) -> Tensor:
        if len(inputs) == 0:
            inputs.append(given.random(*shape))
            return inputs[0]
        return leaf(*shape, **options)

    given.leaf = leaf_or_constant  # type: ignore[method-assign]
    everything = run(part, fused, Given(torch.float64))
    without = run(part, fused, given)
    outputs = len(everything) - len(given.leaves) - 1
    expected = [*everything[:outputs], *everything[outputs + 1 :]]
    assert all(torch.equal(one, other) for one, other in zip(without, expected, strict=True))
