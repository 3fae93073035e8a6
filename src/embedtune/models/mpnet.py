"""MPNet on packed batches.

Its attention adds a relative position bias, one table for all layers, and does not go through transformers' attention
interface, so its forward passes are replaced on the model at hand.

Shapes: `T` packed tokens, `E` hidden size, `H` heads, `D` head size, `L` length of the longest text.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.mpnet.modeling_mpnet import MPNetModel, MPNetSelfAttention

from embedtune.kernels.attention.layout import PackedLayout
from embedtune.kernels.autocast import compute_dtype, no_autocast
from embedtune.kernels.dispatch import choose_attention
from embedtune.models.layers import Weights, fused_layer, post_norm_layers


class _PackedBias(NamedTuple):
    """What the layers get as `position_bias`; an argument rather than a state, so a layer can be checkpointed."""

    layout: PackedLayout
    bias_HLL: Tensor


def is_mpnet(backbone: nn.Module) -> bool:
    """Whether `pack_mpnet` takes this backbone."""
    return isinstance(backbone, MPNetModel)


def pack_mpnet(backbone: nn.Module) -> tuple[nn.Module, ...]:
    """Let this MPNet take packed input, in place; calling it again changes nothing.

    A call with the keyword arguments `input_ids` and `position_ids`, each (1, T), and `packed_layout` is packed and has
    no pooler output; any call without the last is transformers' own. Packed attention has no dropout.

    Returns:
        The layers that run fused in a packed call with `layer_weights`, from `layers.layer_weights`.

    Raises:
        TypeError: it is no MPNet.
    """
    if not isinstance(backbone, MPNetModel):
        raise TypeError(f"expected an MPNetModel, got {type(backbone).__name__}: ask is_mpnet first")
    # Partials rather than bound methods: these can be pickled and copied together with the model.
    backbone.forward = partial(_model_forward, backbone)
    for module in backbone.encoder.modules():
        if isinstance(module, MPNetSelfAttention):
            module.forward = partial(_attention_forward, module)  # type: ignore[method-assign]
    layers = post_norm_layers(backbone)
    for layer in layers:
        layer.forward = partial(_layer_forward, layer)
    return layers


def _model_forward(self: Any, *args: Any, packed_layout: PackedLayout | None = None, **kwargs: Any) -> Any:
    if packed_layout is None:
        return MPNetModel.forward(self, *args, **kwargs)
    return _packed_forward(self, packed_layout, *args, **kwargs)


def _packed_forward(
    self: Any, layout: PackedLayout, *, input_ids: Tensor, position_ids: Tensor, layer_weights: Weights | None = None
) -> BaseModelOutputWithPooling:
    """What `MPNetModel` and `MPNetEncoder` do, but no mask is made, and the bias for the longest text, not for T."""
    hidden_1TE = self.embeddings(input_ids=input_ids, position_ids=position_ids)
    bias_1HLL = self.encoder.compute_position_bias(hidden_1TE[:, : layout.max_length])
    packed_bias = _PackedBias(layout, bias_1HLL[0])
    options = {"layer_weights": layer_weights} if layer_weights else {}
    for layer in self.encoder.layer:
        hidden_1TE = layer(hidden_1TE, None, packed_bias, **options)[0]
    return BaseModelOutputWithPooling(last_hidden_state=hidden_1TE)


def _layer_forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | _PackedBias | None = None,
    *args: Any,
    layer_weights: Weights | None = None,
    **kwargs: Any,
) -> Any:
    """`MPNetLayer.forward`, fused if there are weights for it: hidden states (1, T, E) to ((1, T, E),)."""
    weights = (layer_weights or {}).get(self)
    if weights is None or not isinstance(position_bias, _PackedBias):
        return type(self).forward(self, hidden_states, attention_mask, position_bias, *args, **kwargs)
    heads = self.attention.attn.num_attention_heads
    return (fused_layer(hidden_states, weights, heads, partial(_attend, packed_bias=position_bias)),)


def _attention_forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | _PackedBias | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """`MPNetSelfAttention.forward`, packed if `position_bias` says so: hidden states (1, T, E) to ((1, T, E),)."""
    if not isinstance(position_bias, _PackedBias):
        stock: Any = MPNetSelfAttention.forward
        return stock(self, hidden_states, attention_mask, position_bias, *args, **kwargs)
    shape_THD = (-1, self.num_attention_heads, self.attention_head_size)
    query_THD, key_THD, value_THD = (project(hidden_states).view(shape_THD) for project in (self.q, self.k, self.v))
    out_THD = _attend(query_THD, key_THD, value_THD, position_bias)
    return (self.o(out_THD.view(1, -1, self.all_head_size)),)


def _attend(query_THD: Tensor, key_THD: Tensor, value_THD: Tensor, packed_bias: _PackedBias) -> Tensor:
    """Packed attention, in autocast's dtype where that is on; the bias keeps its own, to sum its gradient in."""
    layout, bias_HLL = packed_bias
    dtype, size = compute_dtype(query_THD), query_THD.shape[-1]
    query_THD, key_THD, value_THD = (x.to(dtype) for x in (query_THD, key_THD, value_THD))
    attend = choose_attention(query_THD.device.type, dtype, size, biased=True)
    with no_autocast(query_THD):
        return attend(query_THD, key_THD, value_THD, layout, scale=size**-0.5, bias_HLL=bias_HLL)
