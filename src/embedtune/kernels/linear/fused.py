"""LoRA linear as one autograd function: no gradient for the frozen weight, two small products added in place.

Autograd over the plain formula keeps three activations a layer and launches a dozen elementwise operations; this
keeps the input and the rank-R product, and adds the adapter's share into the GEMM's own output.

Shapes: `T` tokens, `I` input features, `O` output features, `R` rank.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from embedtune.kernels.linear.weight import FrozenWeight, dense, recall, remember


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
    out: Tensor = _LoraLinear.apply(x_TI, dropped_TI, weight_OI, bias_O, lora_a_RI, lora_b_OR, scaling)
    return out


def frozen_linear(x_TI: Tensor, weight_OI: FrozenWeight, bias_O: Tensor | None) -> Tensor:
    """Same signature and result as `reference.frozen_linear`."""
    out: Tensor = _FrozenLinear.apply(x_TI, weight_OI, bias_O)
    return out


class _LoraLinear(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        dropped_TI: Tensor | None,
        weight_OI: FrozenWeight,
        bias_O: Tensor | None,
        lora_a_RI: Tensor,
        lora_b_OR: Tensor,
        scaling: float,
    ) -> Tensor:
        a_RI = lora_a_RI.to(x_TI.dtype)
        b_OR = (lora_b_OR * scaling).to(x_TI.dtype)
        adapter_input_TI = x_TI if dropped_TI is None else dropped_TI
        low_rank_TR = adapter_input_TI @ a_RI.t()
        out_TO = functional.linear(x_TI, dense(weight_OI, x_TI.dtype), _cast(bias_O, x_TI)).addmm_(
            low_rank_TR, b_OR.t()
        )
        ctx.scaling, ctx.has_dropout, ctx.adapter_dtype = scaling, dropped_TI is not None, lora_a_RI.dtype
        remember(ctx, weight_OI, adapter_input_TI, a_RI, b_OR, low_rank_TR)
        return out_TO

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TO,) = grad_outputs
        weight_OI, (adapter_input_TI, a_RI, b_OR, low_rank_TR) = recall(ctx, grad_TO.dtype)
        grad_low_rank_TR = grad_TO @ b_OR
        grad_x_TI = grad_TO @ weight_OI if ctx.needs_input_grad[0] else None
        grad_dropped_TI = None
        if ctx.has_dropout:
            grad_dropped_TI = grad_low_rank_TR @ a_RI if ctx.needs_input_grad[1] else None
        elif grad_x_TI is not None:
            grad_x_TI.addmm_(grad_low_rank_TR, a_RI)
        grad_bias_O = grad_TO.sum(0) if ctx.needs_input_grad[3] else None
        grad_a_RI = (grad_low_rank_TR.t() @ adapter_input_TI).to(ctx.adapter_dtype)
        grad_b_OR = (grad_TO.t() @ low_rank_TR).to(ctx.adapter_dtype) * ctx.scaling
        return grad_x_TI, grad_dropped_TI, None, grad_bias_O, grad_a_RI, grad_b_OR, None


class _FrozenLinear(Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: FrozenWeight, bias_O: Tensor | None) -> Tensor:
        remember(ctx, weight_OI)
        return functional.linear(x_TI, dense(weight_OI, x_TI.dtype), _cast(bias_O, x_TI))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TO,) = grad_outputs
        grad_x_TI = grad_TO @ recall(ctx, grad_TO.dtype)[0] if ctx.needs_input_grad[0] else None
        return grad_x_TI, None, grad_TO.sum(0) if ctx.needs_input_grad[2] else None


def _cast(bias_O: Tensor | None, like: Tensor) -> Tensor | None:
    return None if bias_O is None else bias_O.to(like.dtype)
