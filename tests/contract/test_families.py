"""Every supported architecture embeds and learns packed exactly as it does padded.

To add a family, add a row to `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor

from embedtune.config import AdapterConfig, ModelConfig
from embedtune.export.sentence_transformers import check_saved, compare_saved, save_adapter, save_merged
from embedtune.models.adapters import make_trainable
from embedtune.models.encoder import Encoder
from embedtune.models.families import encoder_linears
from embedtune.models.load import check_encoder
from embedtune.models.quantize import nf4_layers
from embedtune.models.recompute import recompute_layers

MAX_LENGTH = 64
SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
}
DECODER = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}


@dataclass(frozen=True)
class Family:
    """One architecture as people publish it: its config, pooling and special tokens."""

    config: str
    """Name of the config class in transformers."""
    sizes: dict[str, Any]
    packed: bool = True
    pooling: str = "mean"
    tokenizer: dict[str, Any] = field(default_factory=dict)
    dense: bool = False
    """Whether Dense and LayerNorm modules follow the pooling, as in EmbeddingGemma."""


FAMILIES = {
    "bert": Family("BertConfig", SIZES),
    "roberta": Family("RobertaConfig", {**SIZES, "pad_token_id": 1, "type_vocab_size": 1}, tokenizer={"pad_id": 1}),
    "xlm-roberta": Family(
        "XLMRobertaConfig",
        {**SIZES, "pad_token_id": 1, "type_vocab_size": 1},
        pooling="cls",
        tokenizer={"pad_id": 1},
    ),
    "distilbert": Family(
        "DistilBertConfig",
        {
            "vocab_size": 200,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 64,
            "max_position_embeddings": 66,
        },
    ),
    "electra": Family("ElectraConfig", {**SIZES, "embedding_size": 16}),
    "albert-shared-layers": Family("AlbertConfig", {**SIZES, "embedding_size": 16, "num_hidden_layers": 3}),
    "nomic": Family("NomicBertConfig", SIZES),
    "gte": Family("GteConfig", SIZES, pooling="cls"),
    "jina-v3": Family("JinaEmbeddingsV3Config", {**SIZES, "pad_token_id": 1}, tokenizer={"pad_id": 1}),
    "eurobert": Family("EuroBertConfig", DECODER),
    "mpnet": Family("MPNetConfig", {**SIZES, "pad_token_id": 1}, tokenizer={"pad_id": 1}),
    # Windows of 9 tokens in one of two layers; most texts are longer.
    "modernbert": Family(
        "ModernBertConfig",
        {
            **SIZES,
            "local_attention": 8,
            "global_attn_every_n_layers": 2,
            "pad_token_id": 0,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
    ),
    "qwen3": Family("Qwen3Config", DECODER, pooling="lasttoken", tokenizer={"template": "$A [SEP]"}),
    "qwen3-window": Family(
        "Qwen3Config",
        {**DECODER, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
        pooling="lasttoken",
        tokenizer={"template": "$A [SEP]"},
    ),
    "llama": Family("LlamaConfig", DECODER, pooling="lasttoken", tokenizer={"template": "$A [SEP]"}),
    "mistral-window": Family(
        "MistralConfig", {**DECODER, "sliding_window": 7}, pooling="lasttoken", tokenizer={"template": "[CLS] $A [SEP]"}
    ),
    "gemma3-bidirectional": Family(
        "Gemma3TextConfig",
        {
            **DECODER,
            "use_bidirectional_attention": True,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        dense=True,
    ),
    "t5": Family(
        "T5Config",
        {"vocab_size": 200, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        packed=False,
    ),
    "gemma2-softcap": Family(
        "Gemma2Config", {**DECODER, "sliding_window": 8, "query_pre_attn_scalar": 8}, packed=False
    ),
}

Load = Callable[..., Encoder]
Adapt = Callable[..., PeftModel]

BATCHES = {
    "odd lengths": slice(0, 37),
    "one text": slice(16, 17),
    "one short text": slice(0, 1),
    "with an empty text": slice(-3, None),
}


@dataclass(frozen=True)
class Loaded:
    """A family's checkpoint, and three encoders of it."""

    family: Family
    folder: Path
    encoder: Encoder
    adapted: Encoder
    """With an adapter that changes the embeddings."""
    adapter: PeftModel
    """PEFT's view of `adapted`'s backbone."""
    reference: Encoder
    """With the same adapter, on padded batches and transformers' own attention."""


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(
    request: pytest.FixtureRequest,
    make_checkpoint: Callable[..., Path],
    make_st_folder: Callable[..., Path],
    load: Callable[..., Encoder],
    adapt: Callable[..., PeftModel],
) -> Loaded:
    family = FAMILIES[request.param]
    config = getattr(transformers, family.config)(**family.sizes)
    folder = make_st_folder(make_checkpoint(config, **family.tokenizer), pooling=family.pooling, dense=family.dense)
    encoder, adapted, reference = load(folder), load(folder), load(folder)
    reference.backbone.set_attn_implementation("eager")
    reference.packed = False
    adapter = adapt(adapted)
    adapt(reference)
    return Loaded(family, folder, encoder, adapted, adapter, reference)


@pytest.fixture
def texts(sentences: list[str]) -> list[str]:
    return [*sentences[:37], "word", " ".join(sentences[:20]), ""]


def test_packing_is_used_or_the_user_is_told(loaded: Loaded) -> None:
    assert loaded.encoder.packed == loaded.family.packed
    told = any("texts are padded, which is slower, because" in note for note in loaded.encoder.notes)
    assert told != loaded.encoder.packed


def test_it_can_be_checked_without_its_weights_being_read(loaded: Loaded) -> None:
    config = ModelConfig(base=str(loaded.folder), device="cpu")
    assert check_encoder(config) == config


def test_encode_is_what_sentence_transformers_encodes(loaded: Loaded, texts: list[str]) -> None:
    tokens = loaded.encoder.token_table(texts, "passage")
    assert {int(length) % 2 for length in tokens.lengths_N} == {0, 1}
    assert tokens.lengths_N.max() == MAX_LENGTH
    plain = SentenceTransformer(str(loaded.folder), device="cpu")
    plain_NE = plain.encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(loaded.encoder.embed_all(tokens), plain_NE, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch", BATCHES)
def test_packed_outputs_and_adapter_gradients_are_the_padded_ones(loaded: Loaded, batch: str, texts: list[str]) -> None:
    packed_BE, packed_gradients = embed_and_differentiate(loaded.adapted, texts[BATCHES[batch]])
    padded_BE, padded_gradients = embed_and_differentiate(loaded.reference, texts[BATCHES[batch]])
    torch.testing.assert_close(packed_BE, padded_BE, atol=1e-5, rtol=0)
    assert packed_gradients.keys() == padded_gradients.keys()
    assert max(gradient.abs().max() for gradient in padded_gradients.values()) > 1e-3
    for name, gradient in padded_gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def embed_and_differentiate(encoder: Encoder, texts: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """The embeddings of one forward, and the gradient of every adapter parameter for a random direction."""
    encoder.zero_grad()
    table = encoder.token_table(texts, "passage")
    embeddings_BE = encoder.embed([table[index] for index in range(len(table))])
    direction_BE = torch.randn(embeddings_BE.shape, generator=torch.Generator().manual_seed(2))
    (embeddings_BE * direction_BE).sum().backward()  # type: ignore[no-untyped-call]
    gradients = {}
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} takes no part in the embedding"
            gradients[name] = parameter.grad
    return embeddings_BE.detach(), gradients


def test_every_adapter_layer_is_fused(loaded: Loaded) -> None:
    layers = [module for module in loaded.adapted.modules() if hasattr(module, "lora_A")]
    assert len(layers) >= 2 * 4 or loaded.family.config == "AlbertConfig"  # one layer's worth, whatever its depth
    assert all("forward" in vars(layer) for layer in layers)


def test_the_saved_model_is_the_trained_one(loaded: Loaded, texts: list[str], tmp_path: Path) -> None:
    save_adapter(loaded.adapted, tmp_path / "adapter")
    save_merged(loaded.adapted, tmp_path / "model")
    assert check_saved(tmp_path / "model", loaded.adapted, texts).min() > 0.99999
    untrained_NE = loaded.encoder.embed_all(loaded.encoder.token_table(texts, "passage"))
    trained_NE = loaded.adapted.embed_all(loaded.adapted.token_table(texts, "passage"))
    assert torch.cosine_similarity(untrained_NE, trained_NE).min() < 0.99


@pytest.mark.parametrize("mode", Pooling.POOLING_MODES)
def test_every_pooling_mode(loaded: Loaded, mode: str, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    size = loaded.encoder.backbone.config.hidden_size
    monkeypatch.setitem(loaded.encoder._modules, "1", Pooling(size, pooling_mode=mode))
    tokens = loaded.encoder.token_table(texts, "passage")
    packed_NE = loaded.encoder.embed_all(tokens)
    monkeypatch.setattr(loaded.encoder, "packed", False)
    torch.testing.assert_close(packed_NE, loaded.encoder.embed_all(tokens), atol=1e-5, rtol=0)


def test_checkpointed_layers_have_the_same_gradients(
    loaded: Loaded, load: Load, adapt: Adapt, texts: list[str]
) -> None:
    kept_BE, kept_gradients = embed_and_differentiate(loaded.adapted, texts)
    encoder = load(loaded.folder)
    adapt(encoder)
    assert recompute_layers(encoder.backbone) >= 1
    recomputed_BE, recomputed_gradients = embed_and_differentiate(encoder, texts)
    assert torch.equal(recomputed_BE, kept_BE)
    for name, gradient in kept_gradients.items():
        torch.testing.assert_close(recomputed_gradients[name], gradient, atol=0, rtol=0, msg=name)


def test_all_weights_can_be_trained(loaded: Loaded, load: Load, texts: list[str]) -> None:
    results = []
    for packed in (loaded.family.packed, False):
        encoder = load(loaded.folder, master_weights=True)
        encoder.packed = packed
        make_trainable(encoder, AdapterConfig(method="full"))
        results.append(embed_and_differentiate(encoder, texts))
    (packed_BE, packed_gradients), (padded_BE, padded_gradients) = results
    torch.testing.assert_close(packed_BE, padded_BE, atol=1e-5, rtol=0)
    for name, gradient in padded_gradients.items():
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(packed_gradients[name] / scale, gradient / scale, atol=1e-5, rtol=1e-4, msg=name)


@pytest.fixture(scope="module", params=["low", "auto"])
def quantised(request: pytest.FixtureRequest, loaded: Loaded, load: Load, adapt: Adapt) -> Encoder:
    encoder = load(loaded.folder, four_bit=True, memory=request.param)
    assert any("layers in 4 bits (NF4)" in note for note in encoder.notes)
    adapt(encoder, method="qlora")
    return encoder


def test_a_four_bit_base_is_a_base_with_other_weights(
    quantised: Encoder, loaded: Loaded, load: Load, adapt: Adapt, texts: list[str]
) -> None:
    layers = nf4_layers(quantised)
    kept = tuple(loaded.encoder.backbone._keep_in_fp32_modules or ())  # T5 has some
    linears = encoder_linears(loaded.encoder.backbone)
    assert sorted(layers) == sorted(name for name in linears if not name.endswith(kept))
    reference = load(loaded.folder)
    for name, layer in layers.items():
        weight = reference.backbone.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        changed = (weight - layer.frozen_weight(torch.float32)).norm() / weight.norm()
        assert 0.03 < changed < 0.2
        weight.data = layer.frozen_weight(torch.float32)
    adapt(reference)
    four_bit_BE, four_bit_gradients = embed_and_differentiate(quantised, texts)
    dense_BE, dense_gradients = embed_and_differentiate(reference, texts)
    torch.testing.assert_close(four_bit_BE, dense_BE, atol=1e-5, rtol=0)
    for name, gradient in dense_gradients.items():
        torch.testing.assert_close(four_bit_gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_the_saved_model_is_the_one_trained_in_four_bits(quantised: Encoder, texts: list[str], tmp_path: Path) -> None:
    save_merged(quantised, tmp_path / "model")
    assert check_saved(tmp_path / "model", quantised, texts).min() > 0.99999
    save_merged(quantised, tmp_path / "other", into_original=True)
    assert compare_saved(tmp_path / "other", quantised, texts).min() < 0.9999
