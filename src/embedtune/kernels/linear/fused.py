"""LoRA linear as one autograd function: no gradient for the frozen weight, two small products added in place.

Autograd over the plain formula keeps three activations a layer and launches a dozen elementwise operations; this
keeps the input and the rank-R product, and adds the adapter's share into the GEMM's own output.

Shapes: `T` tokens, `I` input features, `O` output features, `R` rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def lora_linear(
    x_TI: Tensor,
    dropped_TI: Tensor | None,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    lora_a_RI: Tensor,
    lora_b_OR: Tensor,
    scaling: float,
) -> Tensor:
    """Same signature and result as `reference.lora_linear`."""
    out: Tensor = _LoraLinear.apply(x_TI, dropped_TI, weight_OI, bias_O, lora_a_RI, lora_b_OR, scaling)
    return out


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        dropped_TI: Tensor | None,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        lora_a_RI: Tensor,
        lora_b_OR: Tensor,
        scaling: float,
    ) -> Tensor:
        a_RI = lora_a_RI.to(x_TI.dtype)
        b_OR = (lora_b_OR * scaling).to(x_TI.dtype)
        adapter_input_TI = x_TI if dropped_TI is None else dropped_TI
        low_rank_TR = adapter_input_TI @ a_RI.t()
        out_TO = torch.nn.functional.linear(x_TI, weight_OI, bias_O).addmm_(low_rank_TR, b_OR.t())
        ctx.scaling, ctx.has_dropout, ctx.adapter_dtype = scaling, dropped_TI is not None, lora_a_RI.dtype
        ctx.save_for_backward(adapter_input_TI, weight_OI, a_RI, b_OR, low_rank_TR)
        return out_TO

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TO,) = grad_outputs
        adapter_input_TI, weight_OI, a_RI, b_OR, low_rank_TR = ctx.saved_tensors
        grad_low_rank_TR = grad_TO @ b_OR
        grad_x_TI = grad_TO @ weight_OI if ctx.needs_input_grad[0] else None
        grad_dropped_TI = None
        if ctx.has_dropout:
            grad_dropped_TI = grad_low_rank_TR @ a_RI if ctx.needs_input_grad[1] else None
        elif grad_x_TI is not None:
            grad_x_TI.addmm_(grad_low_rank_TR, a_RI)
        grad_a_RI = (grad_low_rank_TR.t() @ adapter_input_TI).to(ctx.adapter_dtype)
        grad_b_OR = (grad_TO.t() @ low_rank_TR).to(ctx.adapter_dtype) * ctx.scaling
        return grad_x_TI, grad_dropped_TI, None, None, grad_a_RI, grad_b_OR, None
