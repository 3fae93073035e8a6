"""The folder of a run: what lies where, and whether a run may write there."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from embedtune.atomic import replacing, tidy
from embedtune.errors import OutputError

LOCK, PID = ".lock", ".pid"


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

    def training(self, number: int) -> RunFolder:
        """Where the checkpoints, logs and mined negatives of one of the run's trainings lie, counted from 0.

        The first one's lie in the run's own folder, where those of a single training do.
        """
        return self if number == 0 else RunFolder(self.root / f"training-{number + 1}")

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def fingerprint(self) -> Path:
        """Hashes of the data and the base model, for `--resume`."""
        return self.root / "fingerprint.json"

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    @property
    def suspects(self) -> Path:
        return self.root / "suspects.jsonl"

    @property
    def questions(self) -> Path:
        return self.root / "questions.jsonl"

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
        if not resume and self.root.is_dir() and any(not _is_ours(path) for path in self.root.iterdir()):
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
        """Make the folder, or finish there what a killed process left undone.

        Raises:
            OutputError: the system refuses.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"--out {self.root} can't be made: {error.strerror}.") from error


class RunLock:
    """One run at a time in a folder. The system takes the lock back when its process ends, however it ends."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = FileLock(root / LOCK)

    @property
    def held(self) -> bool:
        return self._lock.is_locked

    def take(self) -> None:
        """Take it, and finish what a killed run left undone in the folder, which exists.

        Raises:
            OutputError: another run has it, or the folder can't be written to.
        """
        try:
            self._lock.acquire(timeout=0)
            (self._root / PID).write_text(f"{os.getpid()}\n", encoding="utf-8")
            tidy(self._root)
            tidy(self._root / "splits")
        except Timeout:
            raise OutputError(
                f"--out {self._root}: another run is writing there{self._owner()}; nothing was changed.\n"
                "Wait for it to end, or type:  --out ANOTHER_FOLDER"
            ) from None
        except OSError as error:
            raise OutputError(f"--out {self._root} can't be written to: {error.strerror or error}.") from error

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _owner(self) -> str:
        try:
            return f" (process {(self._root / PID).read_text(encoding='utf-8').strip()})"
        except OSError:
            return ""


def _is_ours(path: Path) -> bool:
    """Left by a run that was killed before it had written anything."""
    return path.name in (LOCK, PID) or (path.name.startswith(".") and path.name.endswith(".tmp"))


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and programs: indented, NaN refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
