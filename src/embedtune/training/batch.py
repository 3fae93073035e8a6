"""From row numbers to the distinct texts of a batch, and what is known of them.

Shapes: `Q` rows of the batch, `P` its distinct passages, `A` known answers, `C` passages that a teacher has scored for
a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from embedtune.data.collection import IdArray, Pairs
from embedtune.data.tokens import TokenTable
from embedtune.kernels.transfer import to_device
from embedtune.losses.batch import TeacherScores


@dataclass(frozen=True)
class ContrastiveBatch:
    """The distinct texts of a batch; each is embedded once, however many rows it comes in."""

    query_ids: IdArray
    """Distinct questions, ids of the collection."""
    passage_ids: IdArray
    """Distinct passages, positives and hard negatives, shape (P,)."""
    queries_Q: IdArray
    """Place of each row's question in `query_ids`."""
    positives_Q: IdArray
    """Place of each row's positive in `passage_ids`."""
    answers_2A: IdArray
    """Row of a question and place in `passage_ids` of a passage that is known to answer it, own positives included."""


def contrastive_batch(pairs: Pairs, rows: IdArray, qrels: Mapping[int, Mapping[int, float]]) -> ContrastiveBatch:
    """Gather the distinct texts of the rows and mark every known answer among them."""
    query_of_row = pairs.query_ids[rows]
    positive_of_row = pairs.passage_ids[rows]
    query_ids, queries_Q = np.unique(query_of_row, return_inverse=True)
    passage_ids = _distinct_passages(pairs, rows)
    place = {int(passage): column for column, passage in enumerate(passage_ids)}
    answers: list[tuple[int, int]] = []
    for row, query in enumerate(query_of_row):
        known = qrels.get(int(query), {})
        # Whichever is shorter: a question may have thousands of answers, or a batch thousands of passages.
        candidates = known.keys() & place.keys() if len(known) > len(place) else known
        answers += [(row, place[passage]) for passage in candidates if passage in place]
    return ContrastiveBatch(
        query_ids=query_ids,
        passage_ids=passage_ids,
        queries_Q=queries_Q,
        positives_Q=np.searchsorted(passage_ids, positive_of_row),
        answers_2A=np.asarray(answers, dtype=np.int64).reshape(-1, 2).T,
    )


def teacher_scores(pairs: Pairs, rows: IdArray, batch: ContrastiveBatch, device: torch.device) -> TeacherScores | None:
    """What the teacher says of the rows' own passages; None if the pairs have no scores.

    Negatives that came to a row after it was scored have none.
    """
    if pairs.scores is None:
        return None
    given = [pairs.scores[row] for row in rows]
    width = max(1, *map(len, given))
    columns_QC = np.repeat(batch.positives_Q[:, None], width, axis=1)
    scores_QC = np.zeros((len(rows), width), dtype=np.float32)
    given_QC = np.zeros((len(rows), width), dtype=np.bool_)
    for place, (row, scores) in enumerate(zip(rows, given, strict=True)):
        columns_QC[place, 1 : len(scores)] = np.searchsorted(
            batch.passage_ids, pairs.negative_ids[row][: max(0, len(scores) - 1)]
        )
        scores_QC[place, : len(scores)] = scores
        given_QC[place, : len(scores)] = True
    return TeacherScores(*(to_device(torch.from_numpy(array), device) for array in (columns_QC, scores_QC, given_QC)))


def batch_tokens(pairs: Pairs, rows: IdArray, query_tokens: TokenTable, passage_tokens: TokenTable) -> int:
    """Tokens of the distinct texts of the rows."""
    query_ids, passage_ids = np.unique(pairs.query_ids[rows]), _distinct_passages(pairs, rows)
    return int(query_tokens.lengths_N[query_ids].sum() + passage_tokens.lengths_N[passage_ids].sum())


def _distinct_passages(pairs: Pairs, rows: IdArray) -> IdArray:
    """Positives and hard negatives of the rows, ascending."""
    negatives = [passage for row in rows for passage in pairs.negative_ids[row]]
    return np.unique(np.concatenate([pairs.passage_ids[rows], np.asarray(negatives, dtype=np.int64)]))
