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
from embedtune.config.mining import MiningConfig
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
    "MiningConfig",
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
    mining: MiningConfig = field(default_factory=MiningConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        adds_none = self.training.mined_in == "shuffled" and self.mining.hard_negatives == 0
        if self.training.mined_epochs and adds_none:
            raise ConfigError(
                f"--mined-epochs is {self.training.mined_epochs:g}, and --hard-negatives 0 adds none to shuffled "
                "batches.\nType:  --hard-negatives 2, or leave out --mined-epochs."
            )
        if self.model.memory == "low" and self.adapter.method != "qlora":
            raise ConfigError(
                f"--memory low is about 4-bit weights, and --method {self.adapter.method} has none.\n"
                "Type:  --method qlora --memory low, or try --gradient-checkpointing."
            )
