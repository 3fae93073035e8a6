"""A frozen linear layer with its LoRA adapter, and what every fused forward and backward does with one.

The adapter is added to the weight rather than to the output: W + B A costs as much as R tokens' products, and spares
all tokens two skinny products forward and one backward, which take far longer than their few operations would.

Shapes: `T` tokens, `I` input features, `O` output features, `R` rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from embedtune.kernels.linear.weight import FrozenWeight, dense


class AdaptedLinear(NamedTuple):
    """A frozen weight and bias, and the adapter on them, if there is one: x (W + B A)ᵀ + b."""

    weight_OI: FrozenWeight
    bias_O: Tensor | None
    lora_a_RI: Tensor | None = None
    lora_b_OR: Tensor | None = None
    """With the adapter's scaling in it."""

    @property
    def adapter(self) -> tuple[Tensor | None, Tensor | None]:
        """What gets a gradient."""
        return self.lora_a_RI, self.lora_b_OR


def merged_weight(linear: AdaptedLinear, dtype: torch.dtype, *, out: Tensor | None = None) -> Tensor:
    """W + B A in that dtype, rounded once; the weight itself if there is no adapter.

    In half precision an update smaller than the weight's own rounding moves only some of its values, as it does in full
    fine-tuning with fp32 master weights.

    Args:
        linear: of the weight.
        dtype: to compute in.
        out: where to write the result.
    """
    weight_OI = dense(linear.weight_OI, dtype)
    if linear.lora_a_RI is None or linear.lora_b_OR is None:
        return weight_OI if out is None else out.copy_(weight_OI)
    return torch.addmm(weight_OI, linear.lora_b_OR.to(dtype), linear.lora_a_RI.to(dtype), out=out)


def bias_in(bias_O: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The bias in that dtype, if there is one."""
    return None if bias_O is None else bias_O.to(dtype)


def kept(linear: AdaptedLinear, merged_OI: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What the forward saves of a layer; a weight that was made for the moment is not among it."""
    return merged_OI if isinstance(linear.weight_OI, Tensor) else None, *linear.adapter


def bare(linear: AdaptedLinear) -> AdaptedLinear:
    """What the backward is told without its being saved: the frozen weight, or what makes it."""
    return AdaptedLinear(linear.weight_OI, None)


def recalled(linear: AdaptedLinear, saved: Sequence[Tensor | None], dtype: torch.dtype) -> tuple[Tensor, AdaptedLinear]:
    """The merged weight and the layer, from `bare` and `kept`."""
    merged_OI, a_RI, b_OR = saved
    whole = linear._replace(lora_a_RI=a_RI, lora_b_OR=b_OR)
    return merged_weight(whole, dtype) if merged_OI is None else merged_OI, whole


def adapter_gradients(x_TI: Tensor, grad_TO: Tensor, linear: AdaptedLinear) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of A and B for the layer's input and the gradient of its output; None without an adapter.

    Neither goes through the gradient of the whole weight: A's is (grad B)ᵀ x, and B's gradᵀ (x Aᵀ).
    """
    if linear.lora_a_RI is None or linear.lora_b_OR is None:
        return None, None
    a_RI, b_OR = (parameter.to(x_TI.dtype) for parameter in (linear.lora_a_RI, linear.lora_b_OR))
    grad_low_rank_TR = grad_TO @ b_OR
    low_rank_TR = x_TI @ a_RI.t()
    grad_a_RI = (grad_low_rank_TR.t() @ x_TI).to(linear.lora_a_RI.dtype)
    grad_b_OR = (grad_TO.t() @ low_rank_TR).to(linear.lora_b_OR.dtype)
    return grad_a_RI, grad_b_OR
