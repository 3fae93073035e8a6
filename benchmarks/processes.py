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

from benchmarks.jobs import Job, save_job
from embedtune.errors import RunError, UserError

Record = TypeVar("Record")

_ROOT = Path(__file__).resolve().parent.parent
_QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
_ERROR_LINES = 12
_REASON_LENGTH = 300


class RunnerFailedError(RunError):
    """A runner's process ended without a result."""

    @property
    def reason(self) -> str:
        """The last line of what it said, which is where Python puts the exception."""
        return str(self).splitlines()[-1][:_REASON_LENGTH]


class OutOfMemoryError(RunnerFailedError):
    """The machine or the device has not enough memory for what a runner was to do."""

    exit_code = 3
    """By which the process says so."""

    @property
    def reason(self) -> str:
        return "out of memory"


@dataclass
class Runners:
    """The runners of one job; each call is a process of its own."""

    job: Job
    folder: Path
    """Where the job and the results go; it is made if it does not exist."""
    time_limit: float | None = None
    """Seconds that a process may take."""
    _count: int = field(default=0)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
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
        code, said = self._execute(command, out.with_suffix(".err"))
        if code is None:
            raise RunnerFailedError(f"{runner}: {action} was stopped:\nit took longer than {self.time_limit:g} s")
        if code == UserError.exit_code:
            raise UserError(said)
        if code != 0 or not out.is_file():
            last = "\n".join(said.splitlines()[-_ERROR_LINES:])
            ran_out = code in (OutOfMemoryError.exit_code, -signal.SIGKILL)
            failure = OutOfMemoryError if ran_out else RunnerFailedError
            raise failure(f"{runner}: {action} ended with exit code {code}:\n{last}")
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return record(**found)

    def _execute(self, command: list[str], errors: Path) -> tuple[int | None, str]:
        """Exit code, None if time ran out, and what was written to stderr.

        Into a file: the end of a pipe would not come before that of processes which the command leaves behind.
        """
        with errors.open("w", encoding="utf-8") as sink:
            try:
                code: int | None = subprocess.run(
                    command,
                    env=self._environment(),
                    stdout=subprocess.DEVNULL,
                    stderr=sink,
                    timeout=self.time_limit,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
        return code, errors.read_text(encoding="utf-8", errors="replace").strip()

    @property
    def _job_file(self) -> Path:
        return self.folder / "job.json"

    def _environment(self) -> dict[str, str]:
        environment = {**_QUIET, **os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        # unsloth writes the modules that it generates to the working directory, and reports its use, if not told.
        environment.setdefault("UNSLOTH_COMPILE_LOCATION", str(self.folder / "unsloth"))
        environment.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
        if self.job.device == "cuda":
            # Sentence Transformers' trainer would spread the batch over all GPUs.
            environment.setdefault("CUDA_VISIBLE_DEVICES", "0")
        return environment
