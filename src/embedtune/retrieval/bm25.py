"""The BM25 baseline: what a plain keyword search reaches on the same queries and passages.

Scoring is bm25s with its defaults (Lucene's formula, k1 1.5, b 0.75), and the words are those of its default
tokeniser: lower case, runs of two or more word characters, no stemming. Stop words stay in: their weight is
small anyway, and a list would be right for one language only. Nothing is tuned to the data.

Beyond ASCII three things are added, because without them the baseline would be far too weak to be fair: NFKC
(full-width digits, ligatures out of PDF files); combining marks as part of a word (Python's `\\w` leaves them
out, and Hindi words fall to pieces); overlapping pairs of characters in scripts written without spaces and in
Korean, whose particles stick to the word, as in Lucene's CJKAnalyzer.

`split_finely` is for another purpose, to teach a model: terms that find more, and that no search engine has by default.

Source: Kamphuis et al. 2020, "Which BM25 do you mean?" (the variants); Lù 2024, "BM25S" (the library); McNamee and
Mayfield 2004, "Character n-gram tokenization for European language text retrieval".

Shapes: `Q` queries, `D` passages, `K` results per query, `V` terms of the corpus.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from types import ModuleType
from typing import Any

import numpy as np
import torch
from scipy.sparse import csc_array, csr_array

from embedtune.retrieval.topk import TopK, top_k

Terms = Callable[[str], list[str]]
"""What of a text is counted, in order."""

_SCORES_PER_CHUNK = 2**22
_PART_LENGTH = 4
"""Characters of a part of a word; with 3 or 5 less is found."""

_ASCII_WORD = re.compile(r"\w\w+")
_PAIRED_SCRIPTS = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Myanmar, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # kana
    "\uac00-\ud7a3"  # Hangul
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "]+"
)


def tokenise(text: str) -> list[str]:
    """The words of a text as BM25 counts them, in order."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    # Runs first: NFKC would glue the letters of a trade mark sign to the word before it.
    runs = _word_pattern().findall(text)
    return [word for run in runs for word in _split_paired(unicodedata.normalize("NFKC", run).lower())]


def split_finely(text: str) -> list[str]:
    """The words of a text, each two that follow each other, and the overlapping parts of each word with its ends.

    So phrases count, and so do words in another form, whatever the language.
    """
    words = tokenise(text)
    pairs = [f"{first} {second}" for first, second in pairwise(words)]
    return [*words, *pairs, *chain.from_iterable(map(_parts, words))]


def bm25_search(
    queries: Sequence[str],
    corpus: Sequence[str],
    k: int,
    *,
    terms: Terms = tokenise,
    on_progress: Callable[[int], None] | None = None,
) -> TopK:
    """The `k` passages with the highest BM25 score for each query.

    A query without a word of the corpus gets score 0 everywhere and so the first `k` passages.

    Args:
        queries: Q texts, possibly empty ones.
        corpus: D texts, possibly empty ones. A passage's id is its position.
        k: Passages wanted per query; `K` is the smaller of `k` and `D`.
        terms: What of each text is counted.
        on_progress: Called with the number of queries done after each block of them.

    Raises:
        ValueError: `k` is below 1 or the corpus is empty.
    """
    return WordIndex(corpus, terms).search(queries, k, on_progress=on_progress)


class WordIndex:
    """A corpus, its words, or other terms, counted once, for more than one search."""

    def __init__(self, corpus: Sequence[str], terms: Terms = tokenise) -> None:
        self._size, self._terms = len(corpus), terms
        self._vocabulary: dict[str, int] = {}
        known = self._vocabulary
        corpus_token_ids = [[known.setdefault(term, len(known)) for term in terms(text)] for text in corpus]
        self._index = _build_index(corpus_token_ids, known) if known else None

    def search(self, queries: Sequence[str], k: int, *, on_progress: Callable[[int], None] | None = None) -> TopK:
        """As `bm25_search`, in this corpus."""
        query_token_ids = self._known_terms(queries)
        rows = max(1, _SCORES_PER_CHUNK // max(1, self._size))
        chunks = []
        for start in range(0, max(1, len(queries)), rows):
            block = query_token_ids[start : start + rows]
            chunks.append(top_k(_scores(self._index, block, self._size), k))
            if on_progress is not None:
                on_progress(len(block))
        return TopK(
            scores_QK=torch.cat([chunk.scores_QK for chunk in chunks]),
            ids_QK=torch.cat([chunk.ids_QK for chunk in chunks]),
        )

    def weights(self) -> csr_array:
        """What each term adds to each passage's score, (D, V); a text's score is the sum over its terms."""
        shape = self._size, len(self._vocabulary)
        if self._index is None:
            return csr_array(shape, dtype=np.float32)
        by_word = self._index.scores
        return csr_array(csc_array((by_word["data"], by_word["indices"], by_word["indptr"]), shape=shape))

    def counts(self, queries: Sequence[str]) -> csr_array:
        """How often each term of the corpus comes in each text, (Q, V)."""
        ids = self._known_terms(queries)
        rows = np.repeat(np.arange(len(ids)), [len(words) for words in ids])
        columns = np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=len(rows))
        ones = np.ones(len(rows), dtype=np.float32)
        return csr_array((ones, (rows, columns)), shape=(len(ids), len(self._vocabulary)))

    def _known_terms(self, texts: Sequence[str]) -> list[list[int]]:
        known = self._vocabulary
        return [[known[term] for term in self._terms(text) if term in known] for text in texts]


def _import_bm25s() -> ModuleType:
    """The library: only once it is needed, as it loads numba, which takes seconds, and without JAX.

    It would start JAX where that is installed, and JAX takes three quarters of a GPU's memory and keeps them.
    """
    if "jax" in sys.modules:
        return importlib.import_module("bm25s")
    sys.modules["jax"] = None  # type: ignore[assignment]  # to import it is an ImportError then
    try:
        return importlib.import_module("bm25s")
    finally:
        del sys.modules["jax"]


def _build_index(corpus_token_ids: list[list[int]], vocabulary: dict[str, int]) -> Any:
    """The bm25s index; bm25s has no types."""
    bm25s = _import_bm25s()
    # bm25s sets its logger to DEBUG, so its messages would show in any program that logs at all.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75, backend="numpy")
    index.index((corpus_token_ids, vocabulary), create_empty_token=False, show_progress=False)
    return index


def _scores(index: Any, query_token_ids: Sequence[list[int]], corpus_size: int) -> torch.Tensor:
    """BM25 scores of some queries for every passage, fp32, (Q, D); zeros if the corpus has no words."""
    scores_QD = torch.zeros(len(query_token_ids), corpus_size)
    if index is not None:
        for row, token_ids in zip(scores_QD, query_token_ids, strict=True):
            row.copy_(torch.from_numpy(index.get_scores_from_ids(token_ids)))
    return scores_QD


@functools.lru_cache(maxsize=2**16)
def _parts(word: str) -> tuple[str, ...]:
    """A space at each end tells a part that a word begins or ends with from one in its middle."""
    whole = f" {word} "
    return tuple(whole[i : i + _PART_LENGTH] for i in range(max(1, len(whole) - _PART_LENGTH + 1)))


def _split_paired(run: str) -> list[str]:
    """Overlapping pairs of characters in the paired scripts; other words of two or more whole."""
    words: list[str] = []
    end = 0
    for match in _PAIRED_SCRIPTS.finditer(run):
        words.append(run[end : match.start()])
        characters = match.group()
        words += [characters[i : i + 2] for i in range(max(1, len(characters) - 1))]
        end = match.end()
    words.append(run[end:])
    return [word for word in words if len(word) > 1 or _PAIRED_SCRIPTS.match(word)]


@functools.cache
def _word_pattern() -> re.Pattern[str]:
    """Runs of word characters and combining marks; built at the first text that needs it (0.2 s)."""
    beyond_ascii = map(chr, range(0x80, sys.maxunicode + 1))
    marks = "".join(char for char in beyond_ascii if unicodedata.category(char).startswith("M"))
    return re.compile(f"[\\w{marks}]+")
