"""Correlations with grades against SciPy's, their paired intervals, and Sentence Transformers' evaluator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from embedtune.data.collection import Pairs
from embedtune.evaluation.metrics import FloatArray
from embedtune.evaluation.similarity import Similarity, compare_similarity, measure_similarity, texts_in_pairs
from embedtune.models.encoder import Encoder

compare = partial(compare_similarity, resamples=400, seed=0)
"""In a fifth of the draws, and of the time, that a run takes."""


def similarity(noise: float, *, pairs: int = 200, seed: int = 1, grades_N: FloatArray | None = None) -> Similarity:
    """Cosines that follow the grades, but for noise."""
    if grades_N is None:
        grades_N = np.random.default_rng(0).integers(0, 6, pairs) / 5
    noise_N = noise * np.random.default_rng(seed).normal(size=len(grades_N))
    return Similarity(cosines_N=grades_N + noise_N, grades_N=grades_N)


def test_correlations_are_scipys() -> None:
    one = similarity(0.4)
    assert one.means["spearman"] == pytest.approx(stats.spearmanr(one.cosines_N, one.grades_N).statistic)
    assert one.means["pearson"] == pytest.approx(stats.pearsonr(one.cosines_N, one.grades_N).statistic)
    flat = Similarity(cosines_N=np.ones(5), grades_N=np.arange(5.0))
    assert flat.means == {"spearman": 0.0, "pearson": 0.0}


def test_a_gain_is_shown_and_none_is_not() -> None:
    base, better, equal = similarity(0.6), similarity(0.3, seed=2), similarity(0.6, seed=3)
    gain = compare(base, better)["spearman"]
    assert gain.mean == pytest.approx(better.means["spearman"] - base.means["spearman"])
    assert 0 < gain.ci95[0] < gain.mean < gain.ci95[1]
    assert gain.p_value < 0.01
    none = compare(base, equal)
    for difference in none.values():
        assert difference.ci95[0] < 0 < difference.ci95[1]
        assert difference.p_value > 0.05
    assert compare(base, equal) == none
    assert compare(base, base)["pearson"].p_value == 1.0


def test_the_interval_covers() -> None:
    """Of two models that are equally good the interval holds no difference in about 95 % of the tests."""
    held = 0
    for seed in range(60):
        grades_N = np.random.default_rng(seed).integers(0, 6, 60) / 5
        one, other = (similarity(0.5, seed=1_000 + 2 * seed + way, grades_N=grades_N) for way in (0, 1))
        low, high = compare_similarity(one, other, seed=seed, resamples=100)["spearman"].ci95
        held += low <= 0 <= high
    assert held >= 52


def test_pairs_that_share_a_text_count_as_one() -> None:
    """Each pair ten times is no more evidence than once."""
    base, tuned = similarity(0.6, pairs=30), similarity(0.45, pairs=30, seed=2)
    tenfold = [
        Similarity(cosines_N=np.repeat(one.cosines_N, 10), grades_N=np.repeat(one.grades_N, 10))
        for one in (base, tuned)
    ]
    once = compare(base, tuned)["spearman"]
    grouped = compare(*tenfold, groups_N=np.repeat(np.arange(30), 10))["spearman"]
    apart = compare(*tenfold)["spearman"]
    assert grouped.ci95 == pytest.approx(once.ci95, abs=1e-9)
    assert np.diff(apart.ci95) < 0.5 * np.diff(once.ci95)
    alone = compare(*tenfold, groups_N=np.zeros(300, dtype=np.int64))["spearman"]
    assert (alone.p_value, alone.detectable, alone.ci95) == (1.0, 1.0, (alone.mean, alone.mean))


def test_two_models_are_compared_on_one_test() -> None:
    with pytest.raises(ValueError, match="measure both on one test"):
        compare_similarity(similarity(0.5, pairs=20), similarity(0.5, pairs=21), seed=0)


def test_it_is_what_sentence_transformers_evaluator_finds(
    st_folder: Path, sentences: list[str], load: Callable[..., Encoder]
) -> None:
    pairs = Pairs(
        query_ids=np.arange(60) % 20,  # no pair comes twice: equal cosines would be in the order of rounding errors
        passage_ids=20 + np.arange(60) // 3,
        negative_ids=((),) * 60,
        row_ids=tuple(map(str, range(60))),
        grades=np.random.default_rng(0).integers(0, 6, 60) / 5,
    )
    encoder, done = load(st_folder), list[int]()
    table = encoder.token_table(sentences[:40], None)
    found = measure_similarity(encoder, pairs, table, table, on_progress=done.append)
    assert sum(done) == texts_in_pairs(pairs)
    first, second = ([sentences[i] for i in ids] for ids in (pairs.query_ids, pairs.passage_ids))
    assert pairs.grades is not None
    theirs = EmbeddingSimilarityEvaluator(first, second, pairs.grades.tolist(), main_similarity="cosine")(
        SentenceTransformer(str(st_folder), device="cpu")
    )
    for name, value in found.means.items():
        assert value == pytest.approx(theirs[f"{name}_cosine"], abs=1e-4)
