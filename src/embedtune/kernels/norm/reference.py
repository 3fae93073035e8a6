"""Residual addition and LayerNorm by torch's own operations.

Shapes: `T` tokens, `E` hidden size.
"""

from __future__ import annotations

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
    weight_E, bias_E = norm.weight_E.to(grad_TE.dtype), norm.bias_E.to(grad_TE.dtype)
    grad_sum_TE: Tensor = torch.ops.aten.native_layer_norm_backward(
        grad_TE.contiguous(),
        sum_TE,
        [sum_TE.shape[-1]],
        mean_T[:, None],
        rstd_T[:, None],
        weight_E,
        bias_E,
        [True, False, False],
    )[0]
    return grad_sum_TE
