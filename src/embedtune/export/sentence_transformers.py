"""The merged model as a plain Sentence Transformers folder, and the check that it is the trained one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer

from embedtune.atomic import replacing
from embedtune.config import ModelConfig
from embedtune.errors import ExportMismatchError
from embedtune.models.encoder import Encoder
from embedtune.models.load import load_sentence_transformer, set_max_length

logger = logging.getLogger(__name__)

MIN_COSINE = 0.999


def save_adapter(adapted: PeftModel, folder: Path, *, base: str) -> None:
    """Write the adapter in PEFT's format; `base` is what plain PEFT is to load it on."""
    adapted.peft_config["default"].base_model_name_or_path = base
    with replacing(folder) as unfinished:
        adapted.save_pretrained(str(unfinished))


def save_merged(model: ModelConfig, adapter: Path, folder: Path) -> None:
    """Merge the adapter into a fresh copy of the base, in fp32, and save it as a Sentence Transformers folder.

    The weights are saved in the dtype of the base's checkpoint, with the base's own settings and prompts.
    """
    merged, _ = load_sentence_transformer(
        model.base,
        device=torch.device("cpu"),
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
    )
    set_max_length(merged, model.max_length)
    base = merged.transformers_model
    assert base is not None
    dtype = base.dtype
    merged[0].to(torch.float32)
    merged[0].model = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().to(dtype)
    with replacing(folder) as unfinished:
        merged.save_pretrained(str(unfinished), create_model_card=False)


def check_saved(folder: Path, encoder: Encoder, texts: Sequence[str]) -> float:
    """Load the folder with plain Sentence Transformers and compare embeddings with the trained encoder's.

    Args:
        folder: a Sentence Transformers model.
        encoder: the trained one.
        texts: passages to embed.

    Returns:
        The lowest cosine similarity of the two embeddings of a text.

    Raises:
        ExportMismatchError: it is below `MIN_COSINE`.
    """
    saved = SentenceTransformer(str(folder), device="cpu")
    prompt = encoder.prompt("passage") or None
    saved_NE = torch.as_tensor(saved.encode(list(texts), prompt=prompt, show_progress_bar=False))
    trained_NE = encoder.encode(encoder.tokenize(texts, "passage"))
    worst = torch.cosine_similarity(saved_NE.float(), trained_NE).min().item()
    if not worst >= MIN_COSINE:
        raise ExportMismatchError(
            f"{folder}: loaded again, this model embeds differently from the trained one "
            f"(cosine {worst:.5f}, expected at least {MIN_COSINE}). The adapter and the checkpoints are intact."
        )
    logger.info("saved model agrees with the trained one: cosine at least %.6f", worst)
    return worst
