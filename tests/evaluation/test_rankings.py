"""Where rankings hold what answers the query."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedtune.data.collection import Collection
from embedtune.evaluation.metrics import NO_PASSAGE
from embedtune.evaluation.rankings import NOT_RANKED, first_ranks, hits, ranks_of, recall_curve, right_passages
from embedtune.evaluation.run import Evaluation, RetrievalTask, evaluate_embeddings, retrieval_task


def random_task(passages: int, seed: int = 0) -> tuple[RetrievalTask, Evaluation]:
    """30 queries with one to four right passages each, ranked at random."""
    generator = np.random.default_rng(seed)
    collection = Collection(
        queries=[f"q{i}" for i in range(40)],
        passages=[f"p{i}" for i in range(passages)],
        qrels={q: dict.fromkeys(generator.choice(passages, 1 + q % 4, replace=False).tolist(), 1.0) for q in range(40)},
    )
    task = retrieval_task(collection, range(5, 35), range(passages))
    scores_QD = torch.from_numpy(generator.random((30, passages)))
    return task, evaluate_embeddings(task, scores_QD, torch.eye(passages, dtype=torch.float64)[task.passage_ids])


@pytest.mark.parametrize("passages", [7, 60, 250])
def test_hits_and_recall_are_those_of_the_metrics(passages: int) -> None:
    task, evaluation = random_task(passages)
    hits_QK = hits(task, evaluation)
    ranks_Q = first_ranks(hits_QK)
    reciprocal_Q = np.where(ranks_Q <= 10, 1 / ranks_Q, 0.0)
    assert np.array_equal(reciprocal_Q, evaluation.per_query["mrr@10"])
    curve = recall_curve(task, {"tuned": hits_QK})
    assert curve["k"] == [1, 2, 3, 5, 10, 20, 50, 100]
    recalls = dict(zip(curve["k"], curve["systems"]["tuned"], strict=True))
    for k in (1, 3, 5, 10, 100):
        assert recalls[k] == pytest.approx(evaluation.means[f"recall@{k}"])
    assert list(recalls.values()) == sorted(recalls.values())


def test_the_right_passage_is_the_best_ranked_or_else_that_of_the_highest_grade() -> None:
    collection = Collection(
        queries=["q0", "q1"],
        passages=[f"p{i}" for i in range(150)],
        qrels={0: {3: 1.0, 2: 1.0}, 1: {120: 1.0, 140: 2.0, 130: 2.0}},
    )
    task = retrieval_task(collection, [0, 1], range(150))
    falling = torch.arange(150.0, 0.0, -1).repeat(2, 1)
    falling[0, 3] = 200.0
    evaluation = evaluate_embeddings(task, falling, torch.eye(150)[task.passage_ids])
    hits_QK = hits(task, evaluation)
    assert right_passages(task, evaluation, hits_QK).tolist() == [3, 130]
    assert first_ranks(hits_QK).tolist() == [1, NOT_RANKED]
    assert ranks_of(evaluation, np.array([2, 99])).tolist() == [4, 100]


def test_a_place_without_a_passage_is_no_hit() -> None:
    collection = Collection(queries=["q0", "q1"], passages=["p0", "p1"], qrels={0: {1: 1.0}, 1: {0: 1.0}})
    task = retrieval_task(collection, [0, 1], [0, 1])
    evaluation = Evaluation(
        query_ids=task.query_ids,
        per_query={},
        ranked_ids=np.array([[1, NO_PASSAGE], [NO_PASSAGE, NO_PASSAGE]]),
        ranked_scores=np.zeros((2, 2)),
    )
    assert hits(task, evaluation).tolist() == [[True, False], [False, False]]


def test_evaluations_of_other_queries_are_refused() -> None:
    task, evaluation = random_task(20)
    other = RetrievalTask(query_ids=task.query_ids + 1, passage_ids=task.passage_ids, qrels=task.qrels)
    with pytest.raises(ValueError, match="not the same ones"):
        hits(other, evaluation)
