"""Whether rows can be trained on, and which of their negatives are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from embedtune.data.collection import Collection, Pairs
from embedtune.errors import DataError, brief


def without_negatives(pairs: Pairs, qrels: Mapping[int, Mapping[int, float]]) -> Pairs:
    """The rows without the negatives that are known to answer their question, nor a teacher's scores of them."""
    kept = [
        [place for place, negative in enumerate(negatives) if negative not in qrels[query_id]]
        for query_id, negatives in zip(pairs.query_ids.tolist(), pairs.negative_ids, strict=True)
    ]
    scores = pairs.scores
    if scores is not None:
        scores = tuple(
            (given[0], *(given[1 + place] for place in places)) if given else ()
            for given, places in zip(scores, kept, strict=True)
        )
    negative_ids = tuple(
        tuple(negatives[place] for place in places) for negatives, places in zip(pairs.negative_ids, kept, strict=True)
    )
    return replace(pairs, negative_ids=negative_ids, scores=scores)


def check_trainable(pairs: Pairs, collection: Collection, source: str) -> None:
    """Checks that the loss has something to tell apart.

    Raises:
        DataError: there are no rows; of graded pairs, all have one grade; of others, there are fewer than two distinct
            passages, or no passage is wrong for a question.
    """
    if len(pairs) == 0:
        raise DataError(
            f"'{source}': no rows are left to train on. If its questions or passages are those of the test "
            f"file, give other rows to train on, or leave out --test to have a test split cut. If they only resemble "
            f"them, type:  --near-duplicates 0"
        )
    if collection.graded:
        check_graded(pairs, "to train on", source)
        return
    passages = set(pairs.passage_ids.tolist()).union(*pairs.negative_ids)
    if len(passages) < 2:
        text = collection.passages[passages.pop()]
        raise DataError(
            f"'{source}' has 1 distinct passage ('{brief(text)}'); contrastive training needs at least two "
            f"passages, one that answers a question and one that does not. Add rows with other passages."
        )
    if all(passages <= collection.qrels[query_id].keys() for query_id in set(pairs.query_ids.tolist())):
        raise DataError(
            f"'{source}': every one of its {len(passages)} passages answers every question, so there is no "
            f"wrong one to tell apart. Add rows with other questions and passages."
        )


def check_graded(pairs: Pairs, purpose: str, source: str) -> None:
    """Checks that some grades of graded pairs are higher than others.

    Raises:
        DataError: there are fewer than two different ones.
    """
    if pairs.grades is None or len(np.unique(pairs.grades)) < 2:
        raise DataError(
            f"'{source}': the {len(pairs):,} pairs {purpose} have fewer than two different grades; expected some that "
            "are higher than others. Give more pairs."
        )
