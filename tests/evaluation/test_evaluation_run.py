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
    assert sorted(task.passage_ids.tolist()) == [0, 1, 2, 3, 4]
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
    passages_DE = torch.tensor([[0.0, 1.0], [0.6, 0.8], [0.0, 0.0], [0.6, 0.8], [1.0, 0.0]])
    evaluation = evaluate_embeddings(task, queries_QE, passages_DE[task.passage_ids])
    assert evaluation.query_ids.tolist() == [0, 1]
    twins = [passage for passage in task.passage_ids.tolist() if passage in (1, 3)]
    assert evaluation.ranked_ids.tolist() == [[4, *twins, 0], [0, *twins, 4]]
    np.testing.assert_allclose(evaluation.ranked_scores, [[1.0, 0.6, 0.6, 0.0], [1.0, 0.8, 0.8, 0.0]])
    first = 2 + twins.index(1)
    assert evaluation.per_query["mrr@10"].tolist() == [1 / first, 1.0]
    assert evaluation.means["mrr@10"] == (1 / first + 1) / 2
    assert evaluation.means["accuracy@1"] == 0.5


def test_embeddings_that_do_not_fit_the_task_are_refused(collection: Collection) -> None:
    task = retrieval_task(collection, [0, 1], range(5))
    with pytest.raises(ValueError, match="got 2 query and 4 passage embeddings, expected 2 and 5"):
        evaluate_embeddings(task, torch.zeros(2, 3), torch.zeros(4, 3))


def test_bm25_finds_what_shares_a_word(collection: Collection) -> None:
    task = retrieval_task(collection, range(3), range(5))
    evaluation = evaluate_bm25(task, collection)
    assert evaluation.per_query["accuracy@1"].tolist() == [0.0, 0.0, 1.0]
    without_a_word = [passage for passage in task.passage_ids.tolist() if passage not in (4, 2)]
    assert evaluation.ranked_ids[0].tolist() == [4, 2, *without_a_word]


def test_the_hybrid_fuses_what_was_found_and_nothing_else(collection: Collection) -> None:
    """BM25 ranks passages 0, 1 and 3 for the first query by nothing that they say, so they get nothing from it."""
    task = retrieval_task(collection, [0, 1], range(5))
    passages_DE = torch.tensor([[0.3, 0.9], [0.9, 0], [0.2, 0], [0.1, 0.1], [0, 0]])
    dense = evaluate_embeddings(task, torch.eye(2), passages_DE[task.passage_ids])
    bm25 = evaluate_bm25(task, collection)
    assert bm25.ranked_ids[0].tolist()[:2] == [4, 2]
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
        task, torch.tensor([[0.0, 1, 2, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0]]), torch.eye(5)[task.passage_ids]
    )
    one_group = compare(bm25, perfect, seed=0, groups_Q=np.zeros(3, dtype=np.int64))
    assert one_group["ndcg@10"].p_value == 1.0
    assert compare(bm25, perfect, seed=0)["ndcg@10"].p_value < 1.0


def test_rankings_stop_at_a_hundred() -> None:
    collection = Collection(queries=["q"], passages=[f"p{i}" for i in range(130)], qrels={0: {105: 1.0}})
    task = retrieval_task(collection, [0], range(130))
    falling = torch.linspace(1, 0.5, 130)[:, None]
    evaluation = evaluate_embeddings(task, torch.ones(1, 1), falling[task.passage_ids])
    assert evaluation.ranked_ids.tolist() == [list(range(100))]
    assert evaluation.means["recall@100"] == 0.0


def with_corpus(order: str) -> Collection:
    """200 questions whose answers are read before, behind or among 1,800 other passages."""
    answers, others = [f"an answer {n}" for n in range(200)], [f"a passage {n}" for n in range(1_800)]
    passages = answers + others if order == "before" else others + answers
    if order == "among":
        passages = np.random.default_rng(0).permutation(passages).tolist()
    qrels = {n: {passages.index(answer): 1.0} for n, answer in enumerate(answers)}
    return Collection(queries=[f"question{n}" for n in range(200)], passages=passages, qrels=qrels)


@pytest.mark.parametrize("order", ["before", "behind", "among"])
def test_a_system_that_tells_nothing_apart_scores_as_a_random_one(order: str) -> None:
    """By ids, answers that are read first would all be among the first hundred, or none of those read last."""
    collection = with_corpus(order)
    task = retrieval_task(collection, range(200), range(2_000))
    flat = evaluate_embeddings(task, torch.ones(200, 2), torch.ones(2_000, 2))
    bm25 = evaluate_bm25(task, collection)
    assert (bm25.ranked_scores == 0).all()
    expected = {"recall@100": 100 / 2_000, "recall@10": 10 / 2_000, "accuracy@1": 1 / 2_000}
    for evaluation in (flat, bm25, evaluate_hybrid(task, flat, flat)):
        for metric, chance in expected.items():
            deviation = np.sqrt(chance * (1 - chance) / 200)
            assert evaluation.means[metric] == pytest.approx(chance, abs=3 * deviation), metric
    first = retrieval_task(with_corpus("before"), range(200), range(2_000))
    assert evaluate_embeddings(first, torch.ones(200, 2), torch.ones(2_000, 2)).means == flat.means


def test_a_fusion_breaks_ties_as_a_search_does() -> None:
    """Each passage is first in one ranking and second in the other: by ids the answer, read first, would always win."""
    won = 0
    for number in range(40):
        collection = Collection(queries=["q"], passages=[f"answer {number}", f"other {number}"], qrels={0: {0: 1.0}})
        task = retrieval_task(collection, [0], range(2))
        one, other = (evaluate_embeddings(task, torch.ones(1, 1), torch.tensor([[a], [1 - a]])) for a in (0.2, 0.8))
        fused = evaluate_hybrid(task, one, other)
        assert fused.ranked_ids[0].tolist() == task.passage_ids.tolist()
        won += int(fused.means["accuracy@1"])
    assert 10 <= won <= 30


def test_compare_pairs_the_queries(collection: Collection) -> None:
    task = retrieval_task(collection, range(3), range(5))
    useless = evaluate_embeddings(task, torch.ones(3, 5), torch.eye(5)[(task.passage_ids + 1) % 5])
    answers = torch.tensor([[0.0, 1, 2, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0]])
    perfect = evaluate_embeddings(task, answers, torch.eye(5)[task.passage_ids])
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
