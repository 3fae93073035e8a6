"""A peer trains on the rows of a real cell with its settings, and is measured on the same test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.dev import Curve
from benchmarks.quality.command import QualityOptions, benchmark
from benchmarks.quality.commands import CommandFailedError
from benchmarks.quality.peer_cell import check_same_test
from benchmarks.quality.peer_training import BestOnDev, not_carried_over, read_columns, write_test
from embedtune.config import DataConfig, LossConfig, ModelConfig, TrainConfig, TrainingConfig
from embedtune.data.prepare import prepare
from embedtune.evaluation.run import retrieval_task
from embedtune.inference import _test_rows
from embedtune.measuring import held_out_task
from embedtune.progress import SilentReporter

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def findable(sentences: list[str], tmp_path: Path) -> Path:
    """Pairs of a sentence and the same with another end, which a random model finds better than by chance."""
    rows = [{"anchor": " ".join(text.split()[:-2]), "positive": text} for text in sentences[100:200] if len(text) > 60]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.timeout(1800)
def test_a_peer_beside_a_real_cell(
    st_folder: Path, findable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    description = tmp_path / "quality.toml"
    description.write_text(
        f"""
        seeds = [3]
        base = "{st_folder}"
        options = ["--batch-size", "8", "--max-steps", "3", "--eval-steps", "2", "--rank", "4", "--device", "cpu"]
        [data.tiny]
        train = "{findable}"
        [variant.ours]
        [variant.plain]
        peer = "sentence-transformers"
        """,
        encoding="utf-8",
    )
    out = tmp_path / "runs"
    benchmark(QualityOptions(description=description, out=out, json=tmp_path / "all.json"))
    assert "[2/2] plain, tiny, seed 3: ndcg@10" in capsys.readouterr().out
    assert (out / "ours/tiny/3/splits/train.jsonl").is_file()
    assert [path.name for path in (out / "plain/tiny/3").iterdir()] == ["results.json"]
    ours, plain = (json.loads((out / f"{name}/tiny/3/results.json").read_text("utf-8")) for name in ("ours", "plain"))
    assert ours["base"]["ndcg@10"] > 0.05
    assert plain["base"]["ndcg@10"] == pytest.approx(ours["base"]["ndcg@10"], abs=1e-6)
    assert plain["train"]["trainable_parameters"] == ours["train"]["trainable_parameters"]
    assert [at["step"] for at in plain["train"]["dev"]] == [at["step"] for at in ours["train"]["dev"]] == [0, 2, 3]
    assert plain["train"]["dev"][0]["ndcg@10"] == pytest.approx(ours["train"]["dev"][0]["ndcg@10"], abs=1e-4)
    assert plain["peer"]["not_carried_over"] == []
    difference = json.loads((tmp_path / "all.json").read_text("utf-8"))["summary"]["tiny"][1]["difference"]
    assert difference["mean"] == pytest.approx(plain["tuned"]["ndcg@10"] - ours["tuned"]["ndcg@10"])


def test_the_test_of_a_run_comes_back(pairs_file: Path, tmp_path: Path) -> None:
    splits = prepare(DataConfig(train=str(pairs_file)), seed=0)
    write_test(splits, tmp_path / "test")
    collection, test = _test_rows(DataConfig(test=str(tmp_path / "test")), SilentReporter())
    task = retrieval_task(collection, test.pairs.query_ids, np.arange(len(collection.passages)))
    ours = held_out_task(splits)
    assert set(collection.passages) == set(splits.collection.passages)
    asked = {collection.queries[q]: {collection.passages[p] for p in task.qrels[q]} for q in task.query_ids}
    expected = {
        splits.collection.queries[q]: {splits.collection.passages[p] for p in ours.qrels[q]} for q in ours.query_ids
    }
    assert asked == expected


def test_rows_get_as_many_negatives_as_the_row_with_most(tmp_path: Path) -> None:
    rows: list[dict[str, str]] = [
        {"id": "1", "anchor": "a", "positive": "A", "negative_1": "B", "negative_2": "C"},
        {"id": "2", "anchor": "b", "positive": "B", "negative_1": "A"},
        {"id": "3", "anchor": "c", "positive": "C"},
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    columns = read_columns(path, seed=0)
    assert list(columns) == ["anchor", "positive", "negative_1", "negative_2"]
    assert columns["negative_1"][:2] == ["B", "A"]
    assert columns["negative_2"][:2] == ["C", "A"]
    assert columns["negative_1"][2] in ("A", "B")
    path.write_text(json.dumps(rows[2]) + "\n", encoding="utf-8")
    assert list(read_columns(path, seed=0)) == ["anchor", "positive"]


def test_the_best_weights_come_back() -> None:
    model: Any = nn.Linear(1, 1)
    scores = iter([0.2, 0.6, 0.4])
    best = BestOnDev(model, Curve(torch.device("cpu"), lambda: next(scores), target=9.0), every=2)
    state: Any = type("State", (), {"global_step": 0})()
    best.on_train_begin(None, state, None)  # type: ignore[arg-type]
    for step in (1, 2, 3):
        nn.init.constant_(model.weight, float(step))
        state.global_step = step
        best.on_step_end(None, state, None)  # type: ignore[arg-type]
    best.on_train_end(None, state, None)  # type: ignore[arg-type]
    assert (best.step, best.curve.steps) == (2, [0, 2, 3])
    assert model.weight.item() == 2.0


def test_settings_that_the_peer_lacks_are_named() -> None:
    config = TrainConfig()
    assert not_carried_over(config) == []
    config = replace(config, loss=LossConfig(scale=30.0), training=TrainingConfig(patience=2, micro_batch_tokens=100))
    assert not_carried_over(config) == ["training.patience"]
    single = TrainingConfig(recipe="thorough", trainings=1)
    assert not_carried_over(replace(config, training=single)) == []
    assert not_carried_over(replace(config, training=replace(single, trainings=3))) == ["training.trainings"]
    mines = replace(config, training=replace(single, mined_epochs=2.0))
    assert not_carried_over(mines) == ["training.mined_epochs", "loss.bm25_weight"]
    untaught = replace(mines, loss=LossConfig(bm25_weight=0.0))
    assert not_carried_over(untaught) == ["loss.bm25_weight", "training.mined_epochs"]


@pytest.mark.parametrize(
    ("changed", "model", "said"),
    [
        ({}, {}, None),
        ({"data": {"test_queries": 9, "corpus_passages": 50}}, {}, "test_queries is 10 in the other cell and 9"),
        ({"against": {"ndcg@10": 0.503}}, {"precision": "fp32"}, "0.5000 in the other cell and 0.5030 here"),
        ({"against": {"ndcg@10": 0.503}}, {"precision": "bf16"}, None),
        ({"against": {"ndcg@10": 0.6}}, {"precision": "fp32", "query_prompt": "q: "}, None),
    ],
)
def test_another_test_is_no_comparison(changed: dict[str, Any], model: dict[str, Any], said: str | None) -> None:
    data = {"test_queries": 10, "corpus_passages": 50}
    config = TrainConfig(model=ModelConfig(**model))
    measured = {"data": data, "against": {"ndcg@10": 0.5}, **changed}
    ours = {"data": data, "base": {"ndcg@10": 0.5}}
    if said is None:
        check_same_test(ours, measured, config)
    else:
        with pytest.raises(CommandFailedError, match=said):
            check_same_test(ours, measured, config)
