"""Retrieval metrics for each query, from ranked passage ids and graded relevance judgements.

A passage is relevant if its grade is above zero. Metrics stay per query: the statistics need them paired.

The metrics, what they mean and whose definition it is:

- `accuracy@1,3,5,10`: 1 if a relevant passage is among the first k, else 0 (trec_eval's `success`).
- `precision@1,3,5,10`: relevant passages among the first k, over k (trec_eval's `P`), however few are ranked.
- `recall@1,3,5,10,100`: relevant passages among the first k, over all relevant ones (trec_eval's `recall`).
- `mrr@10`: one over the rank of the first relevant passage, 0 if that is below rank 10 (Voorhees 1999).
- `ndcg@10`: sum of grade / log2(rank + 1) over the first 10, over that of the ideal ranking of all relevant
  passages. The gain is the grade (Järvelin and Kekäläinen 2002; trec_eval's `ndcg_cut`), not 2^grade - 1.
- `map@100`: mean over the relevant passages of the precision at their ranks, those below rank 100 counting 0;
  over min(100, relevant passages) as in sentence-transformers' `InformationRetrievalEvaluator`, which is
  trec_eval's `map_cut` when at most 100 are relevant.

A query without relevant passages gets 0 everywhere.

Shapes: `Q` queries, `K` ranked passages per query, `G` grades kept for the ideal ranking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from embedtune.data.collection import IdArray
from embedtune.retrieval.fusion import NO_PASSAGE as NO_PASSAGE

FloatArray = npt.NDArray[np.float64]

CUTOFFS = (1, 3, 5, 10)
"""Ranks at which accuracy, precision and recall are taken; recall is also taken at `DEPTH`."""
DEPTH = 100
"""Passages per query that the deepest metrics look at."""


def rank_metrics(ranked_ids_QK: IdArray, qrels: Sequence[Mapping[int, float]]) -> dict[str, FloatArray]:
    """Every metric, by its name as listed above and in that order, for every query: values in [0, 1], (Q,).

    Args:
        ranked_ids_QK: Passage ids, best first, each at most once a query; `NO_PASSAGE` fills up a shorter
            ranking. K is 100 or the corpus size, whichever is smaller: a metric deeper than K counts what is
            missing as not relevant.
        qrels: For each query, the grade of each judged passage id. Grades of zero or below are not relevant.

    Raises:
        ValueError: The shapes don't fit, or a query ranks a passage twice.
    """
    _check(ranked_ids_QK, qrels)
    gains_QK = _gains(ranked_ids_QK, qrels)
    hits_QK = gains_QK > 0
    hits_so_far_QK = np.cumsum(hits_QK, axis=1)
    relevant_Q = np.array([sum(grade > 0 for grade in judged.values()) for judged in qrels], dtype=np.int64)

    found_Q = {k: hits_QK[:, :k].sum(axis=1) for k in (*CUTOFFS, DEPTH)}
    metrics = {f"accuracy@{k}": (found_Q[k] > 0).astype(np.float64) for k in CUTOFFS}
    metrics |= {f"precision@{k}": found_Q[k] / k for k in CUTOFFS}
    metrics |= {f"recall@{k}": _ratio(found_Q[k], relevant_Q) for k in found_Q}

    ranks_K = np.arange(1, gains_QK.shape[1] + 1)
    first_hit_QK = hits_QK & (hits_so_far_QK == 1)
    metrics["mrr@10"] = (first_hit_QK / ranks_K)[:, :10].sum(axis=1)
    metrics["ndcg@10"] = _ratio(_dcg(gains_QK[:, :10]), _dcg(_ideal_gains(qrels, 10)))
    precision_at_hits_QK = np.where(hits_QK, hits_so_far_QK / ranks_K, 0.0)
    metrics[f"map@{DEPTH}"] = _ratio(precision_at_hits_QK[:, :DEPTH].sum(axis=1), np.minimum(relevant_Q, DEPTH))
    return metrics


def _gains(ranked_ids_QK: IdArray, qrels: Sequence[Mapping[int, float]]) -> FloatArray:
    """Grade of each ranked passage, zero where it is not relevant."""
    rows = [
        [judged.get(passage, 0.0) for passage in ranked]
        for ranked, judged in zip(ranked_ids_QK.tolist(), qrels, strict=True)
    ]
    grades_QK = np.array(rows, dtype=np.float64).reshape(ranked_ids_QK.shape)
    return np.where(ranked_ids_QK == NO_PASSAGE, 0.0, np.maximum(grades_QK, 0.0))


def _ideal_gains(qrels: Sequence[Mapping[int, float]], depth: int) -> FloatArray:
    """The highest grades of each query, best first, filled up with zeros: (Q, G), G being `depth`."""
    ideal_QG = np.zeros((len(qrels), depth))
    for row, judged in zip(ideal_QG, qrels, strict=True):
        best = sorted((grade for grade in judged.values() if grade > 0), reverse=True)[:depth]
        row[: len(best)] = best
    return ideal_QG


def _dcg(gains_QG: FloatArray) -> FloatArray:
    """Discounted cumulative gain, with linear gains."""
    discounts_G = np.log2(np.arange(2, gains_QG.shape[1] + 2))
    dcg_Q: FloatArray = (gains_QG / discounts_G).sum(axis=1)
    return dcg_Q


def _ratio(part_Q: FloatArray | IdArray, whole_Q: FloatArray | IdArray) -> FloatArray:
    """`part / whole`, and 0 where `whole` is 0."""
    ratio_Q: FloatArray = np.divide(part_Q, whole_Q, out=np.zeros(len(part_Q)), where=whole_Q != 0)
    return ratio_Q


def _check(ranked_ids_QK: IdArray, qrels: Sequence[Mapping[int, float]]) -> None:
    if ranked_ids_QK.ndim != 2 or len(ranked_ids_QK) != len(qrels):
        raise ValueError(
            f"ranked ids: got shape {ranked_ids_QK.shape} and qrels of {len(qrels)} queries, "
            "expected (queries, ranked passages) with as many queries"
        )
    sorted_QK = np.sort(ranked_ids_QK, axis=1)
    twice_QK = (sorted_QK[:, 1:] == sorted_QK[:, :-1]) & (sorted_QK[:, 1:] != NO_PASSAGE)
    if twice_QK.any():
        query, rank = np.argwhere(twice_QK)[0]
        raise ValueError(f"ranked ids: query {query} ranks passage {sorted_QK[query, rank]} twice, expected each once")
