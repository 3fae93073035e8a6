"""What a runner can be asked to do; each returns what goes into its result file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import cells, ours
from benchmarks.batches import read_batches
from benchmarks.jobs import (
    OURS,
    load_encode_job,
    load_gemm_job,
    load_method_job,
    load_quality_job,
    load_train_job,
)
from benchmarks.measure import measure_gemm
from benchmarks.processes import OutOfMemoryError
from benchmarks.workload import count_work
from embedtune.errors import EmbedtuneError
from embedtune.models.memory import out_of_memory

WARMUP_TEXTS = 64
"""Texts embedded before the timed ones; the agreement is checked on them."""

Action = Callable[[str, Path, Path], Any]


def agree_train(runner: str, job: Path, out: Path) -> Any:
    side = _side(runner)
    return side.agree_train(runner, load_train_job(job), out.with_suffix(".npy"))


def time_train(runner: str, job: Path, out: Path) -> Any:
    side = _side(runner)
    return side.time_train(runner, load_train_job(job))


def time_quality(runner: str, job: Path, out: Path) -> Any:
    side = _side(runner)
    return side.time_quality(runner, load_quality_job(job))


def agree_encode(runner: str, job: Path, out: Path) -> Any:
    side, texts = _side(runner), _texts(job)
    return side.agree_encode(runner, load_encode_job(job), texts[:WARMUP_TEXTS], out.with_suffix(".npy"))


def time_encode(runner: str, job: Path, out: Path) -> Any:
    side, texts = _side(runner), _texts(job)
    return side.time_encode(runner, load_encode_job(job), texts[:WARMUP_TEXTS], texts)


def time_method(runner: str, job: Path, out: Path) -> Any:
    return cells.time_method(runner, load_method_job(job))


def workload(runner: str, job: Path, out: Path) -> Any:
    """The work in the timed batches."""
    train_job = load_train_job(job)
    encoder = ours.load("embedtune-fp32", train_job)
    return count_work(encoder, read_batches(train_job.batches)[train_job.warmup :], rank=train_job.rank)


def gemm(runner: str, job: Path, out: Path) -> Any:
    """The device's rates in matrix products."""
    gemm_job = load_gemm_job(job)
    return measure_gemm(torch.device(gemm_job.device), gemm_job.shape)


ACTIONS: dict[str, Action] = {
    "agree-train": agree_train,
    "time-train": time_train,
    "time-quality": time_quality,
    "agree-encode": agree_encode,
    "time-encode": time_encode,
    "time-method": time_method,
    "workload": workload,
    "gemm": gemm,
}


def perform(action: str, runner: str, job: str, out: str) -> int:
    """Do it and write the result; returns the exit code, having said on stderr what went wrong, if anything did."""
    try:
        result = ACTIONS[action](runner, Path(job), Path(out))
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        sys.stderr.write(f"{error}\n")
        return code
    Path(out).write_text(json.dumps(asdict(result)), encoding="utf-8")
    return 0


def _side(runner: str) -> Any:
    """The module of a runner; the peer's only if it takes part, as it needs packages that embedtune does not."""
    if runner in OURS:
        return ours
    from benchmarks import peer

    return peer


def _exit_code(error: Exception) -> int | None:
    """By which the process tells what went wrong; None if that takes a traceback."""
    if out_of_memory(error):  # the loader turns it into an error of its own
        return OutOfMemoryError.exit_code
    return error.exit_code if isinstance(error, EmbedtuneError) else None


def _texts(job: Path) -> list[str]:
    texts: list[str] = json.loads(Path(load_encode_job(job).texts).read_text(encoding="utf-8"))
    return texts
