"""Transformer layers that normalise after each residual, run through `kernels.layer` when the batch is packed.

Which architectures have such layers, and where in them the parts are, is in `families.POST_NORM_LAYERS`.

Shapes: `T` packed tokens, `E` hidden size, `H` heads, `D` head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from embedtune.kernels.attention.layout import PackedLayout
from embedtune.kernels.autocast import no_autocast
from embedtune.kernels.dispatch import choose_attention
from embedtune.kernels.layer import fused
from embedtune.kernels.linear.adapted import AdaptedLinear
from embedtune.kernels.norm import LayerNorm
from embedtune.models.families import POST_NORM_LAYERS
from embedtune.models.linears import ReadLinear, flatten_adapters, mask_for, read_linear, trained_copy, with_adapters


class LayerWeights(NamedTuple):
    """A layer's weights for one forward, as the kernels take them."""

    dtype: torch.dtype
    linears: tuple[AdaptedLinear, ...]
    """Query, key, value, output, up, down."""
    norms: tuple[LayerNorm, ...]
    """Behind the attention and behind the feed-forward."""


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Weights = Mapping[nn.Module, LayerWeights]
"""Layer to its weights; a layer that is not among them runs as transformers has it."""


def fuse_layers(backbone: PreTrainedModel) -> tuple[nn.Module, ...]:
    """Let the post-norm layers of this backbone run fused, in place; returns those layers.

    They do in a forward pass that brings `layer_weights`, from `layer_weights` below, along with its `packed_layout`.
    """
    layers = post_norm_layers(backbone)
    for layer in layers:
        layer.forward = partial(_layer_forward, layer, backbone.config.num_attention_heads)
    return layers


class ReadLayer(NamedTuple):
    """A layer's parts as they are at one moment."""

    layer: nn.Module
    linears: list[ReadLinear]
    """In the order of `LayerWeights`."""
    norms: tuple[LayerNorm, ...]


def read_layers(layers: Iterable[nn.Module]) -> list[ReadLayer]:
    """Those of `fuse_layers`' layers that can run fused at this moment.

    Those that can't have something that the kernels don't know, such as DoRA.
    """
    return [read for layer in layers if (read := _read(layer)) is not None]


def layer_weights(layers: Iterable[nn.Module], dtype: torch.dtype) -> Weights:
    """The weights of those layers that can run fused at this moment; see `read_layers`."""
    read = read_layers(layers)
    return place_weights(read, flatten_adapters(all_linears(read), dtype), dtype)


def all_linears(read: Iterable[ReadLayer]) -> list[ReadLinear]:
    """The linear layers of all these layers."""
    return [linear for layer in read for linear in layer.linears]


def place_weights(read: Sequence[ReadLayer], flat: Tensor | None, dtype: torch.dtype) -> Weights:
    """The layers' weights for one forward.

    Args:
        read: of `read_layers`.
        flat: their adapters, of `flatten_adapters`.
        dtype: to compute in.
    """
    linears = iter(with_adapters(all_linears(read), flat))
    return {
        layer: LayerWeights(dtype, tuple(next(linears) for _ in layer_linears), norms)
        for layer, layer_linears, norms in read
    }


def post_norm_layers(backbone: PreTrainedModel) -> tuple[nn.Module, ...]:
    """The layers that `layer_weights` can read and `fused_layer` can run."""
    config = backbone.config
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation", None)
    if activation != "gelu" or getattr(config, "is_decoder", False):
        return ()
    return tuple(module for module in backbone.modules() if type(module).__name__ in POST_NORM_LAYERS)


def _read(layer: nn.Module) -> ReadLayer | None:
    """None if one of the layer's parts is not what the kernels take."""
    names = POST_NORM_LAYERS[type(layer).__name__]
    linears = [read_linear(module) for module in attrgetter(*names.linears)(layer)]
    norms = [_read_norm(module) for module in attrgetter(*names.norms)(layer)]
    known = ReadLayer(
        layer, [linear for linear in linears if linear is not None], tuple(norm for norm in norms if norm is not None)
    )
    return known if len(known.linears) == len(linears) and len(known.norms) == len(norms) else None


def _read_norm(module: nn.Module) -> LayerNorm | None:
    norm = trained_copy(module)
    return LayerNorm(norm.weight, norm.bias, norm.eps) if isinstance(norm, nn.LayerNorm) else None


def _layer_forward(
    layer: Any,
    heads: int,
    hidden_states: Tensor,
    *args: Any,
    packed_layout: PackedLayout | None = None,
    layer_weights: Weights | None = None,
    **kwargs: Any,
) -> Tensor:
    """A layer's forward: hidden states (1, T, E) to (1, T, E)."""
    weights = (layer_weights or {}).get(layer)
    if packed_layout is None or weights is None:
        layout = {} if packed_layout is None else {"packed_layout": packed_layout}
        out: Tensor = type(layer).forward(layer, hidden_states, *args, **layout, **kwargs)
        return out
    attend = partial(_attend, packed_layout)
    return fused_layer(hidden_states, weights, heads, attend)


def fused_layer(hidden_1TE: Tensor, weights: LayerWeights, heads: int, attend: Attend) -> Tensor:
    """A post-norm layer on a packed batch: hidden states (1, T, E) to (1, T, E).

    Args:
        hidden_1TE: the layer's input.
        weights: the layer's, from `layer_weights`.
        heads: of the attention.
        attend: from query, key and value, each (T, H, D), to the attention's output of the same shape.
    """
    *inputs, output, up, down = weights.linears
    attention_norm, output_norm = weights.norms
    with no_autocast(hidden_1TE):
        hidden_TE = hidden_1TE[0].to(weights.dtype)
        projected = fused.project(hidden_TE, inputs, mask_for(hidden_TE, inputs))
        attended_TE = attend(*(part_TE.view(len(part_TE), heads, -1) for part_TE in projected)).flatten(1)
        mask_TE = mask_for(attended_TE, [output])
        hidden_TE = fused.project_add_norm(attended_TE, output, hidden_TE, attention_norm, mask_TE)
        masks = mask_for(hidden_TE, [up]), mask_for(hidden_TE, [down])
        return fused.feed_forward_add_norm(hidden_TE, up, down, output_norm, masks)[None]


def _attend(layout: PackedLayout, query_THD: Tensor, key_THD: Tensor, value_THD: Tensor) -> Tensor:
    size = query_THD.shape[-1]
    attend = choose_attention(query_THD.device.type, query_THD.dtype, size)
    return attend(query_THD, key_THD, value_THD, layout, scale=size**-0.5)
