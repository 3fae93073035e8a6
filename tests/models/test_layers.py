"""Which layers run fused, and when; that they compute the same is tests/contract's matter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from embedtune.config import AdapterConfig
from embedtune.kernels.layer import fused
from embedtune.models.adapters import make_trainable
from embedtune.models.encoder import Encoder
from embedtune.models.layers import layer_weights

Load = Callable[..., Encoder]

BOUNDS = {"bos_token_id": 2, "eos_token_id": 3}


@pytest.fixture
def count_fused(monkeypatch: pytest.MonkeyPatch) -> Callable[[Encoder], int]:
    """How many layers of a forward run fused."""

    def count(encoder: Encoder) -> int:
        calls: list[int] = []
        feed_forward = fused.feed_forward_add_norm
        monkeypatch.setattr(fused, "feed_forward_add_norm", lambda *given: calls.append(1) or feed_forward(*given))  # type: ignore[func-returns-value]
        table = encoder.token_table(["one text", "another one"], "passage")
        encoder.embed([table[0], table[1]])
        monkeypatch.undo()
        return len(calls)

    return count


@pytest.mark.parametrize(
    ("kind", "settings", "tokenizer", "layers"),
    [
        ("BertConfig", {}, {}, 2),
        ("RobertaConfig", {"pad_token_id": 1, "max_position_embeddings": 66}, {"pad_id": 1}, 2),
        ("ElectraConfig", {"embedding_size": 16}, {}, 2),
        ("MPNetConfig", {"pad_token_id": 1, "max_position_embeddings": 66}, {"pad_id": 1}, 2),
        ("DistilBertConfig", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}, {}, 2),
        ("BertConfig", {"hidden_act": "relu"}, {}, 0),
        ("BertConfig", {"hidden_act": "gelu_new"}, {}, 0),
        ("ModernBertConfig", {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, **BOUNDS}, {}, 0),
    ],
    ids=["bert", "roberta", "electra", "mpnet", "distilbert", "relu", "tanh gelu", "pre-norm"],
)
def test_layers_that_run_fused(
    kind: str,
    settings: dict[str, Any],
    tokenizer: dict[str, Any],
    layers: int,
    bert_config: dict[str, int],
    make_checkpoint: Callable[..., Path],
    load: Load,
    count_fused: Callable[[Encoder], int],
) -> None:
    shared = {"vocab_size", "max_position_embeddings"} if kind == "DistilBertConfig" else bert_config.keys()
    config = getattr(transformers, kind)(**({name: bert_config[name] for name in shared} | settings))
    encoder = load(make_checkpoint(config, **tokenizer))
    assert encoder.packed
    assert count_fused(encoder) == layers
    make_trainable(encoder, AdapterConfig())
    assert count_fused(encoder) == layers


@pytest.mark.parametrize(
    ("adapter", "training", "layers"),
    [
        ({}, True, 2),
        ({"dropout": 0.1}, True, 2),
        ({"dropout": 0.1}, False, 2),
        ({"dora": True}, True, 0),
        ({"last_layers": 1}, True, 2),
        ({"target_modules": ("query",)}, True, 2),
        ({"bias": "all"}, True, 2),
        ({"modules_to_save": ("LayerNorm",)}, True, 2),
        ({"method": "full"}, True, 2),
        ({"method": "full", "last_layers": 1}, True, 2),
    ],
    ids=str,
)
def test_what_the_kernels_do_not_know_runs_as_transformers_has_it(
    adapter: dict[str, Any],
    training: bool,
    layers: int,
    st_folder: Path,
    load: Load,
    count_fused: Callable[[Encoder], int],
) -> None:
    encoder = load(st_folder)
    make_trainable(encoder, AdapterConfig(**adapter))
    encoder.train(training)
    assert count_fused(encoder) == layers


def test_an_adapter_that_is_off_is_not_computed(
    st_folder: Path, load: Load, adapt: Callable[..., Any], count_fused: Callable[[Encoder], int]
) -> None:
    encoder = load(st_folder)
    table = encoder.token_table(["one text"], "passage")
    plain_BE = encoder.embed([table[0]])
    adapted = adapt(encoder)
    assert not torch.allclose(encoder.embed([table[0]]), plain_BE, atol=1e-4)
    with adapted.disable_adapter():
        assert count_fused(encoder) == 0
        torch.testing.assert_close(encoder.embed([table[0]]), plain_BE)


def test_all_adapters_are_cast_in_one_go(st_folder: Path, load: Load, adapt: Callable[..., Any]) -> None:
    encoder = load(st_folder)
    adapt(encoder)
    weights = layer_weights(encoder.fused_layers, torch.bfloat16)
    adapters = [linear.lora_a_RI for layer in weights.values() for linear in layer.linears]
    assert len({a.untyped_storage().data_ptr() for a in adapters if a is not None}) == 1
    assert all(isinstance(layer, nn.Module) for layer in weights)


@pytest.mark.parametrize(
    "adapter",
    [{"method": "full"}, {"method": "full", "last_layers": 1}, {"bias": "all"}, {"modules_to_save": ("LayerNorm",)}],
    ids=str,
)
def test_what_is_trained_beside_or_without_an_adapter_gets_the_gradients_of_the_plain_layers(
    adapter: dict[str, Any], st_folder: Path, load: Load
) -> None:
    encoder = load(st_folder)
    make_trainable(encoder, AdapterConfig(**adapter))
    encoder.train()
    table = encoder.token_table(["one text", "another one, and longer", "a third"], "passage")
    results = []
    for layers in (encoder.fused_layers, ()):
        encoder.fused_layers = layers
        embeddings_BE = encoder.embed([table[0], table[1], table[2]])
        trained = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
        gradients = torch.autograd.grad((embeddings_BE**3).sum(), list(trained.values()), allow_unused=True)
        results.append([embeddings_BE.detach(), *gradients])
    assert len(results[0]) > 5
    for fused_one, plain in zip(*results, strict=True):
        assert (fused_one is None) == (plain is None)
        if plain is not None:
            torch.testing.assert_close(fused_one, plain, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("model", ["bert", "unfused"])
def test_dropout_follows_the_random_state_and_spares_what_it_should(
    model: str, st_folder: Path, load: Load, adapt: Callable[..., Any]
) -> None:
    encoder = load(st_folder)
    adapt(encoder, dropout=0.3)
    if model == "unfused":
        encoder.fused_layers = ()
    table = encoder.token_table(["one text", "another one"], "passage")

    def embed(seed: int) -> Any:
        torch.manual_seed(seed)
        return encoder.embed([table[0], table[1]]).detach()

    encoder.train(False)
    plain_BE = embed(0)
    assert torch.equal(embed(1), plain_BE)
    encoder.train()
    assert torch.equal(embed(0), embed(0))
    assert not torch.allclose(embed(1), embed(0), atol=1e-4)
    mean_BE = torch.stack([embed(seed) for seed in range(60)]).mean(0)
    spread = (embed(0) - plain_BE).norm()
    assert (mean_BE - plain_BE).norm() < 0.35 * spread
