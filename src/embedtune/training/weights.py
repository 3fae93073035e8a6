"""The weights of a model that are trained, by name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def trainable_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name, detached, sharing memory with the model."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def weights_fit(weights: Mapping[str, Tensor], model: nn.Module) -> bool:
    """Whether they have the names and shapes of the model's trainable weights."""
    return {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in trainable_tensors(model).items()}


def set_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give the model these trainable weights."""
    for name, own in trainable_tensors(model).items():
        own.copy_(weights[name])
