"""Gated feed-forward modules whose second half runs through `kernels.gated`.

Which architectures have them, and where in them the layers are, is in `families.GATED_FEED_FORWARDS`.

Shapes: `F` feed-forward size.
"""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

from torch import Tensor, nn
from transformers import PreTrainedModel

from embedtune.kernels.autocast import no_autocast
from embedtune.kernels.gated import fused
from embedtune.kernels.gated.reference import Activation
from embedtune.models.families import GATED_FEED_FORWARDS
from embedtune.models.linears import mask_for, read_linear


def fuse_gated(backbone: PreTrainedModel) -> int:
    """Let the gated feed-forward modules of this backbone run fused, in place; returns how many there are."""
    config = backbone.config.get_text_config()
    activation: Any = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if activation not in get_args(Activation):
        return 0
    modules = [module for module in backbone.modules() if type(module).__name__ in GATED_FEED_FORWARDS]
    for module in modules:
        module.forward = partial(_forward, module, activation)  # unlike a bound method it can be pickled
    return len(modules)


def _forward(module: nn.Module, activation: Activation, hidden_states: Tensor) -> Tensor:
    """The module's forward: hidden states (..., E) to the same shape; its own where the kernel can't do it."""
    names = GATED_FEED_FORWARDS[type(module).__name__]
    read = read_linear(getattr(module, names.down))
    if read is None or module.training:  # in which the base's own dropout is on
        own: Any = type(module).forward
        out: Tensor = own(module, hidden_states)
        return out
    down = read.adapted
    ups = [getattr(module, name)(hidden_states).flatten(0, -2) for name in names.up]
    before_TF, gate_TF = ups if len(ups) == 2 else ups[0].chunk(2, dim=-1)
    with no_autocast(hidden_states):
        out_TE = fused.gate_and_project(before_TF, gate_TF, down, activation, mask_for(before_TF, [down]))
    return out_TE.view(*hidden_states.shape[:-1], -1)
