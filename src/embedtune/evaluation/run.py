"""One evaluation: which queries against which corpus, the ranking, the metrics, and two of them compared.

Shapes: `Q` queries, `D` passages, `K` ranked passages per query (100, or `D` if smaller), `E` embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from embedtune.data.collection import Collection, IdArray
from embedtune.evaluation.metrics import DEPTH, FloatArray, rank_metrics
from embedtune.evaluation.stats import Difference, paired_difference
from embedtune.retrieval.bm25 import bm25_search
from embedtune.retrieval.topk import TopK, search


@dataclass(frozen=True, kw_only=True)
class RetrievalTask:
    """Queries, the corpus they are asked of, and what answers them. Made by `retrieval_task`."""

    query_ids: IdArray
    """The collection's query ids, ascending and distinct, shape (Q,)."""
    passage_ids: IdArray
    """The collection's passage ids that make up the corpus, ascending and distinct, shape (D,)."""
    qrels: dict[int, dict[int, float]]
    """For each query id, {passage id: grade} of its relevant passages in this corpus, at least one."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one way of ranking reached on a task."""

    query_ids: IdArray
    """The task's query ids: the order of everything else here, shape (Q,)."""
    per_query: dict[str, FloatArray]
    """Metric name to its values, shape (Q,); the names are those of `rank_metrics`."""
    ranked_ids: IdArray
    """The collection's passage ids, best first, shape (Q, K)."""
    ranked_scores: FloatArray
    """Their scores, in the unit of the system that ranked (cosine, BM25), shape (Q, K)."""

    @property
    def means(self) -> dict[str, float]:
        """Metric name to its mean over the queries."""
        return {name: float(values_Q.mean()) for name, values_Q in self.per_query.items()}


def retrieval_task(
    collection: Collection, query_ids: Sequence[int] | IdArray, passage_ids: Sequence[int] | IdArray
) -> RetrievalTask:
    """The task of finding, among the given passages, all that answer each of the given queries.

    Each distinct query is asked once, however many rows it has, and each distinct passage is in the corpus
    once. Every passage that the collection knows to answer a query is relevant, whichever file said so.

    A test corpus is all passages of the collection, so nothing is lost. A dev corpus is smaller on purpose:
    relevant passages outside it can't be found, so they leave the qrels and recall is over those that can. A
    query that keeps none would score 0 whatever the model does and is refused.

    Args:
        collection: Where the ids are from.
        query_ids: Query ids, in any order, repeated or not.
        passage_ids: Passage ids of the corpus, in any order, repeated or not.

    Raises:
        ValueError: There are no queries or an id is not one of the collection, or a query has no relevant
            passage in the corpus.
    """
    queries = _distinct("query", query_ids, len(collection.queries))
    passages = _distinct("passage", passage_ids, len(collection.passages))
    in_corpus = set(passages.tolist())
    qrels: dict[int, dict[int, float]] = {}
    for query in queries.tolist():
        judged = collection.qrels.get(query, {})
        qrels[query] = {passage: grade for passage, grade in judged.items() if grade > 0 and passage in in_corpus}
        if not qrels[query]:
            raise ValueError(
                f"query {query} ({collection.queries[query][:80]!r}): got {len(judged)} judged passages and "
                f"none relevant in the corpus of {len(passages)} passages; expected at least one"
            )
    return RetrievalTask(query_ids=queries, passage_ids=passages, qrels=qrels)


def evaluate_embeddings(task: RetrievalTask, queries_QE: Tensor, corpus_DE: Tensor) -> Evaluation:
    """Rank the corpus by dot product for each query and score the rankings.

    Args:
        task: What to find.
        queries_QE: Normalised embeddings of `task.query_ids`, in that order.
        corpus_DE: Normalised embeddings of `task.passage_ids`, in that order, on the same device.

    Raises:
        ValueError: The shapes don't fit the task or each other, or an embedding is NaN or infinite.
    """
    expected = (len(task.query_ids), len(task.passage_ids))
    if (len(queries_QE), len(corpus_DE)) != expected:
        raise ValueError(
            f"got {len(queries_QE)} query and {len(corpus_DE)} passage embeddings, "
            f"expected {expected[0]} and {expected[1]}, one for each id of the task"
        )
    return _evaluation(task, search(queries_QE, corpus_DE, DEPTH))


def evaluate_bm25(task: RetrievalTask, collection: Collection) -> Evaluation:
    """Rank the corpus by BM25 for each query and score the rankings."""
    queries = [collection.queries[query] for query in task.query_ids.tolist()]
    corpus = [collection.passages[passage] for passage in task.passage_ids.tolist()]
    return _evaluation(task, bm25_search(queries, corpus, DEPTH))


def compare(base: Evaluation, tuned: Evaluation, *, seed: int) -> dict[str, Difference]:
    """Tuned minus base for every metric, paired by query.

    Raises:
        ValueError: The two were evaluated on different queries.
    """
    if not np.array_equal(base.query_ids, tuned.query_ids):
        raise ValueError(
            f"base was evaluated on {len(base.query_ids)} queries and tuned on {len(tuned.query_ids)}, "
            "and they are not the same ones; evaluate both on one task"
        )
    return {
        name: paired_difference(base_Q, tuned.per_query[name], seed=seed) for name, base_Q in base.per_query.items()
    }


def _evaluation(task: RetrievalTask, found: TopK) -> Evaluation:
    ranked_ids_QK = task.passage_ids[found.ids_QK.cpu().numpy()]
    return Evaluation(
        query_ids=task.query_ids,
        per_query=rank_metrics(ranked_ids_QK, [task.qrels[query] for query in task.query_ids.tolist()]),
        ranked_ids=ranked_ids_QK,
        ranked_scores=found.scores_QK.cpu().double().numpy(),
    )


def _distinct(kind: str, ids: Sequence[int] | IdArray, size: int) -> IdArray:
    """Ascending, so that a row's place in the corpus breaks ties as the passage id does."""
    distinct = np.unique(np.asarray(ids, dtype=np.int64))
    if len(distinct) == 0:
        raise ValueError(f"got no {kind} ids, expected at least one")
    if distinct[0] < 0 or distinct[-1] >= size:
        raise ValueError(f"{kind} ids: got {distinct[0]} to {distinct[-1]}, expected the collection's, 0 to {size - 1}")
    return distinct
