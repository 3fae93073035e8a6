"""Cross-encoders: a model that reads a question and a passage together, and says how well they fit."""

from __future__ import annotations

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
from embedtune.models.source import find_folder, read_json

EXAMPLE = "cross-encoder/ms-marco-MiniLM-L6-v2"
"""What errors suggest."""
SCORED_AT_A_TIME = 32
_CHUNK = 1_024
"""Pairs sorted by length together, so that little is padded."""
_HEADS = ("ForSequenceClassification", "ForCausalLM")
"""What the names of models end in that give a score for a text."""


def load_cross_encoder(config: ModelConfig) -> CrossEncoder:
    """A teacher in fp32, which gives logits.

    Args:
        config: `base` names it; device, revision and `trust_remote_code` count too.

    Raises:
        ModelError: there is no such model, it can't be reached, or it does not give one score for a pair.
    """
    folder = find_cross_encoder(config, option="teacher")
    return open_cross_encoder(
        folder, config, option="teacher", device=choose_device(config.device), activation=nn.Identity()
    )


def find_cross_encoder(config: ModelConfig, *, option: str) -> Path:
    """Its folder, as `find_folder` has it, in whose errors the model is what the option names.

    Raises:
        ModelError: there is no such model, it can't be reached, its weights are pickled, or it is no cross-encoder.
    """
    try:
        folder = find_folder(config)
    except ModelError as error:
        said = str(error).replace("--base FOLDER", f"--{option} FOLDER")
        said = said.replace("import SentenceTransformer as M", "import CrossEncoder as M")
        raise ModelError(said.replace("sentence-transformers/all-MiniLM-L12-v2", EXAMPLE)) from error
    _check_has_a_head(config.base, folder, option)
    return folder


def open_cross_encoder(
    folder: Path, config: ModelConfig, *, option: str, device: torch.device, activation: nn.Module
) -> CrossEncoder:
    """Load it in fp32, from safetensors and without running code of its own.

    Args:
        folder: from `find_cross_encoder`.
        config: `base` and `trust_remote_code` count.
        option: that names it, for errors.
        device: where to compute.
        activation: what its scores go through.

    Raises:
        ModelError: it can't be loaded, or does not give one score for a pair.
    """
    try:
        model: CrossEncoder = CrossEncoder(
            str(folder),
            device=str(device),
            trust_remote_code=config.trust_remote_code,
            local_files_only=not config.trust_remote_code,
            model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            activation_fn=activation,
        )
    except torch.OutOfMemoryError:
        raise  # a RuntimeError, but nothing is wrong with the model
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise _load_error(config.base, option, error) from error
    if model.num_labels != 1:
        raise ModelError(
            f"--{option} {config.base} gives {model.num_labels} scores for a question and a passage, expected one.\n"
            f"Type:  --{option} {EXAMPLE}, or another reranker."
        )
    return model


def _load_error(name: str, option: str, error: Exception) -> ModelError:
    if "trust_remote_code" in str(error):
        return ModelError(
            f"--{option} {name} comes with Python code of its own, which was not run.\n"
            "If you have read it and trust it, type:  --trust-remote-code"
        )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ModelError(
        f"--{option} {name} could not be loaded as a cross-encoder: {reason}\n"
        f"Type:  --{option} {EXAMPLE}, or another reranker."
    )


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


def _check_has_a_head(model: str, folder: Path, option: str) -> None:
    """Refuse what has none: the libraries would give it a head of random numbers, with a warning."""
    if read_json(folder / "config_sentence_transformers.json").get("model_type") == "CrossEncoder":
        return
    named = read_json(folder / "config.json").get("architectures") or []
    architectures = [str(one) for one in (named if isinstance(named, list) else [named])]
    # Of a language model the logits of "yes" and "no" are taken; in a folder with modules it is part of an encoder.
    heads = _HEADS[:1] if (folder / "modules.json").is_file() else _HEADS
    if not any(architecture.endswith(heads) for architecture in architectures):
        found = ", ".join(architectures) or "no architecture"
        raise ModelError(
            f"--{option} {model} is no cross-encoder: its config names {found}, "
            f"expected a name that ends in {_HEADS[0]}.\n"
            f"Type:  --{option} {EXAMPLE}, or another reranker."
        )
