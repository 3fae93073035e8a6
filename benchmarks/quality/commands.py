"""The processes of cells: started, timed, and stopped together."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from embedtune.errors import RunError

_ROOT = Path(__file__).resolve().parents[2]
_REASON_LENGTH = 300
_GRACE_SECONDS = 20.0
"""What a process gets to stop by itself."""


class CommandFailedError(RunError):
    """A process did not do what it was to do; the message is the reason, in one line."""


class StoppedError(RunError):
    """Everything was told to stop."""


def installed_command() -> list[str]:
    """`embedtune` as users start it, of the environment that this runs in."""
    beside = Path(sys.executable).with_name("embedtune")
    found = str(beside) if beside.is_file() else shutil.which("embedtune")
    return [sys.executable, "-m", "embedtune"] if found is None else [found]


def own_command(module: str) -> list[str]:
    """A module of the benchmarks as a process."""
    return [sys.executable, "-m", module]


@dataclass
class Commands:
    """Processes that several threads start and one stops."""

    threads: int | None = None
    """Threads that each may compute with; as it likes if not given."""
    time_limit: float | None = None
    """Seconds that each may take."""
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, command: Sequence[str], log: Path) -> None:
        """Run it to its end; what it says is put behind what the log has.

        Raises:
            CommandFailedError: it ended with another exit code than 0, or took too long.
            StoppedError: `stop` was called.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            process = self._start(command, sink.fileno())
            try:
                code: int | None = process.wait(self.time_limit)
            except subprocess.TimeoutExpired:
                code = None
                _end(process)
            finally:
                with self._lock:
                    self._running.remove(process)
        if self._stopped:
            raise StoppedError("stopped")
        if code is None:
            raise CommandFailedError(f"it took longer than {self.time_limit:g} s")
        if code != 0:
            raise CommandFailedError(_reason(log.read_text(encoding="utf-8", errors="replace"), code))

    def stop(self) -> None:
        """End all of them, and start no more."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            _end(process)

    def _start(self, command: Sequence[str], output: int) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise StoppedError("stopped")
            process = subprocess.Popen(
                list(command),
                env=_environment(os.environ, self.threads),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            self._running.append(process)
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _environment(given: Mapping[str, str], threads: int | None) -> dict[str, str]:
    environment = {"PYTHONIOENCODING": "utf-8", **given}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), given.get("PYTHONPATH"))))
    # Sentence Transformers' trainer would spread the batch over all GPUs.
    environment.setdefault("CUDA_VISIBLE_DEVICES", "0")
    if threads is not None:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    return environment


def _reason(said: str, code: int) -> str:
    """The line that says what went wrong: embedtune's own message, that of its option parser, or the last one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    own = [line.removeprefix("embedtune: ") for line in lines if line.startswith("embedtune: ")]
    boxed = [line.strip("│ ") for line in lines if line.startswith("│")]
    if code < 0:
        return f"it was killed by signal {-code}" + (", as Linux does when memory runs out" if code == -9 else "")
    chosen = own[-1:] or boxed[:1] or lines[-1:]
    return chosen[0][:_REASON_LENGTH] if chosen else f"exit code {code}"
