"""The mean of the weights that several trainings from the same start came to ("model soups", Wortsman et al. 2022,
https://arxiv.org/abs/2203.05482; the uniform mean).

Such weights lie in one basin, and their mean is often better than each of them. Of adapters it is the mean of what they
add to the weights, not that of their factors, and it is an adapter too: with N of them of rank R,
(s/N) Σ BᵢAᵢ = (s/N) [B₁ … B_N] [A₁; …; A_N], of rank N·R. What is trained beside an adapter, and weights themselves,
have their plain mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from embedtune.models.linears import ADAPTER

_JOINED_ALONG = {"lora_A": 0, "lora_B": 1, "lora_embedding_A": 0, "lora_embedding_B": 1}
"""An adapter's factors, by the axis that counts its rank."""
_KINDS = ("Linear", "Linear4bit", "Embedding")
"""PEFT's layers whose update is the product of these factors."""


def has_mean(adapter: PeftModel | None) -> bool:
    """Whether there is a mean of what was trained: not of DoRA, whose update is no sum, nor of other such variants."""
    return adapter is None or all(
        type(layer).__name__ in _KINDS and ADAPTER not in layer.lora_variant and not layer.lora_bias.get(ADAPTER)
        for layer in _lora_layers(adapter)
    )


@torch.no_grad()
def take_mean(model: nn.Module, adapter: PeftModel | None, members: Iterable[Mapping[str, Tensor]]) -> None:
    """Give the model the mean of its members' trained weights, in place; it is taken in fp32, on the CPU.

    Args:
        model: what was trained.
        adapter: PEFT's view of it, if it has an adapter, which gets the members' ranks in sum.
        members: the trained tensors of each, by name, as `trained_tensors` has them; at least one. They are read before
            the next is asked for, so each may be valid until then.
    """
    factors, sums, count = dict[str, list[Tensor]](), dict[str, Tensor](), 0
    for weights in members:
        count += 1
        for name, tensor in weights.items():
            own = tensor.to("cpu", torch.float32, copy=True)
            if _axis(name) is not None:
                factors.setdefault(name, []).append(own)
            else:
                sums[name] = sums[name].add_(own) if name in sums else own
    for name, parameter in model.named_parameters():
        if name in factors:
            parameter.grad = None
            parameter.data = torch.cat(factors[name], dim=_axis(name) or 0).to(parameter)  # of another shape
        elif name in sums:
            parameter.copy_(sums[name] / count)
    if adapter is not None:
        _grow(adapter, count)


def _axis(name: str) -> int | None:
    """The axis of a tensor that counts the adapter's rank, by its name; None if it has none."""
    parts = name.removesuffix(".weight").split(".")
    return _JOINED_ALONG.get(parts[-2]) if parts[-1] == ADAPTER else None


def _grow(adapter: PeftModel, count: int) -> None:
    """Let PEFT know of the new rank. Alpha stays, so that the scaling, alpha / rank, becomes that of a mean."""
    config: Any = adapter.peft_config[ADAPTER]
    root = count**0.5 if config.use_rslora else 1.0  # where the scaling is alpha / sqrt(rank), alpha is less
    config.r *= count
    config.rank_pattern = {name: rank * count for name, rank in config.rank_pattern.items()}
    if config.use_rslora:
        config.lora_alpha /= root
        config.alpha_pattern = {name: alpha / root for name, alpha in config.alpha_pattern.items()}
    for layer in _lora_layers(adapter):
        layer.r[ADAPTER] *= count
        layer.lora_alpha[ADAPTER] /= root
        layer.scaling[ADAPTER] /= count
        if ADAPTER in layer.lora_A:
            layer.lora_A[ADAPTER].out_features = layer.lora_B[ADAPTER].in_features = layer.r[ADAPTER]


def _lora_layers(adapter: PeftModel) -> list[Any]:
    return [module for module in adapter.modules() if isinstance(module, LoraLayer)]
