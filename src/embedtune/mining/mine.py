"""Hard negatives for the training rows, some questions at a time: rank, look at, score, refuse, choose.

Shapes: `Q` distinct questions of the training rows, `D` their passages, `E` embedding size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from embedtune.config import MiningConfig
from embedtune.data.collection import IdArray, Pairs
from embedtune.data.prepare import Splits
from embedtune.mining.candidates import Ranking, in_turn, ranked_by_model, ranked_by_words
from embedtune.mining.filters import REASONS, Window, look_at, wrong_ones
from embedtune.mining.pool import Never, Pool
from embedtune.mining.sampling import choose
from embedtune.mining.scores import Scorer, scored_by_judge, scored_by_model
from embedtune.models.judge import Judge
from embedtune.progress import Reporter

QUESTIONS_AT_A_TIME = 1_024
RANKED_AT_A_TIME = 2**18
"""Ranked passages of the questions of a block, which bounds the memory where questions have very many answers."""


@dataclass(frozen=True)
class Mined:
    """The training rows with negatives added."""

    pairs: Pairs
    """Each row's given negatives first, then the mined ones, the best-ranked first; with what a judge said of all of
    them, as a teacher's scores."""
    facts: dict[str, Any]
    """Counts and mean scores, for `results.json`."""
    scores: tuple[tuple[float, ...], ...]
    """Of each row, the score of its positive and then of its negatives in order, as they were compared."""
    added: tuple[int, ...]
    """How many of each row's negatives were mined: the last of them."""


@dataclass(frozen=True)
class _Row:
    """What was found for one row."""

    added: tuple[int, ...]
    scores: tuple[float, ...]
    said: tuple[float, ...]
    refused: Counter[str]


def mine(
    splits: Splits,
    pool: Pool,
    queries_QE: Tensor,
    passages_DE: Tensor,
    config: MiningConfig,
    *,
    judge: Judge | None = None,
    seed: int,
    reporter: Reporter,
) -> Mined:
    """Add hard negatives to the training rows.

    The result is exact and does not depend on how many questions are worked on at a time; what is in memory at once is
    the ranking of some questions, beside the embeddings.

    Args:
        splits: from `prepare`.
        pool: from `training_pool`.
        queries_QE: normalised embeddings of the distinct questions of the training rows, by ascending id.
        passages_DE: normalised embeddings of `pool.passage_ids`.
        config: what to mine.
        judge: scores in place of the model.
        seed: of what is drawn.
        reporter: is told how far it is.
    """
    query_ids = np.unique(splits.train.query_ids)
    ranking = _ranking(splits, pool, query_ids, queries_QE, passages_DE, config)
    if judge is None:
        scorer = scored_by_model(query_ids, queries_QE, pool.passage_ids, passages_DE)
    else:
        scorer = scored_by_judge(judge, splits.collection)
    leaders_D = None if splits.near_duplicates is None else splits.near_duplicates.leaders_D
    never = Never(splits.collection, pool.candidate_ids, leaders_D)
    rows_of = _rows_of_questions(splits.train)
    found: dict[int, _Row] = {}
    with reporter.counting("mining hard negatives", len(query_ids)) as advance:
        for asked, depth in _blocks(query_ids, never, config.mine_depth):
            windows = {
                query: look_at(ranked, never.of(query), depth=config.mine_depth, skip=config.mine_skip)
                for query, ranked in zip(asked.tolist(), ranking(asked, depth), strict=True)
            }
            found.update(_mine_rows(splits.train, rows_of, windows, scorer, config, seed=seed))
            advance(len(asked))
    return _mined(splits.train, [found[row] for row in range(len(splits.train))], pool, config, judge)


def unmined(splits: Splits, pool: Pool, config: MiningConfig) -> Mined:
    """The rows as they are, for a run that wants no negatives."""
    rows = [_Row((), (), (), Counter()) for _ in range(len(splits.train))]
    return _mined(splits.train, rows, pool, config, None)


def _ranking(
    splits: Splits, pool: Pool, query_ids: IdArray, queries_QE: Tensor, passages_DE: Tensor, config: MiningConfig
) -> Ranking:
    """Where the candidates come from."""
    if config.mine_from == "bm25":
        return ranked_by_words(splits.collection, pool.candidate_ids)
    candidates_DE = passages_DE[np.searchsorted(pool.passage_ids, pool.candidate_ids)]
    by_model = ranked_by_model(query_ids, queries_QE, pool.candidate_ids, candidates_DE)
    if config.mine_from == "model":
        return by_model
    return in_turn(by_model, ranked_by_words(splits.collection, pool.candidate_ids))


def _blocks(query_ids: IdArray, never: Never, depth: int) -> Iterator[tuple[IdArray, int]]:
    """Questions to work on together, and how deep to rank for them: `depth` candidates are left whatever is refused.

    Those with the same number of refused passages come together, so that one with thousands of answers costs itself.
    """
    depth_Q = depth + np.array([len(never.of(query)) for query in query_ids.tolist()], dtype=np.int64)
    order = np.argsort(depth_Q, kind="stable")
    start = 0
    while start < len(order):
        some = order[start : start + QUESTIONS_AT_A_TIME]
        fitting = int((depth_Q[some] * np.arange(1, len(some) + 1) <= RANKED_AT_A_TIME).sum())
        some = some[: max(1, fitting)]
        yield query_ids[some], int(depth_Q[some].max())
        start += len(some)


def _rows_of_questions(pairs: Pairs) -> dict[int, list[int]]:
    rows_of: dict[int, list[int]] = {}
    for row, query in enumerate(pairs.query_ids.tolist()):
        rows_of.setdefault(query, []).append(row)
    return rows_of


def _mine_rows(
    pairs: Pairs,
    rows_of: Mapping[int, list[int]],
    windows: Mapping[int, Window],
    scorer: Scorer,
    config: MiningConfig,
    *,
    seed: int,
) -> dict[int, _Row]:
    """The rows of some questions by number."""
    positives = pairs.passage_ids
    needed = {query: dict.fromkeys(window.candidates) for query, window in windows.items()}
    for query in windows:
        for row in rows_of[query]:
            needed[query].update(dict.fromkeys((int(positives[row]), *pairs.negative_ids[row])))
    links = [(query, passage) for query, passages in needed.items() for passage in passages]
    compared, said = (dict(zip(links, values.tolist(), strict=True)) for values in scorer(links))
    found = {}
    for query, window in windows.items():
        scores = {passage: compared[query, passage] for passage in needed[query]}
        for row in rows_of[query]:
            given, positive = pairs.negative_ids[row], int(positives[row])
            left, refused = wrong_ones(window, given, scores, scores[positive], config)
            at_random = config.mine_sampling == "random"
            added = choose(left, config.added, at_random=at_random, seed=seed, row=row)
            of_row = (positive, *given, *added)
            found[row] = _Row(
                added,
                scores=tuple(scores[passage] for passage in of_row),
                said=tuple(said[query, passage] for passage in of_row),
                refused=refused,
            )
    return found


def _mined(pairs: Pairs, rows: Sequence[_Row], pool: Pool, config: MiningConfig, judge: Judge | None) -> Mined:
    refused = Counter[str]()
    for row in rows:
        refused.update(row.refused)
    positives = [row.scores[0] for row in rows if row.scores]
    negatives = [score for row in rows for score in row.scores[len(row.scores) - len(row.added) :]]
    facts = {
        "rows": len(rows),
        "candidates": len(pool.candidate_ids),
        "asked": config.added,
        "mined": sum(len(row.added) for row in rows),
        "short_rows": sum(len(row.added) < config.added for row in rows),
        "refused": {reason: refused[reason] for reason in REASONS},
        "mean_scores": {"positives": _mean(positives), "negatives": _mean(negatives)},
        "judge": None if judge is None else {"model": judge.name, "revision": judge.revision},
    }
    negative_ids = tuple((*given, *row.added) for given, row in zip(pairs.negative_ids, rows, strict=True))
    return Mined(
        # A teacher of the data has not scored what was added.
        pairs=replace(pairs, negative_ids=negative_ids, scores=None if judge is None else tuple(r.said for r in rows)),
        facts=facts,
        scores=tuple(row.scores for row in rows),
        added=tuple(len(row.added) for row in rows),
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
