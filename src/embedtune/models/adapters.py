"""LoRA adapters: attached, named, saved and merged by PEFT, computed by one fused function a layer."""

from __future__ import annotations

import logging
from types import MethodType
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn

from embedtune.kernels.linear import fused
from embedtune.models.encoder import Encoder
from embedtune.models.families import encoder_linears

logger = logging.getLogger(__name__)

ADAPTER = "default"


def attach_lora(encoder: Encoder, *, rank: int, alpha: float, dropout: float) -> PeftModel:
    """Attach a LoRA adapter to all linear layers of the encoder, in place.

    Args:
        encoder: its parameters must be frozen.
        rank: of the update.
        alpha: the update is scaled by alpha / rank.
        dropout: probability of dropping an input feature of the adapter.

    Returns:
        PEFT's view of the backbone; it saves the adapter.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides it: any number will do
        lora_dropout=dropout,
        target_modules=encoder_linears(encoder.backbone),
        task_type=TaskType.FEATURE_EXTRACTION,
    )
    adapted = get_peft_model(encoder.backbone, config)
    fuse_lora(adapted)
    return adapted


def fuse_lora(model: nn.Module) -> int:
    """Replace the forward of PEFT's LoRA linear layers by the fused one; returns how many layers were replaced."""
    count = 0
    for module in model.modules():
        if _can_fuse(module):
            module.forward = MethodType(_fused_forward, module)
            count += 1
    return count


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, total) number of parameters."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters())


def _can_fuse(module: nn.Module) -> bool:
    return (
        isinstance(module, PeftLoraLinear)
        and isinstance(module.get_base_layer(), nn.Linear)
        and module.active_adapters == [ADAPTER]
        and not module.use_dora[ADAPTER]
        and not module.lora_bias[ADAPTER]
        and not module.fan_in_fan_out
    )


def _fused_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A LoRA layer's forward for inputs of shape (..., I); PEFT's own where the adapter is merged or off."""
    if self.disable_adapters or self.merged:
        out: Tensor = PeftLoraLinear.forward(self, x, *args, **kwargs)
        return out
    base = self.get_base_layer()
    dropout = self.lora_dropout[ADAPTER]
    x_TI = x.reshape(-1, x.shape[-1])
    dropped_TI = dropout(x_TI) if self.training and not isinstance(dropout, nn.Identity) else None
    out_TO = fused.lora_linear(
        x_TI,
        dropped_TI,
        base.weight,
        base.bias,
        self.lora_A[ADAPTER].weight,
        self.lora_B[ADAPTER].weight,
        self.scaling[ADAPTER],
    )
    return out_TO.view(*x.shape[:-1], -1)
