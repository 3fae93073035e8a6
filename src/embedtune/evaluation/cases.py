"""Single queries: those that a model lost or won against another, or that it is worst at.

Shapes: `Q` queries, `K` ranked passages per query.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedtune.data.collection import Collection, IdArray
from embedtune.evaluation.breakdown import METRIC
from embedtune.evaluation.excerpt import excerpt
from embedtune.evaluation.metrics import NO_PASSAGE, FloatArray
from embedtune.evaluation.rankings import NOT_RANKED, BoolArray, first_ranks, right_passages
from embedtune.evaluation.run import Evaluation, RetrievalTask, Roles

REGRESSIONS = 20
GAINS = 5
ABOVE = 3
"""Passages shown of those that outrank the right one."""
_SAME = 1e-12
"""Differences up to this are rounding."""


def query_cases(
    collection: Collection,
    task: RetrievalTask,
    evaluations: Mapping[str, Evaluation],
    hits_of: Mapping[str, BoolArray],
    roles: Roles,
) -> dict[str, Any]:
    """How many queries got better and worse by NDCG@10, and the ones that changed most: "queries" of `results.json`.

    `regressions` are the 20 queries that fell most, the worst first; of equal falls in NDCG@10 the larger fall of
    the first right passage's rank comes first, then the lower query id. `gains` are the 5 that rose most, likewise.

    Without a reference nothing fell: there is only `worst`, the 20 queries of the lowest NDCG@10 (below 1), of
    equal ones that with the first right passage further down first.

    Every case has the first right passage's rank for the reference, the judged and "bm25" (null if not ranked), the
    NDCG@10 of the first two, and the passages that the judged ranks above the right one. Texts are shortened.
    """
    judged, reference = roles.judged, roles.reference
    rankings = _Rankings(
        evaluations=evaluations,
        ranks_of={name: first_ranks(hits_QK) for name, hits_QK in hits_of.items()},
        right_Q=right_passages(task, evaluations[judged], hits_of[judged]),
        roles=roles,
    )

    def shown(rows: list[int]) -> list[dict[str, Any]]:
        return [_case(collection, task, rankings, row) for row in rows]

    # What is not ranked counts as one below the last rank.
    depth = 1 + max(hits_QK.shape[1] for hits_QK in hits_of.values())
    rank_of = {name: np.minimum(ranks_Q, depth) for name, ranks_Q in rankings.ranks_of.items()}
    score_Q = evaluations[judged].per_query[METRIC]
    if reference is None:
        return {"worst": shown(_first(score_Q, -rank_of[judged], among=score_Q < 1 - _SAME, count=REGRESSIONS))}
    rise_Q = score_Q - evaluations[reference].per_query[METRIC]
    climb_Q = rank_of[reference] - rank_of[judged]
    better_Q, worse_Q = rise_Q > _SAME, rise_Q < -_SAME
    return {
        "better": int(better_Q.sum()),
        "worse": int(worse_Q.sum()),
        "equal": int((~better_Q & ~worse_Q).sum()),
        "regressions": shown(_first(rise_Q, climb_Q, among=worse_Q, count=REGRESSIONS)),
        "gains": shown(_first(-rise_Q, -climb_Q, among=better_Q, count=GAINS)),
    }


@dataclass(frozen=True, kw_only=True)
class _Rankings:
    """What cases are read from."""

    evaluations: Mapping[str, Evaluation]
    ranks_of: Mapping[str, IdArray]
    """System name to the rank of the first right passage, (Q,)."""
    right_Q: IdArray
    """The right passage that the judged system ranks best."""
    roles: Roles


def _case(collection: Collection, task: RetrievalTask, rankings: _Rankings, row: int) -> dict[str, Any]:
    """One query as a CASE of `results.json`."""
    judged, reference = rankings.roles.judged, rankings.roles.reference
    evaluation, rank = rankings.evaluations[judged], int(rankings.ranks_of[judged][row])
    ids, scores = evaluation.ranked_ids[row, : rank - 1][:ABOVE], evaluation.ranked_scores[row]
    compared = [name for name in (reference, judged) if name is not None]
    ranked = [*compared, "bm25"] if "bm25" in rankings.evaluations else compared
    return {
        "query": excerpt(collection.queries[task.query_ids[row]]),
        "positive": excerpt(collection.passages[rankings.right_Q[row]]),
        "rank": {name: _rank(rankings.ranks_of[name][row]) for name in dict.fromkeys(ranked)},
        METRIC: {name: float(rankings.evaluations[name].per_query[METRIC][row]) for name in compared},
        "above": [
            {"text": excerpt(collection.passages[passage]), "score": float(score)}
            for passage, score in zip(ids, scores, strict=False)
            if passage != NO_PASSAGE
        ],
    }


def _first(first_Q: FloatArray, then_Q: Any, *, among: BoolArray, count: int) -> list[int]:
    """Up to `count` of the rows marked, ascending by the one, then the other, then the row."""
    # Rounded, so that differences equal but for their last bits tie.
    order = np.lexsort((then_Q, np.round(first_Q, 12)))
    return [int(row) for row in order if among[row]][:count]


def _rank(rank: np.int64) -> int | None:
    return None if rank == NOT_RANKED else int(rank)
