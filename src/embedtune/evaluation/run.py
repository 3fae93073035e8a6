"""One evaluation: which queries against which corpus, the ranking, the metrics, and two of them fused or compared.

Shapes: `Q` queries, `D` passages, `K` ranked passages per query (100, or `D` if smaller), `E` embedding size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from embedtune.data.collection import Collection, IdArray
from embedtune.evaluation.metrics import DEPTH, FloatArray, rank_metrics
from embedtune.evaluation.stats import Difference, paired_difference
from embedtune.retrieval.bm25 import Terms, bm25_search, tokenise
from embedtune.retrieval.fusion import NO_PASSAGE, reciprocal_rank_fusion
from embedtune.retrieval.topk import TopK, search


@dataclass(frozen=True, kw_only=True)
class RetrievalTask:
    """Queries, the corpus they are asked of, and what answers them. Made by `retrieval_task`."""

    query_ids: IdArray
    """The collection's query ids, ascending and distinct, shape (Q,)."""
    passage_ids: IdArray
    """The collection's passage ids that make up the corpus, distinct, in the order in which ties are broken, shape
    (D,)."""
    qrels: dict[int, dict[int, float]]
    """For each query id, {passage id: grade} of its relevant passages in this corpus, at least one."""

    @cached_property
    def groups_Q(self) -> IdArray:
        """Number of each query's group, shape (Q,): queries that share a relevant passage, be it through others, are
        one.

        Such queries were mostly written about one passage, and a model that embeds it badly fails them all.
        """
        queries, passages = np.array(
            [(place, passage) for place, query in enumerate(self.query_ids.tolist()) for passage in self.qrels[query]]
        ).T
        count = len(self.query_ids)
        columns = count + np.unique(passages, return_inverse=True)[1]
        size = int(columns.max()) + 1
        shared = coo_array((np.ones(len(queries), dtype=np.int8), (queries, columns)), shape=(size, size))
        _, groups = connected_components(shared, directed=False)
        return np.unique(groups[:count], return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class Roles:
    """Which of several systems is looked at."""

    judged: str
    """Its name: "tuned", or "model" where a finished model is measured."""
    reference: str | None = None
    """Name of the one that it is compared with: "base", or "against"; None if there is none."""


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
    """What they are ranked by: dot products, BM25 scores or those of the fusion, shape (Q, K)."""
    finds_by_word: bool = False
    """Whether a score of 0 means that the passage shares no word with the query, and is ranked as a tie."""

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

    The corpus is in the order of a hash of its texts. In the order of ids answers would come first, as they are read
    before other passages, and win every tie: a model that tells nothing apart would score well, and so would BM25
    beside passages that share no word with the query.

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
    passages = passages[
        np.argsort([_digest(collection.passages[passage]) for passage in passages.tolist()], kind="stable")
    ]
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


def evaluate_embeddings(
    task: RetrievalTask,
    queries_QE: Tensor,
    corpus_DE: Tensor,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Rank the corpus by dot product for each query and score the rankings.

    Args:
        task: What to find.
        queries_QE: Normalised embeddings of `task.query_ids`, in that order.
        corpus_DE: Normalised embeddings of `task.passage_ids`, in that order, on the same device.
        on_progress: Called with the number of queries done after each block.

    Raises:
        ValueError: The shapes don't fit the task or each other, or an embedding is NaN or infinite.
    """
    expected = (len(task.query_ids), len(task.passage_ids))
    if (len(queries_QE), len(corpus_DE)) != expected:
        raise ValueError(
            f"got {len(queries_QE)} query and {len(corpus_DE)} passage embeddings, "
            f"expected {expected[0]} and {expected[1]}, one for each id of the task"
        )
    return _evaluation(task, *_of_collection(task, search(queries_QE, corpus_DE, DEPTH, on_progress=on_progress)))


def evaluate_bm25(
    task: RetrievalTask,
    collection: Collection,
    *,
    terms: Terms = tokenise,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Rank the corpus by BM25 for each query and score the rankings.

    Args:
        task: What to find.
        collection: Where the task's ids are from.
        terms: What of each text is counted.
        on_progress: Called with the number of queries done after each block.
    """
    queries = [collection.queries[query] for query in task.query_ids.tolist()]
    corpus = [collection.passages[passage] for passage in task.passage_ids.tolist()]
    found = bm25_search(queries, corpus, DEPTH, terms=terms, on_progress=on_progress)
    return _evaluation(task, *_of_collection(task, found), finds_by_word=True)


def evaluate_hybrid(task: RetrievalTask, *evaluations: Evaluation) -> Evaluation:
    """Fuse the rankings of two or more evaluations of the task by reciprocal rank and score the result.

    Passages that BM25 ranks without a word in common get nothing from it, as from a search engine that does not
    return them.

    Raises:
        ValueError: There are fewer than two evaluations, or one is of other queries than the task's.
    """
    for evaluation in evaluations:
        _check_same_queries("the task", task.query_ids, "an evaluation", evaluation.query_ids)
    found = [
        np.where(evaluation.ranked_scores == 0, NO_PASSAGE, evaluation.ranked_ids)
        if evaluation.finds_by_word
        else evaluation.ranked_ids
        for evaluation in evaluations
    ]
    fused_QK, scores_QK = reciprocal_rank_fusion(*(_places(task, ranked_QK) for ranked_QK in found))
    return _evaluation(task, np.where(fused_QK == NO_PASSAGE, NO_PASSAGE, task.passage_ids[fused_QK]), scores_QK)


def compare(
    base: Evaluation, tuned: Evaluation, *, seed: int, groups_Q: IdArray | None = None
) -> dict[str, Difference]:
    """Tuned minus base for every metric, paired by query.

    Args:
        base: What to compare with.
        tuned: Another evaluation of the same task.
        seed: Of the permutations.
        groups_Q: Number of each query's group, `RetrievalTask.groups_Q`; each query for itself if None.

    Raises:
        ValueError: The two were evaluated on different queries.
    """
    _check_same_queries("base", base.query_ids, "tuned", tuned.query_ids)
    return {
        name: paired_difference(base_Q, tuned.per_query[name], seed=seed, groups_Q=groups_Q)
        for name, base_Q in base.per_query.items()
    }


def _check_same_queries(one: str, one_Q: IdArray, other: str, other_Q: IdArray) -> None:
    if not np.array_equal(one_Q, other_Q):
        raise ValueError(
            f"{one} has {len(one_Q)} queries and {other} {len(other_Q)}, "
            "and they are not the same ones; evaluate both on one task"
        )


def _of_collection(task: RetrievalTask, found: TopK) -> tuple[IdArray, FloatArray]:
    """Ids of the collection for rows of the corpus, and the scores."""
    return task.passage_ids[found.ids_QK.cpu().numpy()], found.scores_QK.cpu().double().numpy()


def _places(task: RetrievalTask, ranked_ids_QK: IdArray) -> IdArray:
    """Rows of the corpus for ids of the collection: the fusion breaks ties by them."""
    places = np.full(int(task.passage_ids.max()) + 1, NO_PASSAGE)
    places[task.passage_ids] = np.arange(len(task.passage_ids))
    return np.where(ranked_ids_QK == NO_PASSAGE, NO_PASSAGE, places[ranked_ids_QK])


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def _evaluation(
    task: RetrievalTask, ranked_ids_QK: IdArray, scores_QK: FloatArray, *, finds_by_word: bool = False
) -> Evaluation:
    return Evaluation(
        query_ids=task.query_ids,
        per_query=rank_metrics(ranked_ids_QK, [task.qrels[query] for query in task.query_ids.tolist()]),
        ranked_ids=ranked_ids_QK,
        ranked_scores=scores_QK,
        finds_by_word=finds_by_word,
    )


def _distinct(kind: str, ids: Sequence[int] | IdArray, size: int) -> IdArray:
    distinct = np.unique(np.asarray(ids, dtype=np.int64))
    if len(distinct) == 0:
        raise ValueError(f"got no {kind} ids, expected at least one")
    if distinct[0] < 0 or distinct[-1] >= size:
        raise ValueError(f"{kind} ids: got {distinct[0]} to {distinct[-1]}, expected the collection's, 0 to {size - 1}")
    return distinct
