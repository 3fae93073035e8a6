"""How a run ends that does not reach its end: one exception that says what happened, what is saved and what to type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from embedtune.atomic import why_not_written
from embedtune.errors import EmbedtuneError, RunError, StorageError, TrainingInterrupted
from embedtune.export.run_folder import RunFolder, RunLock
from embedtune.models.memory import out_of_memory
from embedtune.training.signals import EXIT_SECONDS, Stopped, StopRequest


@contextmanager
def clear_ending(folder: RunFolder, lock: RunLock, stop: StopRequest) -> Iterator[None]:
    """Turn what ends a run into an error of embedtune's own.

    Args:
        folder: of the run.
        lock: held while the run writes there: what the system refuses before has to do with the input.
        stop: whose reason ends the run.

    Raises:
        TrainingInterrupted: somebody asked, or the time given is over.
        StorageError: a file can't be written.
        RunError: memory ran out.
    """
    try:
        with clear_errors(folder, lock, _kept), stop.at_once(reserve=EXIT_SECONDS):
            yield
    except Stopped:
        raise TrainingInterrupted(_stopped(folder), stop.exit_code or TrainingInterrupted.exit_code) from None


@contextmanager
def clear_errors(folder: RunFolder, lock: RunLock, kept: Callable[[RunFolder], str]) -> Iterator[None]:
    """The part of `clear_ending` that is about errors.

    Args:
        folder: of the run.
        lock: as of `clear_ending`.
        kept: says what is saved, a sentence, when something went wrong.

    Raises:
        StorageError: a file can't be written.
        RunError: memory ran out.
    """
    try:
        yield
    except (EmbedtuneError, BrokenPipeError):
        raise
    except (OSError, SafetensorError) as error:
        if not lock.held:
            raise
        path = Path(getattr(error, "filename", None) or folder.results)
        raise StorageError(
            f"the run in {folder.root} can't go on: {why_not_written(error, path)}.\n{kept(folder)}"
        ) from error
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise RunError(
            f"memory ran out: {str(error).splitlines()[0]}\n{kept(folder)} "
            "Less memory: a smaller --max-length or --batch-size, --device cpu."
        ) from error


def _stopped(folder: RunFolder) -> str:
    if not folder.config.is_file():
        return "stopped before the training began; nothing was written."
    if not folder.checkpoints.is_dir():
        return "stopped before the first step."
    return "stopped outside of the training, whose checkpoints are saved."


def _kept(folder: RunFolder) -> str:
    if not folder.checkpoints.is_dir():
        return "There was no checkpoint yet."
    return f"The checkpoints in {folder.checkpoints} are kept; --resume goes on from them."
