"""The frozen weight of a linear layer: a tensor, or something that makes one when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FrozenWeight = Tensor | Callable[[torch.dtype], Tensor]
"""A weight of shape (O, I), or a function that returns it in the dtype asked for, such as one that dequantises it."""


def dense(weight: FrozenWeight, dtype: torch.dtype) -> Tensor:
    """The weight as a tensor of that dtype."""
    return weight.to(dtype) if isinstance(weight, Tensor) else weight(dtype)


def remember(ctx: Any, weight: FrozenWeight, *saved: Tensor | None) -> None:
    """Keep a weight for the backward pass: a tensor among the saved ones, a function as it is.

    A function's result is not kept; making it again in the backward pass is what saves the memory.
    """
    is_tensor = isinstance(weight, Tensor)
    ctx.make_weight = None if is_tensor else weight
    ctx.save_for_backward(weight if is_tensor else None, *saved)


def recall(ctx: Any, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The weight that `remember` kept, in that dtype, and the other saved tensors."""
    weight, *saved = ctx.saved_tensors
    return dense(weight if ctx.make_weight is None else ctx.make_weight, dtype), tuple(saved)
