"""Residual addition and LayerNorm by torch's own operations.

Shapes: `T` tokens, `E` hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from embedtune.kernels.norm import LayerNorm, Normalised


def add_norm(x_TE: Tensor, residual_TE: Tensor, norm: LayerNorm) -> Normalised:
    """LayerNorm(x + residual); `x_TE` may be overwritten. Statistics are in fp32, or fp64 for fp64."""
    sum_TE = x_TE.add_(residual_TE)
    weight_E, bias_E = norm.weight_E.to(x_TE.dtype), norm.bias_E.to(x_TE.dtype)
    out_TE, mean, rstd = torch.native_layer_norm(sum_TE, [sum_TE.shape[-1]], weight_E, bias_E, norm.eps)
    return Normalised(out_TE, sum_TE, mean.view(-1), rstd.view(-1))


def norm_backward(grad_TE: Tensor, sum_TE: Tensor, mean_T: Tensor, rstd_T: Tensor, norm: LayerNorm) -> Tensor:
    """Gradient of the sum, a new tensor (T, E)."""
    return _backward(grad_TE, sum_TE, mean_T, rstd_T, norm, wanted=(False, False))[0]


def trained_norm_backward(
    grad_TE: Tensor, sum_TE: Tensor, mean_T: Tensor, rstd_T: Tensor, norm: LayerNorm, *, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of the sum, a new tensor (T, E), and of the norm's weight and bias, if they are wanted.

    All is computed in fp32 or wider: in half precision torch's CPU kernel would add up the tokens in half precision.
    """
    dtype = torch.promote_types(grad_TE.dtype, torch.float32)
    wide_TE, wide_sum_TE, mean_T, rstd_T = (tensor.to(dtype) for tensor in (grad_TE, sum_TE, mean_T, rstd_T))
    grad_sum_TE, grad_weight_E, grad_bias_E = _backward(wide_TE, wide_sum_TE, mean_T, rstd_T, norm, wanted=wanted)
    return grad_sum_TE.to(grad_TE.dtype), grad_weight_E, grad_bias_E


def _backward(
    grad_TE: Tensor, sum_TE: Tensor, mean_T: Tensor, rstd_T: Tensor, norm: LayerNorm, *, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    weight_E, bias_E = norm.weight_E.to(grad_TE.dtype), norm.bias_E.to(grad_TE.dtype)
    gradients: tuple[Tensor, Tensor | None, Tensor | None] = torch.ops.aten.native_layer_norm_backward(
        grad_TE.contiguous(),
        sum_TE,
        [sum_TE.shape[-1]],
        mean_T[:, None],
        rstd_T[:, None],
        weight_E,
        bias_E,
        [True, *wanted],
    )
    return gradients
