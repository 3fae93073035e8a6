"""Tensors from host memory to where they are computed with."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor there; from pinned memory to a GPU, as from any other the whole queue of its work is waited for."""
    if device.type != "cuda":
        return tensor.to(device)
    pinned = torch.empty_like(tensor, pin_memory=True)
    # torch would share the copy out among all its threads, which takes longer to begin than the copy to make.
    pinned.numpy()[...] = tensor.numpy()
    return pinned.to(device, non_blocking=True)
