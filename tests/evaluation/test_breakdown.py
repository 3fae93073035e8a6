"""Bins of queries that are alike: sizes, labels, and who helps where.

Shapes: `Q` queries, `D` passages.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from embedtune.data.collection import Collection
from embedtune.evaluation.breakdown import SMALLEST_BIN, breakdown
from embedtune.evaluation.run import (
    Evaluation,
    RetrievalTask,
    Roles,
    evaluate_bm25,
    evaluate_embeddings,
    retrieval_task,
)


def make(queries: list[str], passages: list[str]) -> tuple[Collection, RetrievalTask, dict[str, Evaluation]]:
    """Query i is answered by passage i alone; "good" finds it always, "bad" ranks it last."""
    number = len(queries)
    collection = Collection(queries=queries, passages=passages, qrels={i: {i: 1.0} for i in range(number)})
    task = retrieval_task(collection, range(number), range(len(passages)))
    corpus_DD = torch.eye(len(passages))
    good = evaluate_embeddings(task, corpus_DD[:number], corpus_DD[task.passage_ids])
    bad = evaluate_embeddings(task, 1 - corpus_DD[:number], corpus_DD[task.passage_ids])
    return collection, task, {"base": bad, "tuned": good, "bm25": evaluate_bm25(task, collection)}


def by_property(
    queries: list[str], passages: list[str], reference: str | None = "base"
) -> dict[str, list[dict[str, Any]]]:
    collection, task, evaluations = make(queries, passages)
    entries = breakdown(collection, task, evaluations, Roles("tuned", reference), seed=0)
    return {entry["by"]: entry["bins"] for entry in entries}


def words(count: int, number: int) -> str:
    return " ".join([f"w{number}"] + ["word"] * (count - 1))


def test_lengths_give_four_bins_that_hold_every_query_once() -> None:
    lengths = [1 + i % 16 for i in range(160)]
    bins = by_property([words(n, i) for i, n in enumerate(lengths)], [words(n + 20, i) for i, n in enumerate(lengths)])
    labels = [entry["label"] for entry in bins["query_length"]]
    assert labels == ["up to 4 words", "5 to 8 words", "9 to 12 words", "13 words and more"]
    assert [entry["queries"] for entry in bins["query_length"]] == [40, 40, 40, 40]
    assert bins["passage_length"][0]["label"] == "up to 24 words"
    for entry in bins["query_length"]:
        assert entry["systems"]["tuned"] == 1.0
        assert entry["systems"]["base"] == 0.0
        assert entry["delta"]["mean"] == 1.0
        assert entry["delta"]["ci95"] == [1.0, 1.0]
        assert entry["delta"]["p_value"] < 0.01


def test_the_bins_average_to_the_whole() -> None:
    generator = np.random.default_rng(0)
    queries = [words(int(generator.integers(1, 30)), i % 40) for i in range(150)]
    collection, task, evaluations = make(queries, [words(int(generator.integers(5, 90)), i) for i in range(150)])
    entries = breakdown(collection, task, evaluations, Roles("tuned", "base"), seed=0)
    assert [entry["by"] for entry in entries] == ["query_length", "passage_length", "overlap"]
    for entry in entries:
        weights = [one["queries"] for one in entry["bins"]]
        assert sum(weights) == 150
        for name, evaluation in evaluations.items():
            means = [one["systems"][name] for one in entry["bins"]]
            assert np.average(means, weights=weights) == pytest.approx(evaluation.means["ndcg@10"])


@pytest.mark.parametrize("seed", range(20))
def test_no_bin_is_small_or_empty_however_tied_the_values_are(seed: int) -> None:
    generator = np.random.default_rng(seed)
    distinct = int(generator.integers(1, 6))
    weights = generator.dirichlet(np.full(distinct, 0.5))
    lengths = generator.choice(np.arange(1, 3 * distinct, 3), 200, p=weights)
    bins = by_property([words(int(n), i) for i, n in enumerate(lengths)], [words(30, i) for i in range(200)])
    for entry in bins.get("query_length", []):
        assert entry["queries"] >= SMALLEST_BIN
    assert sum(entry["queries"] for entry in bins.get("query_length", [])) in (0, 200)
    assert "passage_length" not in bins


def test_ties_share_a_bin() -> None:
    lengths = [2] * 120 + [3] * 30 + [9] * 50
    bins = by_property([words(n, i) for i, n in enumerate(lengths)], [words(30, i) for i in range(200)])
    assert [(entry["label"], entry["queries"]) for entry in bins["query_length"]] == [
        ("up to 2 words", 120),
        ("3 to 8 words", 30),
        ("9 words and more", 50),
    ]


def test_few_queries_are_not_divided() -> None:
    number = 2 * SMALLEST_BIN - 1
    assert by_property([words(i + 1, i) for i in range(number)], [words(i + 2, i) for i in range(number)]) == {}


def test_overlap_counts_the_words_of_the_question_that_the_best_right_passage_holds() -> None:
    # 40 questions share nothing with their passage, 40 half of their words, 40 all of them.
    queries = [f"alpha{i} beta{i} BETA{i}?" for i in range(120)]
    passages = [f"Other{i}." if i < 40 else f"beta{i}!" if i < 80 else f"(Beta{i}) alpha{i}" for i in range(120)]
    collection, task, evaluations = make(queries, passages)
    task.qrels[119][0] = 1.0  # a second right passage, which shares nothing
    entries = breakdown(collection, task, evaluations, Roles("tuned", "base"), seed=0)
    overlap = next(entry["bins"] for entry in entries if entry["by"] == "overlap")
    assert [(entry["label"], entry["queries"]) for entry in overlap] == [
        ("under 50 % of the question's words in the passage", 40),
        ("50 % to under 100 % of the question's words in the passage", 40),
        ("all of the question's words in the passage", 40),
    ]
    assert overlap[0]["systems"]["bm25"] < overlap[1]["systems"]["bm25"]


def test_scripts_without_spaces_have_lengths_too() -> None:
    queries = ["猫" * (2 + i % 40) + "犬" * (i // 40) for i in range(120)]
    bins = by_property(queries, [f"{i} 本" for i in range(120)])
    assert len(bins["query_length"]) == 4


def test_without_a_reference_there_is_no_delta() -> None:
    bins = by_property([words(1 + i % 20, i) for i in range(100)], [words(30, i) for i in range(100)], reference=None)
    assert all("delta" not in entry for entry in bins["query_length"])
    assert all(set(entry["systems"]) == {"base", "tuned", "bm25"} for entry in bins["query_length"])
