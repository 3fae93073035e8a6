"""A run killed with SIGKILL at any moment, and resumed, ends bit for bit as one that never stopped.

By default a few moments each; `EMBEDTUNE_KILLS=25 pytest tests/reliability/test_kills.py` takes 25 random ones, and
every single call that changes the disk. With the folder of a model in `EMBEDTUNE_KILLS_MODEL` and a file of pairs in
`EMBEDTUNE_KILLS_PAIRS` as well, runs of that size are killed at so many random moments.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KILLS = int(os.environ.get("EMBEDTUNE_KILLS", "0"))
MODEL, PAIRS = os.environ.get("EMBEDTUNE_KILLS_MODEL"), os.environ.get("EMBEDTUNE_KILLS_PAIRS")
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": {"dropout": 0.1}, "training": {"accumulate": 2}},
    "qlora": {"adapter": {"method": "qlora", "dropout": 0.1}, "training": {"micro_batch_tokens": 256}},
    "full": {"adapter": {"method": "full"}},
    "thorough": {
        "training": {"recipe": "thorough", "max_steps": 2, "mined_epochs": 0.35, "eval_steps": 3},
        "mining": {"max_score_ratio": 100.0},
    },
}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")


@pytest.mark.timeout(7200 if KILLS else 900)
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_to_the_same_bits(method: str, st_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    if method == "full" and not KILLS:
        pytest.skip("EMBEDTUNE_KILLS=25 takes it too")
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    settings = METHODS[method]
    job = {
        "base": str(st_folder),
        "pairs": str(pairs_file),
        "folder": str(tmp_path),
        "seed": 0,
        "kills": KILLS or {"lora": 1, "qlora": 2, "thorough": 1}[method],
        # All calls that change the disk take minutes.
        "every": {"lora": 1, "thorough": 1}.get(method, 7) if KILLS else {"lora": 61, "thorough": 97}.get(method, 0),
        "settings": {
            **settings,
            # A checkpoint after every step, so that most of the time goes into writing them.
            "training": {
                "max_steps": 4, "eval_steps": 2, "batch_size": 8, "lr": 0.01, "checkpoint_minutes": 0.0,
                **settings.get("training", {}),
            },
        },
    }  # fmt: skip
    found = _killed(job)
    assert found["same_again"]
    assert found["different"] == []
    assert len(found["moments"]) == job["kills"]
    assert found["points"] > 0 or not job["every"]


@pytest.mark.skipif(not (KILLS and MODEL and PAIRS), reason="EMBEDTUNE_KILLS, _MODEL and _PAIRS say what to kill")
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_killed_run_of_real_size_goes_on_to_the_same_bits(method: str, tmp_path: Path) -> None:
    training = {"max_steps": 8, "eval_steps": 4, "batch_size": 32, "checkpoint_minutes": 0.0}
    job = {
        "base": MODEL,
        "pairs": PAIRS,
        "folder": str(tmp_path),
        "seed": 0,
        "kills": KILLS,
        "every": 0,
        "settings": {"model": {"max_length": 64}, "adapter": {"method": method}, "training": training},
    }
    found = _killed(job)
    assert found["same_again"]
    assert found["different"] == []


def _killed(job: dict[str, Any]) -> dict[str, Any]:
    """What `kill_runs` found, in a process of its own."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.reliability.kill_runs", json.dumps(job)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-5000:]
    found: dict[str, Any] = json.loads(done.stdout)
    if KILLS:
        print(json.dumps(found, indent=1))  # noqa: T201
    return found
