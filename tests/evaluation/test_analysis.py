"""The whole analysis in one call, as the report reads it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from embedtune.data.collection import Collection
from embedtune.evaluation.analysis import analyse
from embedtune.evaluation.run import (
    Evaluation,
    RetrievalTask,
    Roles,
    evaluate_bm25,
    evaluate_embeddings,
    retrieval_task,
)

NUMBER = 120


@pytest.fixture(scope="module")
def job() -> tuple[Collection, RetrievalTask, dict[str, Evaluation]]:
    """Queries of 2 to 21 words about a passage each; the tuned model is the less noisy one."""
    generator = np.random.default_rng(0)
    passages = [" ".join(f"word{j}" for j in generator.integers(0, 300, 20 + i % 50)) for i in range(NUMBER)]
    queries = [
        f"q{i} {' '.join(passages[i].split()[: 1 + i % 20])}" + " very long" * (i == 0) * 200 for i in range(NUMBER)
    ]
    collection = Collection(queries=queries, passages=passages, qrels={i: {i: 1.0} for i in range(NUMBER)})
    task = retrieval_task(collection, range(NUMBER), range(NUMBER))
    corpus_DE = torch.nn.functional.normalize(torch.from_numpy(generator.standard_normal((NUMBER, 16))), dim=1)

    def noisy(noise: float) -> Evaluation:
        queries_QE = corpus_DE + noise * torch.from_numpy(generator.standard_normal((NUMBER, 16)))
        return evaluate_embeddings(task, torch.nn.functional.normalize(queries_QE, dim=1), corpus_DE)

    return collection, task, {"base": noisy(0.4), "tuned": noisy(0.3), "bm25": evaluate_bm25(task, collection)}


def test_a_run_gets_every_section(job: tuple[Collection, RetrievalTask, dict[str, Evaluation]]) -> None:
    sections, suspects = analyse(*job, Roles("tuned", "base"), seed=0)
    assert list(sections) == ["recall_curve", "breakdown", "queries", "suspects"]
    assert list(sections["recall_curve"]["systems"]) == ["base", "tuned", "bm25"]
    assert [entry["by"] for entry in sections["breakdown"]] == ["query_length", "passage_length", "overlap"]
    counts = sections["queries"]
    assert counts["better"] + counts["worse"] + counts["equal"] == NUMBER
    assert counts["better"] > counts["worse"] > 0
    assert sections["suspects"]["count"] == len(suspects)
    assert sections["suspects"]["file"] == "suspects.jsonl"
    assert len(sections["suspects"]["examples"]) == min(5, len(suspects))
    assert json.loads(json.dumps(sections, allow_nan=False)) == sections


def test_the_same_seed_gives_the_same_analysis(job: tuple[Collection, RetrievalTask, dict[str, Evaluation]]) -> None:
    assert analyse(*job, Roles("tuned", "base"), seed=3) == analyse(*job, Roles("tuned", "base"), seed=3)


def test_a_single_model_is_not_compared(job: tuple[Collection, RetrievalTask, dict[str, Evaluation]]) -> None:
    collection, task, evaluations = job
    alone = {"model": evaluations["tuned"], "bm25": evaluations["bm25"]}
    sections, _ = analyse(collection, task, alone, Roles("model", None), seed=0)
    assert list(sections["queries"]) == ["worst"]
    assert list(sections["queries"]["worst"][0]["rank"]) == ["model", "bm25"]
    assert "delta" not in sections["breakdown"][0]["bins"][0]


def test_an_unknown_system_is_refused(job: tuple[Collection, RetrievalTask, dict[str, Evaluation]]) -> None:
    with pytest.raises(ValueError, match="got the system 'model', expected one of 'base', 'tuned', 'bm25'"):
        analyse(*job, Roles("model", "base"), seed=0)


def test_examples_are_shortened_and_suspects_are_whole() -> None:
    words = ["long " * 300 + str(i) for i in range(3)]
    collection = Collection(queries=words, passages=words[::-1], qrels={i: {i: 1.0} for i in range(3)})
    task = retrieval_task(collection, range(3), range(3))
    wrong = evaluate_embeddings(task, 1 - torch.eye(3), torch.eye(3))
    sections, suspects = analyse(collection, task, {"base": wrong, "tuned": wrong}, Roles("tuned", "base"), seed=0)
    (first, *_), (example, *_) = suspects, sections["suspects"]["examples"]
    assert first.query in words
    for key in ("query", "positive", "candidate"):
        assert len(example[key]) <= 600
        assert example[key].endswith("…")
