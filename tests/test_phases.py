"""Training with mined negatives: what is mined, that it is used, that two such phases are averaged, and that a stopped
run goes on to the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from embedtune import phases
from embedtune.config import (
    AdapterConfig,
    DataConfig,
    EvaluationConfig,
    MiningConfig,
    ModelConfig,
    OutputConfig,
    TrainConfig,
    TrainingConfig,
)
from embedtune.config_file import load_toml
from embedtune.errors import ConfigError, ModelError, StorageError, TrainingInterrupted
from embedtune.pipeline import train
from embedtune.progress import SilentReporter
from embedtune.training.averaging import average_with
from embedtune.training.contrastive import ContrastiveObjective
from embedtune.training.loop import Trainer
from tests.interrupts import StopsAfter

pytestmark = pytest.mark.usefixtures("few_general_texts")


@pytest.fixture
def config(pairs_file: Path, st_folder: Path, tmp_path: Path) -> TrainConfig:
    """Six steps and then six with two negatives each."""
    return six_and_six(pairs_file, st_folder, tmp_path)


def six_and_six(pairs_file: Path, st_folder: Path, folder: Path) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(train=str(pairs_file)),
        model=ModelConfig(base=str(st_folder), device="cpu", precision="fp32"),
        mining=MiningConfig(hard_negatives=2, max_score_ratio=100.0),
        training=TrainingConfig(
            lr=0.01, batch_size=16, epochs=1, mined_epochs=1, mined_batch_size=16, eval_steps=4, checkpoint_minutes=0.0
        ),
        evaluation=EvaluationConfig(accept="any"),
        output=OutputConfig(out=folder / "run"),
    )


@pytest.fixture(scope="module")
def thorough(
    pairs_file: Path, st_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainConfig, dict[str, Any]]:
    """A finished run of six steps, six with negatives, and these six again from where they began; its results."""
    config = six_and_six(pairs_file, st_folder, tmp_path_factory.mktemp("thorough"))
    config = replace(config, training=replace(config.training, recipe="thorough", keep_last=20, eval_steps=5))
    return config, train(config)


def adapter(out: Path) -> bytes:
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


def weights(out: Path, name: str) -> dict[str, torch.Tensor]:
    """Of a file in the folder of checkpoints."""
    return load_file(out / "checkpoints" / f"{name}.safetensors")


def equal(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def read_rows(out: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / "splits" / f"{name}.jsonl").read_text().splitlines()]


def test_the_second_phase_trains_with_what_the_first_one_s_model_mined(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = ContrastiveObjective.__call__

    def spying(self: ContrastiveObjective, rows: Any) -> Any:
        seen.append(sum(len(self.pairs.negative_ids[row]) for row in rows))
        return original(self, rows)

    monkeypatch.setattr(ContrastiveObjective, "__call__", spying)
    results = train(config)
    (mined,) = results["mining"]
    train_pairs, out = results["data"]["train_pairs"], config.output.out
    assert (mined["rows"], mined["asked"], mined["mined"]) == (train_pairs, 2, 2 * train_pairs)
    assert [phase["mines"] for phase in results["train"]["phases"]] == [False, True]
    assert (seen[:6], sum(seen[6:])) == ([0] * 6, 2 * train_pairs)
    rows, train_rows, dev, test = (read_rows(out, name) for name in ("mined-1", "train", "dev", "test"))
    assert [row["id"] for row in rows] == [row["id"] for row in train_rows]
    held_out = {row["positive"] for row in dev + test}
    assert all(row["negative_1"] not in held_out | {row["positive"]} for row in rows)
    written = load_toml(out / "config.toml")
    assert (written.training.mined_epochs, written.training.mined_lr, written.training.epochs) == (1, 0.005, 1)
    assert written.mining == config.mining
    again = train(replace(written, output=replace(written.output, out=out.with_name("again"))))
    assert adapter(out.with_name("again")) == adapter(out)
    assert again["mining"] == results["mining"]


def test_the_thorough_recipe_keeps_the_mean_of_two_phases_from_the_same_weights_and_negatives(
    thorough: tuple[TrainConfig, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config, results = thorough
    seen: list[tuple[dict[str, torch.Tensor], Any, list[int]]] = []
    ends: list[dict[str, torch.Tensor]] = []
    step = Trainer._timed_step

    def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def spying(self: Trainer, state: Any) -> None:
        assert isinstance(self.objective, ContrastiveObjective)
        rows = [row for batch in state.batches[state.progress.step] for row in batch]
        seen.append((trained(self.model), self.objective.pairs.negative_ids, rows))
        step(self, state)

    def averaging(model: torch.nn.Module, others: Any) -> None:
        ends.append(trained(model))
        average_with(model, others)

    monkeypatch.setattr(Trainer, "_timed_step", spying)
    monkeypatch.setattr("embedtune.phases.average_with", averaging)
    again = train(replace(config, output=OutputConfig(out=tmp_path / "run")))
    out = config.output.out
    assert again["train"]["loss"] == results["train"]["loss"]
    (first, negatives, rows), (second, same, others) = seen[6], seen[12]
    assert equal(first, second)
    assert equal(first, weights(out, "step-00000006/weights"))
    assert negatives == same
    assert any(negatives)
    assert rows != others
    (end,) = ends
    kept, mean = weights(out, "end-1"), weights(out, "step-00000018/weights")
    assert equal(kept, weights(out, "step-00000012/weights"))
    assert not equal(kept, end)
    assert equal(mean, {name: (kept[name] + end[name]) / 2 for name in end})
    assert [(phase["mines"], phase["again"]) for phase in results["train"]["phases"]] == [
        (False, False),
        (True, False),
        (False, True),
    ]
    assert len(results["mining"]) == 1
    assert load_toml(out / "config.toml").training.mined_epochs == 1


@pytest.mark.parametrize("step", [3, 6, 9, 12, 15, 18])
def test_a_thorough_run_stopped_at_any_point_goes_on_to_the_same_weights(
    thorough: tuple[TrainConfig, dict[str, Any]], step: int, tmp_path: Path
) -> None:
    """In each phase, at the end of each, and between the last step and its evaluation."""
    config, whole = thorough
    stopped = replace(config, output=OutputConfig(out=tmp_path / "run"))
    with pytest.raises(TrainingInterrupted):
        train(stopped, StopsAfter(step))
    resumed = train(replace(stopped, output=replace(stopped.output, resume=True)))
    assert weights_and_figures(stopped, resumed) == weights_and_figures(config, whole)


def test_full_fine_tuning_is_averaged_and_goes_on_likewise(
    thorough: tuple[TrainConfig, dict[str, Any]], tmp_path: Path
) -> None:
    config = replace(thorough[0], adapter=AdapterConfig(method="full"))
    config = replace(config, training=replace(config.training, lr=1e-3))
    runs = [replace(config, output=OutputConfig(out=tmp_path / name)) for name in ("whole", "stopped")]
    whole = train(runs[0])
    with pytest.raises(TrainingInterrupted):
        train(runs[1], StopsAfter(15))
    resumed = train(replace(runs[1], output=replace(runs[1].output, resume=True)))
    assert weights_and_figures(runs[1], resumed) == weights_and_figures(runs[0], whole)


def weights_and_figures(config: TrainConfig, results: dict[str, Any]) -> list[Any]:
    last = config.output.out / "checkpoints" / "step-00000018" / "weights.safetensors"
    return [last.read_bytes(), results["train"]["loss"], results["train"]["dev"], results["tuned"], results["mining"]]


@pytest.mark.parametrize(("name", "step"), [("start", 9), ("end", 15)])
@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_weights_to_go_back_to_or_to_average_that_cannot_be_read_end_a_resumed_run_at_once(
    thorough: tuple[TrainConfig, dict[str, Any]],
    name: str,
    step: int,
    damage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(thorough[0], output=OutputConfig(out=tmp_path / "run"))
    with pytest.raises(TrainingInterrupted):
        train(config, StopsAfter(step))
    path = config.output.out / "checkpoints" / f"{name}-1.safetensors"
    content = path.read_bytes()
    path.unlink()
    if damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    monkeypatch.setattr(Trainer, "_timed_step", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(StorageError, match=rf"{name}-1\.safetensors: the weights that a phase .* can't be read"):
        train(replace(config, output=replace(config.output, resume=True)))


def test_a_run_that_loses_patience_in_the_second_of_two_phases_averages_nothing(
    thorough: tuple[TrainConfig, dict[str, Any]], tmp_path: Path
) -> None:
    class Notes(SilentReporter):
        texts: list[str] = []  # noqa: RUF012

        def note(self, text: str) -> None:
            self.texts.append(text)

    config = replace(thorough[0], output=OutputConfig(out=tmp_path / "run"))
    patient = replace(config.training, lr=1e-9, mined_lr=None, patience=3)
    reporter = Notes()
    results = train(replace(config, training=patient), reporter)
    assert (results["train"]["steps"], results["train"]["best_step"]) == (15, 0)
    assert any("the mean of both ends takes their place" in text for text in reporter.texts), "it is the plan"
    assert not any("are now the mean" in text for text in reporter.texts)


def test_what_was_mined_is_told_by_a_run_that_was_stopped_after_its_last_step(
    thorough: tuple[TrainConfig, dict[str, Any]], tmp_path: Path
) -> None:
    config, whole = thorough
    out = shutil.copytree(config.output.out, tmp_path / "run")
    assert train(replace(config, output=OutputConfig(out=out, resume=True)))["mining"] == whole["mining"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "other rows"])
def test_negatives_that_cannot_be_read_end_a_resumed_run(config: TrainConfig, damage: str) -> None:
    with pytest.raises(TrainingInterrupted):
        train(config, StopsAfter(8))
    path = config.output.out / "checkpoints" / "mined-1.json"
    content = json.loads(path.read_text())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_text(path.read_text()[:-20])
    elif damage == "flipped":
        content["negatives"][0][0] += 1
        path.write_text(json.dumps(content))
    else:
        content["negatives"].pop()
        path.write_text(json.dumps(content | {"sha256": phases._checksum(content["negatives"])}))
    with pytest.raises(
        StorageError, match=r"mined-1\.json: the negatives that this run was trained with can't be read"
    ):
        train(replace(config, output=replace(config.output, resume=True)))


def test_another_way_to_mine_is_another_run(config: TrainConfig) -> None:
    with pytest.raises(TrainingInterrupted):
        train(config, StopsAfter(2))
    other = replace(config, mining=replace(config.mining, mine_from="bm25"), output=replace(config.output, resume=True))
    with pytest.raises(ConfigError, match="--mine-from: model then, bm25 now"):
        train(other)


def test_epochs_for_negatives_that_are_not_mined_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--mined-epochs is 1, and --hard-negatives 0 mines none"):
        TrainConfig(training=TrainingConfig(mined_epochs=1), mining=MiningConfig(hard_negatives=0))


def test_a_judge_that_is_none_is_told_before_anything_is_written(config: TrainConfig, st_folder: Path) -> None:
    judged = replace(config, mining=replace(config.mining, judge=str(st_folder)))
    with pytest.raises(ModelError, match="is no cross-encoder"):
        train(judged)
    assert not config.output.out.exists()


def test_a_judge_is_named_by_its_full_path(
    config: TrainConfig, make_judge: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(make_judge(), tmp_path / "judge")
    monkeypatch.chdir(tmp_path)
    results = train(replace(config, mining=replace(config.mining, judge="judge")))
    assert load_toml(config.output.out / "config.toml").mining.judge == str(tmp_path / "judge")
    assert results["mining"][0]["judge"] == {"model": str(tmp_path / "judge"), "revision": None}
