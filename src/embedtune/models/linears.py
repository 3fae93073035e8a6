"""Linear layers of a model as the kernels take them, whether plain, in 4 bits or under PEFT's LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from embedtune.kernels.autocast import compute_dtype, no_autocast
from embedtune.kernels.linear import fused
from embedtune.kernels.linear.adapted import AdaptedLinear

ADAPTER = "default"
"""PEFT's name of the one adapter."""
_ADAPTER = ("lora_a_RI", "lora_b_OR")


def fuse_lora(model: nn.Module) -> int:
    """Replace the forward of PEFT's LoRA linear layers by the fused one; returns how many layers were replaced.

    Variants that the fused one doesn't know, such as DoRA, keep PEFT's.
    """
    count = 0
    for module in model.modules():
        if _can_fuse(module):
            module.forward = partial(_fused_forward, module)  # unlike a bound method it can be pickled
            count += 1
    return count


class ReadLinear(NamedTuple):
    """A linear layer as it is at one moment."""

    frozen: AdaptedLinear
    """Without the adapter."""
    adapter: tuple[Tensor, Tensor] | None = None
    """The adapter's A (R, I) and B (O, R), as they are trained."""
    scaling: float = 1.0
    """Of the adapter."""


def read_linear(module: Any) -> ReadLinear | None:
    """A linear layer as it is at this moment.

    Returns:
        None if it is no linear layer, its weight or bias is trained, or its adapter is one that can't be merged into
        the weight: it has dropout now, is off, or is of a kind that the kernels don't know.
    """
    if not isinstance(module, LoraLayer):
        base = _read_frozen(module)
        return None if base is None else ReadLinear(base)
    layer: Any = module
    base = _read_frozen(layer.get_base_layer())
    if base is None or not _is_fused(layer) or layer.disable_adapters or layer.merged:
        return None
    if layer.training and not isinstance(layer.lora_dropout[ADAPTER], nn.Identity):
        return None
    adapter = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    return ReadLinear(base, adapter, layer.scaling[ADAPTER])


def flatten_adapters(linears: Sequence[ReadLinear], dtype: torch.dtype) -> Tensor | None:
    """All adapters in that dtype as one tensor, scaled; None if there are none.

    All are cast in one go, and so are their gradients: one by one, they would be most of a step's launches.
    """
    adapted = [(linear.adapter, linear.scaling) for linear in linears if linear.adapter is not None]
    if not adapted:
        return None
    all_a = torch.cat([a_RI.reshape(-1) for (a_RI, _), _ in adapted])
    scalings = {scaling for _, scaling in adapted}
    if len(scalings) == 1:
        all_b = torch.cat([b_OR.reshape(-1) for (_, b_OR), _ in adapted]) * scalings.pop()
    else:
        all_b = torch.cat([(b_OR * scaling).reshape(-1) for (_, b_OR), scaling in adapted])
    return torch.cat([all_a, all_b]).to(dtype)


def with_adapters(linears: Sequence[ReadLinear], flat: Tensor | None) -> list[AdaptedLinear]:
    """The layers as the kernels take them, their adapters parts of what `flatten_adapters` makes."""
    adapters = [linear.adapter for linear in linears if linear.adapter is not None]
    if flat is None:
        return [linear.frozen for linear in linears]
    tensors = [a_RI for a_RI, _ in adapters] + [b_OR for _, b_OR in adapters]
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    views = [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
    placed = zip(views[: len(adapters)], views[len(adapters) :], strict=True)
    return [
        linear.frozen
        if linear.adapter is None
        else linear.frozen._replace(**dict(zip(_ADAPTER, next(placed), strict=True)))
        for linear in linears
    ]


def _read_frozen(module: Any) -> AdaptedLinear | None:
    make_weight = getattr(module, "frozen_weight", None)  # of NF4
    if make_weight is None and type(module) is not nn.Linear:
        return None
    trained = make_weight is None and module.weight.requires_grad
    if trained or (module.bias is not None and module.bias.requires_grad):
        return None
    return AdaptedLinear(module.weight if make_weight is None else make_weight, module.bias)


def _is_fused(module: Any) -> bool:
    forward = vars(module).get("forward")
    return isinstance(forward, partial) and forward.func is _fused_forward


def _can_fuse(module: Any) -> bool:
    # PEFT has its class for 4-bit layers only where bitsandbytes is installed.
    return (
        isinstance(module, LoraLayer)
        and type(module).__name__ in ("Linear", "Linear4bit")
        and isinstance(module.get_base_layer(), nn.Linear)
        and module.active_adapters == [ADAPTER]
        and ADAPTER not in module.lora_variant
        and not module.lora_bias[ADAPTER]
        and not getattr(module, "fan_in_fan_out", False)
    )


def _fused_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A LoRA layer's forward for inputs of shape (..., I); PEFT's own where the adapter is merged or off."""
    if self.disable_adapters or self.merged:
        out: Tensor = type(self).forward(self, x, *args, **kwargs)
        return out
    base, dropout = self.get_base_layer(), self.lora_dropout[ADAPTER]
    x_TI = x.reshape(-1, x.shape[-1]).to(compute_dtype(x))
    dropped_TI = dropout(x_TI) if self.training and not isinstance(dropout, nn.Identity) else None
    with no_autocast(x):
        out_TO = fused.lora_linear(
            x_TI,
            dropped_TI,
            getattr(base, "frozen_weight", base.weight),
            base.bias,
            self.lora_A[ADAPTER].weight,
            self.lora_B[ADAPTER].weight,
            self.scaling[ADAPTER],
        )
    return out_TO.view(*x.shape[:-1], -1)
