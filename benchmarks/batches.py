"""The batches that every runner trains on: made once, written to a file, read by each.

Only batches in which no text comes twice and no passage answers another row's question are taken. In those there is
nothing to merge and nothing to mask, so embedtune and its peers have the same texts to embed and the same loss.
"""

from __future__ import annotations

import json
from itertools import chain, islice
from pathlib import Path

from embedtune.data.batches import epoch_batches
from embedtune.data.clean import CollectionBuilder
from embedtune.data.collection import Collection, IdArray, Pairs
from embedtune.data.read import read
from embedtune.errors import DataError
from embedtune.training.contrastive import contrastive_batch

Row = tuple[str, str]
"""A question and its passage."""
Batch = list[Row]


def build_batches(source: str, *, batch_size: int, count: int, seed: int) -> list[Batch]:
    """`count` batches of exactly `batch_size` pairs of a file.

    Args:
        source: question/passage pairs in any form that `embedtune train` takes.
        batch_size: pairs in each batch.
        count: batches to make.
        seed: of their order.

    Raises:
        DataError: the file can't be read, or has too few pairs for so many batches.
    """
    builder = CollectionBuilder()
    rows = builder.add(read(source))
    collection, pairs = builder.finish(), rows.pairs
    full = len(pairs) // batch_size * batch_size
    found: list[IdArray] = []
    if full:
        order = epoch_batches(pairs.select(range(full)), batch_size=batch_size, seed=seed, epoch=0)
        found = list(islice((rows for rows in order if _nothing_to_mask(rows, pairs, collection)), count))
    if len(found) < count:
        raise DataError(
            f"'{source}': {len(pairs):,} pairs give {len(found)} batches of {batch_size} in which no text comes "
            f"twice, expected {count} (one of them for the warm-up).\nType a smaller --batch-size or fewer --steps."
        )
    return [_texts(rows, pairs, collection) for rows in found]


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
    return not repeats and int(batch.answers_QP.sum()) == len(rows)


def _texts(rows: IdArray, pairs: Pairs, collection: Collection) -> Batch:
    return [(collection.queries[pairs.query_ids[row]], collection.passages[pairs.passage_ids[row]]) for row in rows]
