"""A linear layer, frozen, alone and with a LoRA adapter, written as its formula.

Shapes: `T` tokens, `I` input features, `O` output features, `R` rank.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from embedtune.kernels.linear.weight import FrozenWeight, dense


def lora_linear(
    x_TI: Tensor,
    mask_TI: Tensor | None,
    weight_OI: FrozenWeight,
    bias_O: Tensor | None,
    lora_a_RI: Tensor,
    lora_b_OR: Tensor,
    scaling: float,
) -> Tensor:
    """x Wᵀ + b + scaling · (x' Aᵀ) Bᵀ, where x' are the values of x that the mask keeps (Hu et al. 2021, eq. 3).

    Args:
        x_TI: input of the layer.
        mask_TI: bool, True for the values that the adapter sees, from `mask.draw_mask`; None for all of them.
        weight_OI: the frozen weight, of any dtype, or what makes it; it gets no gradient.
        bias_O: of the frozen layer; gets a gradient if it requires one.
        lora_a_RI, lora_b_OR: the adapter, of any dtype; computed in the dtype of `x_TI`.
        scaling: alpha / rank, or alpha / sqrt(rank) with rsLoRA; with dropout, by the share that is kept.

    Returns:
        Shape (T, O), in the dtype of `x_TI`.
    """
    seen_TI = x_TI if mask_TI is None else x_TI * mask_TI
    low_rank_TR = functional.linear(seen_TI, lora_a_RI.to(x_TI.dtype))
    adapted_TO = scaling * functional.linear(low_rank_TR, lora_b_OR.to(x_TI.dtype))
    return frozen_linear(x_TI, weight_OI, bias_O) + adapted_TO


def frozen_linear(x_TI: Tensor, weight_OI: FrozenWeight, bias_O: Tensor | None) -> Tensor:
    """x Wᵀ + b without a gradient for W."""
    return functional.linear(
        x_TI, dense(weight_OI, x_TI.dtype).detach(), None if bias_O is None else bias_O.to(x_TI.dtype)
    )
