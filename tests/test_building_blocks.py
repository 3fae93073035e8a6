"""The calls that a script makes for itself: what they find out where the command line would tell them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedtune.config import AdapterConfig, DataConfig, TrainingConfig
from embedtune.data.prepare import prepare
from embedtune.evaluation.blending import blend_curve, recommend
from embedtune.evaluation.forgetting import forgetting_facts, measure
from embedtune.evaluation.general import general_sets
from embedtune.evaluation.neighbours import nearest_passages, neighbour_facts
from embedtune.evaluation.sizes import quality_by_size
from embedtune.loading import tokenize
from embedtune.measuring import dev_task, embed, evaluate, held_out_task
from embedtune.models.adapters import make_trainable
from embedtune.models.blend import blended
from embedtune.models.encoder import Encoder
from embedtune.trainer import build_trainer
from embedtune.training.plan import default_lr


@pytest.mark.parametrize("adapter", [{}, {"method": "full"}, {"init": "pissa"}, {"method": "qlora", "init": "loftq"}])
def test_the_trainer_takes_the_learning_rate_of_what_is_trained(
    adapter: dict[str, Any], st_folder: Path, pairs_file: Path, tmp_path: Path, load: Callable[..., Encoder]
) -> None:
    config = AdapterConfig(**adapter)
    encoder = load(st_folder, four_bit=config.method == "qlora")
    make_trainable(encoder, config)
    splits = prepare(DataConfig(train=str(pairs_file)), seed=0)
    trainer = build_trainer(encoder, splits, tokenize(encoder, splits.collection), TrainingConfig(), out=tmp_path)
    assert trainer.plan.lr == default_lr(config.method, config.init)


def test_the_price_of_tuning_is_measured_step_by_step(
    st_folder: Path, pairs_file: Path, tmp_path: Path, load: Callable[..., Encoder]
) -> None:
    """The calls in the order of a run: what is needed of the base is little, and is taken before it is trained."""
    encoder, splits = load(st_folder), prepare(DataConfig(train=str(pairs_file)), seed=0)
    texts, test = tokenize(encoder, splits.collection), held_out_task(splits)
    sets = general_sets()
    base_scores = measure(encoder, sets)
    base_neighbours = nearest_passages(embed(encoder, test, texts)[1], seed=0)

    make_trainable(encoder, AdapterConfig())
    training = TrainingConfig(max_steps=4, batch_size=16, lr=5e-2, eval_steps=4)
    trainer = build_trainer(encoder, splits, texts, training, out=tmp_path)
    trainer.run(resume=False)

    dev = dev_task(splits, size=training.dev_corpus, seed=0)
    points = blend_curve(encoder, lambda blend: evaluate(blend, dev, texts), sets, metric=training.metric)
    weight = recommend(points, seed=0)
    tuned = blended(encoder, weight)
    queries_QE, corpus_DE = embed(tuned, test, texts)

    forgetting = forgetting_facts(base_scores, measure(tuned, sets), seed=0)
    neighbours = neighbour_facts(base_neighbours, nearest_passages(corpus_DE, seed=0))
    sizes = quality_by_size(test, queries_QE, corpus_DE)
    assert points[0].forgetting == pytest.approx(np.mean([one["base"] for one in forgetting]))
    kept = next(point for point in points if point.weight == weight)
    assert kept.forgetting == pytest.approx(np.mean([one["tuned"] for one in forgetting]), abs=0.005)
    assert 0 < neighbours["overlap"] <= 1
    assert neighbours["passages"] == len(test.passage_ids)
    assert sizes[0]["ndcg@10"] == evaluate(tuned, test, texts).means["ndcg@10"]
    json.dumps({"sets": forgetting, "neighbours": neighbours, "sizes": sizes})
