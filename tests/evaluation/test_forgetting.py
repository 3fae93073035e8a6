"""Scores on general sets, and how sure their differences are.

Shapes: `N` pairs of sentences.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from embedtune.data.collection import Collection
from embedtune.evaluation.forgetting import (
    SetScores,
    forgetting_facts,
    mean_score,
    measure,
    texts_in,
)
from embedtune.evaluation.general import RetrievalSet, SimilaritySet
from embedtune.evaluation.metrics import FloatArray
from embedtune.evaluation.noise import spearman_interval
from embedtune.evaluation.run import retrieval_task
from embedtune.models.encoder import Encoder


def graded(pairs: int, *noises: float) -> tuple[FloatArray, ...]:
    """Grades with ties, and values that follow them more or less."""
    rng = np.random.default_rng(0)
    grades_N = rng.integers(0, 6, pairs).astype(np.float64)
    return grades_N, *(grades_N + noise * rng.normal(size=pairs) for noise in noises)


def similarity(values_N: FloatArray, grades_N: FloatArray, name: str = "sts") -> SetScores:
    return SetScores(name=name, metric="spearman", values_N=values_N, grades_N=grades_N)


def test_the_score_is_spearmans_with_ties() -> None:
    grades_N, values_N = graded(200, 1.5)
    values_N = values_N.round()
    assert similarity(values_N, grades_N).score == pytest.approx(stats.spearmanr(values_N, grades_N).statistic)


def test_the_interval_is_the_paired_bootstraps() -> None:
    grades_N, base_N, tuned_N = graded(150, 1.0, 2.0)

    def difference(base: FloatArray, tuned: FloatArray, grades: FloatArray) -> float:
        return float(stats.spearmanr(tuned, grades).statistic - stats.spearmanr(base, grades).statistic)

    expected = stats.bootstrap(
        (base_N, tuned_N, grades_N),
        difference,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=1000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    low, high = spearman_interval(base_N, tuned_N, grades_N, seed=0)
    assert (low, high) == pytest.approx(tuple(expected), abs=0.015)
    assert low < difference(base_N, tuned_N, grades_N) < high < 0
    assert spearman_interval(base_N, tuned_N, grades_N, seed=0) == (low, high)
    assert spearman_interval(base_N, tuned_N, grades_N, seed=1) != (low, high)


def test_the_interval_covers_the_truth() -> None:
    rng, covered = np.random.default_rng(5), 0
    for seed in range(200):
        grades_N = rng.integers(0, 6, 120).astype(np.float64)
        base_N, tuned_N = (grades_N + 2 * rng.normal(size=120) for _ in range(2))
        low, high = spearman_interval(base_N, tuned_N, grades_N, seed=seed, resamples=300)
        covered += low <= 0 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_a_draw_of_one_grade_only_is_no_difference() -> None:
    low, high = spearman_interval(np.array([0.1, 0.2]), np.array([0.2, 0.1]), np.array([0.0, 1.0]), seed=0)
    assert (low, high) == (-2.0, 0.0)


def test_facts_of_each_set_before_and_after() -> None:
    grades_N, base_N, tuned_N = graded(150, 1.0, 2.0)
    questions = [
        SetScores(name="faq", metric="ndcg@10", values_N=np.array(values)) for values in ([1.0, 0.5], [1.0, 1.0])
    ]
    base, tuned = [similarity(base_N, grades_N), questions[0]], [similarity(tuned_N, grades_N), questions[1]]
    first, second = forgetting_facts(base, tuned, seed=0)
    assert (first["name"], first["kind"], first["metric"], first["items"]) == ("sts", "similarity", "spearman", 150)
    assert first["delta"]["mean"] == first["tuned"] - first["base"] < 0
    assert first["delta"]["ci95"] == list(spearman_interval(base_N, tuned_N, grades_N, seed=0))
    assert (second["kind"], second["metric"], second["base"], second["tuned"]) == ("retrieval", "ndcg@10", 0.75, 1.0)
    # Two questions tell nothing: no difference that a metric can have is ruled out.
    assert second["delta"] == {"mean": 0.25, "ci95": [-1.0, 1.0]}
    assert mean_score(tuned) == (first["tuned"] + 1.0) / 2
    with pytest.raises(ValueError, match="expected the same sets"):
        forgetting_facts(base, [tuned[0], similarity(tuned_N, grades_N, "other")], seed=0)


def test_sentences_get_no_prompt_of_a_role(
    st_folder: Path, bare_folder: Path, make_st_folder: Callable[..., Path], load: Callable[..., Encoder]
) -> None:
    """As Sentence Transformers' `encode` does: the default prompt if the model has one."""
    pairs = SimilaritySet(
        name="sts",
        first=("bador", "shokor kefin", "lihem"),
        second=("bagal", "tidor", "numez raj"),
        grades_N=np.array([0.0, 1.0, 2.0]),
    )
    with_default = make_st_folder(bare_folder, prompts={"query": "nop: ", "sts": "kefin: "}, default_prompt_name="sts")
    for folder in (st_folder, with_default):
        encoder = load(folder)
        (scores,) = measure(encoder, [pairs])
        first_NE, second_NE = (
            encoder.encode(list(texts), convert_to_tensor=True) for texts in (pairs.first, pairs.second)
        )
        expected_N = torch.cosine_similarity(first_NE, second_NE).numpy()
        np.testing.assert_allclose(scores.values_N, expected_N, atol=1e-5)


def test_questions_are_searched_with_their_prompts(st_folder: Path, load: Callable[..., Encoder]) -> None:
    collection = Collection(
        queries=["q one", "q two"], passages=["lihem", "kefin", "bador"], qrels={0: {1: 1.0}, 1: {2: 1.0}}
    )
    questions = RetrievalSet(name="faq", collection=collection, task=retrieval_task(collection, [0, 1], [0, 1, 2]))
    encoder, done = load(st_folder), list[int]()
    (scores,) = measure(encoder, [questions], on_progress=done.append)
    assert sum(done) == texts_in([questions]) == 5
    queries_QE = encoder.encode_query(collection.queries, convert_to_tensor=True)
    corpus_DE = encoder.encode_document(collection.passages, convert_to_tensor=True)
    scores_QD = queries_QE @ corpus_DE.T
    ranks_Q = (scores_QD > scores_QD[[0, 1], [1, 2]][:, None]).sum(dim=1).numpy() + 1
    np.testing.assert_allclose(scores.values_N, 1 / np.log2(ranks_Q + 1))
