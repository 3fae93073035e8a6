"""Which kinds of queries a model helps and which it hurts: NDCG@10 by length and by shared words.

Shapes: `Q` queries, `B` bounds between bins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from embedtune.data.collection import Collection, IdArray
from embedtune.evaluation.metrics import FloatArray
from embedtune.evaluation.run import Evaluation, RetrievalTask, Roles
from embedtune.evaluation.stats import paired_difference
from embedtune.retrieval.bm25 import tokenise

METRIC = "ndcg@10"
BINS = 4
SMALLEST_BIN = 20
"""Queries in a bin at least: the mean of fewer says next to nothing."""


def breakdown(
    collection: Collection,
    task: RetrievalTask,
    evaluations: Mapping[str, Evaluation],
    roles: Roles,
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """NDCG@10 of every system in bins of queries that are alike, as in "breakdown" of `results.json`.

    The queries are put into up to four bins of about the same size by each of three properties: the query's
    length in words; the length of the right passage, the shortest if several are right; the lexical overlap,
    which is the share of the query's distinct words (as BM25 tokenises) that the right passage holds, the
    highest if several are right. Equal values share a bin and no bin has fewer than 20 queries, so many
    ties or few queries give fewer bins; a property that gives only one is left out.

    Each bin is tested by itself. Of a dozen bins, one in two runs has one below p = 0.05 by chance.

    Args:
        collection: where the task's ids are from.
        task: what was asked.
        evaluations: system name to what it reached on the task.
        roles: "delta" is that of the judged system to the reference; without one there is none.
        seed: of the resampling.
    """
    values, groups_Q = _properties(collection, task), task.groups_Q
    return [
        {"by": name, "bins": bins}
        for name, label in (("query_length", _words), ("passage_length", _words), ("overlap", _share))
        if (bins := _bins(values[name], label, evaluations, groups_Q, roles, seed=seed))
    ]


def _bins(
    values_Q: IdArray,
    label: Callable[[int | None, int | None], str],
    evaluations: Mapping[str, Evaluation],
    groups_Q: IdArray,
    roles: Roles,
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """The bins of one property; none if all queries would be in one."""
    bounds_B = _bounds(values_Q)
    if not bounds_B:
        return []
    bins = []
    for low, high in zip([None, *bounds_B], [*bounds_B, None], strict=True):
        inside_Q = (values_Q >= (low or 0)) & (values_Q < (high if high is not None else np.inf))
        scores = {name: evaluation.per_query[METRIC][inside_Q] for name, evaluation in evaluations.items()}
        entry: dict[str, Any] = {
            "label": label(low, high),
            "queries": int(inside_Q.sum()),
            "systems": {name: float(scores_Q.mean()) for name, scores_Q in scores.items()},
        }
        if roles.reference is not None:
            entry["delta"] = _difference(scores[roles.reference], scores[roles.judged], groups_Q[inside_Q], seed=seed)
        bins.append(entry)
    return bins


def _difference(reference_Q: FloatArray, judged_Q: FloatArray, groups_Q: IdArray, *, seed: int) -> dict[str, Any]:
    difference = paired_difference(reference_Q, judged_Q, seed=seed, groups_Q=groups_Q)
    return {**asdict(difference), "ci95": list(difference.ci95)}


def _bounds(values_Q: IdArray) -> list[int]:
    """The lowest value of every bin but the first, ascending: cuts near the quantiles, never between equals."""
    bins = min(BINS, len(values_Q) // SMALLEST_BIN)
    distinct, counts = np.unique(values_Q, return_counts=True)
    below = np.cumsum(counts)[:-1]
    bounds: list[int] = []
    taken = 0
    for wanted in range(1, bins):
        free = (below - taken >= SMALLEST_BIN) & (len(values_Q) - below >= SMALLEST_BIN)
        if not free.any():
            break
        miss = np.where(free, np.abs(below - wanted * len(values_Q) / bins), np.inf)
        cut = int(miss.argmin())
        # The cut nearest to this quantile may lie nearer to the next one, which then takes it.
        if wanted + 1 < bins and miss[cut] > abs(below[cut] - (wanted + 1) * len(values_Q) / bins):
            continue
        bounds.append(int(distinct[cut + 1]))
        taken = int(below[cut])
    return bounds


def _words(low: int | None, high: int | None) -> str:
    """Label of the lengths from `low` to below `high`."""
    if low is None:
        assert high is not None
        return f"up to {_count(high - 1)}"
    if high is None:
        return f"{_count(low)} and more"
    return _count(low) if high == low + 1 else f"{low} to {_count(high - 1)}"


def _count(words: int) -> str:
    return f"{words} word" if words == 1 else f"{words} words"


def _share(low: int | None, high: int | None) -> str:
    """Label of the percentages, rounded down, from `low` to below `high`."""
    what = "of the question's words in the passage"
    if low is None:
        return f"under {high} % {what}"
    if high is None:
        return f"{low} % and more {what}" if low < 100 else f"all {what}"
    return f"{low} % to under {high} % {what}"


def _properties(collection: Collection, task: RetrievalTask) -> dict[str, IdArray]:
    """Query length and passage length in words and overlap in whole per cent, rounded down, each (Q,)."""
    queries = task.query_ids.tolist()
    words_of = {query: frozenset(tokenise(collection.queries[query])) for query in queries}
    asked_of: dict[int, list[int]] = {}
    for query in queries:
        for passage in task.qrels[query]:
            asked_of.setdefault(passage, []).append(query)
    shortest: dict[int, int] = {}
    overlap = dict.fromkeys(queries, 0)
    # Passage by passage, so that each is tokenised once and its words are not kept.
    for passage, asking in asked_of.items():
        tokens = tokenise(collection.passages[passage])
        held = frozenset(tokens)
        length = _length(collection.passages[passage], tokens)
        for query in asking:
            shortest[query] = min(length, shortest.get(query, length))
            words = words_of[query]
            overlap[query] = max(overlap[query], 100 * len(words & held) // max(1, len(words)))
    return {
        "query_length": np.array([_length(text := collection.queries[query], tokenise(text)) for query in queries]),
        "passage_length": np.array([shortest[query] for query in queries]),
        "overlap": np.array([overlap[query] for query in queries]),
    }


def _length(text: str, tokens: list[str]) -> int:
    """Words between white space, or BM25's if they are more: scripts written without spaces have few spaces."""
    return max(len(text.split()), len(tokens))
