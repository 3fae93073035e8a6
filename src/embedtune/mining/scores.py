"""How well passages answer questions, as numbers: by the model's embeddings or by a judge.

Shapes: `Q` questions, `D` passages, `P` pairs of both, `E` embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedtune.data.collection import Collection, IdArray
from embedtune.models.judge import Judge

FloatArray = npt.NDArray[np.float64]
Scorer = Callable[[Sequence[tuple[int, int]]], FloatArray]
"""From pairs of a question's and a passage's id to their scores, (P,)."""

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

    def scores(pairs: Sequence[tuple[int, int]]) -> FloatArray:
        ids_P2 = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        found = [np.zeros(0)]
        for start in range(0, len(ids_P2), PAIRS_AT_A_TIME):
            asked, passages = ids_P2[start : start + PAIRS_AT_A_TIME].T
            asked_PE = queries_QE[np.searchsorted(query_ids, asked)].double()
            passages_PE = passages_DE[np.searchsorted(passage_ids, passages)].double()
            found.append(torch.linalg.vecdot(asked_PE, passages_PE).float().double().cpu().numpy())
        return np.concatenate(found)

    return scores


def scored_by_judge(judge: Judge, collection: Collection) -> Scorer:
    """What the judge says of the texts."""

    def scores(pairs: Sequence[tuple[int, int]]) -> FloatArray:
        return judge.scores([(collection.queries[query], collection.passages[passage]) for query, passage in pairs])

    return scores
