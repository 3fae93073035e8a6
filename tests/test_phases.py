"""Training with mined negatives: what is mined, that it is used, and that a stopped run goes on to the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedtune.config import (
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
from embedtune.errors import ConfigError, ModelError, StorageError, TrainingInterrupted
from embedtune.export import mined_file
from embedtune.pipeline import train
from embedtune.training.contrastive import ContrastiveObjective
from embedtune.training.words import BM25_WEIGHT
from tests.interrupts import StopsAfter

pytestmark = pytest.mark.usefixtures("few_general_texts")


@pytest.fixture
def config(pairs_file: Path, st_folder: Path, tmp_path: Path) -> TrainConfig:
    """Six steps and then six with two negatives each."""
    return six_and_six(pairs_file, st_folder, tmp_path)


@pytest.fixture
def neighbours(config: TrainConfig) -> TrainConfig:
    """Six steps and then six in which those come together that have one another's passages for hard negatives."""
    training = replace(config.training, mined_batches="auto")
    mining = replace(config.mining, hard_negatives=None)
    return replace(config, training=training, mining=mining, loss=LossConfig(bm25_weight=0.3))


def six_and_six(pairs_file: Path, st_folder: Path, folder: Path) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(train=str(pairs_file)),
        model=ModelConfig(base=str(st_folder), device="cpu", precision="fp32"),
        mining=MiningConfig(hard_negatives=2, max_score_ratio=100.0),
        training=TrainingConfig(
            lr=0.01,
            batch_size=16,
            epochs=1,
            mined_epochs=1,
            mined_batches="shuffled",
            mined_batch_size=16,
            eval_steps=4,
            checkpoint_minutes=0.0,
        ),
        evaluation=EvaluationConfig(accept="any"),
        output=OutputConfig(out=folder / "run"),
    )


def adapter(out: Path) -> bytes:
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


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


def test_neighbours_come_in_one_batch_and_bm25_teaches_there(
    neighbours: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_of, taught, negatives = list[list[int]](), list[bool](), 0
    original = ContrastiveObjective.__call__

    def spying(self: ContrastiveObjective, rows: Any) -> Any:
        nonlocal negatives
        rows_of.append(rows.tolist())
        taught.append(self.words is not None)
        negatives += sum(len(self.pairs.negative_ids[row]) for row in rows)
        return original(self, rows)

    monkeypatch.setattr(ContrastiveObjective, "__call__", spying)
    results = train(neighbours)
    (mined,), out = results["mining"], neighbours.output.out
    kept = json.loads((out / "checkpoints" / "mined-1.json").read_text())["negatives"]
    assert (mined["batches"], mined["asked"], {len(ids) for ids in kept}) == ("neighbours", 16, {16})
    assert mined["bm25"]["weight"] == 0.3
    assert 0 < mined["bm25"]["finds"] < 1
    assert (negatives, taught) == (0, [False] * 6 + [True] * 6)
    passages = [row["positive"] for row in read_rows(out, "train")]
    nearest = [{row["negative_1"], row["negative_2"]} for row in read_rows(out, "mined-1")]
    assert all("negative_3" not in row for row in read_rows(out, "mined-1"))
    both = [len({passages[r] for r in batch} & nearest[row]) for batch in rows_of[6:] for row in batch]
    assert sum(both) / (2 * len(both)) == pytest.approx(mined["nearest_together"])
    before = [len({passages[r] for r in batch} & nearest[row]) for batch in rows_of[:6] for row in batch]
    assert sum(both) > 1.3 * sum(before)
    written = load_toml(out / "config.toml")
    assert (written.training.mined_batches, written.training.mined_batch_size) == ("neighbours", 16)
    again = train(replace(written, output=replace(written.output, out=out.with_name("again"))))
    assert adapter(out.with_name("again")) == adapter(out)
    assert again["mining"] == results["mining"]


def test_neighbours_may_get_negatives_beside(neighbours: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set[int]()
    original = ContrastiveObjective.__call__

    def spying(self: ContrastiveObjective, rows: Any) -> Any:
        seen.update(len(self.pairs.negative_ids[row]) for row in rows)
        return original(self, rows)

    monkeypatch.setattr(ContrastiveObjective, "__call__", spying)
    train(replace(neighbours, mining=replace(neighbours.mining, hard_negatives=3)))
    assert seen == {0, 3}
    assert "negative_3" in read_rows(neighbours.output.out, "mined-1")[0]


@pytest.mark.parametrize(("weight", "known", "teaches"), [(None, 0.9, True), (None, 0.4, False), (0.2, 0.1, True)])
def test_bm25_teaches_if_it_knows_enough_or_is_told_to(
    neighbours: TrainConfig, monkeypatch: pytest.MonkeyPatch, weight: float | None, known: float, teaches: bool
) -> None:
    """This model and BM25 miss as much as each other."""
    monkeypatch.setattr("embedtune.training.words._found", lambda *_: known)
    monkeypatch.setattr("embedtune.training.words.AS_MUCH_MISSED", 100.0)
    taught = list[bool]()
    original = ContrastiveObjective.__call__

    def spying(self: ContrastiveObjective, rows: Any) -> Any:
        taught.append(self.words is not None)
        return original(self, rows)

    monkeypatch.setattr(ContrastiveObjective, "__call__", spying)
    short = replace(neighbours.training, epochs=0.2, mined_epochs=0.2)
    (mined,) = train(replace(neighbours, training=short, loss=LossConfig(bm25_weight=weight)))["mining"]
    assert (mined["bm25"]["teaches"], mined["bm25"]["weight"]) == (teaches, weight or BM25_WEIGHT)
    assert mined["bm25"]["finds"] == known
    assert (taught[0], taught[-1]) == (False, teaches)


def test_bm25_is_not_asked_where_it_is_to_teach_nothing(neighbours: TrainConfig) -> None:
    short = replace(neighbours.training, epochs=0.2, mined_epochs=0.2)
    (mined,) = train(replace(neighbours, training=short, loss=LossConfig(bm25_weight=0.0)))["mining"]
    assert "bm25" not in mined


@pytest.mark.parametrize("step", [3, 6, 9, 12])
@pytest.mark.parametrize(("batches", "averaging"), [("shuffled", "none"), ("neighbours", "swa")])
def test_a_run_stopped_at_any_point_goes_on_to_the_same_weights(
    config: TrainConfig, batches: Any, averaging: Any, step: int, tmp_path: Path
) -> None:
    """In each phase, at the end of each, and between the last step and its evaluation."""
    config = replace(config, training=replace(config.training, mined_batches=batches, averaging=averaging))
    whole = train(config)
    stopped = replace(config, output=OutputConfig(out=tmp_path / "stopped"))
    with pytest.raises(TrainingInterrupted):
        train(stopped, StopsAfter(step))
    resumed = train(replace(stopped, output=replace(stopped.output, resume=True)))
    assert adapter(stopped.output.out) == adapter(config.output.out)
    for key in ("loss", "dev"):
        assert resumed["train"][key] == whole["train"][key]
    assert (resumed["tuned"], resumed["mining"]) == (whole["tuned"], whole["mining"])


def test_what_was_mined_is_told_by_a_run_that_was_stopped_after_its_last_step(config: TrainConfig) -> None:
    whole = train(config)
    assert train(replace(config, output=replace(config.output, resume=True)))["mining"] == whole["mining"]


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
        path.write_text(json.dumps(content | {"sha256": mined_file._checksum(content["negatives"])}))
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
    none = MiningConfig(hard_negatives=0)
    with pytest.raises(ConfigError, match=r"--mined-epochs is 1, and --hard-negatives 0 adds none"):
        TrainConfig(training=TrainingConfig(mined_epochs=1, mined_batches="shuffled"), mining=none)
    assert TrainConfig(training=TrainingConfig(mined_epochs=1), mining=none).mining.added == 0


def test_bm25_can_t_teach_where_nothing_is_mined(config: TrainConfig) -> None:
    training = replace(config.training, mined_epochs=0)
    with pytest.raises(
        ConfigError, match=r"--bm25-weight 0.3: BM25 teaches in the epochs with mined negatives.*\nType"
    ):
        train(replace(config, training=training, loss=LossConfig(bm25_weight=0.3)))
    assert not config.output.out.exists()


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
