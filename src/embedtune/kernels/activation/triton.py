"""GELU and its backward in one pass over memory, on CUDA."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
"""Values a program."""


def gelu_and_backward(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Same signature and result as `reference.gelu_and_backward`."""
    grad = grad.contiguous()
    out = torch.empty_like(x)
    values = x.numel()
    _gelu_and_backward_kernel[(triton.cdiv(values, BLOCK),)](x, grad, out, grad, values, BLOCK=BLOCK, num_warps=8)
    return out, grad


@triton.jit  # type: ignore[untyped-decorator]
def _gelu_and_backward_kernel(  # type: ignore[no-untyped-def]
    x_ptr, grad_ptr, out_ptr, grad_x_ptr, values, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < values
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
    below = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    tl.store(out_ptr + at, x * below, mask=inside)
    tl.store(grad_x_ptr + at, grad * (below + x * density), mask=inside)
