"""Autocast around hand-written functions: they choose their dtype once, and nothing inside is cast again."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that an operation on `x` computes in: autocast's where it is on, otherwise that of `x`."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Autocast off for the device of `x`."""
    return torch.autocast(x.device.type, enabled=False)
