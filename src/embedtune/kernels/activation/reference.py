"""The exact GELU by torch's own operations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def gelu_and_backward(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """GELU(x) once more, and the gradient of x for that of GELU(x); `grad` may be overwritten.

    GELU(x) = x Φ(x) (Hendrycks & Gimpel 2016). Computing it again is cheaper than keeping it from the forward pass.
    """
    return functional.gelu(x), torch.ops.aten.gelu_backward.grad_input(grad, x, grad_input=grad)
