"""One seed drives everything: two runs on one machine give the same bytes, and no other random numbers are used."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embedtune.config import AdapterConfig, DataConfig, ModelConfig, OutputConfig, TrainConfig, TrainingConfig
from embedtune.config_file import to_toml
from embedtune.pipeline import train

TIMES = ("seconds", "pairs_per_second", "tokens_per_second", "peak_memory_bytes")


@pytest.fixture
def config(pairs_file: Path, st_folder: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(train=str(pairs_file)),
        model=ModelConfig(base=str(st_folder), device="cpu", precision="fp32"),
        adapter=AdapterConfig(rank=4, dropout=0.2),
        training=TrainingConfig(max_steps=3, eval_steps=2, batch_size=16, lr=0.01),
        output=OutputConfig(out=tmp_path / "first", seed=3),
    )


def _in(folder: str, config: TrainConfig, **output: Any) -> TrainConfig:
    return replace(config, output=replace(config.output, out=config.output.out.with_name(folder), **output))


def _without_times(out: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    results["train"] = {name: value for name, value in results["train"].items() if name not in TIMES}
    return results


def _assert_same(first: Path, second: Path) -> None:
    assert _without_times(first) == _without_times(second)
    files = [*first.glob("splits/*"), *first.rglob("*.safetensors"), *first.glob("model/**/*.json")]
    assert len(files) > 8
    for file in files:
        assert file.read_bytes() == (second / file.relative_to(first)).read_bytes(), file


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_lora_with_dropout_in_another_process(config: TrainConfig, tmp_path: Path) -> None:
    """Python orders sets of strings otherwise there, and every global generator stands elsewhere."""
    _seed_all(1)
    train(config)
    other = _in("second", config)
    (tmp_path / "config.toml").write_text(to_toml(other))
    environment = os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}
    # The threads are those of this process: sums depend on how they are divided.
    code = f"import torch; torch.set_num_threads({torch.get_num_threads()}); from embedtune.cli.main import main; "
    code += f"raise SystemExit(main(['train', '--config', {str(tmp_path / 'config.toml')!r}]))"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=280)
    _assert_same(config.output.out, other.output.out)


def test_full_fine_tuning_and_the_global_generators(config: TrainConfig) -> None:
    config = replace(config, adapter=AdapterConfig(method="full"))
    _seed_all(1)
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    train(config)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index]
    _seed_all(2)
    other = _in("second", config)
    train(other)
    _assert_same(config.output.out, other.output.out)


def test_another_seed_changes_all_that_is_random(config: TrainConfig) -> None:
    """With a learning rate of nearly nothing the adapter is as it started."""
    config = replace(config, training=TrainingConfig(max_steps=1, batch_size=16, lr=1e-9))
    other = _in("second", config, seed=4)
    results = train(config), train(other)
    assert results[0]["data"]["hashes"]["test"] != results[1]["data"]["hashes"]["test"]
    assert results[0]["train"]["loss"] != results[1]["train"]["loss"]
    starts = [load_file(c.output.out / "adapter" / "adapter_model.safetensors") for c in (config, other)]
    name = next(name for name in starts[0] if "lora_A" in name)
    assert (starts[0][name] - starts[1][name]).abs().max() > 0.01
    assert [result["seed"] for result in results] == [3, 4]
