"""The folder of a run: what lies where, and whether a run may write there."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedtune.atomic import replacing
from embedtune.errors import OutputError


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run's output."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def splits(self) -> Path:
        return self.root / "splits"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    @property
    def suspects(self) -> Path:
        return self.root / "suspects.jsonl"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def check(self, *, resume: bool) -> None:
        """Refuse a folder that a new run would mix with something else, or that can't be written; writes nothing.

        Raises:
            OutputError: the folder holds a run (or anything else) and this one does not resume it, it holds no run
                to resume, or it can't be written to.
        """
        if self.root.exists() and not self.root.is_dir():
            raise OutputError(f"--out {self.root} is a file, expected a folder.\nType:  --out ANOTHER_FOLDER")
        holds_run = self.config.is_file()
        if resume and not holds_run:
            raise OutputError(f"--resume: {self.root} holds no run to go on with.\nLeave --resume out to start one.")
        if not resume and self.root.is_dir() and any(self.root.iterdir()):
            content = "a run" if holds_run else "files that no run wrote"
            go_on = ", or --resume to go on with that run" if holds_run else ""
            raise OutputError(
                f"--out {self.root} already holds {content}; nothing was changed.\nType:  --out ANOTHER_FOLDER{go_on}"
            )
        existing = next(path for path in (self.root, *self.root.absolute().parents) if path.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            raise OutputError(
                f"--out {self.root}: no permission to write in {existing}.\n"
                "Type:  --out FOLDER with a folder that you may write to."
            )

    def create(self) -> None:
        """Make the folder.

        Raises:
            OutputError: the system refuses.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"--out {self.root} can't be made: {error.strerror}.") from error


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and programs: indented, NaN refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
