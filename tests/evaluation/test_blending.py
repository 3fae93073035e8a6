"""Which weight is recommended, on curves made up for it; and that a curve is measured on dev and the general sets.

Shapes: `Q` dev queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from peft import PeftModel

from embedtune.data.collection import Collection
from embedtune.evaluation.blending import BlendPoint, blend_curve, blend_facts, gain, recommend
from embedtune.evaluation.forgetting import mean_score, measure
from embedtune.evaluation.general import GeneralSet, SimilaritySet
from embedtune.evaluation.run import Evaluation, evaluate_embeddings, retrieval_task
from embedtune.models.encoder import Encoder

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def curve(
    dev: tuple[float, ...], forgetting: tuple[float, ...], *, queries: int = 400, noise: float = 0.05
) -> list[BlendPoint]:
    """Points with exactly these means; between two of them each query differs by noise."""
    rng = np.random.default_rng(0)
    points = []
    for weight, mean, kept in zip(WEIGHTS, dev, forgetting, strict=True):
        noise_Q = noise * rng.normal(size=queries)
        points.append(BlendPoint(weight=weight, dev_Q=mean + noise_Q - noise_Q.mean(), forgetting=kept))
    return points


def test_a_clear_winner_on_dev_wins_whatever_it_forgot() -> None:
    assert recommend(curve((0.5, 0.6, 0.7, 0.8, 0.9), (0.9, 0.8, 0.7, 0.6, 0.5)), seed=0) == 1.0
    assert recommend(curve((0.5, 0.6, 0.9, 0.8, 0.7), (0.9, 0.8, 0.7, 0.6, 0.5)), seed=0) == 0.5


def test_within_noise_the_one_that_forgot_least_wins() -> None:
    assert recommend(curve((0.5, 0.7, 0.799, 0.801, 0.8), (0.9, 0.88, 0.85, 0.8, 0.7)), seed=0) == 0.5


def test_without_a_price_the_better_one_on_dev_is_kept() -> None:
    assert recommend(curve((0.5, 0.7, 0.799, 0.801, 0.8), (0.9, 0.9, 0.9, 0.9, 0.9)), seed=0) == 0.75


def test_tuning_that_helps_everywhere_is_kept_whole() -> None:
    assert recommend(curve((0.5, 0.6, 0.7, 0.8, 0.802), (0.7, 0.72, 0.75, 0.78, 0.8)), seed=0) == 1.0


def test_a_small_dev_set_does_not_hand_back_the_base() -> None:
    """Nothing is certain with so few queries, and the base forgot nothing by definition."""
    points = curve((0.5, 0.55, 0.6, 0.64, 0.65), (0.9, 0.88, 0.86, 0.84, 0.8), queries=12, noise=0.5)
    assert recommend(points, seed=0) == 0.75


def test_no_gain_on_dev_gives_the_base() -> None:
    assert recommend(curve((0.8, 0.75, 0.7, 0.65, 0.6), (0.9, 0.88, 0.86, 0.84, 0.8)), seed=0) == 0.0


def test_a_gain_is_clear_above_what_noise_comes_to() -> None:
    clear = gain(curve((0.5, 0.9, 0.9, 0.9, 0.56), (0.9,) * 5, noise=0.4), seed=0)
    assert clear.mean == pytest.approx(0.06)
    assert clear.error == pytest.approx(0.4 * 2**0.5 / 400**0.5, rel=0.1)
    assert clear.ci95[0] < clear.mean - 1.9 * clear.error
    assert clear.clear
    half_as_much_again = gain(curve((0.5, 0.9, 0.9, 0.9, 0.543), (0.9,) * 5, noise=0.4), seed=0)
    assert 1.4 < half_as_much_again.mean / half_as_much_again.error < 1.6
    assert not half_as_much_again.clear
    assert not gain(curve((0.5, 0.9, 0.9, 0.9, 0.44), (0.9,) * 5, noise=0.01), seed=0).clear
    with pytest.raises(ValueError, match="no points"):
        gain([], seed=0)


def test_questions_that_belong_together_count_as_one() -> None:
    """The same numbers four times over are no more certain for it."""
    points = curve((0.5, 0.5, 0.5, 0.5, 0.53), (0.9,) * 5, queries=100, noise=0.2)
    single = gain(points, seed=0)
    fourfold = [replace(p, dev_Q=np.tile(p.dev_Q, 4), groups_Q=np.tile(np.arange(100), 4)) for p in points]
    assert gain(fourfold, seed=0).error == pytest.approx(single.error, rel=0.02)
    assert gain([replace(p, groups_Q=None) for p in fourfold], seed=0).error == pytest.approx(
        single.error / 2, rel=0.02
    )
    one_group = [replace(p, groups_Q=np.zeros(400, dtype=np.int64)) for p in fourfold]
    assert gain(one_group, seed=0).error == 0
    assert gain(one_group, seed=0).clear  # there is nothing against it


def test_points_in_any_order() -> None:
    points = curve((0.5, 0.7, 0.799, 0.801, 0.8), (0.9, 0.88, 0.85, 0.8, 0.7))
    assert recommend(points[::-1], seed=0) == 0.5
    with pytest.raises(ValueError, match="no points"):
        recommend([], seed=0)


def test_facts_of_a_curve() -> None:
    points = curve((0.5, 0.6, 0.7, 0.8, 0.9), (0.9, 0.8, 0.7, 0.6, 0.5))
    facts = blend_facts(points, metric="ndcg@10", used=0.75, seed=0)
    assert (facts["metric"], facts["recommended"], facts["used"]) == ("ndcg@10", 1.0, 0.75)
    assert facts["points"][1] == {"weight": 0.25, "dev": pytest.approx(0.6), "forgetting": 0.8}


def test_a_curve_runs_from_the_base_to_the_tuned_model(
    st_folder: Path, sentences: list[str], load: Callable[..., Encoder], adapt: Callable[..., PeftModel]
) -> None:
    pairs = SimilaritySet(
        name="sts",
        first=tuple(sentences[:30]),
        second=tuple(sentences[30:60]),
        grades_N=np.arange(30, dtype=np.float64),
    )
    sets: list[GeneralSet] = [pairs]
    collection = Collection(
        queries=sentences[60:80], passages=sentences[80:140], qrels={n: {n: 1.0} for n in range(20)}
    )
    task = retrieval_task(collection, range(20), range(60))

    def evaluate_dev(encoder: Encoder) -> Evaluation:
        return evaluate_embeddings(
            task,
            encoder.embed_all(encoder.token_table(collection.queries, "query")),
            encoder.embed_all(encoder.token_table(collection.passages, "passage")),
        )

    base, tuned, done = load(st_folder), load(st_folder), list[int]()
    adapt(tuned)
    points = blend_curve(tuned, evaluate_dev, sets, metric="mrr@10", weights=(0.0, 0.5, 1.0), on_done=done.append)
    assert [point.weight for point in points] == [0.0, 0.5, 1.0]
    assert sum(done) == 3
    for point, encoder in ((points[0], base), (points[2], tuned)):
        assert point.forgetting == pytest.approx(mean_score(measure(encoder, sets)), abs=0.01)
        assert point.dev == pytest.approx(evaluate_dev(encoder).means["mrr@10"], abs=0.01)
    assert points[0].forgetting != points[1].forgetting != points[2].forgetting

    known = {0.0: (evaluate_dev(base), measure(base, sets))}
    done.clear()
    again = blend_curve(
        tuned, evaluate_dev, sets, metric="mrr@10", weights=(0.0, 0.5, 1.0), known=known, on_done=done.append
    )
    assert sum(done) == 2, "what is known is not measured"
    assert [(point.dev, point.forgetting) for point in again[1:]] == [(p.dev, p.forgetting) for p in points[1:]]
    assert (again[0].dev, again[0].forgetting) == pytest.approx((points[0].dev, points[0].forgetting), abs=0.01)
