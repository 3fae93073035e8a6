"""The merged model as a plain Sentence Transformers folder, and the check that it is the trained one."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from embedtune.atomic import replacing
from embedtune.errors import ExportMismatchError
from embedtune.models.blend import blended_model
from embedtune.models.encoder import Encoder
from embedtune.models.source import find_folder

logger = logging.getLogger(__name__)

MIN_COSINE = 0.999


def save_adapter(encoder: Encoder, folder: Path) -> None:
    """Write the adapter in PEFT's format, as one that plain PEFT loads on the base."""
    with replacing(folder) as unfinished:
        encoder.write_adapter(unfinished)


def save_merged(encoder: Encoder, folder: Path, *, into_original: bool = False, weight: float = 1.0) -> None:
    """Write the encoder as a plain Sentence Transformers folder.

    Args:
        encoder: trained or not.
        folder: to write.
        into_original: see `Encoder.merged`.
        weight: of what was trained, 1 for all of it; see `models.blend.blended_model`.
    """
    if weight == 1:
        merged = encoder.merged(into_original=into_original)
    else:
        merged = blended_model(encoder, weight, into_original=into_original)
    with replacing(folder) as unfinished:
        merged.save_pretrained(str(unfinished), create_model_card=False)
        if encoder.source.trust_remote_code:
            # Sentence Transformers writes code beside a module, and looks for it beside the list of modules.
            for file in find_folder(encoder.source).glob("*.py"):
                shutil.copyfile(file, unfinished / file.name)


def check_saved(folder: Path, encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """Check that the saved model is the trained one.

    Args:
        folder: a Sentence Transformers model.
        encoder: the trained one.
        texts: passages to embed.

    Returns:
        What `compare_saved` does.

    Raises:
        ExportMismatchError: the lowest similarity is below `MIN_COSINE`.
    """
    cosines_N = compare_saved(folder, encoder, texts)
    worst = cosines_N.min().item()
    if not worst >= MIN_COSINE:
        raise ExportMismatchError(
            f"{folder}: loaded again, this model embeds differently from the trained one "
            f"(cosine {worst:.5f}, expected at least {MIN_COSINE}). The adapter and the checkpoints are intact."
        )
    logger.info("saved model agrees with the trained one: cosine at least %.6f", worst)
    return cosines_N


def compare_saved(folder: Path, encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """Load the folder with plain Sentence Transformers and compare embeddings with the trained encoder's.

    Returns:
        The cosine similarity of the two embeddings of each text, shape (N,).
    """
    trusted = encoder.source.trust_remote_code
    saved = SentenceTransformer(str(folder), device="cpu", trust_remote_code=trusted, local_files_only=not trusted)
    prompt = encoder.prompt("passage") or None
    saved_NE = torch.as_tensor(saved.encode(list(texts), prompt=prompt, show_progress_bar=False))
    trained_NE = encoder.embed_all(encoder.token_table(texts, "passage"))
    return torch.cosine_similarity(saved_NE.float(), trained_NE)
