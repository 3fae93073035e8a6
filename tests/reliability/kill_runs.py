"""Runs that are killed and resumed, beside one that never was: `python -m tests.reliability.kill_runs` with a JSON job.

Libraries are loaded once; each run is a process forked from here, so that a kill costs a second and not ten.
Prints what it found as JSON; `test_kills.py` says what it has to be.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm  # type: ignore[import-untyped]

from embedtune.config import DataConfig, OutputConfig, TrainConfig
from embedtune.config_file import from_dict
from embedtune.pipeline import train
from tests.general_texts import take_few

KILLED_AT = ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink")
"""Functions of `os` before whose calls a run is killed: all by which it changes a folder, or waits for the disk."""


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Do the job.

    Args:
        job: "base", "pairs" and "folder", paths; "settings", of a `TrainConfig`; "kills", how many random moments;
            "every", of which so many calls that change the disk one is killed at, or 0 for none.
    """
    # Progress bars share a lock between processes: one that is killed while it has it would stop all the others.
    tqdm.monitor_interval = 0
    tqdm.set_lock(threading.RLock())
    folder, generator = Path(job["folder"]), random.Random(job["seed"])
    take_few(folder / "general", pytest.MonkeyPatch())
    settings = from_dict(job["settings"], source="job")
    config = replace(
        settings,
        data=DataConfig(train=job["pairs"]),
        model=replace(settings.model, base=job["base"], device="cpu", precision="fp32"),
    )
    whole = _at(config, folder / "whole")
    train(whole)
    started = time.monotonic()
    _finished(_fork(lambda: train(_at(config, folder / "again"))))
    seconds = time.monotonic() - started
    expected = _outcome(folder / "whole")
    found: dict[str, Any] = {"seconds": seconds, "different": [], "moments": [], "same_again": True}
    found["same_again"] = _outcome(folder / "again") == expected
    for number in range(job["kills"]):
        at = _at(config, folder / f"random-{number}")
        moments = [_killed_after(at, generator.uniform(0, seconds)) for _ in range(generator.choice((1, 1, 2, 3)))]
        found["moments"].append(moments)
        _compare(at, expected, found, f"killed {moments}")
    found["points"] = 0
    for number in range(1, 100_000) if job["every"] else ():
        at = _at(config, folder / f"point-{number}")
        point = 1 + (number - 1) * job["every"]
        if not _killed_at_call(at, point):
            break
        found["points"] += 1
        _compare(at, expected, found, f"killed at call {point}")
    return found


def _at(config: TrainConfig, out: Path) -> TrainConfig:
    resume = (out / "config.toml").is_file()
    return replace(config, output=OutputConfig(out=out, resume=resume))


def _killed_after(config: TrainConfig, seconds: float) -> list[Any]:
    """Start or resume the run and kill it; returns when, and what lay there."""
    config = _at(config, config.output.out)
    child = _fork(lambda: train(config))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return [round(seconds, 3), _lies_in(config.output.out)]


def _lies_in(out: Path) -> str:
    """What a kill left: the last thing that was written or being written."""
    unfinished = [path.name for path in out.rglob(".*.tmp")]
    if unfinished:
        return f"in {unfinished[0]}"
    checkpoints = sorted(path.name for path in (out / "checkpoints").glob("step-*"))
    return f"after {checkpoints[-1]}" if checkpoints else "before the first checkpoint"


def _killed_at_call(config: TrainConfig, point: int) -> bool:
    """Kill the run before its `point`-th call that changes the disk; returns whether it has so many."""

    def run() -> None:
        calls = iter(range(1, point + 1))

        def killing(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **named: Any) -> Any:
                if next(calls) == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*given, **named)

            return call

        for name in KILLED_AT:
            setattr(os, name, killing(getattr(os, name)))
        train(config)

    _, status = os.waitpid(_fork(run), 0)
    return os.WIFSIGNALED(status)


def _compare(config: TrainConfig, expected: dict[str, Any], found: dict[str, Any], what: str) -> None:
    """Resume to the end, and hold what came of it against the run that was never killed."""
    out = config.output.out
    _finished(_fork(lambda: train(_at(config, out))))
    outcome = _outcome(out)
    found["different"] += [f"{out.name}, {what}: {key}" for key in expected if outcome[key] != expected[key]]
    left = [str(path.relative_to(out)) for path in out.rglob(".*") if path.suffix in (".tmp", ".old")]
    found["different"] += [f"{out.name}, {what}: left {name}" for name in left]


def _outcome(out: Path) -> dict[str, Any]:
    """What a run is about: its weights, its figures and its curves."""
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    results = json.loads((out / "results.json").read_text())
    logs = sorted(out.glob("**/tensorboard"))
    events = [EventAccumulator(str(log)).Reload() for log in logs]
    return {
        "weights": [path.read_bytes() for path in sorted(out.glob("*/*.safetensors"))],
        "loss": results["train"]["loss"],
        "dev": results["train"]["dev"],
        "best step": results["train"]["best_step"],
        "test": results["tuned"],
        "hashes": results["data"]["hashes"],
        **{
            f"curves of {tag}": [[(event.step, event.value) for event in one.Scalars(tag)] for one in events]
            for tag in ("train/loss", "train/lr", "dev/ndcg@10")
        },
    }


def _fork(run: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        run()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _finished(child: int) -> None:
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise SystemExit(f"a run ended with status {status}")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))))
