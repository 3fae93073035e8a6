"""Where rankings hold what answers the query: what recall curves, cases and suspects are all read from.

Shapes: `Q` queries, `K` ranked passages per query, `J` judged pairs of all queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from embedtune.data.collection import IdArray
from embedtune.evaluation.metrics import NO_PASSAGE, FloatArray
from embedtune.evaluation.run import Evaluation, RetrievalTask

BoolArray = npt.NDArray[np.bool_]

RECALL_CUTOFFS = (1, 2, 3, 5, 10, 20, 50, 100)
NOT_RANKED = np.iinfo(np.int64).max
"""Rank of a passage that a ranking does not hold: below all that it does."""


def hits(task: RetrievalTask, evaluation: Evaluation) -> BoolArray:
    """Whether each ranked passage answers its query, (Q, K).

    Raises:
        ValueError: The evaluation is of other queries than the task's.
    """
    if not np.array_equal(evaluation.query_ids, task.query_ids):
        raise ValueError(
            f"got an evaluation of {len(evaluation.query_ids)} queries and a task of {len(task.query_ids)}, "
            "and they are not the same ones; evaluate every system on the task that is analysed"
        )
    # A pair of ids as one integer: a lookup per ranked passage in Python takes seconds on large test sets.
    size = int(task.passage_ids.max()) + 1
    pairs = [query * size + passage for query, judged in task.qrels.items() for passage in judged]
    relevant_J = np.unique(np.array(pairs, dtype=np.int64))
    ranked_QK = task.query_ids[:, None] * size + evaluation.ranked_ids
    places_QK = np.minimum(np.searchsorted(relevant_J, ranked_QK), len(relevant_J) - 1)
    found_QK: BoolArray = (relevant_J[places_QK] == ranked_QK) & (evaluation.ranked_ids != NO_PASSAGE)
    return found_QK


def first_ranks(hits_QK: BoolArray) -> IdArray:
    """Rank, from 1, of the first passage that answers the query; `NOT_RANKED` if none does: (Q,)."""
    ranks_Q: IdArray = np.where(hits_QK.any(axis=1), hits_QK.argmax(axis=1) + 1, NOT_RANKED)
    return ranks_Q


def ranks_of(evaluation: Evaluation, passages_Q: IdArray) -> IdArray:
    """Rank, from 1, of one passage of each query; `NOT_RANKED` if the ranking does not hold it: (Q,)."""
    return first_ranks(evaluation.ranked_ids == passages_Q[:, None])


def right_passages(task: RetrievalTask, evaluation: Evaluation, hits_QK: BoolArray) -> IdArray:
    """The right passage that a ranking puts first; if it holds none, the one of the highest grade: (Q,)."""
    best_Q: IdArray = evaluation.ranked_ids[np.arange(len(hits_QK)), hits_QK.argmax(axis=1)].copy()
    for row in np.flatnonzero(~hits_QK.any(axis=1)):
        judged = task.qrels[int(task.query_ids[row])]
        best_Q[row] = min(judged, key=lambda passage: (-judged[passage], passage))
    return best_Q


def recall_curve(task: RetrievalTask, hits_of: Mapping[str, BoolArray]) -> dict[str, Any]:
    """Mean recall of every system at `RECALL_CUTOFFS`; beyond the depth ranked, that of all ranked."""
    relevant_Q: FloatArray = np.array([len(task.qrels[query]) for query in task.query_ids.tolist()], dtype=np.float64)
    systems = {}
    for name, hits_QK in hits_of.items():
        found_QK = np.cumsum(hits_QK, axis=1)
        depth = found_QK.shape[1]
        systems[name] = [float((found_QK[:, min(k, depth) - 1] / relevant_Q).mean()) for k in RECALL_CUTOFFS]
    return {"k": list(RECALL_CUTOFFS), "systems": systems}
