"""Splits that no passage crosses, and the files they are saved in.

Shapes: `N` rows.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from embedtune.atomic import replacing
from embedtune.data.collection import Collection, IdArray, Pairs
from embedtune.errors import ConfigError, DataError, OutputError

MAX_OVERSHOOT = 1.5
"""A group that would make the held-out side larger than this many times its target is left out of it."""


def connected_groups(pairs: Pairs) -> IdArray:
    """The group number of each row, shape (N,): rows that share a question or a positive are in one group.

    Sharing is transitive: two rows with nothing in common are in one group if a third one links them.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if len(pairs) == 0:
        return np.zeros(0, dtype=np.int64)
    queries, query_nodes = np.unique(pairs.query_ids, return_inverse=True)
    passages, passage_nodes = np.unique(pairs.passage_ids, return_inverse=True)
    nodes = len(queries) + len(passages)
    links = coo_array((np.ones(len(pairs)), (query_nodes, passage_nodes + len(queries))), shape=(nodes, nodes))
    _, group_of_node = connected_components(links, directed=False)
    groups: IdArray = group_of_node[query_nodes].astype(np.int64)
    return groups


def split_by_passage(pairs: Pairs, *, fraction: float, seed: int) -> tuple[Pairs, Pairs]:
    """Cuts rows off so that no question and no positive is on both sides.

    Whole groups (see `connected_groups`) are held out in a random order until they make up the fraction.

    Args:
        pairs: The rows to split, shape (N,).
        fraction: Share of the rows to hold out, between 0 and 1.
        seed: Of the random order; the same rows and seed give the same split.

    Returns:
        The rest and the held-out rows, neither empty, each in the original order.

    Raises:
        ConfigError: the fraction isn't between 0 and 1.
        DataError: the rows can't be split, since most of them hang together.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"Received {fraction} as the share of rows to hold out; expected more than 0 and below 1.")
    groups = connected_groups(pairs)
    sizes = np.bincount(groups)
    order = np.random.default_rng(seed).permutation(len(sizes))
    target = max(1.0, fraction * len(pairs))
    taken: list[int] = []
    held_out = 0
    for group in order.tolist():
        larger = held_out + int(sizes[group])
        if held_out >= target:
            break
        if larger <= MAX_OVERSHOOT * target and larger < len(pairs):
            taken.append(group)
            held_out = larger
    if not taken:
        taken = [_smallest_group(sizes, order, target)]
    is_held_out = np.isin(groups, taken)
    return pairs.select(np.flatnonzero(~is_held_out)), pairs.select(np.flatnonzero(is_held_out))


def _smallest_group(sizes: IdArray, order: IdArray, target: float) -> int:
    """The smallest group, for few rows of which every group overshoots, if it is at most half of them."""
    rows = int(sizes.sum())
    if rows == 0 or 2 * int(sizes.min()) > rows:
        largest = int(sizes.max()) if rows else 0
        raise DataError(
            f"No split of about {target:.0f} of {rows} rows can be cut: {largest} of them hang together "
            f"through shared questions or passages, and a passage must not be on both sides. "
            f"Type:  --test FILE  with rows about other passages."
        )
    return int(order[np.argmin(sizes[order])])


def drop_leaks(train: Pairs, *held_out: Pairs) -> tuple[Pairs, int]:
    """The training rows that share no question and no positive with the held-out rows, and how many others.

    Hard negatives may be passages of the held-out rows: a negative says that the passage does *not* answer a
    training question, and nothing of the held-out question that it does answer.

    Args:
        train: The rows to train on; the result may be empty (see `clean.check_trainable`).
        held_out: The test rows, the dev rows.
    """
    leaks = np.zeros(len(train), dtype=np.bool_)
    for pairs in held_out:
        leaks |= np.isin(train.query_ids, pairs.query_ids) | np.isin(train.passage_ids, pairs.passage_ids)
    return train.select(np.flatnonzero(~leaks)), int(leaks.sum())


def write_pairs(path: Path, pairs: Pairs, collection: Collection) -> None:
    """Writes rows as JSON Lines with `id`, `anchor`, `positive`, `negative_1` ..., which `read` takes.

    The file appears whole or not at all.

    Raises:
        OutputError: it can't be written.
    """
    try:
        with replacing(path) as unfinished, open(unfinished, "w", encoding="utf-8", newline="\n") as stream:
            for row in range(len(pairs)):
                stream.write(json.dumps(_texts(pairs, row, collection), ensure_ascii=False) + "\n")
    except OSError as error:
        raise OutputError(
            f"'{path}' can't be written: {error.strerror or error}. "
            f"Make room, or type --out with a folder that can be written to."
        ) from error


def _texts(pairs: Pairs, row: int, collection: Collection) -> dict[str, str]:
    texts = {
        "id": pairs.row_ids[row],
        "anchor": collection.queries[pairs.query_ids[row]],
        "positive": collection.passages[pairs.passage_ids[row]],
    }
    negatives = {
        f"negative_{number}": collection.passages[passage_id]
        for number, passage_id in enumerate(pairs.negative_ids[row], 1)
    }
    return texts | negatives
