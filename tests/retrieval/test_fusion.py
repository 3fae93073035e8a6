"""Reciprocal rank fusion: against the formula in exact fractions, where ranks tie and where rankings are short.

Shapes: `Q` queries, `K` ranked passages per query.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from embedtune.data.collection import IdArray
from embedtune.retrieval.fusion import NO_PASSAGE, reciprocal_rank_fusion


def exact(rows: list[list[int]], k: int) -> list[tuple[int, Fraction]]:
    """The fused ranking of one query, in fractions."""
    scores: dict[int, Fraction] = {}
    for row in rows:
        for rank, passage in enumerate(row, start=1):
            if passage != NO_PASSAGE:
                scores[passage] = scores.get(passage, Fraction(0)) + Fraction(1, k + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def test_two_rankings_by_hand() -> None:
    ids_QK, scores_QK = reciprocal_rank_fusion(np.array([[7, 3, 9]]), np.array([[3, 5, 7]]))
    assert ids_QK.tolist() == [[3, 7, 5]]
    assert scores_QK[0].tolist() == pytest.approx([1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62])


def test_ties_go_to_the_lower_id_whichever_ranking_comes_first() -> None:
    one, other = np.array([[8, 2, 5, 1]]), np.array([[2, 8, 1, 5]])
    assert reciprocal_rank_fusion(one, other)[0].tolist() == [[2, 8, 1, 5]]
    assert reciprocal_rank_fusion(other, one)[0].tolist() == [[2, 8, 1, 5]]


@pytest.mark.parametrize("k", [0, 1, 60])
@pytest.mark.parametrize("depths", [(5, 5), (12, 3), (7, 7, 7), (4, 1, 9, 6)])
def test_agrees_with_fractions(depths: tuple[int, ...], k: int) -> None:
    """Three and more equal terms add up differently in another order, unless it is the same for all passages."""
    rng = np.random.default_rng(len(depths) + k)
    rankings: list[IdArray] = []
    for depth in depths:
        ranking_QK = np.array([rng.permutation(14)[:depth] for _ in range(200)], dtype=np.int64)
        ranking_QK[rng.random(ranking_QK.shape) < 0.1] = NO_PASSAGE
        rankings.append(ranking_QK)
    ids_QK, scores_QK = reciprocal_rank_fusion(*rankings, k=k)
    assert ids_QK.shape == (200, max(depths))
    for query in range(200):
        expected = exact([ranking_QK[query].tolist() for ranking_QK in rankings], k)[: max(depths)]
        assert ids_QK[query].tolist() == [passage for passage, _ in expected] + [NO_PASSAGE] * (
            max(depths) - len(expected)
        )
        assert scores_QK[query, : len(expected)].tolist() == pytest.approx([float(score) for _, score in expected])


def test_rankings_of_nothing_give_nothing() -> None:
    empty_QK = np.full((2, 3), NO_PASSAGE, dtype=np.int64)
    ids_QK, scores_QK = reciprocal_rank_fusion(empty_QK, empty_QK)
    assert ids_QK.tolist() == empty_QK.tolist()
    assert not scores_QK.any()
    assert reciprocal_rank_fusion(empty_QK[:0], empty_QK[:0])[0].shape == (0, 3)


def test_rankings_that_do_not_fit_are_refused() -> None:
    ranking_QK = np.zeros((2, 1), dtype=np.int64)
    with pytest.raises(ValueError, match=r"got shapes \[\(2, 1\)\], expected two or more"):
        reciprocal_rank_fusion(ranking_QK)
    with pytest.raises(ValueError, match=r"got shapes \[\(2, 1\), \(1, 1\)\]"):
        reciprocal_rank_fusion(ranking_QK, ranking_QK[:1])
    with pytest.raises(ValueError, match="k: got -1"):
        reciprocal_rank_fusion(ranking_QK, ranking_QK, k=-1)
