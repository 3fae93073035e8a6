"""Which passages may become negatives at all, and which never those of a certain question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np

from embedtune.data.collection import Collection, IdArray, Pairs
from embedtune.data.prepare import Splits
from embedtune.data.spelling import text_key

KNOWN_ANSWER = "known_answers"
NEAR_DUPLICATE = "near_duplicates"
SAME_TEXT = "same_as_question"


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The passages of the training rows, as ids of the collection, ascending."""

    passage_ids: IdArray
    """Positives and given negatives: what gets a score."""
    candidate_ids: IdArray
    """Those of them that may be mined."""


def training_pool(splits: Splits) -> Pool:
    """The passages of the training rows; those that answer a held-out question are no candidates.

    A given negative may be a held-out passage (`split.drop_leaks`). In its own row it says little; mined for many
    questions it would teach the model to push that passage away.
    """
    train = splits.train
    given = np.fromiter(chain.from_iterable(train.negative_ids), dtype=np.int64)
    passage_ids = np.unique(np.concatenate([train.passage_ids, given]))
    held_out = set(splits.dev.passage_ids.tolist()) | set(splits.test.passage_ids.tolist())
    for pairs in (splits.dev, splits.test):
        held_out.update(_answers(pairs, splits.collection.qrels))
    is_held_out = np.isin(passage_ids, np.fromiter(held_out, dtype=np.int64, count=len(held_out)))
    return Pool(passage_ids=passage_ids, candidate_ids=passage_ids[~is_held_out])


class Never:
    """The candidates that are never negatives of a question, and why."""

    def __init__(self, collection: Collection, candidate_ids: IdArray, leaders_D: IdArray | None) -> None:
        """Look for near-duplicates and equal texts once.

        Args:
            collection: the texts and what is known to answer what.
            candidate_ids: from a `Pool`.
            leaders_D: which passages of the collection are near-duplicates (`near.NearDuplicates`), if that is known.
        """
        self._collection, self._leaders_D = collection, leaders_D
        self._groups = {} if leaders_D is None else _groups(candidate_ids, leaders_D)
        self._by_text = {text_key(collection.passages[passage]): passage for passage in candidate_ids.tolist()}

    def of(self, query: int) -> dict[int, str]:
        """Passage id to the reason; passages that are no candidates may be among them."""
        answers = self._collection.qrels.get(query, {})
        never = dict.fromkeys(answers, KNOWN_ANSWER)
        for answer in answers if self._groups else ():
            assert self._leaders_D is not None
            for copy in self._groups.get(int(self._leaders_D[answer]), ()):
                never.setdefault(copy, NEAR_DUPLICATE)
        same = self._by_text.get(text_key(self._collection.queries[query]))
        if same is not None:
            never.setdefault(same, SAME_TEXT)
        return never


def _groups(candidate_ids: IdArray, leaders_D: IdArray) -> dict[int, list[int]]:
    """The leader of each group of near-duplicates to those of them that are candidates."""
    sizes_D = np.bincount(leaders_D)
    in_groups = candidate_ids[sizes_D[leaders_D[candidate_ids]] > 1]
    groups = defaultdict[int, list[int]](list)
    for passage, leader in zip(in_groups.tolist(), leaders_D[in_groups].tolist(), strict=True):
        groups[leader].append(passage)
    return dict(groups)


def _answers(pairs: Pairs, qrels: Mapping[int, Mapping[int, float]]) -> set[int]:
    """The passages that answer the rows' questions, whichever row says so."""
    return {passage for query in set(pairs.query_ids.tolist()) for passage in qrels.get(query, ())}
