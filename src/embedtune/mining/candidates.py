"""Passages that look like answers: ranked by the model, by BM25, or by both in turn.

A ranking takes question ids and a depth, and gives for each question passage ids, the best first. All are exact, with
ties towards the lower id, so a ranking to a greater depth begins with the one to a smaller depth.

Shapes: `Q` questions, `D` candidates, `E` embedding size.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest

import numpy as np
from torch import Tensor

from embedtune.data.collection import Collection, IdArray
from embedtune.retrieval.bm25 import WordIndex
from embedtune.retrieval.topk import search

Ranking = Callable[[IdArray, int], list[list[int]]]


def ranked_by_model(query_ids: IdArray, queries_QE: Tensor, candidate_ids: IdArray, candidates_DE: Tensor) -> Ranking:
    """By dot product of the embeddings.

    Args:
        query_ids: ascending, (Q,).
        queries_QE: their normalised embeddings.
        candidate_ids: ascending, (D,).
        candidates_DE: their normalised embeddings.
    """

    def ranked(asked: IdArray, depth: int) -> list[list[int]]:
        places = np.searchsorted(query_ids, asked)
        found = search(queries_QE[places], candidates_DE, depth)
        ids: list[list[int]] = candidate_ids[found.ids_QK.cpu().numpy()].tolist()
        return ids

    return ranked


def ranked_by_words(collection: Collection, candidate_ids: IdArray) -> Ranking:
    """By BM25; passages that share no word with the question are not among them."""
    index = WordIndex([collection.passages[passage] for passage in candidate_ids.tolist()])

    def ranked(asked: IdArray, depth: int) -> list[list[int]]:
        found = index.search([collection.queries[query] for query in asked.tolist()], depth)
        ids_QK, shared_QK = candidate_ids[found.ids_QK.numpy()], (found.scores_QK > 0).numpy()
        return [ids[shared].tolist() for ids, shared in zip(ids_QK, shared_QK, strict=True)]

    return ranked


def in_turn(first: Ranking, second: Ranking) -> Ranking:
    """The best of the first ranking, the best of the second, the second best of the first ...; each passage once."""

    def ranked(asked: IdArray, depth: int) -> list[list[int]]:
        both = zip(first(asked, depth), second(asked, depth), strict=True)
        return [_interleaved(one, other) for one, other in both]

    return ranked


def _interleaved(one: list[int], other: list[int]) -> list[int]:
    turns = zip_longest(one, other)
    return list(dict.fromkeys(passage for turn in turns for passage in turn if passage is not None))
