"""Splits that no passage crosses, and the files they are saved in.

Shapes: `N` rows.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from embedtune.atomic import replacing
from embedtune.data.collection import Collection, IdArray, Pairs
from embedtune.errors import ConfigError, DataError, OutputError

MAX_OVERSHOOT = 1.5
"""A group that would make the held-out side larger than this many times its target is left out of it."""


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """What training rows had in common with the rows held out, before they were left out."""

    pairs: int = 0
    """Training rows left out because they share a question or a passage with a held-out row."""
    near_duplicates: int = 0
    """Further ones left out because their passage is a near-duplicate of a held-out one."""
    test_passages: int = 0
    """Distinct passages of the test rows that were in the training rows."""
    test_queries: int = 0
    """Distinct questions of the test rows that were in the training rows."""


def connected_groups(pairs: Pairs, leaders_D: IdArray | None = None, *, sentences: bool = False) -> IdArray:
    """The group number of each row, shape (N,): rows that share a question or a positive are in one group.

    Sharing is transitive: two rows with nothing in common are in one group if a third one links them.

    Args:
        pairs: N rows.
        leaders_D: a number for each passage of the collection; those with the same count as one passage
            (`near.NearDuplicates`). By default each is its own.
        sentences: whether both ids of a row are of one list of sentences (`Collection.sentences`).
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if len(pairs) == 0:
        return np.zeros(0, dtype=np.int64)
    queries_N, positives_N = _leading(pairs, leaders_D, sentences=sentences)
    # Numbers of the one kind and of the other never meet, unless both are of sentences.
    offset = 0 if sentences else int(queries_N.max()) + 1
    ends, places = np.unique(np.concatenate([queries_N, positives_N + offset]), return_inverse=True)
    query_nodes, passage_nodes = np.split(places, 2)
    links = coo_array((np.ones(len(pairs)), (query_nodes, passage_nodes)), shape=(len(ends), len(ends)))
    _, group_of_node = connected_components(links, directed=False)
    groups: IdArray = group_of_node[query_nodes].astype(np.int64)
    return groups


def _leading(pairs: Pairs, leaders_D: IdArray | None, *, sentences: bool) -> tuple[IdArray, IdArray]:
    """The two ids of each row, those of passages, or of both if they are sentences, by what they count as."""
    if leaders_D is None:
        return pairs.query_ids, pairs.passage_ids
    return leaders_D[pairs.query_ids] if sentences else pairs.query_ids, leaders_D[pairs.passage_ids]


def split_by_passage(
    pairs: Pairs, *, fraction: float, seed: int, leaders_D: IdArray | None = None, sentences: bool = False
) -> tuple[Pairs, Pairs]:
    """Cuts rows off so that no question and no positive is on both sides.

    Whole groups (see `connected_groups`) are held out in a random order until they make up the fraction.

    Args:
        pairs: The rows to split, shape (N,).
        fraction: Share of the rows to hold out, between 0 and 1.
        seed: Of the random order; the same rows and seed give the same split.
        leaders_D: Which passages count as one, as in `connected_groups`.
        sentences: As there.

    Returns:
        The rest and the held-out rows, neither empty, each in the original order.

    Raises:
        ConfigError: the fraction isn't between 0 and 1.
        DataError: the rows can't be split, since most of them hang together.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"Received {fraction} as the share of rows to hold out; expected more than 0 and below 1.")
    groups = connected_groups(pairs, leaders_D, sentences=sentences)
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


def drop_leaks(
    train: Pairs,
    *held_out: Pairs,
    leaders_D: IdArray | None = None,
    qrels: Mapping[int, Mapping[int, float]] | None = None,
    sentences: bool = False,
) -> tuple[Pairs, Leaks]:
    """The training rows that have nothing in common with the held-out rows, and what the others had.

    Hard negatives may be passages of the held-out rows: a negative says that the passage does *not* answer a
    training question, and nothing of the held-out question that it does answer.

    Args:
        train: The rows to train on; the result may be empty (see `trainable.check_trainable`).
        held_out: The test rows, the dev rows; of the first of them the shared texts are counted.
        leaders_D: Which passages count as one, as in `connected_groups`.
        qrels: All passages that answer a question; those of held-out questions are held out too, whichever row they
            come from. By default just the rows' own.
        sentences: As in `connected_groups`; shared sentences are counted as passages then.
    """
    if sentences:
        return _drop_shared_sentences(train, held_out, leaders_D)
    shared_N, near_N = (np.zeros(len(train), dtype=np.bool_) for _ in range(2))
    for pairs in held_out:
        passages = np.append(pairs.passage_ids, _answers(pairs, qrels or {}))
        shared_N |= np.isin(train.query_ids, pairs.query_ids) | np.isin(train.passage_ids, passages)
        if leaders_D is not None:
            near_N |= np.isin(leaders_D[train.passage_ids], leaders_D[passages])
    leaks = Leaks(
        pairs=int(shared_N.sum()),
        near_duplicates=int((near_N & ~shared_N).sum()),
        test_passages=len(np.intersect1d(train.passage_ids, held_out[0].passage_ids)) if held_out else 0,
        test_queries=len(np.intersect1d(train.query_ids, held_out[0].query_ids)) if held_out else 0,
    )
    return train.select(np.flatnonzero(~(shared_N | near_N))), leaks


def _drop_shared_sentences(train: Pairs, held_out: Sequence[Pairs], leaders_D: IdArray | None) -> tuple[Pairs, Leaks]:
    """As `drop_leaks`, of pairs without roles."""
    ends_2N = np.stack([train.query_ids, train.passage_ids])
    held = [np.concatenate([pairs.query_ids, pairs.passage_ids]) for pairs in held_out]
    out = np.concatenate([*held, np.zeros(0, dtype=np.int64)])
    shared_N = np.isin(ends_2N, out).any(axis=0)
    near_N = shared_N if leaders_D is None else np.isin(leaders_D[ends_2N], leaders_D[out]).any(axis=0)
    leaks = Leaks(
        pairs=int(shared_N.sum()),
        near_duplicates=int((near_N & ~shared_N).sum()),
        test_passages=len(np.intersect1d(ends_2N, held[0])) if held else 0,
    )
    return train.select(np.flatnonzero(~(shared_N | near_N))), leaks


def _answers(pairs: Pairs, qrels: Mapping[int, Mapping[int, float]]) -> IdArray:
    """The passages that answer the rows' questions."""
    passages = {passage for query in set(pairs.query_ids.tolist()) for passage in qrels.get(query, ())}
    return np.fromiter(passages, dtype=np.int64, count=len(passages))


def write_pairs(path: Path, pairs: Pairs, collection: Collection) -> None:
    """Writes rows as JSON Lines with `id`, `anchor`, `positive`, `negative_1` ..., which `read` takes.

    Graded pairs get their `score`, and sentences the names `sentence1` and `sentence2`; what a teacher has scored gets
    its `scores`.

    The file appears whole or not at all; it is packed if its name ends in `.gz`.

    Raises:
        OutputError: it can't be written.
    """
    try:
        with replacing(path) as unfinished, _text_file(unfinished, packed=path.suffix == ".gz") as stream:
            for row in range(len(pairs)):
                stream.write(json.dumps(_texts(pairs, row, collection), ensure_ascii=False) + "\n")
    except OSError as error:
        raise OutputError(
            f"'{path}' can't be written: {error.strerror or error}. "
            f"Make room, or type --out with a folder that can be written to."
        ) from error


@contextmanager
def _text_file(path: Path, *, packed: bool) -> Iterator[TextIO]:
    """A file to write text to; a packed one has no name or time in it, so the same rows give the same bytes."""
    with ExitStack() as files:
        stream: io.BufferedWriter | gzip.GzipFile = files.enter_context(open(path, "wb"))
        if packed:
            stream = files.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0))
        yield files.enter_context(io.TextIOWrapper(stream, encoding="utf-8", newline="\n"))


def _texts(pairs: Pairs, row: int, collection: Collection) -> dict[str, Any]:
    first, second = ("sentence1", "sentence2") if collection.sentences else ("anchor", "positive")
    texts: dict[str, Any] = {
        "id": pairs.row_ids[row],
        first: collection.queries[pairs.query_ids[row]],
        second: collection.passages[pairs.passage_ids[row]],
    }
    negatives = {
        f"negative_{number}": collection.passages[passage_id]
        for number, passage_id in enumerate(pairs.negative_ids[row], 1)
    }
    grade = {} if pairs.grades is None else {"score": float(pairs.grades[row])}
    scores = {"scores": list(pairs.scores[row])} if pairs.scores and pairs.scores[row] else {}
    return texts | negatives | grade | scores
