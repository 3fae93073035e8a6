"""BM25 as a teacher: its scores of a batch are those of its search, and it says how much it knows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedtune.data.collection import Collection, Pairs
from embedtune.retrieval.bm25 import Terms, bm25_search, split_finely, tokenise
from embedtune.training.batch import contrastive_batch
from embedtune.training.words import WordTeacher, terms_of

PASSAGES = [
    "the cat sat on the mat",
    "nobody asks for this",
    "a dog barked at the cat and the dog barked again",
    "stock prices fell",
    "rain",
]
QUERIES = ["which cat sat", "unused", "did the dog bark at the dog", "zzz", "where does the rain fall"]


def teacher(
    *, terms: Terms = split_finely, weight: float | None = None, dev: float = 0.7
) -> tuple[WordTeacher, Pairs, Collection]:
    """Passage 1 is in no row; a question of unknown words, and one that comes twice."""
    qrels = {0: {0: 1.0, 2: 1.0}, 2: {2: 1.0}, 3: {3: 1.0}, 4: {4: 1.0}}
    collection = Collection(queries=QUERIES, passages=PASSAGES, qrels=qrels)
    pairs = Pairs(
        query_ids=np.array([4, 0, 2, 3, 0]),
        passage_ids=np.array([4, 0, 2, 3, 2]),
        negative_ids=((), (4,), (), (), ()),
        row_ids=tuple("abcde"),
    )
    words = WordTeacher(collection, pairs, np.array([0, 2, 3, 4]), terms=terms, weight=weight, dev=dev)
    return words, pairs, collection


@pytest.mark.parametrize("terms", [tokenise, split_finely])
def test_scores_are_those_of_the_search(terms: Terms) -> None:
    words, pairs, collection = teacher(terms=terms)
    rows = np.array([4, 0, 3, 2])
    batch = contrastive_batch(pairs, rows, collection.qrels)
    found = words.scores(batch)
    corpus = [PASSAGES[passage] for passage in (0, 2, 3, 4)]
    whole = bm25_search([QUERIES[query] for query in pairs.query_ids[rows]], corpus, 4, terms=terms)
    places = [[0, 2, 3, 4].index(passage) for passage in batch.passage_ids]
    wanted = torch.zeros(4, 4).scatter(1, whole.ids_QK, whole.scores_QK)[:, places]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted)
    assert found[2].tolist() == [0.0] * len(batch.passage_ids)


def test_parts_of_words_are_counted_while_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert terms_of(PASSAGES) is split_finely
    monkeypatch.setattr("embedtune.training.words.FINELY", sum(map(len, PASSAGES)) - 1)
    assert terms_of(PASSAGES) is tokenise
    assert not teacher(terms=terms_of(PASSAGES))[0].facts(0.5)["finely"]


def test_what_it_finds_is_a_share_of_the_answers() -> None:
    """All but the row whose question has no known word: with score zero nothing is found."""
    words, *_ = teacher()
    assert words.found == 4 / 5


def test_it_teaches_a_model_that_is_not_far_ahead_of_it() -> None:
    words, *_ = teacher(dev=0.7)
    assert [words.teaches(best) for best in (0.2, 0.7, 0.82, 0.83, 1.0)] == [True, True, True, False, False]
    told = {"weight": 0.3, "finely": True, "finds": 0.8, "dev": 0.7, "model": 0.86}
    assert words.facts(0.86) == {"teaches": False, **told}


def test_it_teaches_if_it_is_told_to() -> None:
    words, *_ = teacher(weight=0.5, dev=0.1)
    assert words.teaches(1.0)
    assert words.weight == 0.5


def test_it_does_not_teach_where_it_finds_less_than_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedtune.training.words._found", lambda *_: 0.49)
    words, *_ = teacher(dev=0.9)
    assert not words.teaches(0.1)
