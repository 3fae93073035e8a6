"""Rank metrics: by hand, against trec_eval, sentence-transformers' evaluator and ranx, with ties and without.

Shapes: `Q` queries, `D` passages, `K` ranked passages per query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from embedtune.data.collection import IdArray
from embedtune.evaluation.metrics import FloatArray, rank_metrics
from embedtune.retrieval.topk import top_k

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


def tied_scores(corpus: int, distinct: int, seed: int) -> FloatArray:
    """Scores of 40 queries for every passage, of which few are distinct, so that most rankings have ties."""
    return np.random.default_rng(seed).integers(0, distinct, (40, corpus)).astype(np.float64)


@pytest.mark.parametrize(("corpus", "most_relevant", "distinct"), [(300, 60, 7), (30, 20, 3), (150, 3, 40)])
def test_a_ranking_with_ties_scores_as_in_trec_eval(corpus: int, most_relevant: int, distinct: int) -> None:
    """Ties go to the lower id here and to the later name there, so passages are named backwards."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    scores_QD = tied_scores(corpus, distinct, seed=corpus)
    found = top_k(torch.from_numpy(scores_QD).float(), 100)
    _, qrels = random_task(corpus, 1, most_relevant, highest_grade=3)
    name = [f"{corpus - passage:06d}" for passage in range(corpus)]
    run = {str(query): dict(zip(name, row, strict=True)) for query, row in enumerate(scores_QD.tolist())}
    judged = {
        str(query): {name[passage]: int(grade) for passage, grade in grades.items()}
        for query, grades in enumerate(qrels)
    }
    names = {"ndcg_cut.10": "ndcg@10", "map_cut.100": "map@100", "recall.100": "recall@100", "P.5": "precision@5"}
    theirs = pytrec_eval.RelevanceEvaluator(judged, set(names)).evaluate(run)
    ours = rank_metrics(found.ids_QK.numpy(), qrels)
    for their_name, our_name in names.items():
        expected_Q = [theirs[str(query)][their_name.replace(".", "_")] for query in range(len(qrels))]
        np.testing.assert_allclose(ours[our_name], expected_Q, rtol=0, atol=1e-9, err_msg=our_name)


@pytest.mark.parametrize(("corpus", "most_relevant", "distinct"), [(300, 60, 7), (30, 20, 3), (300, 250, 40)])
def test_a_ranking_with_ties_scores_as_in_sentence_transformers(corpus: int, most_relevant: int, distinct: int) -> None:
    """Theirs breaks ties by the name, so passages get names that sort as their ids. Grades are 0 or 1 there."""
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    scores_QD = tied_scores(corpus, distinct, seed=corpus)
    found = top_k(torch.from_numpy(scores_QD).float(), 100)
    _, qrels = random_task(corpus, 1, most_relevant, highest_grade=1)
    evaluator = evaluation.InformationRetrievalEvaluator(
        queries={str(query): "" for query in range(len(qrels))},
        corpus={f"{passage:06d}": "" for passage in range(corpus)},
        relevant_docs={
            str(query): {f"{passage:06d}" for passage, grade in grades.items() if grade > 0}
            for query, grades in enumerate(qrels)
        },
        precision_recall_at_k=[1, 3, 5, 10, 100],
    )
    hits = [
        [{"corpus_id": f"{passage:06d}", "score": score} for passage, score in enumerate(row)]
        for row in scores_QD.tolist()
    ]
    theirs = evaluator.compute_metrics(hits)
    ours = {name: values_Q.mean() for name, values_Q in rank_metrics(found.ids_QK.numpy(), qrels).items()}
    for name, at_k in theirs.items():
        for k, value in at_k.items():
            if (our_name := name.replace("@k", f"@{k}")) != "precision@100":
                assert ours[our_name] == pytest.approx(value, rel=0, abs=1e-9), our_name


@pytest.mark.parametrize(("corpus", "depth", "most_relevant"), [(400, 100, 60), (30, 30, 20), (500, 100, 2)])
def test_agrees_with_ranx(corpus: int, depth: int, most_relevant: int) -> None:
    """Not among the packages of the tests: it brings numba and some twenty others, and compiles for minutes."""
    ranx = pytest.importorskip("ranx")
    ranked_ids_QK, qrels = random_task(corpus, depth, most_relevant, highest_grade=3)
    run = {
        str(query): {str(passage): float(depth - rank) for rank, passage in enumerate(row)}
        for query, row in enumerate(ranked_ids_QK.tolist())
    }
    # ranx drops passages graded below 1; of these grades that is those judged not relevant.
    judged = {
        str(query): {str(passage): int(grade) for passage, grade in grades.items() if grade > 0}
        for query, grades in enumerate(qrels)
    }
    names = {
        "ndcg@10": "ndcg@10", "mrr@10": "mrr@10", "map@100": "map@100", "recall@100": "recall@100",
        **{f"recall@{k}": f"recall@{k}" for k in (1, 3, 5, 10)},
        **{f"precision@{k}": f"precision@{k}" for k in (1, 3, 5, 10)},
        **{f"hit_rate@{k}": f"accuracy@{k}" for k in (1, 3, 5, 10)},
    }  # fmt: skip
    theirs = ranx.evaluate(ranx.Qrels(judged), ranx.Run(run), list(names), return_mean=False)
    ours = rank_metrics(ranked_ids_QK, qrels)
    # ranx sorts the queries by their names.
    order = sorted(range(len(qrels)), key=str)
    for their_name, name in names.items():
        np.testing.assert_allclose(ours[name][order], theirs[their_name], rtol=0, atol=1e-9, err_msg=name)
