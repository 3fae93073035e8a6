"""The parts of a post-norm transformer layer (Vaswani et al. 2017, section 3.1), written as their formulas.

Weights, biases and norms get a gradient where they require one. With a mask, the adapters see only what it keeps of
their layer's input (`linear.mask`); those of one input share it.

Shapes: `T` tokens, `I` input features, `O` output features, `E` hidden size, `F` feed-forward size.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from embedtune.kernels.linear.adapted import AdaptedLinear
from embedtune.kernels.linear.weight import dense
from embedtune.kernels.norm import LayerNorm

Masks = tuple[Tensor | None, Tensor | None]
"""Of the inputs of the feed-forward half's two layers."""


def project(x_TI: Tensor, linears: Sequence[AdaptedLinear], mask_TI: Tensor | None = None) -> tuple[Tensor, ...]:
    """Several linear layers on one input, such as query, key and value; each output (T, O)."""
    return tuple(adapted(x_TI, linear, mask_TI) for linear in linears)


def project_add_norm(
    x_TI: Tensor, linear: AdaptedLinear, residual_TE: Tensor, norm: LayerNorm, mask_TI: Tensor | None = None
) -> Tensor:
    """LayerNorm(x Wᵀ + b + residual), as behind the attention; shape (T, E)."""
    return _norm(adapted(x_TI, linear, mask_TI) + residual_TE, norm)


def feed_forward_add_norm(
    x_TE: Tensor, up: AdaptedLinear, down: AdaptedLinear, norm: LayerNorm, masks: Masks = (None, None)
) -> Tensor:
    """LayerNorm(down(gelu(up(x))) + x), the second half of the layer, with the exact GELU; shape (T, E)."""
    mask_TE, mask_TF = masks
    return _norm(adapted(functional.gelu(adapted(x_TE, up, mask_TE)), down, mask_TF) + x_TE, norm)


def adapted(x_TI: Tensor, linear: AdaptedLinear, mask_TI: Tensor | None) -> Tensor:
    """A linear layer with its adapter, which sees what the mask keeps of the input; shape (T, O)."""
    bias_O = None if linear.bias_O is None else linear.bias_O.to(x_TI.dtype)
    out_TO = functional.linear(x_TI, dense(linear.weight_OI, x_TI.dtype), bias_O)
    if linear.lora_a_RI is None or linear.lora_b_OR is None:
        return out_TO
    seen_TI = x_TI if mask_TI is None else x_TI * mask_TI
    low_rank_TR = functional.linear(seen_TI, linear.lora_a_RI.to(x_TI.dtype))
    return out_TO + functional.linear(low_rank_TR, linear.lora_b_OR.to(x_TI.dtype))


def _norm(x_TE: Tensor, norm: LayerNorm) -> Tensor:
    weight_E, bias_E = norm.weight_E.to(x_TE.dtype), norm.bias_E.to(x_TE.dtype)
    return functional.layer_norm(x_TE, (x_TE.shape[-1],), weight_E, bias_E, norm.eps)
