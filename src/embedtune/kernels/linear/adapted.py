"""A linear layer with its LoRA adapter, and what every fused forward and backward does with one.

The adapter is added to the weight rather than to the output: W + B A costs as much as R tokens' products, and spares
all tokens two skinny products forward and one backward, which take far longer than their few operations would. Where
the adapter sees only a part of the input (dropout), its share is added to the output instead.

Shapes: `T` tokens, `I` input features, `O` output features, `R` rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from embedtune.kernels.dispatch import choose_linear
from embedtune.kernels.linear.mask import masked
from embedtune.kernels.linear.weight import FrozenWeight, dense

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""Of a layer's `trained` tensors, in that order."""


class AdaptedLinear(NamedTuple):
    """A weight and bias, and the adapter on them, if there is one: x (W + B A)ᵀ + b."""

    weight_OI: FrozenWeight
    bias_O: Tensor | None
    lora_a_RI: Tensor | None = None
    lora_b_OR: Tensor | None = None
    """With the adapter's scaling in it, and with that of dropout."""
    dropout: float = 0.0
    """The chance that the adapter does not see a value of its input."""

    @property
    def trained(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """What may get a gradient: weight and bias, if they are trained, and the adapter."""
        weight_OI = self.weight_OI if isinstance(self.weight_OI, Tensor) and self.weight_OI.requires_grad else None
        bias_O = self.bias_O if self.bias_O is not None and self.bias_O.requires_grad else None
        return weight_OI, bias_O, self.lora_a_RI, self.lora_b_OR


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


def product_weight(
    linear: AdaptedLinear, dtype: torch.dtype, mask_TI: Tensor | None, *, out: Tensor | None = None
) -> Tensor:
    """What the whole input is multiplied by: the merged weight, or the bare one where the adapter's input is masked."""
    return merged_weight(linear if mask_TI is None else bare(linear), dtype, out=out)


def multiply(x_TI: Tensor, linear: AdaptedLinear, weight_OI: Tensor, mask_TI: Tensor | None) -> Tensor:
    """The layer's output for its `product_weight`, shape (T, O)."""
    product = choose_linear(x_TI.device.type, x_TI.dtype)
    out_TO = product(x_TI, weight_OI, bias_in(linear.bias_O, x_TI.dtype))
    add_masked(out_TO, x_TI, linear, mask_TI)
    return out_TO


def add_masked(out_TO: Tensor, x_TI: Tensor, linear: AdaptedLinear, mask_TI: Tensor | None) -> None:
    """Add the adapter's share to the output, in place, where it is not in the weight."""
    if mask_TI is None or linear.lora_a_RI is None or linear.lora_b_OR is None:
        return
    low_rank_TR = masked(x_TI, mask_TI) @ linear.lora_a_RI.to(x_TI.dtype).t()
    out_TO.addmm_(low_rank_TR, linear.lora_b_OR.to(x_TI.dtype).t())


def kept(linear: AdaptedLinear, used_OI: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What the forward saves of a layer; a weight that was made for the moment is not among it."""
    weight_OI: Tensor | None = used_OI
    if not isinstance(linear.weight_OI, Tensor):
        weight_OI = None
    elif linear.lora_a_RI is None and linear.weight_OI.dtype == used_OI.dtype:
        weight_OI = linear.weight_OI
    return weight_OI, linear.lora_a_RI, linear.lora_b_OR


def bare(linear: AdaptedLinear) -> AdaptedLinear:
    """What the backward is told without its being saved: the weight, or what makes it."""
    return AdaptedLinear(linear.weight_OI, None)


def recalled(
    linear: AdaptedLinear, saved: Sequence[Tensor | None], dtype: torch.dtype, mask_TI: Tensor | None
) -> tuple[Tensor, AdaptedLinear]:
    """The weight of the product and the layer, from `bare` and `kept`."""
    used_OI, a_RI, b_OR = saved
    whole = linear._replace(lora_a_RI=a_RI, lora_b_OR=b_OR)
    return product_weight(whole, dtype, mask_TI) if used_OI is None else used_OI, whole


def input_gradient(
    grad_TO: Tensor, linear: AdaptedLinear, weight_OI: Tensor, mask_TI: Tensor | None, *, onto: Tensor | None = None
) -> Tensor:
    """Gradient of the layer's input, shape (T, I), added in place to `onto` if that is given."""
    grad_x_TI = grad_TO @ weight_OI if onto is None else onto.addmm_(grad_TO, weight_OI)
    if mask_TI is not None and linear.lora_a_RI is not None and linear.lora_b_OR is not None:
        low_rank_TR = grad_TO @ linear.lora_b_OR.to(grad_TO.dtype)
        grad_x_TI += masked(low_rank_TR @ linear.lora_a_RI.to(grad_TO.dtype), mask_TI)
    return grad_x_TI


def gradients(
    x_TI: Tensor, grad_TO: Tensor, linear: AdaptedLinear, mask_TI: Tensor | None, wanted: Sequence[bool]
) -> Gradients:
    """Gradients of the layer's `trained` tensors, for its input and the gradient of its output.

    The adapter's do not go through the gradient of the whole weight: A's is (grad B)ᵀ x, and B's gradᵀ (x Aᵀ).

    Args:
        x_TI: the layer's input.
        grad_TO: gradient of its output.
        linear: the layer.
        mask_TI: what the adapter saw of the input; None for all of it.
        wanted: which of the four are wanted; the others are None.
    """
    grad_weight_OI = grad_TO.t() @ x_TI if wanted[0] else None
    grad_bias_O = grad_TO.sum(0) if wanted[1] else None
    if linear.lora_a_RI is None or linear.lora_b_OR is None:
        return grad_weight_OI, grad_bias_O, None, None
    seen_TI = x_TI if mask_TI is None else masked(x_TI, mask_TI)
    a_RI, b_OR = (parameter.to(x_TI.dtype) for parameter in (linear.lora_a_RI, linear.lora_b_OR))
    grad_low_rank_TR = grad_TO @ b_OR
    low_rank_TR = seen_TI @ a_RI.t()
    grad_a_RI = (grad_low_rank_TR.t() @ seen_TI).to(linear.lora_a_RI.dtype)
    grad_b_OR = (grad_TO.t() @ low_rank_TR).to(linear.lora_b_OR.dtype)
    return grad_weight_OI, grad_bias_O, grad_a_RI, grad_b_OR
