"""embedtune: fine-tune a text-embedding model on your own question/passage pairs, and prove what it gained."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedtune.config import (
        AdapterConfig,
        DataConfig,
        EvaluationConfig,
        ModelConfig,
        OutputConfig,
        TrainConfig,
        TrainingConfig,
    )
    from embedtune.data.prepare import Splits, prepare, write_splits
    from embedtune.encoding import encode_file
    from embedtune.errors import EmbedtuneError, RunError, TrainingInterrupted, UserError
    from embedtune.evaluation.run import compare
    from embedtune.inference import EvalOutput, evaluate_models
    from embedtune.loading import tokenize
    from embedtune.measuring import evaluate, held_out_task
    from embedtune.models.adapters import attach_adapter, make_trainable, trainable_parameters
    from embedtune.models.encoder import Encoder
    from embedtune.models.load import load_encoder
    from embedtune.pipeline import train
    from embedtune.trainer import build_trainer

__version__ = "0.1.0"

_MODULES = {
    "config": (
        "AdapterConfig",
        "DataConfig",
        "EvaluationConfig",
        "ModelConfig",
        "OutputConfig",
        "TrainConfig",
        "TrainingConfig",
    ),
    "data.prepare": ("Splits", "prepare", "write_splits"),
    "encoding": ("encode_file",),
    "errors": ("EmbedtuneError", "RunError", "TrainingInterrupted", "UserError"),
    "evaluation.run": ("compare",),
    "inference": ("EvalOutput", "evaluate_models"),
    "loading": ("tokenize",),
    "measuring": ("evaluate", "held_out_task"),
    "models.adapters": ("attach_adapter", "make_trainable", "trainable_parameters"),
    "models.encoder": ("Encoder",),
    "models.load": ("load_encoder",),
    "pipeline": ("train",),
    "trainer": ("build_trainer",),
}
"""Where the public names live; imported on first use, so that `import embedtune` is instant."""

__all__ = [
    "AdapterConfig",
    "DataConfig",
    "EmbedtuneError",
    "Encoder",
    "EvalOutput",
    "EvaluationConfig",
    "ModelConfig",
    "OutputConfig",
    "RunError",
    "Splits",
    "TrainConfig",
    "TrainingConfig",
    "TrainingInterrupted",
    "UserError",
    "__version__",
    "attach_adapter",
    "build_trainer",
    "compare",
    "encode_file",
    "evaluate",
    "evaluate_models",
    "held_out_task",
    "load_encoder",
    "make_trainable",
    "prepare",
    "tokenize",
    "train",
    "trainable_parameters",
    "write_splits",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"embedtune.{module}"), name)
    raise AttributeError(f"module 'embedtune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
