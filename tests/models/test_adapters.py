"""The fused adapter layers compute what PEFT's own do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from embedtune.config import AdapterConfig
from embedtune.kernels.linear.mask import draw_mask
from embedtune.models.adapters import attach_adapter, trainable_parameters
from embedtune.models.encoder import Encoder
from embedtune.models.linears import fuse_lora


def lora_layers(adapted: nn.Module) -> list[Any]:
    return [module for module in adapted.modules() if hasattr(module, "lora_A")]


def unfuse(adapted: nn.Module) -> None:
    """Give every layer PEFT's own forward back."""
    for layer in lora_layers(adapted):
        del layer.forward


def embed(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    tokens = encoder.token_table(texts, "passage")
    embeddings_BE: Tensor = encoder.embed([tokens[index] for index in range(len(tokens))])
    return embeddings_BE


class SameMask(nn.Dropout):
    """PEFT's dropout with a mask drawn as the fused layers draw theirs."""

    def forward(self, x: Tensor) -> Tensor:
        mask_TI = draw_mask(x[0].shape[0], x.shape[-1], self.p, x.device)
        return x * mask_TI / (1 - self.p)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_fused_layers_are_pefts(
    dropout: float,
    st_folder: Path,
    sentences: list[str],
    load: Callable[..., Encoder],
    adapt: Callable[..., PeftModel],
) -> None:
    encoder = load(st_folder)
    adapted = adapt(encoder, dropout=dropout)
    for layer in lora_layers(adapted):
        layer.train()
        if dropout:
            layer.lora_dropout["default"] = SameMask(dropout)
    if dropout:
        encoder.fused_layers = ()  # query, key and value share a mask there, which they don't in PEFT
    results = []
    for prepare in (lambda model: None, unfuse):
        prepare(adapted)
        encoder.zero_grad()
        torch.manual_seed(0)
        embeddings_BE = embed(encoder, sentences[:20])
        embeddings_BE[:, ::2].sum().backward()  # type: ignore[no-untyped-call]
        gradients = {name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None}
        results.append((embeddings_BE.detach(), gradients))
    (fused_BE, fused_gradients), (peft_BE, peft_gradients) = results
    torch.testing.assert_close(fused_BE, peft_BE, atol=1e-6, rtol=0)
    assert len(fused_gradients) == 2 * len(lora_layers(adapted)) == 2 * 2 * 6
    for name, gradient in peft_gradients.items():
        assert gradient.abs().max() > 1e-4
        torch.testing.assert_close(fused_gradients[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_a_new_adapter_changes_nothing(st_folder: Path, sentences: list[str], load: Callable[..., Encoder]) -> None:
    encoder = load(st_folder)
    before_BE = embed(encoder, sentences[:20])
    attach_adapter(encoder, AdapterConfig(rank=4, alpha=8, dropout=0.0))
    torch.testing.assert_close(embed(encoder, sentences[:20]), before_BE, atol=1e-6, rtol=0)


def test_the_adapter_can_be_switched_off_and_merged(
    st_folder: Path, sentences: list[str], load: Callable[..., Encoder], adapt: Callable[..., PeftModel]
) -> None:
    encoder = load(st_folder)
    before_BE = embed(encoder, sentences[:20])
    adapted = adapt(encoder)
    changed_BE = embed(encoder, sentences[:20]).detach()
    assert (changed_BE - before_BE).abs().max() > 1e-2
    with adapted.disable_adapter():
        torch.testing.assert_close(embed(encoder, sentences[:20]), before_BE, atol=1e-6, rtol=0)
    torch.testing.assert_close(embed(encoder, sentences[:20]), changed_BE, atol=1e-6, rtol=0)
    adapted.merge_adapter()
    torch.testing.assert_close(embed(encoder, sentences[:20]), changed_BE, atol=1e-5, rtol=0)


def test_how_much_is_trained(st_folder: Path, load: Callable[..., Encoder]) -> None:
    encoder = load(st_folder)
    total = sum(parameter.numel() for parameter in encoder.parameters())
    assert trainable_parameters(encoder) == (0, total)
    adapted = attach_adapter(encoder, AdapterConfig(rank=4, alpha=8, dropout=0.0))
    # Two layers of query, key, value and output, 32 to 32, and two feed-forward matrices between 32 and 64.
    added = 2 * (4 * 4 * (32 + 32) + 2 * 4 * (32 + 64))
    assert trainable_parameters(adapted) == (added, total + added)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trained)
    assert not any("pooler" in name for name in trained)


def test_the_adapter_is_kept_in_fp32(st_folder: Path, load: Callable[..., Encoder]) -> None:
    """Small updates would be lost in bf16."""
    adapted = attach_adapter(load(st_folder, precision="bf16"), AdapterConfig(rank=4, alpha=8, dropout=0.0))
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}


def test_alpha_over_rank_scales_the_update(
    st_folder: Path, load: Callable[..., Encoder], adapt: Callable[..., PeftModel]
) -> None:
    x_1TE = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    updates = []
    for alpha in (4.0, 8.0):
        adapted = adapt(load(st_folder), rank=4, alpha=alpha)
        layer = lora_layers(adapted)[0]
        updates.append(layer(x_1TE) - layer.get_base_layer()(x_1TE))
        assert updates[-1].shape == (1, 5, 32)
    torch.testing.assert_close(updates[1], 2 * updates[0])
    expected = x_1TE @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
    torch.testing.assert_close(updates[0], expected)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_variants_that_the_fused_forward_does_not_know_are_left_alone(options: dict[str, bool]) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["0"], **options))  # type: ignore[arg-type]
    assert fuse_lora(adapted) == 0
    plain = get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(r=2, target_modules=["0"]))
    assert fuse_lora(plain) == 1
