"""A cross-encoder as a teacher: it reads a question and a passage together, and says how well they fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from sentence_transformers import CrossEncoder
from torch import nn

from embedtune.config import ModelConfig
from embedtune.errors import ModelError
from embedtune.models.hardware import choose_device
from embedtune.models.source import find_folder

SCORED_AT_A_TIME = 32
_CHUNK = 1_024
"""Pairs sorted by length together, so that little is padded."""
_HEADS = ("ForSequenceClassification", "ForCausalLM")
"""What the names of models end in that give a score for a text."""


def load_cross_encoder(config: ModelConfig) -> CrossEncoder:
    """Load a cross-encoder in fp32, from safetensors and without running code of its own.

    Args:
        config: `base` names it; device, revision and `trust_remote_code` count too.

    Raises:
        ModelError: there is no such model, it can't be reached, or it does not give one score for a pair.
    """
    folder = find_folder(config)
    _check_has_a_head(config.base, folder)
    try:
        loaded: CrossEncoder = CrossEncoder(
            str(folder),
            device=str(choose_device(config.device)),
            trust_remote_code=config.trust_remote_code,
            local_files_only=not config.trust_remote_code,
            model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            activation_fn=nn.Identity(),
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"--teacher {config.base} could not be loaded as a cross-encoder: {reason}") from error
    if loaded.num_labels != 1:
        raise ModelError(
            f"--teacher {config.base} gives {loaded.num_labels} scores for a question and a passage, expected one.\n"
            "Type:  --teacher cross-encoder/ms-marco-MiniLM-L6-v2, or another reranker."
        )
    return loaded


def score_pairs(
    model: CrossEncoder, pairs: Sequence[tuple[str, str]], *, on_progress: Callable[[int], None] | None = None
) -> npt.NDArray[np.float32]:
    """The logit of each question and passage, in the order given.

    Args:
        model: from `load_cross_encoder`.
        pairs: questions with passages.
        on_progress: called with the number of pairs done after each chunk.
    """
    scores = np.empty(len(pairs), dtype=np.float32)
    for start in range(0, len(pairs), _CHUNK):
        chunk: Any = list(pairs[start : start + _CHUNK])  # of a type of a hundred parts
        scores[start : start + len(chunk)] = model.predict(
            chunk, batch_size=SCORED_AT_A_TIME, show_progress_bar=False, activation_fn=nn.Identity()
        )
        if on_progress is not None:
            on_progress(len(chunk))
    return scores


def _check_has_a_head(model: str, folder: Path) -> None:
    """Refuse an encoder without one: the libraries would give it a head of random numbers, with a warning."""
    try:
        architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures")
        kind = str(architectures[0])
    except (OSError, ValueError, AttributeError, LookupError, TypeError, RecursionError):
        kind = "no model that is named"
    if not kind.endswith(_HEADS):
        raise ModelError(
            f"--teacher {model} holds {kind}, expected a cross-encoder: a model that ends in {_HEADS[0]}.\n"
            "Type:  --teacher cross-encoder/ms-marco-MiniLM-L6-v2, or another reranker."
        )
