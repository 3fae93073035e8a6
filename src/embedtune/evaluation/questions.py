"""What each question got from each system, a line each: for comparing two runs question by question."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embedtune.atomic import replacing
from embedtune.data.collection import Collection, Pairs
from embedtune.evaluation.breakdown import METRIC
from embedtune.evaluation.rankings import NOT_RANKED, first_ranks, hits
from embedtune.evaluation.run import Evaluation, RetrievalTask

DECIMALS = 6


def question_scores(
    collection: Collection, task: RetrievalTask, evaluations: Mapping[str, Evaluation], row_ids: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Of each question its id and text, its group, and each system's rank of the first right passage and NDCG@10.

    Args:
        collection: where the task's ids are from.
        task: what was asked.
        evaluations: system name to what it reached.
        row_ids: of each query id, from `first_row_ids`.

    Returns:
        An entry for each query of the task, in its order. A rank is None if the first hundred hold no right passage;
        questions of one group share a right passage (`RetrievalTask.groups_Q`).
    """
    ranks_of = {name: first_ranks(hits(task, evaluation)) for name, evaluation in evaluations.items()}
    scores_of = {name: evaluation.per_query[METRIC].round(DECIMALS) for name, evaluation in evaluations.items()}
    groups_Q = task.groups_Q
    return [
        {
            "id": row_ids[query],
            "query": collection.queries[query],
            "group": int(groups_Q[place]),
            "rank": {
                name: None if ranks_Q[place] == NOT_RANKED else int(ranks_Q[place])
                for name, ranks_Q in ranks_of.items()
            },
            METRIC: {name: float(scores_Q[place]) for name, scores_Q in scores_of.items()},
        }
        for place, query in enumerate(task.query_ids.tolist())
    ]


def first_row_ids(pairs: Pairs) -> dict[int, str]:
    """For each query id, the id of the first row that asks it."""
    queries, places = np.unique(pairs.query_ids, return_index=True)
    return {query: pairs.row_ids[place] for query, place in zip(queries.tolist(), places.tolist(), strict=True)}


def write_questions(path: Path, questions: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line: a whole file or none."""
    with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(question, ensure_ascii=False) + "\n" for question in questions)
