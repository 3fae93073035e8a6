"""Which rows form a batch: every row once an epoch, and no passage or question twice in a batch where avoidable.

Sentence Transformers' duplicate-free sampler drops the rows it can't place, or shrinks its batches; here rows that
clash wait for a later batch, and the few left over at the end share one (the loss masks them, see `losses.infonce`).

Or the other way round, where passages have many questions: all of a passage's questions in one batch, in which it is
embedded once. Or, where hard negatives were mined, pairs that have one another's (`data.neighbours`).
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from embedtune.data.collection import IdArray, Pairs
from embedtune.data.neighbours import Links, neighbour_batches


def batches_per_epoch(rows: int, batch_size: int) -> int:
    """Batches that hold `rows` rows, at most `batch_size` each."""
    return math.ceil(rows / batch_size)


def epoch_batches(
    pairs: Pairs,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    passage_once: bool = False,
    links: Links | None = None,
) -> list[IdArray]:
    """Row numbers of each batch of one epoch: a function of its arguments alone, so that a run can be resumed.

    Batches differ in size by at most one row, so none is left with too few in-batch negatives.

    Args:
        pairs: the training rows.
        batch_size: rows in a batch at the most.
        seed: of the run.
        epoch: counted from 0; each epoch has its own order.
        passage_once: keep the rows of a passage together; those that a batch ends between are in two.
        links: of each row, its hard negatives; rows that are linked come together then.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(pairs))
    count = batches_per_epoch(len(pairs), batch_size)
    if passage_once:
        return np.array_split(_by_passage(order, pairs), count)
    sizes = [len(part) for part in np.array_split(order, count)]
    if links is not None:
        return neighbour_batches(pairs, links, sizes=sizes, seed=(seed, epoch))
    fresh, waiting = deque(order.tolist()), deque[int]()
    return [np.asarray(_fill(size, fresh, waiting, pairs), dtype=np.int64) for size in sizes]


class BatchOrder:
    """The batches of all epochs in one endless row: `order[n]` are the row numbers of the n-th batch."""

    def __init__(
        self, pairs: Pairs, *, batch_size: int, seed: int, passage_once: bool = False, first_epoch: int = 0
    ) -> None:
        self._first_epoch = first_epoch
        self._pairs, self._batch_size, self._seed, self._passage_once = pairs, batch_size, seed, passage_once
        self._links: Links | None = None
        self._epoch, self._batches = -1, list[IdArray]()

    def link(self, links: Links | None) -> None:
        """From now on rows with these hard negatives come together; without any, in a random order."""
        self._links, self._epoch = links, -1

    def __getitem__(self, number: int) -> IdArray:
        epoch, index = divmod(number, batches_per_epoch(len(self._pairs), self._batch_size))
        if epoch != self._epoch:
            self._batches = epoch_batches(
                self._pairs,
                batch_size=self._batch_size,
                seed=self._seed,
                epoch=self._first_epoch + epoch,
                passage_once=self._passage_once,
                links=self._links,
            )
            self._epoch = epoch
        return self._batches[index]

    def epochs_begun(self, batches: int) -> int:
        """Epochs that so many batches are from, the last one begun or done."""
        return math.ceil(batches / batches_per_epoch(len(self._pairs), self._batch_size))


def _by_passage(order: IdArray, pairs: Pairs) -> IdArray:
    """The rows in that order, except that those of a passage follow the first of them."""
    passages = pairs.passage_ids[order]
    _, first, inverse = np.unique(passages, return_index=True, return_inverse=True)
    return order[np.argsort(first[inverse], kind="stable")]


def _fill(size: int, fresh: deque[int], waiting: deque[int], pairs: Pairs) -> list[int]:
    """Take `size` rows, those that waited first; rows that clash with the batch wait for the next one."""
    batch: list[int] = []
    queries: set[int] = set()
    passages: set[int] = set()
    clashing: deque[int] = deque()
    while len(batch) < size and (waiting or fresh):
        row = waiting.popleft() if waiting else fresh.popleft()
        query, passage = int(pairs.query_ids[row]), int(pairs.passage_ids[row])
        if query in queries or passage in passages:
            clashing.append(row)
            continue
        batch.append(row)
        queries.add(query)
        passages.add(passage)
    while len(batch) < size:
        batch.append(clashing.popleft())
    waiting.extendleft(reversed(clashing))
    return batch
