"""embedtune: fine-tune a text-embedding model on your own question/passage pairs, and prove what it gained."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedtune.config import AdapterConfig, DataConfig, ModelConfig, OutputConfig, TrainConfig, TrainingConfig
    from embedtune.errors import EmbedtuneError, RunError, TrainingInterrupted, UserError
    from embedtune.inference import encode_file, evaluate_models
    from embedtune.models.adapters import attach_lora
    from embedtune.models.encoder import Encoder
    from embedtune.models.load import load_encoder
    from embedtune.pipeline import train

__version__ = "0.1.0"

_HOME = {
    "AdapterConfig": "config",
    "DataConfig": "config",
    "ModelConfig": "config",
    "OutputConfig": "config",
    "TrainConfig": "config",
    "TrainingConfig": "config",
    "EmbedtuneError": "errors",
    "RunError": "errors",
    "TrainingInterrupted": "errors",
    "UserError": "errors",
    "Encoder": "models.encoder",
    "attach_lora": "models.adapters",
    "encode_file": "inference",
    "evaluate_models": "inference",
    "load_encoder": "models.load",
    "train": "pipeline",
}
"""Public names and the modules they live in; imported on first use, so that `import embedtune` is instant."""

__all__ = ["__version__", *sorted(_HOME)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'embedtune' has no attribute '{name}'")
    return getattr(importlib.import_module(f"embedtune.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
