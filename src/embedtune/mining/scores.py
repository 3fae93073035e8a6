"""How well passages answer questions, as numbers: by the model's embeddings or by a judge.

Shapes: `Q` questions, `D` passages, `P` pairs of both, `E` embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from torch import Tensor

from embedtune.data.collection import Collection, IdArray
from embedtune.models.judge import Judge

FloatArray = npt.NDArray[np.float64]


class Scores(NamedTuple):
    """Of pairs of a question and a passage, each of shape (P,)."""

    compared: FloatArray
    """What the bounds are put on: cosines, or a judge's scores from 0 to 1."""
    said: FloatArray
    """As they were given: the same cosines, or the judge's logits, which a loss can distill."""


Scorer = Callable[[Sequence[tuple[int, int]]], Scores]
"""From pairs of a question's and a passage's id to their scores."""

PAIRS_AT_A_TIME = 4_096
"""Whose embeddings are gathered at a time: 25 MB in fp64 if they have 384 numbers."""


def scored_by_model(query_ids: IdArray, queries_QE: Tensor, passage_ids: IdArray, passages_DE: Tensor) -> Scorer:
    """Dot products of normalised embeddings, summed in fp64 and rounded to fp32 as `topk.search` does.

    Args:
        query_ids: ascending, (Q,).
        queries_QE: their embeddings.
        passage_ids: ascending, (D,).
        passages_DE: their embeddings.
    """

    def scores(pairs: Sequence[tuple[int, int]]) -> Scores:
        ids_P2 = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        found = [np.zeros(0)]
        for start in range(0, len(ids_P2), PAIRS_AT_A_TIME):
            asked, passages = ids_P2[start : start + PAIRS_AT_A_TIME].T
            asked_PE = queries_QE[np.searchsorted(query_ids, asked)].double()
            passages_PE = passages_DE[np.searchsorted(passage_ids, passages)].double()
            found.append(torch.linalg.vecdot(asked_PE, passages_PE).float().double().cpu().numpy())
        cosines_P = np.concatenate(found)
        return Scores(cosines_P, cosines_P)

    return scores


def scored_by_judge(judge: Judge, collection: Collection) -> Scorer:
    """What the judge says of the texts, compared by its sigmoid: a share of a score means the same for every judge."""

    def scores(pairs: Sequence[tuple[int, int]]) -> Scores:
        logits_P = judge.logits([(collection.queries[query], collection.passages[passage]) for query, passage in pairs])
        return Scores(expit(logits_P), logits_P)

    return scores
