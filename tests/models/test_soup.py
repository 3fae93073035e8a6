"""The mean of several trainings: of the weights that each comes to, whatever was trained, and saved as any adapter is.

Shapes: `B` texts, `E` embedding size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from sentence_transformers import SentenceTransformer
from torch import Tensor

from embedtune.config import AdapterConfig
from embedtune.models.adapters import make_trainable
from embedtune.models.blend import blended
from embedtune.models.encoder import Encoder
from embedtune.models.soup import has_mean, take_mean
from embedtune.models.start import load_adapter
from embedtune.models.trained import trained_tensors
from tests.models.test_adapter_options import attach, embed, hidden_states, merged_embeddings, plain_peft

Load = Callable[..., Encoder]

ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"rslora": True},
    "gaussian": {"init": "gaussian"},
    "pissa": {"init": "pissa"},
    "pissa, rslora": {"init": "pissa", "rslora": True},
    "pissa, biases and norms": {"init": "pissa", "bias": "all", "modules_to_save": ("LayerNorm",)},
    "embeddings": {"target_modules": ("all-linear", "word_embeddings")},
    "adapter's biases": {"bias": "lora_only", "target_modules": ("query", "value")},
    "linear layers in full": {"modules_to_save": ("query",), "exclude_modules": ("query",)},
    "qlora": {"method": "qlora"},
    "loftq": {"method": "qlora", "init": "loftq"},
    "full": {"method": "full"},
}


def members(encoder: Encoder, count: int) -> list[dict[str, Tensor]]:
    """What as many trainings might come to: each away from the start by another way."""
    generator = torch.Generator().manual_seed(2)
    return [
        {
            name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in trained_tensors(encoder).items()
        }
        for _ in range(count)
    ]


@torch.no_grad()
def become(encoder: Encoder, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the encoder these trained weights; returns the merged model's."""
    for name, tensor in trained_tensors(encoder).items():
        tensor.copy_(weights[name])
    return encoder.merged().state_dict()


def made(load: Load, folder: Path, options: dict[str, Any]) -> Encoder:
    method = options.get("method")
    return attach(load(folder, four_bit=method == "qlora", master_weights=method == "full"), **options)


@pytest.mark.parametrize("options", ADAPTERS.values(), ids=ADAPTERS)
def test_the_mean_is_that_of_the_merged_weights(
    options: dict[str, Any], st_folder: Path, bare_folder: Path, sentences: list[str], load: Load, tmp_path: Path
) -> None:
    if options.get("method") == "qlora":
        pytest.importorskip("bitsandbytes")
    encoder = made(load, st_folder, options)
    weights = members(encoder, 3)
    merged = [become(encoder, own) for own in weights]
    expected = {name: torch.stack([state[name].double() for state in merged]).mean(0) for name in merged[0]}
    assert max((expected[name] - tensor).abs().max().item() for name, tensor in merged[0].items()) > 0.01
    assert has_mean(encoder.adapter)
    take_mean(encoder, encoder.adapter, weights)
    for name, tensor in encoder.merged().state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], atol=2e-6, rtol=1e-5, msg=name)

    embeddings_BE = embed(encoder, sentences[:9]).detach()
    torch.testing.assert_close(merged_embeddings(encoder, sentences[:9]), embeddings_BE, atol=1e-5, rtol=0)
    encoder.save_pretrained(str(tmp_path / "model"))
    saved_BE = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode_document(
        sentences[:9], convert_to_tensor=True
    )
    torch.testing.assert_close(saved_BE, embeddings_BE, atol=1e-5, rtol=0)
    half_BE = embed(blended(encoder, 0.5), sentences[:9])
    assert (half_BE - embeddings_BE).abs().max() > 1e-4
    if encoder.adapter is not None and options.get("method") != "qlora":
        encoder.write_adapter(tmp_path / "adapter")
        theirs_TE = hidden_states(plain_peft(bare_folder, tmp_path / "adapter"), bare_folder, sentences[:9])
        ours_TE = hidden_states(encoder.backbone, bare_folder, sentences[:9])
        torch.testing.assert_close(theirs_TE, ours_TE, atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", [{}, {"rslora": True}], ids=["plain", "rslora"])
def test_an_adapter_with_ranks_of_its_own_for_some_layers_has_its_mean(
    options: dict[str, Any], st_folder: Path, load: Load, tmp_path: Path
) -> None:
    """As others may have written it."""
    first = attach(load(st_folder), **options)
    assert first.adapter is not None
    config: Any = first.adapter.peft_config["default"]
    config.rank_pattern, config.alpha_pattern = {"query": 2}, {"query": 3.0}
    get_peft_model(load(st_folder).backbone, config).save_pretrained(str(tmp_path / "given"))
    encoder = load(st_folder)
    encoder.keep_adapter(load_adapter(encoder, str(tmp_path / "given")))
    weights = members(encoder, 2)
    merged = [become(encoder, own) for own in weights]
    take_mean(encoder, encoder.adapter, weights)
    for name, tensor in encoder.merged().state_dict().items():
        mean = (merged[0][name].double() + merged[1][name].double()) / 2
        torch.testing.assert_close(tensor.double(), mean, atol=2e-6, rtol=1e-5, msg=name)


def test_the_adapter_has_the_ranks_of_all_and_goes_on_as_a_start(
    st_folder: Path, sentences: list[str], load: Load, tmp_path: Path
) -> None:
    encoder = attach(load(st_folder))
    take_mean(encoder, encoder.adapter, members(encoder, 3))
    encoder.write_adapter(tmp_path)
    further = load(st_folder)
    make_trainable(further, AdapterConfig(start_adapter=str(tmp_path)))
    assert further.adapter is not None
    config: Any = further.adapter.peft_config["default"]
    assert (config.r, config.lora_alpha) == (12, 8.0)
    torch.testing.assert_close(embed(further, sentences[:9]), embed(encoder, sentences[:9]), atol=1e-6, rtol=0)
    embed(encoder, sentences[:9]).sum().backward()  # type: ignore[no-untyped-call]
    assert all(tensor.grad is not None for tensor in encoder.parameters() if tensor.requires_grad)


@pytest.mark.parametrize("options", [{"dora": True}, {"dora": True, "target_modules": ("word_embeddings",)}])
def test_dora_has_none(options: dict[str, Any], st_folder: Path, load: Load) -> None:
    assert not has_mean(attach(load(st_folder), **options).adapter)
    assert has_mean(attach(load(st_folder), **{**options, "dora": False}).adapter)
