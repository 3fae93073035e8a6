"""A whole evaluation: the task, embeddings and BM25 on it, and two evaluations compared.

Shapes: `E` embedding size.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedtune.data.collection import Collection
from embedtune.evaluation.run import (
    compare,
    evaluate_bm25,
    evaluate_embeddings,
    evaluate_hybrid,
    retrieval_task,
)


@pytest.fixture
def collection() -> Collection:
    return Collection(
        queries=["who barks", "who purrs", "what is a price"],
        passages=["cats purr", "dogs bark", "every dog barks", "a price is what you pay", "who"],
        qrels={0: {1: 1.0, 2: 2.0}, 1: {0: 1.0}, 2: {3: 1.0}},
    )


def test_each_query_and_passage_counts_once(collection: Collection) -> None:
    task = retrieval_task(collection, [2, 0, 0, 2, 0], [4, 3, 2, 1, 0, 0])
    assert task.query_ids.tolist() == [0, 2]
    assert task.passage_ids.tolist() == [0, 1, 2, 3, 4]
    assert task.qrels == {0: {1: 1.0, 2: 2.0}, 2: {3: 1.0}}


def test_a_dev_corpus_leaves_out_passages_that_cannot_be_found(collection: Collection) -> None:
    task = retrieval_task(collection, [0], [0, 2])
    assert task.qrels == {0: {2: 2.0}}
    perfect = evaluate_embeddings(task, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert perfect.means["recall@1"] == 1.0


def test_tasks_that_make_no_sense_are_refused(collection: Collection) -> None:
    with pytest.raises(ValueError, match=r"query 1 \('who purrs'\): got 1 judged passages and none relevant"):
        retrieval_task(collection, [0, 1], [1, 2])
    with pytest.raises(ValueError, match="no query ids"):
        retrieval_task(collection, [], [0])
    with pytest.raises(ValueError, match="passage ids: got 0 to 5, expected the collection's, 0 to 4"):
        retrieval_task(collection, [0], [0, 5])


def test_embeddings_are_ranked_as_collection_ids(collection: Collection) -> None:
    task = retrieval_task(collection, [0, 1], [0, 1, 3, 4])
    queries_QE = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    corpus_DE = torch.tensor([[0.0, 1.0], [0.6, 0.8], [0.6, 0.8], [1.0, 0.0]])
    evaluation = evaluate_embeddings(task, queries_QE, corpus_DE)
    assert evaluation.query_ids.tolist() == [0, 1]
    assert evaluation.ranked_ids.tolist() == [[4, 1, 3, 0], [0, 1, 3, 4]]
    np.testing.assert_allclose(evaluation.ranked_scores, [[1.0, 0.6, 0.6, 0.0], [1.0, 0.8, 0.8, 0.0]])
    assert evaluation.per_query["mrr@10"].tolist() == [0.5, 1.0]
    assert evaluation.means["mrr@10"] == 0.75
    assert evaluation.means["accuracy@1"] == 0.5


def test_embeddings_that_do_not_fit_the_task_are_refused(collection: Collection) -> None:
    task = retrieval_task(collection, [0, 1], range(5))
    with pytest.raises(ValueError, match="got 2 query and 4 passage embeddings, expected 2 and 5"):
        evaluate_embeddings(task, torch.zeros(2, 3), torch.zeros(4, 3))


def test_bm25_finds_what_shares_a_word(collection: Collection) -> None:
    evaluation = evaluate_bm25(retrieval_task(collection, range(3), range(5)), collection)
    assert evaluation.per_query["accuracy@1"].tolist() == [0.0, 0.0, 1.0]
    assert evaluation.ranked_ids[0].tolist() == [4, 2, 0, 1, 3]


def test_the_hybrid_fuses_what_was_found_and_nothing_else(collection: Collection) -> None:
    """BM25 ranks passages 0, 1 and 3 for the first query by their ids alone, so they get nothing from it."""
    task = retrieval_task(collection, [0, 1], range(5))
    dense = evaluate_embeddings(task, torch.eye(2), torch.tensor([[0.3, 0.9], [0.9, 0], [0.2, 0], [0.1, 0.1], [0, 0]]))
    bm25 = evaluate_bm25(task, collection)
    assert bm25.ranked_ids[0].tolist() == [4, 2, 0, 1, 3]
    hybrid = evaluate_hybrid(task, dense, bm25)
    assert dense.ranked_ids[0].tolist() == [1, 0, 2, 3, 4]
    assert hybrid.ranked_ids[0].tolist() == [2, 4, 1, 0, 3]
    fused = [1 / 62 + 1 / 63, 1 / 61 + 1 / 65, 1 / 61, 1 / 62, 1 / 64]
    assert hybrid.ranked_scores[0].tolist() == pytest.approx(fused)
    assert evaluate_hybrid(task, bm25, dense).ranked_ids.tolist() == hybrid.ranked_ids.tolist()
    assert hybrid.per_query["mrr@10"][0] == 1.0
    assert hybrid.per_query["recall@10"].tolist() == [1.0, 1.0]


def test_queries_that_share_a_right_passage_are_one_group() -> None:
    collection = Collection(
        queries=[f"q{i}" for i in range(6)],
        passages=[f"p{i}" for i in range(9)],
        qrels={0: {1: 1.0}, 1: {2: 1.0, 8: 1.0}, 2: {3: 1.0}, 3: {8: 2.0, 4: 1.0}, 4: {4: 1.0, 3: 0.0}, 5: {1: 1.0}},
    )
    groups = retrieval_task(collection, range(6), range(9)).groups_Q.tolist()
    assert [groups.index(group) for group in groups] == [0, 1, 2, 1, 1, 0]
    assert sorted(set(groups)) == [0, 1, 2]
    # Without passage 8 in the corpus, nothing ties query 1 to the others.
    groups = retrieval_task(collection, range(6), range(8)).groups_Q.tolist()
    assert [groups.index(group) for group in groups] == [0, 1, 2, 3, 3, 0]


def test_a_comparison_goes_by_groups(collection: Collection) -> None:
    task = retrieval_task(collection, range(3), range(5))
    bm25 = evaluate_bm25(task, collection)
    perfect = evaluate_embeddings(
        task, torch.tensor([[0.0, 1, 2, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0]]), torch.eye(5)
    )
    one_group = compare(bm25, perfect, seed=0, groups_Q=np.zeros(3, dtype=np.int64))
    assert one_group["ndcg@10"].p_value == 1.0
    assert compare(bm25, perfect, seed=0)["ndcg@10"].p_value < 1.0


def test_rankings_stop_at_a_hundred() -> None:
    collection = Collection(queries=["q"], passages=[f"p{i}" for i in range(130)], qrels={0: {105: 1.0}})
    task = retrieval_task(collection, [0], range(130))
    evaluation = evaluate_embeddings(task, torch.ones(1, 2), torch.ones(130, 2))
    assert evaluation.ranked_ids.tolist() == [list(range(100))]
    assert evaluation.means["recall@100"] == 0.0


def test_compare_pairs_the_queries(collection: Collection) -> None:
    task = retrieval_task(collection, range(3), range(5))
    useless = evaluate_embeddings(task, torch.ones(3, 5), torch.eye(5).roll(1, dims=0))
    answers = torch.tensor([[0.0, 1, 2, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0]])
    perfect = evaluate_embeddings(task, answers, torch.eye(5))
    differences = compare(useless, perfect, seed=0)
    assert list(differences) == list(perfect.per_query)
    for name, difference in differences.items():
        assert difference.mean == pytest.approx(perfect.means[name] - useless.means[name])
        assert difference.ci95[0] - 1e-12 <= difference.mean <= difference.ci95[1] + 1e-12
    assert perfect.means["ndcg@10"] == 1.0
    assert differences["ndcg@10"].mean > 0
    assert compare(useless, perfect, seed=0) == differences


def test_evaluations_of_different_queries_are_not_compared(collection: Collection) -> None:
    one = evaluate_bm25(retrieval_task(collection, [0, 1], range(5)), collection)
    other = evaluate_bm25(retrieval_task(collection, [0, 2], range(5)), collection)
    assert not np.array_equal(one.query_ids, other.query_ids)
    with pytest.raises(ValueError, match="not the same ones"):
        compare(one, other, seed=0)
    with pytest.raises(ValueError, match="not the same ones"):
        evaluate_hybrid(retrieval_task(collection, [0, 1], range(5)), one, other)
