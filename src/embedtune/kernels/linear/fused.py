"""LoRA linear as one autograd function: no gradient for the frozen weight, nothing kept but the input.

Autograd over the plain formula keeps three activations a layer and launches a dozen elementwise operations. Without
dropout the adapter is merged into the weight for the product (`adapted.merged_weight`); with it, the adapter has an
input of its own and its share is added into the product's output.

Shapes: `T` tokens, `I` input features, `O` output features, `R` rank.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from embedtune.kernels.linear.adapted import (
    AdaptedLinear,
    adapter_gradients,
    bare,
    bias_in,
    kept,
    merged_weight,
    recalled,
)
from embedtune.kernels.linear.weight import FrozenWeight, dense


def lora_linear(
    x_TI: Tensor,
    dropped_TI: Tensor | None,
    weight_OI: FrozenWeight,
    bias_O: Tensor | None,
    lora_a_RI: Tensor,
    lora_b_OR: Tensor,
    scaling: float,
) -> Tensor:
    """Same signature and result as `reference.lora_linear`."""
    scaled_b_OR = lora_b_OR * scaling
    if dropped_TI is None:
        out: Tensor = _MergedLinear.apply(x_TI, weight_OI, bias_O, lora_a_RI, scaled_b_OR)
    else:
        out = _DroppedLinear.apply(x_TI, dropped_TI, weight_OI, bias_O, lora_a_RI, scaled_b_OR)
    return out


def frozen_linear(x_TI: Tensor, weight_OI: FrozenWeight, bias_O: Tensor | None) -> Tensor:
    """Same signature and result as `reference.frozen_linear`."""
    out: Tensor = _MergedLinear.apply(x_TI, weight_OI, bias_O, None, None)
    return out


class _MergedLinear(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        weight_OI: FrozenWeight,
        bias_O: Tensor | None,
        lora_a_RI: Tensor | None,
        lora_b_OR: Tensor | None,
    ) -> Tensor:
        linear = AdaptedLinear(weight_OI, bias_O, lora_a_RI, lora_b_OR)
        merged_OI = merged_weight(linear, x_TI.dtype)
        ctx.linear = bare(linear)
        ctx.save_for_backward(None if lora_a_RI is None else x_TI, *kept(linear, merged_OI))
        return functional.linear(x_TI, merged_OI, bias_in(bias_O, x_TI.dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TO,) = grad_outputs
        x_TI, *saved = ctx.saved_tensors
        merged_OI, linear = recalled(ctx.linear, saved, grad_TO.dtype)
        grad_x_TI = grad_TO @ merged_OI if ctx.needs_input_grad[0] else None
        grad_bias_O = grad_TO.sum(0) if ctx.needs_input_grad[2] else None
        return grad_x_TI, None, grad_bias_O, *adapter_gradients(x_TI, grad_TO, linear)


class _DroppedLinear(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        dropped_TI: Tensor,
        weight_OI: FrozenWeight,
        bias_O: Tensor | None,
        lora_a_RI: Tensor,
        lora_b_OR: Tensor,
    ) -> Tensor:
        dtype = x_TI.dtype
        a_RI, b_OR = lora_a_RI.to(dtype), lora_b_OR.to(dtype)
        low_rank_TR = dropped_TI @ a_RI.t()
        frozen_TO = functional.linear(x_TI, dense(weight_OI, dtype), bias_in(bias_O, dtype))
        out_TO = frozen_TO.addmm_(low_rank_TR, b_OR.t())
        ctx.weight_OI, ctx.adapter_dtype = weight_OI, lora_a_RI.dtype  # the weight is frozen: it need not be saved
        ctx.save_for_backward(dropped_TI, a_RI, b_OR, low_rank_TR)
        return out_TO

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TO,) = grad_outputs
        dropped_TI, a_RI, b_OR, low_rank_TR = ctx.saved_tensors
        grad_low_rank_TR = grad_TO @ b_OR
        grad_x_TI = grad_TO @ dense(ctx.weight_OI, grad_TO.dtype) if ctx.needs_input_grad[0] else None
        grad_dropped_TI = grad_low_rank_TR @ a_RI if ctx.needs_input_grad[1] else None
        grad_bias_O = grad_TO.sum(0) if ctx.needs_input_grad[3] else None
        grad_a_RI = (grad_low_rank_TR.t() @ dropped_TI).to(ctx.adapter_dtype)
        grad_b_OR = (grad_TO.t() @ low_rank_TR).to(ctx.adapter_dtype)
        return grad_x_TI, grad_dropped_TI, None, grad_bias_O, grad_a_RI, grad_b_OR
