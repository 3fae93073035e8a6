"""Likely label errors: passages ranked first that no label calls right, though they look it.

A model that is confident of an unlabelled passage is often right: the passage answers the query as well as the
labelled one (chunks that overlap, sentences that recur), or instead of it (a label on the wrong row). What is
asked here is that of confident learning (Northcutt et al. 2021): is the score one that right answers get?

Shapes: `Q` queries, `K` ranked passages per query.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedtune.atomic import replacing
from embedtune.data.collection import Collection, IdArray
from embedtune.evaluation.metrics import NO_PASSAGE, FloatArray
from embedtune.evaluation.rankings import NOT_RANKED, BoolArray, ranks_of, right_passages
from embedtune.evaluation.run import Evaluation, RetrievalTask, Roles

MOST = 200
"""Suspects listed: what a person looks through in an hour or two."""
DERIVED = ("hybrid",)
"""Systems made of others that are asked already: their agreement says nothing new."""
MARGIN_WEIGHT = 0.25
"""Of the margin against the confidence; read off labels checked by hand (docs/how-it-works.md)."""


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A query whose label may be wrong or incomplete; the fields are those of a line of `suspects.jsonl`."""

    query: str
    positive: str
    """The passage labelled right; of several, the one that the judged system ranks best."""
    candidate: str
    """The passage that the judged system ranks first, without a label."""
    scores: dict[str, float | None]
    """The judged system's scores of "positive" (None if it is not among those ranked) and "candidate"."""
    found_by: tuple[str, ...]
    """Systems that rank the candidate above the positive, the judged one first."""
    label: str = ""
    """For the user: "" or "no", "also" or "instead"."""


@dataclass(frozen=True)
class _Testimony:
    """What one system has to say about the candidates."""

    agrees_Q: BoolArray
    """Whether it ranks the candidate above the positive, and above what it ranks last: there BM25 has passages
    that share no word with the query, in the order of their ids."""
    suspicion_Q: FloatArray


def find_suspects(
    collection: Collection,
    task: RetrievalTask,
    evaluations: Mapping[str, Evaluation],
    hits_of: Mapping[str, BoolArray],
    roles: Roles,
) -> list[Suspect]:
    """Queries whose labels are worth a look, the most suspicious first, at most 200.

    A query is suspected if the judged system ranks an unlabelled passage first and more than half of all systems
    (hybrids aside) rank it above the best labelled one. The order is that of the mean, over those systems, of

    - the confidence: the share of all queries whose first passage gets no higher a score than the candidate, and
    - a quarter of the margin: candidate's score minus positive's, as a share of the span of the query's ranking.

    Confidence weighs more because a large margin alone mostly marks queries that nothing answers well.

    Args:
        collection: where the task's ids are from.
        task: what was asked.
        evaluations: system name to what it reached on the task.
        hits_of: system name to its `rankings.hits`.
        roles: the judged system's first passages are the candidates; the reference comes after it in `found_by`.
    """
    judged = roles.judged
    evaluation = evaluations[judged]
    candidates_Q = evaluation.ranked_ids[:, 0]
    right_Q = right_passages(task, evaluation, hits_of[judged])
    names = [name for name in dict.fromkeys((judged, roles.reference, *evaluations)) if name and name not in DERIVED]
    testimony = {name: _testimony(evaluations[name], candidates_Q, right_Q) for name in names}
    agreeing_Q = np.sum([one.agrees_Q for one in testimony.values()], axis=0)
    suspected_Q = testimony[judged].agrees_Q & (candidates_Q != NO_PASSAGE) & (2 * agreeing_Q > len(names))
    # Rounded, so that equal suspicion is in the order of the queries on any machine.
    suspicion_Q = np.round(np.mean([one.suspicion_Q for one in testimony.values()], axis=0), 9)
    order = [row for row in np.argsort(-suspicion_Q, kind="stable").tolist() if suspected_Q[row]]
    ranks_Q = ranks_of(evaluation, right_Q)
    return [
        Suspect(
            query=collection.queries[task.query_ids[row]],
            positive=collection.passages[right_Q[row]],
            candidate=collection.passages[candidates_Q[row]],
            scores={
                "positive": None
                if ranks_Q[row] == NOT_RANKED
                else float(evaluation.ranked_scores[row, ranks_Q[row] - 1]),
                "candidate": float(evaluation.ranked_scores[row, 0]),
            },
            found_by=tuple(name for name in names if testimony[name].agrees_Q[row]),
        )
        for row in order[:MOST]
    ]


def _testimony(evaluation: Evaluation, candidates_Q: IdArray, right_Q: IdArray) -> _Testimony:
    ranks_Q = ranks_of(evaluation, candidates_Q)
    candidate_Q = _scores(evaluation, ranks_Q)
    right_ranks_Q = ranks_of(evaluation, right_Q)
    first_Q, last_Q = evaluation.ranked_scores[:, 0], evaluation.ranked_scores[:, -1]
    confidence_Q = np.searchsorted(np.sort(first_Q), candidate_Q, side="right") / len(first_Q)
    span_Q = first_Q - last_Q
    gap_Q = candidate_Q - _scores(evaluation, right_ranks_Q)
    margin_Q = np.divide(gap_Q, span_Q, out=np.zeros(len(gap_Q)), where=span_Q > 0)
    return _Testimony(
        agrees_Q=(ranks_Q < right_ranks_Q) & (candidate_Q > last_Q),
        suspicion_Q=confidence_Q + MARGIN_WEIGHT * margin_Q,
    )


def _scores(evaluation: Evaluation, ranks_Q: IdArray) -> FloatArray:
    """The scores at the given ranks; of what is not ranked the last score, which is the most it can have."""
    places_Q = np.minimum(ranks_Q, evaluation.ranked_scores.shape[1]) - 1
    scores_Q: FloatArray = evaluation.ranked_scores[np.arange(len(ranks_Q)), places_Q]
    return scores_Q


def write_suspects(path: Path, suspects: Iterable[Suspect]) -> None:
    """Write one JSON object a line, the most suspicious first: a whole file or none."""
    with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(suspect_json(suspect), ensure_ascii=False) + "\n" for suspect in suspects)


def suspect_json(suspect: Suspect) -> dict[str, Any]:
    """A suspect as plain JSON values."""
    return {**asdict(suspect), "found_by": list(suspect.found_by)}
