"""Hybrid search: several rankings of the same passages made into one by reciprocal rank fusion.

Shapes: `Q` queries, `K` ranked passages per query, `N` ranked passages of all rankings and queries together.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from embedtune.data.collection import IdArray

NO_PASSAGE = -1
"""Id that fills up a ranking with fewer than K passages; never relevant."""
RRF_K = 60
"""The constant of Cormack et al., which damps how much more the first ranks count than later ones."""


def reciprocal_rank_fusion(*rankings_QK: IdArray, k: int = RRF_K) -> tuple[IdArray, npt.NDArray[np.float64]]:
    """One ranking out of several: a passage's score is the sum of 1 / (k + its rank), over those that rank it.

    Cormack, Clarke and Büttcher 2009, "Reciprocal rank fusion outperforms Condorcet and individual rank learning
    methods". Only ranks count, so the scores of the rankings need not be comparable. Of equal scores the lower passage
    id goes first. Scores are compared to 12 decimals: those of two rankings that differ at all differ by more, down to
    rank 100 with the usual `k`, so sums that are equal in exact arithmetic count as equal.

    Args:
        rankings_QK: Two or more rankings of the same queries: passage ids, best first, each at most once a query.
            They may be of different depths; `NO_PASSAGE` fills up a shorter one.
        k: The constant; higher counts later ranks more.

    Returns:
        Passage ids, best first, and their scores, both (Q, K), K being that of the deepest ranking. What is missing
        is `NO_PASSAGE`, with score 0.

    Raises:
        ValueError: There are fewer than two rankings, they are not of the same queries, or `k` is below 0.
    """
    _check(rankings_QK, k)
    queries, depth = len(rankings_QK[0]), max(ranking_QK.shape[1] for ranking_QK in rankings_QK)
    query_N = np.concatenate([np.repeat(np.arange(queries), ranking_QK.shape[1]) for ranking_QK in rankings_QK])
    rank_N = np.concatenate([np.tile(np.arange(1, ranking_QK.shape[1] + 1), queries) for ranking_QK in rankings_QK])
    passage_N = np.concatenate([ranking_QK.ravel() for ranking_QK in rankings_QK])

    # By rank within a passage: its terms are always added in the same order, so equal sums come out equal.
    order_N = np.lexsort((rank_N, passage_N, query_N))
    order_N = order_N[passage_N[order_N] != NO_PASSAGE]
    query_N, passage_N, rank_N = query_N[order_N], passage_N[order_N], rank_N[order_N]
    first_N = np.ones(len(order_N), dtype=bool)
    first_N[1:] = (query_N[1:] != query_N[:-1]) | (passage_N[1:] != passage_N[:-1])
    scores = np.bincount(np.cumsum(first_N) - 1, weights=1 / (k + rank_N)) if len(order_N) else np.zeros(0)
    query, passage = query_N[first_N], passage_N[first_N]

    best = np.lexsort((passage, -scores.round(12), query))
    query, passage, scores = query[best], passage[best], scores[best]
    place = np.arange(len(query)) - np.searchsorted(query, query)
    kept = place < depth
    ids_QK = np.full((queries, depth), NO_PASSAGE, dtype=np.int64)
    scores_QK = np.zeros((queries, depth))
    ids_QK[query[kept], place[kept]] = passage[kept]
    scores_QK[query[kept], place[kept]] = scores[kept]
    return ids_QK, scores_QK


def _check(rankings_QK: tuple[IdArray, ...], k: int) -> None:
    shapes = [ranking_QK.shape for ranking_QK in rankings_QK]
    if len(shapes) < 2 or any(len(shape) != 2 or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"rankings: got shapes {shapes}, expected two or more of (queries, ranked passages)")
    if k < 0:
        raise ValueError(f"k: got {k}, expected 0 or more")
