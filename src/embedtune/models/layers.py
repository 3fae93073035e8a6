"""Transformer layers that normalise after each residual, run through `kernels.layer` when the batch is packed.

Which architectures have such layers, and where in them the parts are, is in `families.POST_NORM_LAYERS`.

Shapes: `T` packed tokens, `E` hidden size, `H` heads, `D` head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from embedtune.models.linears import ReadLinear, flatten_adapters, read_linear, with_adapters


class LayerWeights(NamedTuple):
    """A layer's weights for one forward, as the kernels take them."""

    dtype: torch.dtype
    linears: tuple[AdaptedLinear, ...]
    """Query, key, value, output, up, down."""
    norms: tuple[LayerNorm, ...]
    """Behind the attention and behind the feed-forward."""


Weights = Mapping[nn.Module, LayerWeights]
"""Layer to its weights; a layer that is not among them runs as transformers has it."""


def fuse_layers(backbone: PreTrainedModel) -> tuple[nn.Module, ...]:
    """Let the post-norm layers of this backbone run fused, in place; returns those layers.

    They do in a forward pass that brings `layer_weights`, from `layer_weights` below, along with its `packed_layout`.
    """
    layers = _post_norm_layers(backbone)
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

    Those that can't have something that the kernels don't know, such as an adapter with dropout or trained norms.
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


def _post_norm_layers(backbone: PreTrainedModel) -> tuple[nn.Module, ...]:
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
    if not isinstance(module, nn.LayerNorm) or module.weight.requires_grad or module.bias.requires_grad:
        return None
    return LayerNorm(module.weight, module.bias, module.eps)


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
    with no_autocast(hidden_states):
        return _fused_forward(hidden_states[0].to(weights.dtype), weights, packed_layout, heads)[None]


def _fused_forward(hidden_TE: Tensor, weights: LayerWeights, layout: PackedLayout, heads: int) -> Tensor:
    *inputs, output, up, down = weights.linears
    attention_norm, output_norm = weights.norms
    query_THD, key_THD, value_THD = (
        projected.view(len(projected), heads, -1) for projected in fused.project(hidden_TE, inputs)
    )
    size = query_THD.shape[-1]
    attend = choose_attention(hidden_TE.device.type, hidden_TE.dtype, size)
    attended_THD = attend(query_THD, key_THD, value_THD, layout, scale=size**-0.5)
    hidden_TE = fused.project_add_norm(attended_THD.flatten(1), output, hidden_TE, attention_norm)
    return fused.feed_forward_add_norm(hidden_TE, up, down, output_norm)
