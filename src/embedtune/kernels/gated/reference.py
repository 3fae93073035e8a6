"""Activation, gate and the projection down of a gated feed-forward layer (Shazeer 2020), written as their formula.

Shapes: `T` tokens, `E` hidden size, `F` feed-forward size.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

from embedtune.kernels.layer.reference import adapted
from embedtune.kernels.linear.adapted import AdaptedLinear

Activation = Literal["gelu", "gelu_pytorch_tanh", "silu"]
"""As transformers' configs name them."""


def gate_and_project(
    before_TF: Tensor, gate_TF: Tensor, down: AdaptedLinear, activation: Activation, mask_TF: Tensor | None = None
) -> Tensor:
    """down(activation(before) · gate), shape (T, E).

    Args:
        before_TF: what the activation is applied to.
        gate_TF: what it is multiplied by.
        down: the projection.
        activation: its name.
        mask_TF: bool, True for the values that the projection's adapter sees; None for all of them.
    """
    return adapted(activate(before_TF, activation) * gate_TF, down, mask_TF)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation of that name."""
    if activation == "silu":
        return functional.silu(x)
    return functional.gelu(x, approximate="none" if activation == "gelu" else "tanh")
