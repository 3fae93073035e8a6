"""The attention function that lets any Hugging Face model take packed input.

Registered with transformers under `NAME`. A forward pass that brings a `packed_layout` keyword argument is packed;
any other one is handed to transformers' own SDPA function, so a model set to `NAME` still takes padded input.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from embedtune.kernels.attention.layout import PackedLayout
from embedtune.kernels.autocast import compute_dtype, no_autocast
from embedtune.kernels.dispatch import choose_attention
from embedtune.models.gated import fuse_gated
from embedtune.models.layers import fuse_layers
from embedtune.models.mpnet import is_mpnet, pack_mpnet

NAME = "embedtune_packed"

_UNSUPPORTED = ("softcap", "position_bias", "s_aux")
"""What some models add to attention and the packed kernels don't take."""


class NotPackableError(Exception):
    """The model asks of attention what the packed kernels can't do."""


def register() -> None:
    """Make `NAME` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, attention_mask)


def use_packed_attention(backbone: PreTrainedModel) -> tuple[nn.Module, ...]:
    """Let the backbone take packed input; returns the layers that run fused then."""
    if is_mpnet(backbone):
        return pack_mpnet(backbone)
    register()
    backbone.set_attn_implementation(NAME)
    fuse_gated(backbone)
    return fuse_layers(backbone)


def attention_mask(*, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """No mask for packed input (it has no attention mask: the layout says it all), SDPA's for padded input."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **kwargs)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: PackedLayout | None = None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention interface: query (1, H, T, D), key and value (1, K, T, D) to output (1, T, H, D).

    Attention dropout is not applied to packed input: embedtune trains adapters with the base's dropout off.
    """
    if packed_layout is None:
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **kwargs
        )
        return out
    if extra := [name for name in _UNSUPPORTED if kwargs.get(name) is not None]:
        raise NotPackableError(f"its attention uses {', '.join(extra)}")
    dtype = compute_dtype(query)
    query_THD, key_TKD, value_TKD = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    attend = choose_attention(query.device.type, dtype, query.shape[-1])
    with no_autocast(query):
        out_THD = attend(
            query_THD,
            key_TKD,
            value_TKD,
            packed_layout,
            scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
            causal=bool(getattr(module, "is_causal", False) if is_causal is None else is_causal),
            window=sliding_window,
        )
    return out_THD.unsqueeze(0), None
