"""The batches that every runner trains on: made once, written to a file, read by each.

Only batches in which no text comes twice and no passage answers another row's question are taken. In those there is
nothing to merge and nothing to mask, so embedtune and its peers have the same texts to embed and the same loss.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from embedtune.data.batches import epoch_batches
from embedtune.data.clean import CollectionBuilder
from embedtune.data.collection import Collection, IdArray, Pairs
from embedtune.data.read import read
from embedtune.errors import DataError
from embedtune.training.batch import contrastive_batch

Row = tuple[str, str]
"""A question and its passage."""
Batch = list[Row]


def build_batches(source: str, *, batch_size: int, count: int, seed: int) -> list[Batch]:
    """`count` batches of exactly `batch_size` pairs of a file; pairs come again in a later epoch if they have to.

    Args:
        source: question/passage pairs in any form that `embedtune train` takes.
        batch_size: pairs in each batch.
        count: batches to make.
        seed: of their order.

    Raises:
        DataError: the file can't be read, or has too few pairs for a batch.
    """
    builder = CollectionBuilder()
    rows = builder.add(read(source))
    collection = builder.finish()
    return list(islice(endless_batches(rows.pairs, collection, batch_size=batch_size, seed=seed), count))


def endless_batches(pairs: Pairs, collection: Collection, *, batch_size: int, seed: int) -> Iterator[Batch]:
    """Batches of exactly `batch_size` pairs, epoch after epoch.

    Raises:
        DataError: there are too few pairs for a batch.
    """
    epoch = 0
    while True:
        found = epoch_of_batches(pairs, collection, batch_size=batch_size, seed=seed, epoch=epoch)
        epoch += 1
        if not found:
            raise DataError(
                f"{len(pairs):,} pairs give no batch of {batch_size} in which no text comes twice.\n"
                "Type a smaller --batch-size."
            )
        yield from found


def epoch_of_batches(pairs: Pairs, collection: Collection, *, batch_size: int, seed: int, epoch: int) -> list[Batch]:
    """The batches of one epoch: of exactly `batch_size` pairs, and with nothing to merge or mask."""
    full = len(pairs) // batch_size * batch_size
    if not full:
        return []
    order = epoch_batches(pairs.select(range(full)), batch_size=batch_size, seed=seed, epoch=epoch)
    return [_texts(rows, pairs, collection) for rows in order if _nothing_to_mask(rows, pairs, collection)]


def write_batches(batches: list[Batch], path: Path) -> None:
    """One batch a line."""
    path.write_text("".join(json.dumps(batch) + "\n" for batch in batches), encoding="utf-8")


def read_batches(path: str | Path) -> list[Batch]:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [[(anchor, positive) for anchor, positive in json.loads(line)] for line in lines]


def flatten(batches: list[Batch]) -> list[Row]:
    """The rows of all batches, in their order."""
    return list(chain.from_iterable(batches))


def _nothing_to_mask(rows: IdArray, pairs: Pairs, collection: Collection) -> bool:
    batch = contrastive_batch(pairs, rows, collection.qrels)
    hard_negatives = sum(len(pairs.negative_ids[row]) for row in rows)
    repeats = len(batch.query_ids) < len(rows) or len(batch.passage_ids) < len(rows) + hard_negatives
    return not repeats and batch.answers_2A.shape[1] == len(rows)


def _texts(rows: IdArray, pairs: Pairs, collection: Collection) -> Batch:
    return [(collection.queries[pairs.query_ids[row]], collection.passages[pairs.passage_ids[row]]) for row in rows]
