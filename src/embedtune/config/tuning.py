"""What a search for better settings may do."""

from __future__ import annotations

from dataclasses import dataclass, field

from embedtune.checks import require, require_usable
from embedtune.config import TrainConfig
from embedtune.durations import parse_seconds
from embedtune.errors import ConfigError

DIALS = ("lr", "batch-size", "epochs", "rank", "scale")
"""Settings that can be searched, by their options."""


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Which settings to search, and for how long."""

    dials: tuple[str, ...] = ()
    """Settings to search: lr, batch-size, epochs, rank, scale. The learning rate, the batch size, the epochs and the
    scale if not given."""
    trials: int = 16
    """Trainings in all, those before a resume among them; the first is the default recipe."""
    time_budget: str | None = None
    """Start no training, and stop the one that runs, when this is over, such as 30m or 2h; --resume goes on."""
    repeats: int = 1
    """Trainings of the default recipe with other seeds, besides, to show how much a result moves by chance."""
    finish_all: bool = False
    """Train every trial to its end, the hopeless ones too, which are otherwise stopped at an evaluation."""

    def __post_init__(self) -> None:
        require_usable(self)
        object.__setattr__(self, "dials", tuple(name for part in self.dials for name in part.split(",") if name))
        for name in self.dials:
            require(name in DIALS, "dials", name, f"some of {', '.join(DIALS)}")
        require(len(set(self.dials)) == len(self.dials), "dials", ",".join(self.dials), "each name once")
        require(self.trials >= 1, "trials", self.trials, "1 or more")
        require(self.repeats >= 0, "repeats", self.repeats, "0 or more")
        if self.time_budget is not None:
            parse_seconds(self.time_budget, option="time-budget")


@dataclass(frozen=True, kw_only=True)
class TuneConfig(TrainConfig):
    """Everything `embedtune tune` can be told."""

    tuning: TuningConfig = field(default_factory=TuningConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training.max_time is not None:
            raise ConfigError(
                f"--max-time {self.training.max_time} ends one training; a search has many.\n"
                f"Type:  --time-budget {self.training.max_time}"
            )
        adapter, dials = self.adapter, self.tuning.dials
        if "rank" in dials and (adapter.method == "full" or adapter.start_adapter is not None):
            reason = (
                "--method full has no rank" if adapter.method == "full" else "--start-adapter has a rank of its own"
            )
            raise ConfigError(f"--dials rank: {reason}.\nLeave rank out of --dials.")
        if "epochs" in dials and self.training.max_steps is not None:
            raise ConfigError(
                f"--dials epochs: --max-steps {self.training.max_steps} says how long a training is.\n"
                "Leave one of them out."
            )
