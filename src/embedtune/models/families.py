"""What differs between architectures, found from the model itself where it can be.

To add a family that needs more, add a row to a table or a function here, and the family's checkpoint to tests/contract.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

_NOT_IN_TOKEN_EMBEDDINGS = ("pooler", "lm_head", "classifier")
"""Modules that don't contribute to token embeddings, by a part of their name; they are not trained."""


class PostNormLayer(NamedTuple):
    """Names of the parts of a layer that normalises after each residual."""

    linears: tuple[str, str, str, str, str, str]
    """Query, key, value, output, up, down."""
    norms: tuple[str, str]
    """Behind the attention and behind the feed-forward."""


_BERT_LAYER = PostNormLayer(
    linears=(
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ),
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
)
POST_NORM_LAYERS = {
    "BertLayer": _BERT_LAYER,
    "RobertaLayer": _BERT_LAYER,
    "XLMRobertaLayer": _BERT_LAYER,
    "CamembertLayer": _BERT_LAYER,
    "ElectraLayer": _BERT_LAYER,
    "MPNetLayer": PostNormLayer(
        linears=(
            "attention.attn.q",
            "attention.attn.k",
            "attention.attn.v",
            "attention.attn.o",
            "intermediate.dense",
            "output.dense",
        ),
        norms=("attention.LayerNorm", "output.LayerNorm"),
    ),
    "TransformerBlock": PostNormLayer(  # DistilBERT's
        linears=(
            "attention.q_lin",
            "attention.k_lin",
            "attention.v_lin",
            "attention.out_lin",
            "ffn.lin1",
            "ffn.lin2",
        ),
        norms=("sa_layer_norm", "output_layer_norm"),
    ),
}
"""Layer class to its parts; these run fused (see `layers`)."""


class GatedFeedForward(NamedTuple):
    """Names of the linear layers of a gated feed-forward module."""

    up: tuple[str, ...]
    """What is activated and what it is multiplied by, or the one layer that makes both, in that order."""
    down: str


_GATED = GatedFeedForward(up=("gate_proj", "up_proj"), down="down_proj")
GATED_FEED_FORWARDS = {
    "ModernBertMLP": GatedFeedForward(up=("Wi",), down="Wo"),
    "EuroBertMLP": _GATED,
    "Gemma3MLP": _GATED,
    "GteMLP": _GATED,
    "LlamaMLP": _GATED,
    "MistralMLP": _GATED,
    "NomicBertMLP": _GATED,
    "Qwen2MLP": _GATED,
    "Qwen3MLP": _GATED,
}
"""Module class to its parts; their second half runs fused (see `gated`)."""


def position_offset(backbone: nn.Module) -> int:
    """Position id of a text's first token.

    RoBERTa and its relatives count learned positions from behind the padding id; all others count from 0.
    """
    for module in backbone.modules():
        padding_id = getattr(module, "padding_idx", None)
        table = getattr(module, "position_embeddings", None)
        if isinstance(padding_id, int) and isinstance(table, nn.Embedding):
            return padding_id + 1
    return 0


def in_token_embeddings(name: str) -> bool:
    """Whether the module or parameter of that name contributes to the token embeddings."""
    return not any(part in name for part in _NOT_IN_TOKEN_EMBEDDINGS)


def encoder_linears(backbone: nn.Module) -> list[str]:
    """Full names of the linear layers that contribute to the token embeddings."""
    return [
        name for name, module in backbone.named_modules() if isinstance(module, nn.Linear) and in_token_embeddings(name)
    ]


def layer_list(backbone: nn.Module) -> tuple[str, nn.ModuleList]:
    """The stack of transformer layers, and its name.

    Models that share weights between layers, as ALBERT does, have fewer of them than they run.
    """
    for name, module in backbone.named_modules():
        if isinstance(module, nn.ModuleList) and any(isinstance(part, nn.Linear) for part in module.modules()):
            return name, module
    raise ValueError(f"{type(backbone).__name__} has no list of layers")
