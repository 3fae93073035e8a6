"""The queries that changed most, and what outranks their right passages.

Shapes: `Q` queries, `D` passages.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from embedtune.data.collection import Collection
from embedtune.evaluation.cases import query_cases
from embedtune.evaluation.rankings import hits
from embedtune.evaluation.run import Evaluation, RetrievalTask, Roles, evaluate_embeddings, retrieval_task


def scored(task: RetrievalTask, scores: list[list[float]]) -> Evaluation:
    """The evaluation of a system that gives these scores, (Q, D)."""
    return evaluate_embeddings(task, torch.tensor(scores), torch.eye(len(task.passage_ids))[task.passage_ids])


def cases(
    collection: Collection, task: RetrievalTask, evaluations: dict[str, Evaluation], reference: str | None = "base"
) -> dict[str, Any]:
    hits_of = {name: hits(task, evaluation) for name, evaluation in evaluations.items()}
    return query_cases(collection, task, evaluations, hits_of, Roles("tuned", reference))


@pytest.fixture
def collection() -> Collection:
    return Collection(
        queries=["q0", "q1", "q2", "q3", "q4"],
        passages=["a", "b", "c", "d", "e"],
        qrels={0: {0: 1.0}, 1: {0: 1.0}, 2: {0: 1.0}, 3: {0: 1.0, 4: 2.0}, 4: {1: 1.0}},
    )


@pytest.fixture
def task(collection: Collection) -> RetrievalTask:
    return retrieval_task(collection, range(5), range(5))


FIRST, SECOND, LAST = [0.9, 0.5, 0.4, 0.3, 0.2], [0.6, 0.8, 0.4, 0.3, 0.2], [0.1, 0.8, 0.7, 0.6, 0.2]


def test_losses_and_gains_are_counted_and_the_largest_come_first(collection: Collection, task: RetrievalTask) -> None:
    base = scored(task, [FIRST, FIRST, FIRST, FIRST, FIRST])
    tuned = scored(task, [SECOND, LAST, FIRST, FIRST, SECOND])
    found = cases(collection, task, {"base": base, "tuned": tuned})
    assert (found["better"], found["worse"], found["equal"]) == (1, 2, 2)
    assert [case["query"] for case in found["regressions"]] == ["q1", "q0"]
    worst = found["regressions"][0]
    assert worst["positive"] == "a"
    assert worst["rank"] == {"base": 1, "tuned": 5}
    assert worst["ndcg@10"] == {"base": 1.0, "tuned": pytest.approx(0.387, abs=1e-3)}
    assert [above["text"] for above in worst["above"]] == ["b", "c", "d"]
    assert [above["score"] for above in worst["above"]] == pytest.approx([0.8, 0.7, 0.6])
    assert [(case["query"], case["rank"]["tuned"], case["above"]) for case in found["gains"]] == [("q4", 1, [])]


def test_the_best_ranked_right_passage_is_shown(collection: Collection, task: RetrievalTask) -> None:
    base = scored(task, [FIRST] * 5)
    tuned = scored(task, [FIRST, FIRST, FIRST, [0.1, 0.9, 0.2, 0.3, 0.4], FIRST])
    (case,) = cases(collection, task, {"base": base, "tuned": tuned})["regressions"]
    assert case["positive"] == "e"
    assert case["rank"] == {"base": 1, "tuned": 2}
    assert [above["text"] for above in case["above"]] == ["b"]


def test_equal_losses_are_ordered_by_rank_and_then_by_query() -> None:
    collection = Collection(
        queries=["q0", "q1", "q2"], passages=[f"p{i}" for i in range(130)], qrels={q: {0: 1.0} for q in range(3)}
    )
    task = retrieval_task(collection, range(3), range(130))
    falling = [1 - i / 200 for i in range(130)]
    base = scored(task, [falling] * 3)
    # NDCG@10 is 0 in all three; the right passage is at rank 21, nowhere in the first 100, and nowhere again.
    scores = [[falling[20] - 1e-4, *falling[1:]], [-1.0, *falling[1:]], [-1.0, *falling[1:]]]
    regressions = cases(collection, task, {"base": base, "tuned": scored(task, scores)})["regressions"]
    assert [case["query"] for case in regressions] == ["q1", "q2", "q0"]
    assert [case["rank"]["tuned"] for case in regressions] == [None, None, 21]
    assert regressions[0]["positive"] == "p0"
    assert [above["text"] for above in regressions[0]["above"]] == ["p1", "p2", "p3"]


def test_lists_are_capped_and_texts_shortened() -> None:
    number = 60
    collection = Collection(
        queries=[f"q{i} " + "long " * 200 for i in range(number)],
        passages=[f"p{i} " + "long " * 400 for i in range(number)],
        qrels={i: {i: 1.0} for i in range(number)},
    )
    task = retrieval_task(collection, range(number), range(number))
    right, wrong = torch.eye(number).tolist(), (1 - torch.eye(number)).tolist()
    found = cases(
        collection,
        task,
        {"base": scored(task, right[:30] + wrong[30:]), "tuned": scored(task, wrong[:30] + right[30:])},
    )
    assert (found["better"], found["worse"]) == (30, 30)
    assert (len(found["regressions"]), len(found["gains"])) == (20, 5)
    shown = found["regressions"][0]
    for text in (shown["query"], shown["positive"], shown["above"][0]["text"]):
        assert len(text) <= 600
        assert text.endswith("long…")


def test_without_a_reference_the_worst_queries_are_listed(collection: Collection, task: RetrievalTask) -> None:
    tuned = scored(task, [FIRST, LAST, SECOND, FIRST, FIRST])
    found = cases(collection, task, {"tuned": tuned, "bm25": scored(task, [FIRST] * 5)}, reference=None)
    assert list(found) == ["worst"]
    assert [case["query"] for case in found["worst"]] == ["q1", "q2", "q4", "q3"]
    assert found["worst"][0]["rank"] == {"tuned": 5, "bm25": 1}
    assert list(found["worst"][0]["ndcg@10"]) == ["tuned"]
