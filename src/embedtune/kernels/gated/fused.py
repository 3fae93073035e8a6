"""Activation, gate and the projection down as one autograd function, which keeps the two inputs only.

Autograd keeps the activated values and their product with the gate too; here they are computed again.

Shapes: `T` tokens, `E` hidden size, `F` feed-forward size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from embedtune.kernels.gated.reference import Activation, activate
from embedtune.kernels.linear.adapted import (
    AdaptedLinear,
    bare,
    gradients,
    input_gradient,
    kept,
    multiply,
    product_weight,
    recalled,
)


def gate_and_project(
    before_TF: Tensor, gate_TF: Tensor, down: AdaptedLinear, activation: Activation, mask_TF: Tensor | None = None
) -> Tensor:
    """Same signature and result as `reference.gate_and_project`."""
    out: Tensor = _GateAndProject.apply(before_TF, gate_TF, mask_TF, down, activation, *down.trained)
    return out


class _GateAndProject(Function):
    @staticmethod
    def forward(
        ctx: Any,
        before_TF: Tensor,
        gate_TF: Tensor,
        mask_TF: Tensor | None,
        down: AdaptedLinear,
        activation: Activation,
        *trained: Tensor | None,
    ) -> Tensor:
        weight_EF = product_weight(down, before_TF.dtype, mask_TF)
        ctx.down, ctx.activation = bare(down), activation
        ctx.save_for_backward(before_TF, gate_TF, mask_TF, *kept(down, weight_EF))
        return multiply(activate(before_TF, activation).mul_(gate_TF), down, weight_EF, mask_TF)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TE,) = grad_outputs
        before_TF, gate_TF, mask_TF, *saved = ctx.saved_tensors
        weight_EF, down = recalled(ctx.down, saved, grad_TE.dtype, mask_TF)
        activated_TF = activate(before_TF, ctx.activation)
        of_down = gradients(activated_TF * gate_TF, grad_TE, down, mask_TF, ctx.needs_input_grad[5:])
        grad_product_TF = input_gradient(grad_TE, down, weight_EF, mask_TF)
        grad_gate_TF = activated_TF.mul_(grad_product_TF)
        grad_before_TF = _activation_backward(grad_product_TF.mul_(gate_TF), before_TF, ctx.activation)
        return grad_before_TF, grad_gate_TF, None, None, None, *of_down


def _activation_backward(grad: Tensor, x: Tensor, activation: Activation) -> Tensor:
    """Gradient of x for that of its activation."""
    gradient: Tensor
    if activation == "silu":
        gradient = torch.ops.aten.silu_backward(grad, x)
    else:
        gradient = torch.ops.aten.gelu_backward(grad, x, approximate="none" if activation == "gelu" else "tanh")
    return gradient
