"""Batches of pairs whose passages are hard negatives of one another's questions.

A mined negative is a training passage, and so the positive of another pair. In one batch the two are each other's
negatives, and no passage has to be embedded that is not some row's positive. Batches of similar rows are known from
TAS-B (Hofstaetter et al. 2021, "topic aware sampling"), which clusters the questions; here the links are those that
mining found.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from embedtune.data.collection import IdArray, Pairs

Links = Sequence[Sequence[int]]
"""Of each row, the passages that are hard negatives of it, the hardest first."""


def neighbour_batches(pairs: Pairs, links: Links, *, sizes: Sequence[int], seed: tuple[int, ...]) -> list[IdArray]:
    """Every row once, in batches of the given sizes; each grows from a drawn row along the links.

    Next comes always the row with the strongest links to those that are in the batch, either way; the link to the r-th
    hard negative of a row counts 1 / r. Where none is left to follow, another row is drawn. Rows whose question or
    passage is in the batch already wait for a later one, where that can be.

    Args:
        pairs: the training rows.
        links: of each row.
        sizes: rows of each batch, which come in another order; their sum is the number of rows.
        seed: of all that is drawn.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.permutation(len(pairs)).tolist()
    growing = _Growing(pairs, links)
    batches = [growing.batch(size, drawn) for size in sizes]
    generator.shuffle(batches)
    return batches


def share_together(batches: Sequence[IdArray], pairs: Pairs, links: Links, *, nearest: int) -> float:
    """Of the rows' `nearest` hardest negatives, the share that are positives of their batches; 0 if there are none."""
    together = linked = 0
    for batch in batches:
        here = set(pairs.passage_ids[batch].tolist())
        for row in batch.tolist():
            wanted = links[row][:nearest]
            linked += len(wanted)
            together += len(here.intersection(wanted))
    return together / linked if linked else 0.0


class _ByPassage:
    """Values, or rows of values, by the passage that each belongs to, in arrays: there may be millions."""

    def __init__(self, passages: IdArray, values: IdArray) -> None:
        order = np.argsort(passages, kind="stable")
        self._values = values[order]
        self._ends = np.cumsum(np.bincount(passages)) if len(passages) else passages

    def __getitem__(self, passage: int) -> list[Any]:
        """The values of that passage in their order; none of one that has none."""
        if passage >= len(self._ends):
            return []
        first = self._ends[passage - 1] if passage else 0
        values: list[Any] = self._values[first : self._ends[passage]].tolist()
        return values


class _Growing:
    """The rows that are in no batch yet, and how a batch grows from them."""

    def __init__(self, pairs: Pairs, links: Links) -> None:
        self.is_free = [True] * len(pairs)
        self._queries, self._passages, self._links = pairs.query_ids.tolist(), pairs.passage_ids.tolist(), links
        rows = np.arange(len(pairs))
        self._rows_of = _ByPassage(pairs.passage_ids, rows)
        counts = [len(passages) for passages in links]
        linked = np.fromiter(chain.from_iterable(links), dtype=np.int64, count=sum(counts))
        ranks = np.fromiter(chain.from_iterable(map(range, counts)), np.int64, len(linked)) + 1
        self._linking = _ByPassage(linked, np.column_stack([np.repeat(rows, counts), ranks]))

    def batch(self, size: int, drawn: list[int]) -> IdArray:
        """Take `size` free rows.

        Args:
            size: of the batch; there are as many free rows.
            drawn: all free rows, and others, in the order in which they are drawn from its end on. Those that are
                passed over, as they clash with the batch, are put back.
        """
        rows: list[int] = []
        queries, passages = set[int](), set[int]()
        strength = defaultdict[int, float](float)
        strongest: list[tuple[float, int]] = []
        clashing: list[int] = []
        while len(rows) < size:
            row = self._strongest(strongest, strength, queries, passages)
            if row is None:
                row = self._drawn(drawn, clashing, queries, passages)
            rows.append(row)
            self.is_free[row] = False
            queries.add(self._queries[row])
            passages.add(self._passages[row])
            for other, weight in self._neighbours(row):
                if self.is_free[other]:
                    strength[other] += weight
                    heapq.heappush(strongest, (-strength[other], other))
        drawn.extend(row for row in reversed(clashing) if self.is_free[row])
        return np.asarray(rows, dtype=np.int64)

    def _neighbours(self, row: int) -> list[tuple[int, float]]:
        """Rows that a row is linked to, and those linked to it."""
        ahead = [
            (other, 1 / rank)
            for rank, passage in enumerate(self._links[row], start=1)
            for other in self._rows_of[passage]
        ]
        return ahead + [(other, 1 / rank) for other, rank in self._linking[self._passages[row]]]

    def _strongest(
        self, strongest: list[tuple[float, int]], strength: dict[int, float], queries: set[int], passages: set[int]
    ) -> int | None:
        """The free row that is linked best to the batch and does not clash with it."""
        while strongest:
            negative, row = heapq.heappop(strongest)
            up_to_date = -negative == strength[row]
            if up_to_date and self.is_free[row] and not self._clashes(row, queries, passages):
                return row
        return None

    def _drawn(self, drawn: list[int], clashing: list[int], queries: set[int], passages: set[int]) -> int:
        """The next drawn row that does not clash with the batch, or if all do, the first of them."""
        while drawn:
            row = drawn.pop()
            if not self.is_free[row]:
                continue
            if not self._clashes(row, queries, passages):
                return row
            clashing.append(row)
        return next(row for row in clashing if self.is_free[row])

    def _clashes(self, row: int, queries: set[int], passages: set[int]) -> bool:
        return self._queries[row] in queries or self._passages[row] in passages
