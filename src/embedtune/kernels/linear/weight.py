"""The frozen weight of a linear layer: a tensor, or something that makes one when it is needed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FrozenWeight = Tensor | Callable[[torch.dtype], Tensor]
"""A weight of shape (O, I), or a function that returns it in the dtype asked for, such as one that dequantises it."""


def dense(weight: FrozenWeight, dtype: torch.dtype) -> Tensor:
    """The weight as a tensor of that dtype."""
    return weight.to(dtype) if isinstance(weight, Tensor) else weight(dtype)
