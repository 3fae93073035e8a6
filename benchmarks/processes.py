"""Starts runners, one at a time, and reads what they measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.jobs import Job, save_job
from embedtune.errors import RunError, UserError

Record = TypeVar("Record")

_ROOT = Path(__file__).resolve().parent.parent
_QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
_ERROR_LINES = 12
_NO_MEMORY = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
"""What libraries say that have no class of exception for it."""


class RunnerFailedError(RunError):
    """A runner's process ended without a result."""


class OutOfMemoryError(RunnerFailedError):
    """The machine or the device has not enough memory for what a runner was to do."""

    exit_code = 3
    """By which the process says so."""


def out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, or that is why another error was raised."""
    while error is not None:
        said = str(error).lower()
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in said for sign in _NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


@dataclass
class Runners:
    """The runners of one job; each call is a process of its own."""

    job: Job
    folder: Path
    """Where the job and the results go; it must exist."""
    _count: int = field(default=0)

    def __post_init__(self) -> None:
        save_job(self.job, self._job_file)

    def run(self, action: str, runner: str, record: type[Record]) -> Record:
        """Let a runner do something, and return its result.

        Args:
            action: a key of `runners.ACTIONS`.
            runner: a name out of `jobs`.
            record: class of the result.

        Raises:
            UserError: the process can't use what the user gave, such as the base model.
            OutOfMemoryError: it had not enough memory, or was killed, as Linux does then.
            RunnerFailedError: it failed otherwise; the message ends with what it said.
        """
        self._count += 1
        out = self.folder / f"{self._count:03d}-{action}-{runner}.json"
        command = [sys.executable, "-m", "benchmarks.runners", action, runner, str(self._job_file), str(out)]
        done = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=False)
        if done.returncode == UserError.exit_code:
            raise UserError(done.stderr.strip())
        if done.returncode != 0 or not out.is_file():
            said = "\n".join(done.stderr.strip().splitlines()[-_ERROR_LINES:])
            ran_out = done.returncode in (OutOfMemoryError.exit_code, -signal.SIGKILL)
            failure = OutOfMemoryError if ran_out else RunnerFailedError
            raise failure(f"{runner}: {action} ended with exit code {done.returncode}:\n{said}")
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return record(**found)

    @property
    def _job_file(self) -> Path:
        return self.folder / "job.json"

    def _environment(self) -> dict[str, str]:
        environment = {**_QUIET, **os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        if self.job.device == "cuda":
            # Sentence Transformers' trainer would spread the batch over all GPUs.
            environment.setdefault("CUDA_VISIBLE_DEVICES", "0")
        return environment
