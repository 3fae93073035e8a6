"""Residual addition and LayerNorm in one pass over memory, on CUDA; a program a token.

Shapes: `T` tokens, `E` hidden size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from embedtune.kernels.norm import LayerNorm, Normalised


def add_norm(x_TE: Tensor, residual_TE: Tensor, norm: LayerNorm) -> Normalised:
    """Same signature and result as `reference.add_norm`."""
    tokens, size = x_TE.shape
    residual_TE = residual_TE.contiguous()
    out_TE = torch.empty_like(x_TE)
    mean_T, rstd_T = (torch.empty(tokens, dtype=torch.float32, device=x_TE.device) for _ in range(2))
    block = triton.next_power_of_2(size)
    _add_norm_kernel[(tokens,)](
        x_TE, residual_TE, norm.weight_E, norm.bias_E, x_TE, out_TE, mean_T, rstd_T, size, norm.eps,
        BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return Normalised(out_TE, x_TE, mean_T, rstd_T)


def norm_backward(grad_TE: Tensor, sum_TE: Tensor, mean_T: Tensor, rstd_T: Tensor, norm: LayerNorm) -> Tensor:
    """Same signature and result as `reference.norm_backward`."""
    tokens, size = sum_TE.shape
    grad_TE = grad_TE.contiguous()
    grad_sum_TE = torch.empty_like(sum_TE)
    block = triton.next_power_of_2(size)
    _norm_backward_kernel[(tokens,)](
        grad_TE, sum_TE, mean_T, rstd_T, norm.weight_E, grad_sum_TE, size, BLOCK=block, num_warps=_warps(block)
    )
    return grad_sum_TE


def _warps(block: int) -> int:
    return min(8, max(1, block // 256))


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm_kernel(  # type: ignore[no-untyped-def]
    x_ptr, residual_ptr, weight_ptr, bias_ptr,
    sum_ptr, out_ptr, mean_ptr, rstd_ptr,
    size, eps, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    at = token * size + columns
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    # Rounded as it is stored, so that the backward sees what was normalised.
    x = x.to(sum_ptr.dtype.element_ty).to(tl.float32)
    tl.store(sum_ptr + at, x, mask=inside)
    mean = tl.sum(x, axis=0) / size
    centred = tl.where(inside, x - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / size + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, centred * rstd * weight + bias, mask=inside)
    tl.store(mean_ptr + token, mean)
    tl.store(rstd_ptr + token, rstd)


@triton.jit  # type: ignore[untyped-decorator]
def _norm_backward_kernel(  # type: ignore[no-untyped-def]
    grad_ptr, sum_ptr, mean_ptr, rstd_ptr, weight_ptr, grad_sum_ptr,
    size, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    at = token * size + columns
    rstd = tl.load(rstd_ptr + token)
    x = tl.load(sum_ptr + at, mask=inside, other=0.0).to(tl.float32)
    normalised = tl.where(inside, (x - tl.load(mean_ptr + token)) * rstd, 0.0)
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
    grad *= tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    mean_grad = tl.sum(grad, axis=0) / size
    mean_product = tl.sum(grad * normalised, axis=0) / size
    tl.store(grad_sum_ptr + at, (grad - mean_grad - normalised * mean_product) * rstd, mask=inside)
