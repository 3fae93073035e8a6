"""The folder of a search: what lies where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedtune.config_file import read_toml
from embedtune.errors import OutputError
from embedtune.export.run_folder import RunFolder


@dataclass(frozen=True)
class SearchFolder(RunFolder):
    """Paths of one search's output; config, splits and fingerprint lie where those of a run do."""

    @property
    def journal(self) -> Path:
        """Optuna's, in JSON lines."""
        return self.root / "journal.jsonl"

    @property
    def trials(self) -> Path:
        return self.root / "trials.jsonl"

    @property
    def best(self) -> Path:
        """The config to train with."""
        return self.root / "best.toml"

    @property
    def page(self) -> Path:
        return self.root / "tune.html"

    @property
    def scratch(self) -> Path:
        """Checkpoints and logs of the training under way; removed with it, or by the next process."""
        return self.root / ".trial.tmp"

    def check(self, *, resume: bool) -> None:
        """As of a run, and a folder to resume has to be a search's.

        Raises:
            OutputError: it holds something else.
        """
        super().check(resume=resume)
        if resume and "tuning" not in read_toml(self.config):
            raise OutputError(
                f"--resume: {self.root} holds a training run, and no search.\n"
                f"Type:  embedtune train --config {self.config} --resume   or leave --resume out and give "
                "another --out."
            )
