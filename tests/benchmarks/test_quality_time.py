"""Both sides train alike under the same schedule, are evaluated alike, and stop when the target is reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import ours, peer
from benchmarks.batches import epoch_of_batches, write_batches
from benchmarks.dev import Curve, read_dev, write_dev
from benchmarks.jobs import QualityJob, TrainJob, load_quality_job, save_job
from benchmarks.quality_time import QualityOptions
from benchmarks.records import QualityMeasurement
from benchmarks.summary import quality_ratios, summarize_quality
from embedtune.config import DataConfig
from embedtune.data.prepare import prepare
from embedtune.errors import ConfigError
from embedtune.measuring import dev_task

MEASURED = QualityMeasurement(
    runner="embedtune", precision="fp32", weights="fp32", steps=[0, 2, 4], seconds=[0.0, 2.0, 4.0], ndcg=[0.1, 0.3, 0.5]
)


@pytest.fixture
def job(
    make_checkpoint: Callable[..., Path], bert_config: dict[str, int], pairs_file: Path, tmp_path: Path
) -> QualityJob:
    """A tiny BERT without dropout, and batches and a dev set of the same pairs."""
    from transformers import BertConfig

    config = BertConfig.from_dict({**bert_config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    splits = prepare(DataConfig(train=str(pairs_file), dev_fraction=0.3), seed=0)
    batches = epoch_of_batches(splits.train, splits.collection, batch_size=8, seed=0, epoch=0)[:5]
    write_batches(batches, tmp_path / "batches.jsonl")
    write_dev(dev_task(splits, size=30, seed=0), splits.collection, tmp_path / "dev.json")
    train = TrainJob(
        base=str(make_checkpoint(config)),
        batches=str(tmp_path / "batches.jsonl"),
        batch_size=8,
        max_length=24,
        method="lora",
        rank=4,
        alpha=8.0,
        device="cpu",
        lr=3e-3,
        schedule="cosine",
        warmup_fraction=0.3,
        weight_decay=0.01,
        scale=20.0,
        seed=0,
        warmup=0,
    )
    return QualityJob(train=train, dev=str(tmp_path / "dev.json"), eval_steps=2, target=1.1)


@pytest.mark.filterwarnings("ignore")
def test_the_sides_learn_alike_and_stop_at_the_target(job: QualityJob) -> None:
    one, other = ours.time_quality("embedtune-fp32", job), peer.time_quality("st-fp32", job)
    assert one.steps == other.steps == [0, 2, 4, 5]
    assert one.ndcg == pytest.approx(other.ndcg, abs=1e-3)
    assert len(set(one.ndcg)) > 1
    for found in (one, other):
        assert found.seconds == sorted(set(found.seconds))

    reached = replace(job, target=one.ndcg[0] - 1e-6)
    assert ours.time_quality("embedtune-fp32", reached).steps == [0]
    early = replace(job, target=max(one.ndcg[1:]) - 1e-6)
    assert ours.time_quality("embedtune-fp32", early).steps == peer.time_quality("st-fp32", early).steps


def test_the_job_and_the_dev_set_come_back(job: QualityJob, tmp_path: Path) -> None:
    save_job(job, tmp_path / "job.json")
    assert load_quality_job(tmp_path / "job.json") == job
    dev = read_dev(job.dev)
    assert len(dev.passages) == 30
    assert all(max(relevant) < 30 for relevant in dev.qrels)
    passages_DE = torch.eye(30)
    queries_QE = torch.stack([3.0 * passages_DE[next(iter(relevant))] for relevant in dev.qrels])
    assert 0.5 < dev.ndcg(queries_QE, passages_DE) <= 1.0
    assert dev.ndcg(-queries_QE, passages_DE) < 0.1


def test_evaluating_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.arange(100.0))
    monkeypatch.setattr("benchmarks.dev.now", lambda device: next(clock))

    def evaluate() -> float:
        for _ in range(7):
            next(clock)
        return 0.5

    curve = Curve(torch.device("cpu"), evaluate, target=0.5)
    curve.start()
    curve.measure(0)
    curve.measure(3)
    assert (curve.steps, curve.seconds, curve.values, curve.reached) == ([0, 3], [1.0, 2.0], [0.5, 0.5], True)


def test_seconds_to_the_target_are_compared() -> None:
    slow = replace(MEASURED, runner="st-fp32", seconds=[0.0, 6.0, 12.0])
    never = replace(MEASURED, runner="st-bf16", ndcg=[0.1, 0.2, 0.3])
    rounds = [{"embedtune": MEASURED, "st-fp32": slow, "st-bf16": never}]
    summaries = summarize_quality(rounds, 0.5)
    assert (summaries["embedtune"].seconds, summaries["embedtune"].steps) == (4.0, 4)
    assert (summaries["st-bf16"].seconds, summaries["st-bf16"].best) == (None, 0.3)
    compared = quality_ratios(rounds, 0.5)
    assert compared["embedtune"].keys() == {"st-fp32"}
    assert compared["embedtune"]["st-fp32"].median == pytest.approx(3)


@pytest.mark.parametrize(
    ("wrong", "said"), [({"ndcg": 1.5}, "--ndcg is 1.5"), ({"eval_steps": 0}, "--eval-steps is 0")]
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        QualityOptions(**{"ndcg": 0.5, **wrong})
