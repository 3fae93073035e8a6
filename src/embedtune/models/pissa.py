"""PiSSA: an adapter that starts from the main directions of the weights and leaves their rest to the base (Meng et al.
2024).

PEFT computes that start. What fits the published base is the difference to it, which is plain LoRA of twice the rank:
(W − s·B₀A₀) + s·BA = W + s·[B, −B₀][A; A₀]. The adapter may be scaled otherwise by then than when it started (`soup`).
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor


def save_as_plain_lora(adapted: PeftModel, adapter: str) -> None:
    """Let `save_pretrained` write the difference to what the adapter is now, in place.

    PEFT's own conversion adds the start as a second adapter while it saves, asks the hub for the base, and drops
    whatever is trained beside the adapter.
    """
    start = {
        name: parameter.detach().clone()
        for name, parameter in adapted.named_parameters()
        if name.endswith((f".lora_A.{adapter}.weight", f".lora_B.{adapter}.weight"))
    }
    config = adapted.peft_config[adapter]
    assert isinstance(config, LoraConfig)
    # A partial rather than a function of its own: it can be pickled and copied together with the model.
    adapted.save_pretrained = partial(_save_difference, adapted, adapter, start, copy.copy(config))  # type: ignore[method-assign]


def _save_difference(
    adapted: PeftModel, adapter: str, start: dict[str, Tensor], started: LoraConfig, *args: Any, **kwargs: Any
) -> None:
    """`PeftModel.save_pretrained` of the difference between the adapter and its start."""
    state = adapted.state_dict()
    own: Any = adapted.peft_config[adapter]
    share = _scaling(started) / _scaling(own)
    for name, first in start.items():
        now = state[name]
        is_input = ".lora_A." in name
        state[name] = torch.cat([now, first.to(now) if is_input else -share * first.to(now)], dim=0 if is_input else 1)
    plain = copy.copy(own)
    plain.r, plain.init_lora_weights = own.r + started.r, True
    growth = plain.r / own.r
    plain.lora_alpha = own.lora_alpha * (growth**0.5 if own.use_rslora else growth)  # the scaling stays
    adapted.peft_config[adapter] = plain
    try:
        PeftModel.save_pretrained(adapted, *args, state_dict=state, **kwargs)
    finally:
        adapted.peft_config[adapter] = own


def _scaling(config: LoraConfig) -> float:
    return config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
