"""Encoders of well-known shapes with random weights, as checkpoints: a step costs the same whatever the values are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, PreTrainedConfig, XLMRobertaConfig

from embedtune.errors import ConfigError, ModelError


def minilm_l6() -> PreTrainedConfig:
    """all-MiniLM-L6-v2."""
    return BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)


def minilm_l12() -> PreTrainedConfig:
    """all-MiniLM-L12-v2."""
    return BertConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1536)


def bert_base() -> PreTrainedConfig:
    """bert-base-uncased, which is what `BertConfig` describes where nothing is said."""
    return BertConfig()


def xlm_roberta_large() -> PreTrainedConfig:
    """xlm-roberta-large, which bge-m3, multilingual-e5-large and their like start from."""
    return XLMRobertaConfig(
        vocab_size=250_002,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )


SIZES: dict[str, Callable[[], PreTrainedConfig]] = {
    "22m": minilm_l6,
    "33m": minilm_l12,
    "110m": bert_base,
    "560m": xlm_roberta_large,
}
ShapeName = Literal["minilm-l6", "minilm-l12", "bert-base", "xlm-r-large"]
SHAPES: dict[ShapeName, str] = {
    "minilm-l6": "22m",
    "minilm-l12": "33m",
    "bert-base": "110m",
    "xlm-r-large": "560m",
}
"""Names of the models that the sizes are those of."""


def write_checkpoint(size: str, folder: Path, *, base: str, seed: int) -> int:
    """Write a model of that size in fp32, and the tokenizer of `base`, as a bare checkpoint.

    The tokenizer need not be the architecture's own: its lengths are real enough, and its ids are valid wherever its
    vocabulary is no larger than the model's.

    Args:
        size: a key of `SIZES`.
        folder: to write to.
        base: hub id or folder of the tokenizer.
        seed: of the weights.

    Returns:
        The number of parameters.

    Raises:
        ConfigError: the tokenizer has more ids than the model has embeddings.
        ModelError: there is no such tokenizer.
    """
    config, tokenizer = SIZES[size](), _tokenizer(base)
    if len(tokenizer) > config.vocab_size:
        raise ConfigError(
            f"--base {base}: its tokenizer has {len(tokenizer):,} ids, and size {size} has {config.vocab_size:,} "
            "embeddings.\nType:  --base sentence-transformers/all-MiniLM-L6-v2, whose ids fit every size."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    count: int = model.num_parameters()
    return count


def _tokenizer(base: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"--base {base}: its tokenizer could not be loaded: {str(error).splitlines()[0]}\n"
            "Expected a hub id or a folder with a tokenizer, such as all-MiniLM-L6-v2's."
        ) from error
