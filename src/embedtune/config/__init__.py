"""What a run can be told: one frozen dataclass a topic, one line a setting.

The command line, the TOML file and the Python API share these classes. `None` means "derived from the model and the
data"; the derived value is printed and saved in the run's `config.toml`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from embedtune.config.adapter import AdapterConfig
from embedtune.config.data import DataConfig
from embedtune.config.evaluation import EvaluationConfig
from embedtune.config.loss import LossConfig
from embedtune.config.model import ModelConfig
from embedtune.config.output import OutputConfig
from embedtune.config.training import GRADED_METRIC, METRICS, TrainingConfig
from embedtune.errors import ConfigError

__all__ = [
    "GRADED_METRIC",
    "METRICS",
    "AdapterConfig",
    "DataConfig",
    "EvaluationConfig",
    "LossConfig",
    "ModelConfig",
    "OutputConfig",
    "TrainConfig",
    "TrainingConfig",
]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything `embedtune train` can be told."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        if self.model.memory == "low" and self.adapter.method != "qlora":
            raise ConfigError(
                f"--memory low is about 4-bit weights, and --method {self.adapter.method} has none.\n"
                "Type:  --method qlora --memory low, or try --gradient-checkpointing."
            )
