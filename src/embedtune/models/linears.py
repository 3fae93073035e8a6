"""Linear layers of a model as the kernels take them, whether plain, in 4 bits or under PEFT's LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from embedtune.kernels.autocast import compute_dtype, no_autocast
from embedtune.kernels.linear import fused
from embedtune.kernels.linear.adapted import AdaptedLinear
from embedtune.kernels.linear.mask import draw_mask

ADAPTER = "default"
"""PEFT's name of the one adapter."""


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

    plain: AdaptedLinear
    """Without the adapter."""
    adapter: tuple[Tensor, Tensor] | None = None
    """The adapter's A (R, I) and B (O, R), as they are trained."""
    scaling: float = 1.0
    """Of the adapter, by the share of its input that it sees."""

    @property
    def adapted(self) -> AdaptedLinear:
        """As the kernels take it."""
        if self.adapter is None:
            return self.plain
        a_RI, b_OR = self.adapter
        return _with_adapter(self.plain, a_RI, b_OR * self.scaling)


def read_linear(module: Any) -> ReadLinear | None:
    """A linear layer as it is at this moment.

    Returns:
        None if it is no linear layer, or its adapter is one that the kernels don't know, or is off.
    """
    module = trained_copy(module)
    if not isinstance(module, LoraLayer):
        plain = _read_plain(module)
        return None if plain is None else ReadLinear(plain)
    layer: Any = module
    base = _read_plain(layer.get_base_layer())
    if base is None or not _is_fused(layer) or layer.disable_adapters or layer.merged:
        return None
    dropout = _dropout(layer)
    adapter = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    return ReadLinear(base._replace(dropout=dropout), adapter, _scaling(layer, dropout))


def trained_copy(module: Any) -> Any:
    """The copy of a module that PEFT trains in full, if it does; otherwise the module."""
    if not isinstance(module, ModulesToSaveWrapper) or module.disable_adapters:
        return module
    return module.modules_to_save[ADAPTER]


def mask_for(hidden_TE: Tensor, linears: Sequence[AdaptedLinear]) -> Tensor | None:
    """A new mask for what these layers get as their input, as many tokens as given; None if adapters see all of it."""
    for linear in linears:
        if linear.dropout and linear.lora_a_RI is not None:
            return draw_mask(len(hidden_TE), linear.lora_a_RI.shape[1], linear.dropout, hidden_TE.device)
    return None


def flatten_adapters(linears: Sequence[ReadLinear], dtype: torch.dtype) -> Tensor | None:
    """All adapters in that dtype as one tensor, scaled; None if there are none.

    All are cast in one go, and so are their gradients: one by one, they would be most of a step's launches.
    """
    adapted = [(*linear.adapter, linear.scaling) for linear in linears if linear.adapter is not None]
    if not adapted:
        return None
    all_a = torch.cat([a_RI.reshape(-1) for a_RI, _, _ in adapted])
    scalings = {scaling for _, _, scaling in adapted}
    if len(scalings) == 1:
        all_b = torch.cat([b_OR.reshape(-1) for _, b_OR, _ in adapted]) * scalings.pop()
    else:
        all_b = torch.cat([(b_OR * scaling).reshape(-1) for _, b_OR, scaling in adapted])
    return torch.cat([all_a, all_b]).to(dtype)


def with_adapters(linears: Sequence[ReadLinear], flat: Tensor | None) -> list[AdaptedLinear]:
    """The layers as the kernels take them, their adapters parts of what `flatten_adapters` makes."""
    adapters = [linear.adapter for linear in linears if linear.adapter is not None]
    if flat is None:
        return [linear.plain for linear in linears]
    tensors = [a_RI for a_RI, _ in adapters] + [b_OR for _, b_OR in adapters]
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    views = [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
    placed = zip(views[: len(adapters)], views[len(adapters) :], strict=True)
    return [
        linear.plain if linear.adapter is None else _with_adapter(linear.plain, *next(placed)) for linear in linears
    ]


def _with_adapter(linear: AdaptedLinear, a_RI: Tensor, b_OR: Tensor) -> AdaptedLinear:
    return linear._replace(lora_a_RI=a_RI, lora_b_OR=b_OR)


def _read_plain(module: Any) -> AdaptedLinear | None:
    make_weight = getattr(module, "frozen_weight", None)  # of NF4
    if make_weight is None and type(module) is not nn.Linear:
        return None
    return AdaptedLinear(module.weight if make_weight is None else make_weight, module.bias)


def _dropout(layer: Any) -> float:
    """The chance that the adapter does not see a value of its input now."""
    dropout = layer.lora_dropout[ADAPTER]
    return float(dropout.p) if layer.training and isinstance(dropout, nn.Dropout) else 0.0


def _scaling(layer: Any, dropout: float) -> float:
    """The adapter's, by the share of its input that it sees."""
    return float(layer.scaling[ADAPTER]) / (1 - dropout)


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
    base, dropout = self.get_base_layer(), _dropout(self)
    x_TI = x.reshape(-1, x.shape[-1]).to(compute_dtype(x))
    with no_autocast(x):
        out_TO = fused.lora_linear(
            x_TI,
            draw_mask(len(x_TI), x_TI.shape[1], dropout, x_TI.device) if dropout else None,
            getattr(base, "frozen_weight", base.weight),
            base.bias,
            self.lora_A[ADAPTER].weight,
            self.lora_B[ADAPTER].weight,
            _scaling(self, dropout),
        )
    return out_TO.view(*x.shape[:-1], -1)
