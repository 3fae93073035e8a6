"""A cross-encoder that says how well a passage answers a question, reading both at once.

Shapes: `P` pairs of a question and a passage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from sentence_transformers import CrossEncoder

from embedtune.config import ModelConfig
from embedtune.errors import ModelError
from embedtune.models.source import find_folder, looks_like_a_folder, read_json

PAIRS_PER_FORWARD = {"cpu": 32, "cuda": 256}


@dataclass(frozen=True)
class Judge:
    """A cross-encoder, loaded. Made by `load_judge`."""

    name: str
    """As typed."""
    revision: str | None
    """The commit of a hub model."""
    model: CrossEncoder

    def scores(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float64]:
        """How well each passage answers its question, from 0 to 1, shape (P,)."""
        if not pairs:
            return np.zeros(0)
        size = PAIRS_PER_FORWARD.get(self.model.device.type, PAIRS_PER_FORWARD["cpu"])
        scores_P = self.model.predict(list(pairs), batch_size=size, show_progress_bar=False, convert_to_tensor=True)
        found: npt.NDArray[np.float64] = scores_P.double().cpu().numpy()
        return found


def load_judge(name: str, *, device: torch.device, trust_remote_code: bool = False) -> Judge:
    """A cross-encoder with one score, in fp32: what is compared are small differences of scores.

    Its own activation is replaced by a sigmoid, so that a share of a score means the same for every judge; the order of
    scores stays.

    Args:
        name: hub id or folder.
        device: where to compute.
        trust_remote_code: run Python code that comes with it.

    Raises:
        ModelError: there is no such model, its weights are pickled, or it is no cross-encoder with one score.
    """
    try:
        folder = find_folder(ModelConfig(base=name, trust_remote_code=trust_remote_code))
    except ModelError as error:
        raise ModelError(_of_a_judge(str(error))) from error
    _check_is_cross_encoder(name, folder)
    try:
        model = CrossEncoder(
            str(folder),
            device=str(device),
            trust_remote_code=trust_remote_code,
            local_files_only=not trust_remote_code,
            model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            activation_fn=torch.nn.Sigmoid(),
        )
    except torch.OutOfMemoryError:
        raise  # a RuntimeError, but nothing is wrong with the model
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise _load_error(name, error) from error
    if model.num_labels != 1:
        raise ModelError(
            f"--judge {name} gives {model.num_labels} scores for a question and a passage, expected one.\n"
            "Type the name of a reranker, such as cross-encoder/ms-marco-MiniLM-L6-v2."
        )
    return Judge(name=name, revision=None if looks_like_a_folder(name) else folder.name, model=model.eval())


def _of_a_judge(message: str) -> str:
    """What `find_folder` says of a base model, for a judge."""
    return (
        message.replace("--base FOLDER", "--judge FOLDER")
        .replace("import SentenceTransformer as M", "import CrossEncoder as M")
        .replace("sentence-transformers/all-MiniLM-L12-v2", "cross-encoder/ms-marco-MiniLM-L6-v2")
    )


def _check_is_cross_encoder(name: str, folder: Path) -> None:
    """Anything else loads as well, with a head of random weights."""
    architectures = read_json(folder / "config.json").get("architectures") or []
    has_head = any(str(architecture).endswith("ForSequenceClassification") for architecture in _listed(architectures))
    if not has_head and read_json(folder / "config_sentence_transformers.json").get("model_type") != "CrossEncoder":
        found = ", ".join(map(str, _listed(architectures))) or "no architecture"
        raise ModelError(
            f"--judge {name} is no cross-encoder: its config names {found}, "
            "expected a name that ends in ForSequenceClassification.\n"
            "Type the name of a reranker, such as cross-encoder/ms-marco-MiniLM-L6-v2."
        )


def _load_error(name: str, error: Exception) -> ModelError:
    if "trust_remote_code" in str(error):
        return ModelError(
            f"--judge {name} comes with Python code of its own, which was not run.\n"
            "If you have read it and trust it, type:  --trust-remote-code"
        )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ModelError(
        f"--judge {name} could not be loaded as a cross-encoder: {reason}\n"
        "Type the name of a reranker, such as cross-encoder/ms-marco-MiniLM-L6-v2."
    )


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
