"""Several trainings in a run: each is one of its own, their mean is kept, and a stopped run goes on to the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder
from torch import Tensor
from transformers import AutoModel

from embedtune.config import (
    AdapterConfig,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    MiningConfig,
    ModelConfig,
    OutputConfig,
    TrainConfig,
    TrainingConfig,
)
from embedtune.config_file import load_toml
from embedtune.errors import ConfigError, TrainingInterrupted
from embedtune.models.cross_encoder import score_pairs
from embedtune.pipeline import train
from embedtune.progress import SilentReporter
from embedtune.training.loop import Trainer
from embedtune.training.selection import Measured
from embedtune.training.signals import StopRequest
from tests.interrupts import StopsAfter

pytestmark = pytest.mark.usefixtures("few_general_texts")

Run = tuple[TrainConfig, dict[str, Any]]


@pytest.fixture(scope="module")
def config(pairs_file: Path, st_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Three times three steps and three with negatives of their own; what is drawn is the adapter's dropout."""
    return TrainConfig(
        data=DataConfig(train=str(pairs_file)),
        model=ModelConfig(base=str(st_folder), device="cpu", precision="fp32"),
        adapter=AdapterConfig(rank=4, alpha=8, dropout=0.1),
        mining=MiningConfig(hard_negatives=2, max_score_ratio=100.0),
        training=TrainingConfig(
            recipe="thorough", lr=0.01, batch_size=16, epochs=0.5, mined_epochs=0.5, mined_batch_size=16, eval_steps=2,
            checkpoint_minutes=0.0, keep_last=20,
        ),
        evaluation=EvaluationConfig(blend=1.0, accept="any"),
        output=OutputConfig(out=tmp_path_factory.mktemp("members") / "run"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(config: TrainConfig) -> Run:
    """A finished run and its results."""
    return config, train(config)


def at(config: TrainConfig, out: Path, **sections: Mapping[str, Any]) -> TrainConfig:
    """The config for another folder, with other settings."""
    changed = {name: replace(getattr(config, name), **dict(values)) for name, values in sections.items()}
    return replace(config, **changed, output=OutputConfig(out=out))


def resumed(config: TrainConfig, reporter: SilentReporter | None = None) -> dict[str, Any]:
    return train(replace(config, output=replace(config.output, resume=True)), reporter)


def places(out: Path) -> list[Path]:
    """Where the three trainings' files lie."""
    return [out, out / "training-2", out / "training-3"]


def weights(place: Path, step: int) -> dict[str, Tensor]:
    return load_file(place / "checkpoints" / f"step-{step:08d}" / "weights.safetensors")


def updates(weights: Mapping[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """What an adapter adds to each weight."""
    return {
        name: scaling * weights[name.replace(".lora_A.", ".lora_B.")].double() @ tensor.double()
        for name, tensor in weights.items()
        if ".lora_A." in name
    }


def outcome(config: TrainConfig, results: Mapping[str, Any]) -> list[Any]:
    out, seen = config.output.out, results["train"]
    saved = [path.read_bytes() for name in ("adapter", "model") for path in sorted((out / name).glob("*.safetensors"))]
    return [saved, seen["loss"], seen["dev"], seen["members"], results["tuned"], results["mining"]]


class Notes(SilentReporter):
    def __init__(self) -> None:
        self.texts = list[str]()

    def note(self, text: str) -> None:
        self.texts.append(text)


def worse(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """No step of these trainings, counted from 1, is better on dev than the start."""
    measure = Trainer._measure

    def measuring(self: Trainer, state: Any) -> Measured:
        found, place = measure(self, state), self.log_folder.name
        number = int(place.removeprefix("training-")) if place.startswith("training-") else 1
        return Measured(dict.fromkeys(found.metrics, -1.0)) if number in numbers and state.progress.step else found

    monkeypatch.setattr(Trainer, "_measure", measuring)


def test_the_first_training_is_what_a_run_with_one_does(whole: Run, tmp_path: Path) -> None:
    config, results = whole
    one = at(config, tmp_path / "run", training={"trainings": 1})
    single = train(one)
    steps, seen = single["train"]["steps"], results["train"]
    assert results["train"]["loss"][:steps] == single["train"]["loss"]
    assert [entry for entry in seen["dev"] if entry["step"] <= steps] == single["train"]["dev"]
    assert seen["members"][0] == single["train"]["members"][0]
    assert seen["steps"] == 3 * single["train"]["steps"]
    # Half an epoch: batches differ by a pair in size, and come in another order in each training.
    assert seen["pairs"] == pytest.approx(3 * single["train"]["pairs"], abs=6)
    assert results["mining"][0] == single["mining"][0]
    for name in ("splits/mined-1.jsonl", "checkpoints/mined-1.json"):
        assert (one.output.out / name).read_bytes() == (config.output.out / name).read_bytes()
    assert not (one.output.out / "training-2").exists()


def test_the_others_begin_with_the_same_weights_and_differ_in_all_that_is_drawn(
    whole: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config, results = whole
    rows: list[Any] = []
    step = Trainer._timed_step

    def spying(self: Trainer, state: Any) -> None:
        rows.append([row for batch in state.batches[state.progress.step] for row in batch])
        given = self.objective.pairs.negative_ids  # type: ignore[attr-defined]
        assert any(given) == (state.progress.step >= 3), "each phase has its own training's negatives, or none"
        step(self, state)

    monkeypatch.setattr(Trainer, "_timed_step", spying)
    train(at(config, tmp_path / "run"))
    assert len(rows) == 18
    assert len({tuple(map(int, rows[number])) for number in (0, 6, 12)}) == 3
    found = places(config.output.out)
    starts = [weights(place, 0) for place in found]
    assert all(torch.equal(tensor, start[name]) for start in starts[1:] for name, tensor in starts[0].items())
    losses = results["train"]["loss"]
    assert len({tuple(losses[first : first + 6]) for first in (0, 6, 12)}) == 3
    mined = [json.loads((place / "checkpoints" / "mined-1.json").read_text())["negatives"] for place in found]
    assert mined[0] != mined[1] != mined[2]
    assert all(list((place / "tensorboard").rglob("events*")) for place in found)


def test_the_mean_of_their_best_weights_is_saved(whole: Run, bare_folder: Path) -> None:
    config, results = whole
    out, members = config.output.out, results["train"]["members"]
    assert [member["kept"] for member in members] == [True] * 3
    own = [updates(weights(place, found["best_step"]), 2.0) for place, found in zip(places(out), members, strict=True)]
    mean = {name: sum(update[name] for update in own) / 3 for name in own[0]}
    settings = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (12, 8)
    saved = updates(load_file(out / "adapter" / "adapter_model.safetensors"), 8 / 12)
    assert len(saved) == len(mean)
    for (name, update), expected in zip(sorted(saved.items()), [mean[key] for key in sorted(mean)], strict=True):
        torch.testing.assert_close(update, expected, atol=1e-7, rtol=1e-5, msg=name)
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(bare_folder), str(out / "adapter")).merge_and_unload()
    model = load_file(out / "model" / "model.safetensors")
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(model[name], tensor, atol=1e-6, rtol=1e-5, msg=name)


def test_the_results_count_the_trainings_as_one_and_tell_of_each(whole: Run) -> None:
    config, results = whole
    seen = results["train"]
    assert (seen["steps"], len(seen["loss"]), len(results["mining"])) == (18, 18, 3)
    assert [entry["step"] for entry in seen["dev"]] == [0, 2, 3, 4, 6, 8, 9, 10, 12, 14, 15, 16, 18]
    metric = {entry["step"]: entry["ndcg@10"] for entry in seen["dev"]}
    for first, member in zip((0, 6, 12), seen["members"], strict=True):
        assert member["steps"] == 6
        assert member["best_metric"] == metric[first + member["best_step"]]
    assert metric[seen["best_step"]] == max(member["best_metric"] for member in seen["members"])
    assert seen["trainable_parameters"] < seen["total_parameters"] / 3, "that each trains, not the saved adapter's"
    written = load_toml(config.output.out / "config.toml")
    assert (written.training.trainings, written.training.recipe) == (3, "thorough")
    for page in ("report.html", "model/README.md", "adapter/README.md"):
        assert "mean of 3 trainings" in (config.output.out / page).read_text().replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(("training", "step"), [(1, 5), (1, 6), (2, 2), (2, 4), (2, 6), (3, 1), (3, 6)])
def test_a_run_stopped_in_any_training_goes_on_to_the_same_weights(
    whole: Run, training: int, step: int, tmp_path: Path
) -> None:
    """In each phase, and between the last step of a training and its evaluation."""
    config, results = whole
    stopped = at(config, tmp_path / "run")
    with pytest.raises(TrainingInterrupted, match=f"training {training} of 3: stopped at step {step} of 6"):
        train(stopped, StopsAfter(step, training=training))
    assert outcome(stopped, resumed(stopped)) == outcome(config, results)


def test_the_time_given_is_that_of_all_trainings(whole: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config, results = whole
    timed, taken = at(config, tmp_path / "run", training={"max_time": "1h"}), list[int]()
    step = Trainer._timed_step

    def counting(self: Trainer, state: Any) -> None:
        taken.append(state.progress.step)
        step(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_timed_step", counting)
        patch.setattr(StopRequest, "seconds_left", property(lambda _: 0.0 if len(taken) == 9 else 3600.0))
        with pytest.raises(
            TrainingInterrupted, match="training 2 of 3: --max-time 1h: stopped at step 3 of 6"
        ) as caught:
            train(timed)
    assert caught.value.exit_code == 75
    assert outcome(timed, resumed(timed)) == outcome(config, results)


def test_a_run_that_is_stopped_twice_and_one_whose_trainings_are_over_train_nothing_twice(
    whole: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config, results = whole
    stopped = at(config, tmp_path / "run")
    with pytest.raises(TrainingInterrupted):
        train(stopped, StopsAfter(3, training=1))
    with pytest.raises(TrainingInterrupted):
        resumed(stopped, StopsAfter(4, training=3))
    taken: list[int] = []
    step = Trainer._timed_step

    def counting(self: Trainer, state: Any) -> None:
        taken.append(state.progress.step)
        step(self, state)

    monkeypatch.setattr(Trainer, "_timed_step", counting)
    assert outcome(stopped, resumed(stopped)) == outcome(config, results)
    assert len(taken) == 2
    assert outcome(stopped, resumed(stopped)) == outcome(config, results)
    assert len(taken) == 2


@pytest.mark.parametrize("now", [2, 1])
def test_another_number_of_trainings_is_another_run(whole: Run, now: int) -> None:
    config, _ = whole
    with pytest.raises(ConfigError, match=f"--trainings: 3 then, {now} now"):
        resumed(replace(config, training=replace(config.training, trainings=now)))


@pytest.mark.parametrize(
    ("adapter", "loss"),
    [
        ({"method": "full", "rank": 16, "alpha": 32.0, "dropout": 0.0}, {}),
        ({"init": "pissa", "dropout": 0.0}, {}),
        ({"bias": "all", "modules_to_save": ("LayerNorm",)}, {"learn_scale": True}),
    ],
    ids=["full", "pissa", "biases, norms, and a learned scale"],
)
def test_whatever_is_trained_is_averaged_and_goes_on_likewise(
    config: TrainConfig, adapter: dict[str, Any], loss: dict[str, Any], tmp_path: Path
) -> None:
    """The saved model is held against what was measured by the run itself."""
    runs = [
        at(config, tmp_path / name, adapter=adapter, training={"trainings": 2, "lr": 1e-3}, loss=loss)
        for name in ("whole", "stopped")
    ]
    results = train(runs[0])
    with pytest.raises(TrainingInterrupted):
        train(runs[1], StopsAfter(4, training=2))
    assert outcome(runs[1], resumed(runs[1])) == outcome(runs[0], results)


def test_plain_weights_have_their_plain_mean(config: TrainConfig, tmp_path: Path, monkeypatch: Any) -> None:
    full = at(config, tmp_path / "run", training={"lr": 1e-3, "recipe": "quick", "trainings": 2, "mined_epochs": None})
    full = replace(full, adapter=AdapterConfig(method="full"))
    results = train(full)
    out, members = full.output.out, results["train"]["members"]
    own = [weights(place, found["best_step"]) for place, found in zip(places(out)[:2], members, strict=True)]
    kept = [state for state, member in zip(own, members, strict=True) if member["kept"]]
    assert len(kept) == 2
    saved = load_file(out / "model" / "model.safetensors")
    for name, tensor in saved.items():
        key = f"0.model.{name}"
        if key in own[0]:
            torch.testing.assert_close(tensor, (own[0][key] + own[1][key]) / 2, atol=0, rtol=0)
            assert not torch.equal(own[0][key], own[1][key]) or not own[0][key].any(), name


def test_a_training_without_gain_is_left_out_of_the_mean(
    whole: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worse(monkeypatch, 2)
    config, reporter = at(whole[0], tmp_path / "run"), Notes()
    results = train(config, reporter)
    assert [member["kept"] for member in results["train"]["members"]] == [True, False, True]
    assert results["train"]["members"][1]["best_step"] == 0
    assert json.loads((config.output.out / "adapter" / "adapter_config.json").read_text())["r"] == 8
    assert any("left out, as no step was better on dev than the start: training 2" in text for text in reporter.texts)
    assert results["train"]["members"][2] == whole[1]["train"]["members"][2], "whatever became of those before"


def test_one_training_with_gain_is_kept_as_it_is(whole: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worse(monkeypatch, 2, 3)
    config = at(whole[0], tmp_path / "run")
    results = train(config)
    assert [member["kept"] for member in results["train"]["members"]] == [True, False, False]
    saved = load_file(config.output.out / "adapter" / "adapter_model.safetensors")
    own = weights(config.output.out, results["train"]["best_step"])
    assert sorted(map(_summed, saved.values())) == sorted(map(_summed, own.values()))


def _summed(tensor: Tensor) -> float:
    return float(tensor.double().sum())


def test_without_any_gain_the_base_is_saved(whole: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worse(monkeypatch, 1, 2, 3)
    config = at(whole[0], tmp_path / "run")
    results = train(config)
    assert (results["train"]["improved"], results["train"]["best_step"]) == (False, 0)
    assert "blend" not in results
    assert results["tuned"] == results["base"]


def test_dora_keeps_the_best_and_says_so(config: TrainConfig, tmp_path: Path) -> None:
    dora, reporter = at(config, tmp_path / "run", adapter={"dora": True}, training={"trainings": 2}), Notes()
    results = train(dora, reporter)
    members = results["train"]["members"]
    best = max(range(2), key=lambda number: members[number]["best_metric"])
    assert [member["kept"] for member in members] == [number == best for number in range(2)]
    assert any(f"(DoRA) has no mean, so training {best + 1} is kept" in text for text in reporter.texts)
    saved = load_file(dora.output.out / "adapter" / "adapter_model.safetensors")
    own = weights(places(dora.output.out)[best], members[best]["best_step"])
    assert sorted(map(_summed, saved.values())) == sorted(map(_summed, own.values()))
    assert results["train"]["best_step"] == 6 * best + members[best]["best_step"]


def test_a_teacher_is_asked_once(
    config: TrainConfig, make_judge: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.loads(line) for line in Path(config.data.train).read_text().splitlines()]
    for number, row in enumerate(rows):
        row["negative"] = rows[(number + 7) % len(rows)]["positive"]
    given = tmp_path / "pairs.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked: list[int] = []

    def counting(model: CrossEncoder, texts: Any, **named: Any) -> Any:
        asked.append(len(texts))
        return score_pairs(model, texts, **named)

    monkeypatch.setattr("embedtune.training.teacher.score_pairs", counting)
    taught = at(
        config,
        tmp_path / "run",
        data={"train": str(given)},
        training={"trainings": 2, "mined_epochs": None},
    )
    taught = replace(taught, loss=LossConfig(distill="kl", teacher=str(make_judge())))
    with pytest.raises(TrainingInterrupted):
        train(taught, StopsAfter(2, training=2))
    assert len(resumed(taught)["train"]["members"]) == 2
    assert len(asked) == 1
