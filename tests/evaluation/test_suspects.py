"""Suspected label errors: what is suspected, in which order, and whether labels swapped on purpose are found.

Shapes: `Q` queries, `D` passages, `E` embedding size.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from embedtune.data.clean import CollectionBuilder
from embedtune.data.collection import Collection
from embedtune.data.read import read
from embedtune.demo import data_folder
from embedtune.evaluation.rankings import hits
from embedtune.evaluation.run import (
    Evaluation,
    RetrievalTask,
    Roles,
    evaluate_bm25,
    evaluate_embeddings,
    retrieval_task,
)
from embedtune.evaluation.suspects import MOST, Suspect, find_suspects, write_suspects


def scored(task: RetrievalTask, scores: list[list[float]]) -> Evaluation:
    """The evaluation of a system that gives these scores, (Q, D)."""
    return evaluate_embeddings(task, torch.tensor(scores), torch.eye(len(task.passage_ids))[task.passage_ids])


def suspects_of(
    collection: Collection,
    task: RetrievalTask,
    evaluations: dict[str, Evaluation],
    *,
    judged: str = "tuned",
    reference: str | None = "base",
) -> list[Suspect]:
    hits_of = {name: hits(task, evaluation) for name, evaluation in evaluations.items()}
    return find_suspects(collection, task, evaluations, hits_of, Roles(judged, reference))


@pytest.fixture
def collection() -> Collection:
    return Collection(
        queries=["right", "wrong", "doubtful", "alone"],
        passages=["a", "b", "c", "d"],
        qrels={0: {0: 1.0}, 1: {2: 1.0, 3: 1.0}, 2: {0: 1.0}, 3: {0: 1.0}},
    )


def test_suspects_are_confident_and_agreed_on(collection: Collection) -> None:
    task = retrieval_task(collection, range(4), range(4))
    tuned = [[0.9, 0.3, 0.2, 0.1], [0.1, 0.9, 0.2, 0.6], [0.55, 0.1, 0.6, 0.0], [0.1, 0.8, 0.2, 0.1]]
    base = [[0.2, 0.8, 0.2, 0.1], [0.1, 0.8, 0.3, 0.2], [0.9, 0.1, 0.2, 0.0], [0.9, 0.8, 0.2, 0.1]]
    bm25 = [[5.0, 0.0, 0.0, 0.0], [0.0, 9.0, 4.0, 1.0], [1.0, 0.0, 2.0, 0.0], [9.0, 0.0, 1.0, 0.0]]
    evaluations = {name: scored(task, scores) for name, scores in (("base", base), ("tuned", tuned), ("bm25", bm25))}
    wrong, doubtful = suspects_of(collection, task, evaluations)
    assert (wrong.query, wrong.positive, wrong.candidate, wrong.label) == ("wrong", "d", "b", "")
    assert wrong.scores == {"positive": pytest.approx(0.6), "candidate": pytest.approx(0.9)}
    assert wrong.found_by == ("tuned", "base", "bm25")
    assert (doubtful.query, doubtful.found_by) == ("doubtful", ("tuned", "bm25"))


def test_a_fusion_of_the_others_is_no_witness(collection: Collection) -> None:
    task = retrieval_task(collection, [2], range(4))
    wrong, right = scored(task, [[0.1, 0.0, 0.9, 0.0]]), scored(task, [[0.9, 0.0, 0.1, 0.0]])
    evaluations = {"tuned": wrong, "bm25": right, "hybrid": wrong}
    assert suspects_of(collection, task, evaluations, reference=None) == []
    (alone,) = suspects_of(collection, task, {"tuned": wrong}, reference=None)
    assert alone.found_by == ("tuned",)


def test_a_positive_out_of_sight_has_no_score() -> None:
    collection = Collection(queries=["q"], passages=[f"p{i}" for i in range(150)], qrels={0: {140: 1.0, 130: 1.0}})
    task = retrieval_task(collection, [0], range(150))
    tuned = scored(task, [[1 - i / 200 for i in range(150)]])
    (suspect,) = suspects_of(collection, task, {"tuned": tuned, "base": tuned})
    assert (suspect.positive, suspect.candidate) == ("p130", "p0")
    assert suspect.scores == {"positive": None, "candidate": 1.0}


def test_an_order_by_id_alone_is_no_evidence(collection: Collection) -> None:
    task = retrieval_task(collection, range(4), range(4))
    flat = scored(task, [[0.5] * 4] * 4)
    assert suspects_of(collection, task, {"tuned": flat, "base": flat}) == []
    no_word_shared = scored(task, [[0.0] * 4] * 4)
    wrong = scored(task, [[0.9, 0.8, 0.1, 0.2]] * 4)
    assert suspects_of(collection, task, {"tuned": wrong, "bm25": no_word_shared}, reference=None) == []


def test_twins_of_which_one_is_labelled_are_suspects() -> None:
    collection = Collection(queries=["q"], passages=["a", "b", "c"], qrels={0: {1: 1.0}})
    task = retrieval_task(collection, [0], range(3))
    assert task.passage_ids.tolist().index(0) < task.passage_ids.tolist().index(1)
    twins = scored(task, [[0.9, 0.9, 0.1]])
    (suspect,) = suspects_of(collection, task, {"tuned": twins, "base": twins})
    assert (suspect.positive, suspect.candidate, suspect.found_by) == ("b", "a", ("tuned", "base"))


def noisy(vectors_DE: torch.Tensor, noise: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(vectors_DE + noise * torch.randn(vectors_DE.shape, generator=generator), dim=1)


def swapped(task: RetrievalTask, share: float, seed: int) -> tuple[RetrievalTask, set[int]]:
    """The task with some queries' labels given to others among them, and those queries."""
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(task.query_ids)[: round(share * len(task.query_ids))].tolist()
    labels = [task.qrels[query] for query in chosen]
    moved = dict(zip(chosen, labels[1:] + labels[:1], strict=True))
    wrong = {query for query in chosen if moved[query].keys().isdisjoint(task.qrels[query])}
    return replace(task, qrels={**task.qrels, **moved}), wrong


def test_swapped_labels_come_first_among_many_queries() -> None:
    number = 1000
    collection = Collection(
        queries=[f"q{i}" for i in range(number)],
        passages=[f"p{i}" for i in range(number)],
        qrels={i: {i: 1.0} for i in range(number)},
    )
    task, wrong = swapped(retrieval_task(collection, range(number), range(number)), 0.05, seed=0)
    corpus_DE = noisy(torch.zeros(number, 32), 1.0, seed=0)
    evaluations = {
        name: evaluate_embeddings(task, noisy(corpus_DE, noise, seed), corpus_DE[task.passage_ids])
        for name, noise, seed in (("base", 0.18, 1), ("tuned", 0.15, 2), ("bm25", 0.18, 3))
    }
    assert 0.8 < evaluations["base"].means["accuracy@1"] < 0.95
    found = suspects_of(collection, task, evaluations)
    assert len(found) <= MOST
    first = {int(suspect.query[1:]) for suspect in found[: len(wrong)]}
    assert len(first & wrong) >= 0.9 * len(wrong)


def hashed_words(texts: list[str], size: int = 1024) -> torch.Tensor:
    """A simple stand-in for a model: hashed parts of words, rare ones weighing more."""
    counts = torch.zeros(len(texts), size)
    for row, text in zip(counts, texts, strict=True):
        for word in text.lower().split():
            for start in range(max(1, len(word) - 3)):
                row[zlib.crc32(word[start : start + 4].encode()) % size] = 1.0
    return counts


def test_swapped_labels_of_the_built_in_example_are_found() -> None:
    builder = CollectionBuilder()
    rows = builder.add(read(str(data_folder())))
    collection = builder.finish()
    passages = range(len(collection.passages))
    task, wrong = swapped(retrieval_task(collection, rows.pairs.query_ids, passages), 0.05, seed=0)
    corpus_DE = hashed_words(collection.passages)
    weights_E = torch.log(len(corpus_DE) / (1 + corpus_DE.sum(dim=0)))
    embed = torch.nn.functional.normalize
    model = evaluate_embeddings(
        task,
        embed(hashed_words(collection.queries) * weights_E)[task.query_ids],
        embed(corpus_DE * weights_E)[task.passage_ids],
    )
    found = suspects_of(
        collection, task, {"model": model, "bm25": evaluate_bm25(task, collection)}, judged="model", reference=None
    )
    texts = {collection.queries[query] for query in wrong}
    hit = sum(suspect.query in texts for suspect in found[: 2 * len(wrong)])
    assert hit >= 0.6 * len(wrong)


def test_the_file_has_a_suspect_a_line(tmp_path: Path) -> None:
    suspect = Suspect(
        query="Wo?\u2028x",
        positive="hier\nund da",
        candidate="dört",
        scores={"positive": None, "candidate": 0.5},
        found_by=("tuned", "bm25"),
    )
    path = tmp_path / "suspects.jsonl"
    write_suspects(path, [suspect, replace(suspect, query="b")])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert rows[0] == {
        "query": "Wo?\u2028x",
        "positive": "hier\nund da",
        "candidate": "dört",
        "scores": {"positive": None, "candidate": 0.5},
        "found_by": ["tuned", "bm25"],
        "label": "",
    }
    assert [row["query"] for row in rows] == ["Wo?\u2028x", "b"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["suspects.jsonl"]
    write_suspects(path, [])
    assert path.read_bytes() == b""
