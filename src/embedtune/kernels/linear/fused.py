"""LoRA linear as one autograd function: no gradient for a frozen weight, nothing kept but the input.

Autograd over the plain formula keeps three activations a layer and launches a dozen elementwise operations. Without
dropout the adapter is merged into the weight for the product (`adapted.merged_weight`); with it, the adapter sees a
part of the same input, its share is added into the product's output, and a mask of one byte a value is kept.

Shapes: `T` tokens, `I` input features, `O` output features, `R` rank.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

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
from embedtune.kernels.linear.weight import FrozenWeight


def lora_linear(
    x_TI: Tensor,
    mask_TI: Tensor | None,
    weight_OI: FrozenWeight,
    bias_O: Tensor | None,
    lora_a_RI: Tensor,
    lora_b_OR: Tensor,
    scaling: float,
) -> Tensor:
    """Same signature and result as `reference.lora_linear`."""
    linear = AdaptedLinear(weight_OI, bias_O, lora_a_RI, lora_b_OR * scaling)
    out: Tensor = _Linear.apply(x_TI, mask_TI, linear, None, *linear.trained[1:])
    return out


def frozen_linear(x_TI: Tensor, weight_OI: FrozenWeight, bias_O: Tensor | None) -> Tensor:
    """Same signature and result as `reference.frozen_linear`."""
    linear = AdaptedLinear(weight_OI, bias_O)
    out: Tensor = _Linear.apply(x_TI, None, linear, None, *linear.trained[1:])
    return out


class _Linear(Function):
    @staticmethod
    def forward(
        ctx: Any, x_TI: Tensor, mask_TI: Tensor | None, linear: AdaptedLinear, *trained: Tensor | None
    ) -> Tensor:
        weight_OI = product_weight(linear, x_TI.dtype, mask_TI)
        ctx.linear = bare(linear)
        needed_TI = x_TI if linear.lora_a_RI is not None or ctx.needs_input_grad[3] else None
        ctx.save_for_backward(needed_TI, mask_TI, *kept(linear, weight_OI))
        return multiply(x_TI, linear, weight_OI, mask_TI)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TO,) = grad_outputs
        x_TI, mask_TI, *saved = ctx.saved_tensors
        weight_OI, linear = recalled(ctx.linear, saved, grad_TO.dtype, mask_TI)
        grad_x_TI = input_gradient(grad_TO, linear, weight_OI, mask_TI) if ctx.needs_input_grad[0] else None
        return grad_x_TI, None, None, *gradients(x_TI, grad_TO, linear, mask_TI, ctx.needs_input_grad[3:])
