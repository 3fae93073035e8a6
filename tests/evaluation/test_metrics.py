"""Rank metrics: by hand, against trec_eval and against sentence-transformers' evaluator.

Shapes: `Q` queries, `K` ranked passages per query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from embedtune.data.collection import IdArray
from embedtune.evaluation.metrics import rank_metrics

Qrels = list[dict[int, float]]


def ranked(*rows: Sequence[int]) -> IdArray:
    return np.array(rows, dtype=np.int64)


def random_task(corpus: int, depth: int, most_relevant: int, highest_grade: int) -> tuple[IdArray, Qrels]:
    """40 queries with 1 to `most_relevant` judged passages, some of them judged not relevant."""
    rng = np.random.default_rng(0)
    rankings = [rng.permutation(corpus)[:depth] for _ in range(40)]
    qrels = []
    for _ in range(40):
        judged = rng.choice(corpus, rng.integers(1, most_relevant + 1), replace=False)
        grades = rng.integers(0, highest_grade + 1, len(judged))
        grades[0] = highest_grade
        qrels.append({int(passage): float(grade) for passage, grade in zip(judged, grades, strict=True)})
    return np.array(rankings, dtype=np.int64), qrels


def test_one_query_by_hand() -> None:
    metrics = rank_metrics(ranked([7, 3, 9, 4]), [{3: 1.0, 4: 2.0, 8: 3.0, 9: 0.0}])
    dcg = 1 / math.log2(3) + 2 / math.log2(5)
    ideal = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    expected = {
        "accuracy@1": 0, "accuracy@3": 1, "accuracy@5": 1, "accuracy@10": 1,
        "precision@1": 0, "precision@3": 1 / 3, "precision@5": 2 / 5, "precision@10": 2 / 10,
        "recall@1": 0, "recall@3": 1 / 3, "recall@5": 2 / 3, "recall@10": 2 / 3, "recall@100": 2 / 3,
        "mrr@10": 1 / 2, "ndcg@10": dcg / ideal, "map@100": (1 / 2 + 2 / 4) / 3,
    }  # fmt: skip
    assert list(metrics) == list(expected)
    assert {name: values_Q.item() for name, values_Q in metrics.items()} == pytest.approx(expected, abs=1e-12)


def test_a_perfect_ranking_scores_one_and_a_useless_one_zero() -> None:
    metrics = rank_metrics(ranked([5, 6, 0, 1], [0, 1, 2, 3]), [{5: 2.0, 6: 1.0}, {9: 1.0}])
    for name in ("accuracy@1", "recall@3", "mrr@10", "ndcg@10", "map@100"):
        assert metrics[name].tolist() == [1.0, 0.0]


def test_the_first_answer_at_rank_eleven_is_too_late_for_mrr_and_ndcg() -> None:
    metrics = rank_metrics(ranked(range(11)), [{10: 1.0}])
    assert metrics["mrr@10"].item() == 0
    assert metrics["ndcg@10"].item() == 0
    assert metrics["map@100"].item() == pytest.approx(1 / 11)


def test_padding_is_never_relevant() -> None:
    padded = rank_metrics(ranked([3, 4, -1, -1, -1]), [{3: 1.0, -1: 1.0}])
    assert padded["precision@5"].item() == pytest.approx(1 / 5)


def test_a_query_without_relevant_passages_scores_zero() -> None:
    metrics = rank_metrics(ranked([0, 1], [0, 1]), [{}, {0: 0.0, 1: -1.0}])
    assert not any(values_Q.any() for values_Q in metrics.values())


def test_rankings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="qrels of 2 queries"):
        rank_metrics(ranked([0, 1]), [{0: 1.0}, {1: 1.0}])
    with pytest.raises(ValueError, match="query 1 ranks passage 4 twice"):
        rank_metrics(ranked([0, 1, 2], [4, 3, 4]), [{0: 1.0}, {3: 1.0}])


@pytest.mark.parametrize(("corpus", "depth", "most_relevant"), [(400, 100, 60), (30, 30, 20), (500, 100, 2)])
def test_agrees_with_trec_eval_on_graded_judgements(corpus: int, depth: int, most_relevant: int) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    ranked_ids_QK, qrels = random_task(corpus, depth, most_relevant, highest_grade=3)
    # trec_eval breaks ties in its own way, so each rank gets a score of its own.
    run = {
        str(query): {str(passage): float(depth - rank) for rank, passage in enumerate(row)}
        for query, row in enumerate(ranked_ids_QK.tolist())
    }
    judged = {
        str(query): {str(passage): int(grade) for passage, grade in grades.items()}
        for query, grades in enumerate(qrels)
    }
    names = {
        "ndcg_cut.10": "ndcg@10", "map_cut.100": "map@100", "recall.100": "recall@100",
        **{f"recall.{k}": f"recall@{k}" for k in (1, 3, 5, 10)},
        **{f"P.{k}": f"precision@{k}" for k in (1, 3, 5, 10)},
        **{f"success.{k}": f"accuracy@{k}" for k in (1, 3, 5, 10)},
    }  # fmt: skip
    theirs = pytrec_eval.RelevanceEvaluator(judged, set(names)).evaluate(run)
    top_ten = {query: dict(sorted(scores.items(), key=lambda item: -item[1])[:10]) for query, scores in run.items()}
    reciprocal = pytrec_eval.RelevanceEvaluator(judged, {"recip_rank"}).evaluate(top_ten)

    ours = rank_metrics(ranked_ids_QK, qrels)
    for their_name, name in names.items():
        expected_Q = [theirs[str(query)][their_name.replace(".", "_")] for query in range(len(qrels))]
        np.testing.assert_allclose(ours[name], expected_Q, rtol=0, atol=1e-9, err_msg=name)
    expected_Q = [reciprocal[str(query)]["recip_rank"] for query in range(len(qrels))]
    np.testing.assert_allclose(ours["mrr@10"], expected_Q, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("corpus", "depth", "most_relevant"), [(400, 100, 60), (30, 30, 20), (300, 100, 250)])
def test_agrees_with_sentence_transformers(corpus: int, depth: int, most_relevant: int) -> None:
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    ranked_ids_QK, qrels = random_task(corpus, depth, most_relevant, highest_grade=1)
    evaluator = evaluation.InformationRetrievalEvaluator(
        queries={str(query): "" for query in range(len(qrels))},
        corpus={str(passage): "" for passage in range(corpus)},
        relevant_docs={
            str(query): {str(passage) for passage, grade in grades.items() if grade > 0}
            for query, grades in enumerate(qrels)
        },
        precision_recall_at_k=[1, 3, 5, 10, 100],
    )
    hits = [
        [{"corpus_id": str(passage), "score": -rank} for rank, passage in enumerate(row)]
        for row in ranked_ids_QK.tolist()
    ]
    theirs = {
        name.replace("@k", f"@{k}"): value
        for name, at_k in evaluator.compute_metrics(hits).items()
        for k, value in at_k.items()
    }
    del theirs["precision@100"]
    ours = {name: values_Q.mean() for name, values_Q in rank_metrics(ranked_ids_QK, qrels).items()}
    assert ours == pytest.approx(theirs, rel=0, abs=1e-9)
