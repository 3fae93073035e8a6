"""BM25's scores of the questions of a batch for its passages, for a model that is to learn from them.

It counts pairs and parts of words too (`split_finely`), by which it finds more than by words alone, and teaches better.

Shapes: `Q` rows of the batch, `P` its distinct passages, `D` passages of the training rows, `V` terms of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedtune.data.collection import Collection, IdArray, Pairs
from embedtune.retrieval.bm25 import Terms, WordIndex, split_finely, tokenise
from embedtune.training.batch import ContrastiveBatch

BM25_WEIGHT = 0.3
"""Of what BM25 teaches, where that is left open."""
ASKED, FOUND_AMONG = 1_000, 10
"""Training questions that BM25 is tried on, and first passages among which it has to find the answer."""
ENOUGH = 0.5
"""Share of the answers that it has to find to be a teacher where that is left open."""
AS_MUCH_MISSED = 1.7
"""Times what the model misses by then of a dev metric of 1, that BM25 may miss to be a teacher where that is left
open."""
FINELY = 40_000_000
"""Characters of passages up to which pairs and parts of words are counted: to count them takes 45 bytes of each."""


def terms_of(passages: Sequence[str]) -> Terms:
    """What BM25 counts of them to teach."""
    return split_finely if sum(map(len, passages)) <= FINELY else tokenise


class WordTeacher:
    """BM25 over the passages of the training rows."""

    def __init__(
        self,
        collection: Collection,
        train: Pairs,
        passage_ids: IdArray,
        *,
        terms: Terms = split_finely,
        weight: float | None = None,
        dev: float | None = None,
    ) -> None:
        """Count the terms of the training rows once.

        Args:
            collection: the texts.
            train: the rows.
            passage_ids: every passage that can be in a batch, ascending.
            terms: what is counted, from `terms_of`.
            weight: of what it teaches; left open if not given.
            dev: what BM25 reaches with these terms on the dev set; needed where the weight is left open.
        """
        self._asked, self.weight = weight is not None, BM25_WEIGHT if weight is None else weight
        self._dev = dev
        self._passage_ids, self._query_ids = passage_ids, np.unique(train.query_ids)
        self._finely = terms is split_finely
        index = WordIndex([collection.passages[passage] for passage in passage_ids.tolist()], terms)
        self._weights_DV = index.weights()
        self._counts_NV = index.counts([collection.queries[query] for query in self._query_ids.tolist()])
        asked = np.unique(np.linspace(0, len(train) - 1, ASKED).astype(np.int64))
        questions = [collection.queries[query] for query in train.query_ids[asked].tolist()]
        self.found = _found(index, questions, np.searchsorted(passage_ids, train.passage_ids[asked]))
        """Share of the training answers, of some spread over the rows, that BM25 finds among the first ten."""

    def teaches(self, best: float) -> bool:
        """Whether it is to teach a model that has reached so much on the dev set.

        A model that is far ahead of it would only be drawn back.
        """
        if self._asked or self._dev is None:
            return self._asked
        return self.found >= ENOUGH and 1 - self._dev <= AS_MUCH_MISSED * (1 - best)

    def facts(self, best: float) -> dict[str, Any]:
        """For `results.json`, of a phase before which the model has reached so much on the dev set."""
        return {
            "teaches": self.teaches(best),
            "weight": self.weight,
            "finely": self._finely,
            "finds": self.found,
            "dev": self._dev,
            "model": best,
        }

    def scores(self, batch: ContrastiveBatch) -> Tensor:
        """Of each row's question for each passage of the batch, fp32, (Q, P)."""
        counts = self._counts_NV[np.searchsorted(self._query_ids, batch.query_ids)]
        weights = self._weights_DV[np.searchsorted(self._passage_ids, batch.passage_ids)]
        scores = (counts @ weights.T).toarray().astype(np.float32)
        return torch.from_numpy(scores[batch.queries_Q])


def _found(index: WordIndex, questions: list[str], answers: IdArray) -> float:
    first = index.search(questions, FOUND_AMONG)
    is_answer_QK = first.ids_QK.numpy() == answers[:, None]
    return float((is_answer_QK & (first.scores_QK > 0).numpy()).any(axis=1).mean())
