"""Gated feed-forward modules: which run fused, that they learn the same, and that they keep less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from embedtune.models.encoder import Encoder
from embedtune.models.families import GATED_FEED_FORWARDS
from embedtune.models.memory import peak_bytes

Load = Callable[..., Encoder]
MODERN_BERT = ("ModernBertConfig", {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3})
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "modernbert": MODERN_BERT,
    "qwen3": ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 8}),
    "gemma3, tanh gelu": ("Gemma3TextConfig", {"num_key_value_heads": 2, "head_dim": 8}),
}


@pytest.fixture
def make(bert_config: dict[str, int], make_checkpoint: Callable[..., Path], load: Load) -> Callable[..., Encoder]:
    """An encoder with a gated feed-forward part."""

    def make(kind: str, **settings: Any) -> Encoder:
        name, of_kind = KINDS[kind]
        config = getattr(transformers, name)(**{**bert_config, "pad_token_id": 0, **of_kind, **settings})
        return load(make_checkpoint(config))

    return make


def fused_modules(encoder: Encoder) -> list[nn.Module]:
    return [m for m in encoder.modules() if type(m).__name__ in GATED_FEED_FORWARDS and "forward" in vars(m)]


def learn(encoder: Encoder) -> list[Any]:
    """Embeddings and the gradients of everything trained, for the same random numbers."""
    table = encoder.token_table(["one text", "another one, and longer"], "passage")
    torch.manual_seed(0)
    embeddings_BE = encoder.embed([table[0], table[1]])
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    return [embeddings_BE.detach(), *torch.autograd.grad((embeddings_BE**3).sum(), trained, allow_unused=True)]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("kind", KINDS)
def test_they_learn_what_they_would_have(kind: str, dropout: float, make: Any, adapt: Callable[..., Any]) -> None:
    encoder = make(kind)
    adapt(encoder, dropout=dropout)
    encoder.train()
    modules = fused_modules(encoder)
    assert len(modules) == 2
    found = learn(encoder)
    for module in modules:
        del module.forward
    wanted = learn(encoder)
    assert len(found) == len(wanted) > 10
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=2e-5)


def test_they_keep_less(make: Any, adapt: Callable[..., Any]) -> None:
    """Neither the activated values nor their product with the gate, which makes two of four per value."""
    encoder = make("modernbert", intermediate_size=512)
    adapt(encoder)
    table = encoder.token_table(["some text of a few words"], "passage")

    def kept_a_token() -> float:
        one, more = (peak_bytes(lambda count=count: encoder.embed([table[0]] * count)) for count in (10, 30))  # type: ignore[misc]
        return (more - one) / (20 * len(table[0]))

    fused_bytes = kept_a_token()
    for module in fused_modules(encoder):
        del module.forward
    assert kept_a_token() - fused_bytes > 2 * 512 * 4


def test_other_activations_run_as_transformers_has_them(make: Any) -> None:
    assert not fused_modules(make("qwen3", hidden_act="relu"))
