"""Where a run goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedtune.checks import require, require_usable


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where the run goes."""

    out: Path = Path("embedtune-run")
    """Folder to write the model, the adapter, the results and the checkpoints to."""
    seed: int = 0
    """Drives the splits, the data order, the adapter's start and the resampling."""
    resume: bool = False
    """Go on with the run in the output folder from its last checkpoint."""

    def __post_init__(self) -> None:
        require_usable(self)
        require(self.seed >= 0, "seed", self.seed, "0 or more")
