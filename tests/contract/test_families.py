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
from torch import Tensor

from embedtune.config import ModelConfig
from embedtune.export.sentence_transformers import check_saved, save_adapter, save_merged
from embedtune.models.encoder import Encoder

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
    "mpnet": Family("MPNetConfig", {**SIZES, "pad_token_id": 1}, packed=False, tokenizer={"pad_id": 1}),
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
    "gemma3-bidirectional": Family(
        "Gemma3TextConfig",
        {
            **DECODER,
            "use_bidirectional_attention": True,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
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
    folder = make_st_folder(make_checkpoint(config, **family.tokenizer), pooling=family.pooling)
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


def test_encode_is_what_sentence_transformers_encodes(loaded: Loaded, texts: list[str]) -> None:
    tokens = loaded.encoder.tokenize(texts, "passage")
    assert {int(length) % 2 for length in tokens.lengths_N} == {0, 1}
    assert tokens.lengths_N.max() == MAX_LENGTH
    plain = SentenceTransformer(str(loaded.folder), device="cpu")
    plain_NE = plain.encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(loaded.encoder.encode(tokens), plain_NE, atol=1e-5, rtol=0)


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
    table = encoder.tokenize(texts, "passage")
    embeddings_BE = encoder([table[index] for index in range(len(table))])
    direction_BE = torch.randn(embeddings_BE.shape, generator=torch.Generator().manual_seed(2))
    (embeddings_BE * direction_BE).sum().backward()
    gradients = {}
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} takes no part in the embedding"
            gradients[name] = parameter.grad
    return embeddings_BE.detach(), gradients


def test_every_adapter_layer_is_fused(loaded: Loaded) -> None:
    layers = [module for module in loaded.adapted.modules() if hasattr(module, "lora_A")]
    assert len(layers) >= 2 * 4
    assert all("forward" in vars(layer) for layer in layers)


def test_the_saved_model_is_the_trained_one(loaded: Loaded, texts: list[str], tmp_path: Path) -> None:
    save_adapter(loaded.adapter, tmp_path / "adapter", base=str(loaded.folder))
    save_merged(ModelConfig(base=str(loaded.folder)), tmp_path / "adapter", tmp_path / "model")
    assert check_saved(tmp_path / "model", loaded.adapted, texts) > 0.99999
    untrained_NE = loaded.encoder.encode(loaded.encoder.tokenize(texts, "passage"))
    trained_NE = loaded.adapted.encode(loaded.adapted.tokenize(texts, "passage"))
    assert torch.cosine_similarity(untrained_NE, trained_NE).min() < 0.99
