"""Gradient checkpointing: a layer keeps its input only and is computed again in the backward pass (Chen et al.
2016).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from embedtune.models.families import layer_list


def recompute_layers(backbone: nn.Module) -> int:
    """Checkpoint every transformer layer, in place; returns how many. Gradients stay what they were.

    transformers has the same, but only for some architectures, and only in training mode, which would switch the
    base's dropout on.
    """
    _, layers = layer_list(backbone)
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward)
    return len(layers)


def recomputes_layers(backbone: nn.Module) -> bool:
    """Whether `recompute_layers` was called."""
    _, layers = layer_list(backbone)
    return any(getattr(layer.forward, "func", None) is _recomputed for layer in layers)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
