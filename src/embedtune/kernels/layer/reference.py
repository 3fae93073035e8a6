"""The parts of a post-norm transformer layer (Vaswani et al. 2017, section 3.1), written as their formulas.

All weights but the adapters' are frozen.

Shapes: `T` tokens, `I` input features, `O` output features, `E` hidden size, `F` feed-forward size.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from embedtune.kernels.linear import reference
from embedtune.kernels.linear.adapted import AdaptedLinear
from embedtune.kernels.norm import LayerNorm


def project(x_TI: Tensor, linears: Sequence[AdaptedLinear]) -> tuple[Tensor, ...]:
    """Several linear layers on one input, such as query, key and value; each output (T, O)."""
    return tuple(_linear(x_TI, linear) for linear in linears)


def project_add_norm(x_TI: Tensor, linear: AdaptedLinear, residual_TE: Tensor, norm: LayerNorm) -> Tensor:
    """LayerNorm(x Wᵀ + b + residual), as behind the attention; shape (T, E)."""
    return _norm(_linear(x_TI, linear) + residual_TE, norm)


def feed_forward_add_norm(x_TE: Tensor, up: AdaptedLinear, down: AdaptedLinear, norm: LayerNorm) -> Tensor:
    """LayerNorm(down(gelu(up(x))) + x), the second half of the layer, with the exact GELU; shape (T, E)."""
    return _norm(_linear(functional.gelu(_linear(x_TE, up)), down) + x_TE, norm)


def _linear(x_TI: Tensor, linear: AdaptedLinear) -> Tensor:
    if linear.lora_a_RI is None or linear.lora_b_OR is None:
        return reference.frozen_linear(x_TI, linear.weight_OI, linear.bias_O)
    return reference.lora_linear(
        x_TI, None, linear.weight_OI, linear.bias_O, linear.lora_a_RI, linear.lora_b_OR, scaling=1.0
    )


def _norm(x_TE: Tensor, norm: LayerNorm) -> Tensor:
    weight_E, bias_E = norm.weight_E.to(x_TE.dtype), norm.bias_E.to(x_TE.dtype)
    return functional.layer_norm(x_TE, (x_TE.shape[-1],), weight_E, bias_E, norm.eps)
