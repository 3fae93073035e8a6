"""BM25 as a teacher: its scores of a batch are those of its search, and it says how much it knows."""

from __future__ import annotations

import numpy as np
import torch

from embedtune.data.collection import Collection, Pairs
from embedtune.retrieval.bm25 import bm25_search
from embedtune.training.batch import contrastive_batch
from embedtune.training.words import WordTeacher

PASSAGES = [
    "the cat sat on the mat",
    "nobody asks for this",
    "a dog barked at the cat and the dog barked again",
    "stock prices fell",
    "rain",
]
QUERIES = ["which cat sat", "unused", "did the dog bark at the dog", "zzz", "where does the rain fall"]


def teacher() -> tuple[WordTeacher, Pairs, Collection]:
    """Passage 1 is in no row; a question of unknown words, and one that comes twice."""
    qrels = {0: {0: 1.0, 2: 1.0}, 2: {2: 1.0}, 3: {3: 1.0}, 4: {4: 1.0}}
    collection = Collection(queries=QUERIES, passages=PASSAGES, qrels=qrels)
    pairs = Pairs(
        query_ids=np.array([4, 0, 2, 3, 0]),
        passage_ids=np.array([4, 0, 2, 3, 2]),
        negative_ids=((), (4,), (), (), ()),
        row_ids=tuple("abcde"),
    )
    return WordTeacher(collection, pairs, np.array([0, 2, 3, 4])), pairs, collection


def test_scores_are_those_of_the_search() -> None:
    words, pairs, collection = teacher()
    rows = np.array([4, 0, 3, 2])
    batch = contrastive_batch(pairs, rows, collection.qrels)
    found = words.scores(batch)
    corpus = [PASSAGES[passage] for passage in (0, 2, 3, 4)]
    whole = bm25_search([QUERIES[query] for query in pairs.query_ids[rows]], corpus, 4)
    places = [[0, 2, 3, 4].index(passage) for passage in batch.passage_ids]
    wanted = torch.zeros(4, 4).scatter(1, whole.ids_QK, whole.scores_QK)[:, places]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted)
    assert found[2].tolist() == [0.0] * len(batch.passage_ids)


def test_what_it_finds_is_a_share_of_the_answers() -> None:
    """All but the row whose question has no known word: with score zero nothing is found."""
    words, *_ = teacher()
    assert words.found == 4 / 5
