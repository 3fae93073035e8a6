"""Between base and tuned model: the ends are exact, the middle is the middle, whatever was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from torch import Tensor

from embedtune.config import AdapterConfig
from embedtune.models.adapters import make_trainable
from embedtune.models.blend import blended, blended_model, blends
from embedtune.models.encoder import Encoder

Load = Callable[..., Encoder]
Adapt = Callable[..., PeftModel]

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "pissa": {"init": "pissa"},
    "bias and modules": {"bias": "all", "modules_to_save": ("LayerNorm",)},
    "qlora": {"method": "qlora"},
    "loftq": {"method": "qlora", "init": "loftq"},
}


def trained(name: str, folder: Path, load: Load, adapt: Adapt) -> Encoder:
    """An encoder that embeds otherwise than the base."""
    if name != "full":
        encoder = load(folder, four_bit=ADAPTERS[name].get("method") == "qlora")
        adapt(encoder, **ADAPTERS[name])
        return encoder
    encoder = load(folder, master_weights=True)
    make_trainable(encoder, AdapterConfig(method="full"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return encoder


def assert_same_weights(model: SentenceTransformer, expected: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("name", [*ADAPTERS, "full"])
def test_the_ends_are_the_base_and_the_merged_model(name: str, st_folder: Path, load: Load, adapt: Adapt) -> None:
    encoder = trained(name, st_folder, load, adapt)
    tuned, base = encoder.merged().state_dict(), SentenceTransformer(str(st_folder), device="cpu").state_dict()
    assert any(not torch.equal(tensor, base[key]) for key, tensor in tuned.items())
    assert_same_weights(blended_model(encoder, 1.0), tuned)
    assert_same_weights(blended_model(encoder, 0.0), base)
    middle = {key: base[key] + 0.25 * (tensor - base[key]) for key, tensor in tuned.items()}
    for key, tensor in blended_model(encoder, 0.25).state_dict().items():
        torch.testing.assert_close(tensor, middle[key], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["pissa", "qlora", "full"])
def test_the_encoder_embeds_as_the_model_that_is_saved(
    name: str, st_folder: Path, sentences: list[str], load: Load, adapt: Adapt
) -> None:
    encoder = trained(name, st_folder, load, adapt)
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    for weight, blend in blends(encoder, [0.0, 0.5, 1.0]):
        assert blend.adapter is None
        assert blend.packed
        assert not any(parameter.requires_grad for parameter in blend.parameters())
        embedded_NE = blend.embed_all(blend.token_table(sentences[:20], "passage"))
        saved_NE = blended_model(encoder, weight).encode_document(sentences[:20], convert_to_tensor=True)
        torch.testing.assert_close(embedded_NE, saved_NE, atol=1e-5, rtol=0)
    trained_NE = encoder.embed_all(encoder.token_table(sentences[:20], "passage"))
    torch.testing.assert_close(embedded_NE, trained_NE, atol=1e-4, rtol=0)
    for key, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_modules_behind_the_backbone_are_blended_too(
    make_st_folder: Callable[..., Path], bare_folder: Path, load: Load, adapt: Adapt
) -> None:
    folder = make_st_folder(bare_folder, dense=True)
    encoder = trained("full", folder, load, adapt)
    half = blended(encoder, 0.5)
    for start, end, middle in zip(
        SentenceTransformer(str(folder), device="cpu")[2].parameters(),
        encoder[2].parameters(),
        half[2].parameters(),
        strict=True,
    ):
        torch.testing.assert_close(middle, (start + end.detach()) / 2)


def test_a_checkpoint_in_half_precision_stays_one(
    make_checkpoint: Callable[..., Path], bert_config: dict[str, Any], load: Load, adapt: Adapt
) -> None:
    from transformers import BertConfig

    encoder = load(make_checkpoint(BertConfig(**bert_config), dtype="bfloat16"))
    adapt(encoder)
    for weight in (0.0, 0.3, 1.0):
        assert {tensor.dtype for tensor in blended_model(encoder, weight).parameters()} == {torch.bfloat16}
    assert_same_weights(blended_model(encoder, 1.0), encoder.merged().state_dict())


def test_merged_into_the_original_weights(st_folder: Path, load: Load, adapt: Adapt) -> None:
    encoder = trained("qlora", st_folder, load, adapt)
    tuned = encoder.merged(into_original=True).state_dict()
    assert_same_weights(blended_model(encoder, 1.0, into_original=True), tuned)


def test_prompts_changed_after_loading_are_kept(st_folder: Path, load: Load) -> None:
    encoder = load(st_folder)
    encoder.prompts = {"query": "ask: ", "document": ""}
    assert blended(encoder, 0.5).prompt("query") == blended_model(encoder, 0.5).prompts["query"] == "ask: "


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan")])
def test_weights_beyond_the_ends_are_refused(weight: float, st_folder: Path, load: Load) -> None:
    encoder = load(st_folder)
    with pytest.raises(ValueError, match=r"expected a number from 0 \(the base\) to 1"):
        blended(encoder, weight)
    with pytest.raises(ValueError, match="expected a number from 0"):
        blended_model(encoder, weight)
