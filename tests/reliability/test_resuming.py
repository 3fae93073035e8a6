"""What is resumed is the same run: other settings, data or weights are refused, and nothing is trained twice."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from embedtune import pipeline, saving
from embedtune.cli.main import main
from embedtune.config import (
    AdapterConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OutputConfig,
    TrainConfig,
    TrainingConfig,
)
from embedtune.config_file import to_toml
from embedtune.errors import ConfigError, DataError, ModelError, OutputError, StorageError, TrainingInterrupted
from embedtune.export.run_folder import RunLock
from embedtune.pipeline import train
from embedtune.progress import SilentReporter
from embedtune.training.loop import Trainer

pytestmark = pytest.mark.usefixtures("few_general_texts")

Resume = Callable[..., TrainConfig]


class Interrupts(SilentReporter):
    """Does something when a stage begins."""

    def __init__(self, at: str, action: Callable[[], None]) -> None:
        self._at, self._action = at, action
        self.warnings = list[str]()

    def stage(self, title: str) -> None:
        if title == self._at:
            self._action()

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def trained(
    pairs_file: Path, st_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainConfig, dict[str, Any]]:
    """A finished run: its config and its results."""
    config = TrainConfig(
        data=DataConfig(train=str(pairs_file)),
        model=ModelConfig(base=str(st_folder), device="cpu", precision="fp32"),
        adapter=AdapterConfig(rank=4),
        training=TrainingConfig(max_steps=3, eval_steps=2, batch_size=16, lr=0.01, checkpoint_minutes=0.0),
        evaluation=EvaluationConfig(accept="any"),
        output=OutputConfig(out=tmp_path_factory.mktemp("runs") / "run"),
    )
    return config, train(config)


@pytest.fixture
def resume(trained: tuple[TrainConfig, dict[str, Any]], tmp_path: Path) -> Resume:
    """The config to resume a copy of the run with, its training done, or only up to its step 2."""

    def make(*, steps: int = 3) -> TrainConfig:
        config, _ = trained
        out = tmp_path / "run"
        shutil.copytree(config.output.out, out)
        for name in ("results.json", "report.html"):
            (out / name).unlink()
        for name in ("model", "adapter"):
            shutil.rmtree(out / name)
        if steps == 2:
            shutil.rmtree(out / "checkpoints" / "step-00000003")
        return replace(config, output=OutputConfig(out=out, resume=True))

    return make


def never(*_: Any) -> None:
    raise AssertionError("a step was taken")


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"training": {"lr": 0.001}}, ["  --lr: 0.01 then, 0.001 now"]),
        ({"training": {"batch_size": 8}}, ["  --batch-size: 16 then, 8 now"]),
        ({"training": {"max_steps": 9}}, ["  --max-steps: 3 then, 9 now"]),
        (
            {"adapter": {"rank": 8}, "training": {"accumulate": 2}},
            ["  --rank: 4 then, 8 now", "  --accumulate: 1 then"],
        ),
        ({"adapter": {"method": "full", "rank": 16}}, ["  --method: lora then, full now"]),
        ({"model": {"max_length": 32}}, ["  --max-length: 64 then, 32 now"]),
        ({"output": {"seed": 1}}, ["  --seed: 0 then, 1 now"]),
    ],
)
def test_settings_that_contradict_the_run_are_shown(
    change: dict[str, dict[str, Any]], lines: list[str], resume: Resume
) -> None:
    config = resume()
    before = sorted(config.output.out.rglob("*"))
    for section, values in change.items():
        config = replace(config, **{section: replace(getattr(config, section), **values)})
    with pytest.raises(ConfigError, match="was made with other settings") as caught:
        train(config)
    for line in lines:
        assert line in str(caught.value)
    assert f"embedtune train --config {config.output.out / 'config.toml'} --resume" in str(caught.value)
    assert sorted(config.output.out.rglob("*")) == before


def test_what_may_change_and_what_is_left_open_is_no_contradiction(
    resume: Resume, trained: tuple[TrainConfig, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = resume(steps=2)
    base = shutil.copytree(config.model.base, tmp_path / "moved base")
    data = shutil.copyfile(config.data.train, tmp_path / "moved.jsonl")
    open_ones = replace(config.training, lr=None, batch_size=None, eval_steps=None)
    free = replace(open_ones, keep_last=5, checkpoint_minutes=60.0, max_time="2h", deterministic=True)
    with monkeypatch.context() as patch:  # another precision than was chosen then, were it chosen again
        patch.setattr("embedtune.models.load.choose_precision", lambda name, device: (name, "as asked"))
        results = train(
            replace(
                config,
                model=replace(config.model, base=str(base), precision="auto"),
                data=replace(config.data, train=str(data)),
                training=free,
            )
        )
    assert results["tuned"] == trained[1]["tuned"]
    assert results["train"]["loss"] == trained[1]["train"]["loss"]
    assert not torch.are_deterministic_algorithms_enabled()


def test_changed_data_is_noticed_and_the_split_named(resume: Resume, tmp_path: Path) -> None:
    config = resume()
    lines = Path(config.data.train).read_text().splitlines()
    test = [json.loads(line)["id"] for line in (config.output.out / "splits" / "test.jsonl").read_text().splitlines()]
    assert test
    changed = tmp_path / "changed.jsonl"
    train_lines = (config.output.out / "splits" / "train.jsonl").read_text().splitlines()
    victim = json.loads(train_lines[0])["anchor"]
    changed.write_text("\n".join(line.replace(victim, victim + " ba") for line in lines) + "\n")
    with pytest.raises(DataError) as caught:
        train(replace(config, data=replace(config.data, train=str(changed))))
    said = str(caught.value).splitlines()
    assert "the data has changed since the run" in said[0]
    assert [line.split()[0] for line in said if line.startswith("  ")] == ["train", "collection"]
    assert f"({len(train_lines)} pairs then, {len(train_lines)} now)" in said[1]


def test_other_weights_of_the_base_are_noticed(resume: Resume, tmp_path: Path) -> None:
    config = resume()
    other = Path(shutil.copytree(config.model.base, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    name = next(name for name in tensors if name.endswith("query.weight"))
    tensors[name] *= 1.01
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"are not those that the run in .* began with"):
        train(replace(config, model=replace(config.model, base=str(other))))


def test_hashes_in_the_results_are_those_of_the_texts(trained: tuple[TrainConfig, dict[str, Any]]) -> None:
    config, results = trained
    for split in ("train", "dev", "test"):
        rows = map(json.loads, (config.output.out / "splits" / f"{split}.jsonl").read_text().splitlines())
        lines = "".join(json.dumps([text for key, text in row.items() if key != "id"]) + "\n" for row in rows)
        assert results["data"]["hashes"][split] == hashlib.sha256(lines.encode()).hexdigest()
    assert len(results["data"]["hashes"]["collection"]) == len(results["environment"]["base_weights"]) == 64


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_killed_in_the_test_it_does_not_train_again(
    number: signal.Signals,
    code: int,
    resume: Resume,
    trained: tuple[TrainConfig, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor does it read pickled data, which could run code."""
    config = resume()
    monkeypatch.setattr(Trainer, "_timed_step", never)
    with pytest.raises(TrainingInterrupted, match="whose checkpoints are saved") as caught:
        train(config, Interrupts("Test", lambda: signal.raise_signal(number)))
    assert caught.value.exit_code == code
    with monkeypatch.context() as patch:
        for name in ("load", "loads", "Unpickler"):
            patch.setattr(pickle, name, never)
        patch.setattr(torch, "load", never)
        results = train(config)
    assert results["tuned"] == trained[1]["tuned"]
    assert results["train"]["loss"] == trained[1]["train"]["loss"]


@pytest.mark.parametrize("stage", ["Data", "Base model"])
def test_stopped_before_the_training_nothing_is_written(stage: str, resume: Resume, tmp_path: Path) -> None:
    config = replace(resume(), output=OutputConfig(out=tmp_path / "new"))
    with pytest.raises(TrainingInterrupted, match="before the training began; nothing was written") as caught:
        train(config, Interrupts(stage, lambda: signal.raise_signal(signal.SIGTERM)))
    assert caught.value.exit_code == 143
    assert not (tmp_path / "new").exists()


def test_the_command_says_how_to_go_on(
    resume: Resume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = resume()
    file = tmp_path / "settings.toml"
    file.write_text(to_toml(replace(config, output=replace(config.output, resume=False))))
    monkeypatch.setattr(pipeline, "build_results", lambda **_: signal.raise_signal(signal.SIGTERM))
    assert main(["train", "--config", str(file), "--resume"]) == 143
    again = f"embedtune train --config {config.output.out / 'config.toml'} --resume"
    assert f"\nTo go on, type:  {again}\n" in capsys.readouterr().err
    assert main(["train", "--config", str(file), "--out", str(tmp_path / "new"), "--max-time", "1s"]) == 75
    error = capsys.readouterr().err
    assert "To go on" in error or "type the same command" in error


def test_two_runs_do_not_write_in_one_folder(resume: Resume) -> None:
    config = resume()
    with RunLock(config.output.out) as lock:
        lock.take()
        with pytest.raises(OutputError, match=rf"another run is writing there \(process {os.getpid()}\)"):
            train(config)
    train(config)


def test_a_disk_that_fills_up_after_the_training(resume: Resume, monkeypatch: pytest.MonkeyPatch) -> None:
    config = resume()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(saving, "save_merged", full)
        with pytest.raises(StorageError, match=r"No space left on device \(.* MiB free\): make room.*\n.*are kept"):
            train(config)
    monkeypatch.setattr(Trainer, "_timed_step", never)
    train(config)


def test_a_folder_that_is_removed_under_the_run(resume: Resume) -> None:
    config = resume(steps=2)

    class Removes(Interrupts):
        def note(self, text: str) -> None:
            if "steps of" in text:
                shutil.rmtree(config.output.out / "checkpoints")
                config.output.out.rename(config.output.out.with_name("renamed"))

    with pytest.raises(StorageError, match="is gone; it was removed or renamed while the run was writing there"):
        train(config, Removes("", lambda: None))


def test_a_damaged_best_checkpoint_is_replaced_by_the_best_whole_one(
    resume: Resume, trained: tuple[TrainConfig, dict[str, Any]]
) -> None:
    config = resume()
    best = trained[1]["train"]["best_step"]
    file = config.output.out / "checkpoints" / f"step-{best:08d}" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    reporter = Interrupts("", lambda: None)
    results = train(config, reporter)
    assert len(results["train"]["dev"]) == 3
    if best != 3:  # the newest one is not taken for it without saying so
        assert any("It was the best" in text for text in reporter.warnings)
        assert results["train"]["best_step"] != best
    else:
        assert any("going on from step 2" in text for text in reporter.warnings)
        assert results["tuned"] == trained[1]["tuned"]
