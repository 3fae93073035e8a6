"""Batches of linked rows: every row once, and those together that the links say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtune.data.batches import BatchOrder, epoch_batches
from embedtune.data.collection import IdArray, Pairs
from embedtune.data.neighbours import neighbour_batches, share_together
from tests.data.test_batches import as_lists, clashes, pairs_of

ROWS = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), min_size=1, max_size=60, unique=True)


def sizes_of(rows: int, batch_size: int) -> list[int]:
    return [len(part) for part in np.array_split(np.arange(rows), -(-rows // batch_size))]


def naive_batches(pairs: Pairs, links: Sequence[Sequence[int]], sizes: Sequence[int], seed: int) -> list[list[int]]:
    """All free rows are looked at for each place of a batch."""
    generator = np.random.default_rng((seed,))
    drawn = list(reversed(generator.permutation(len(pairs)).tolist()))
    queries, passages = pairs.query_ids.tolist(), pairs.passage_ids.tolist()

    def linked(one: int, other: int) -> list[float]:
        return [1 / (1 + links[one].index(passages[other]))] if passages[other] in links[one] else []

    batches = []
    free = set(drawn)
    for size in sizes:
        batch = list[int]()
        while len(batch) < size:
            fitting = {
                row
                for row in free
                if queries[row] not in {queries[r] for r in batch} and passages[row] not in {passages[r] for r in batch}
            }
            strength = {
                row: sum(sum((*linked(r, row), *linked(row, r))) for r in batch)
                for row in fitting
                if any(linked(r, row) or linked(row, r) for r in batch)
            }
            if strength:
                row = max(strength, key=lambda row: (round(strength[row], 9), -row))
            else:
                row = next((row for row in drawn if row in fitting), next(row for row in drawn if row in free))
            free.remove(row)
            batch.append(row)
        batches.append(batch)
    generator.shuffle(batches)
    return batches


@given(rows=ROWS, batch_size=st.integers(1, 20), data=st.data(), seed=st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_each_batch_grows_by_the_row_with_the_strongest_links(
    rows: list[tuple[int, int]], batch_size: int, data: st.DataObject, seed: int
) -> None:
    pairs = pairs_of(rows)
    # Powers of two as ranks: their shares add up without rounding, so ties are ties.
    passage = st.lists(st.integers(0, 25), max_size=2, unique=True)
    links = [data.draw(passage) for _ in rows]
    sizes = sizes_of(len(rows), batch_size)
    assert as_lists(neighbour_batches(pairs, links, sizes=sizes, seed=(seed,))) == naive_batches(
        pairs, links, sizes, seed
    )


@given(rows=ROWS, batch_size=st.integers(1, 20), data=st.data())
@settings(deadline=None, max_examples=60)
def test_every_row_once_in_batches_of_one_size(
    rows: list[tuple[int, int]], batch_size: int, data: st.DataObject
) -> None:
    pairs = pairs_of(rows)
    links = [data.draw(st.lists(st.integers(0, 30), max_size=5)) for _ in rows]
    batches = epoch_batches(pairs, batch_size=batch_size, seed=0, epoch=1, links=links)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(pairs)))
    assert sorted(map(len, batches)) == sorted(sizes_of(len(rows), batch_size))


def families(count: int, size: int) -> tuple[Pairs, list[list[int]]]:
    """Rows of which `size` each are one another's hard negatives, the rows of a family far apart."""
    pairs = pairs_of([(row, row) for row in range(count * size)])
    return pairs, [
        [other for other in range(row % count, count * size, count) if other != row] for row in range(len(pairs))
    ]


def test_families_of_hard_negatives_stay_together() -> None:
    pairs, links = families(count=12, size=8)
    batches = epoch_batches(pairs, batch_size=8, seed=0, epoch=0, links=links)
    assert all(len({row % 12 for row in batch.tolist()}) == 1 for batch in batches)
    assert share_together(batches, pairs, links, nearest=2) == 1
    shuffled = epoch_batches(pairs, batch_size=8, seed=0, epoch=0)
    assert share_together(shuffled, pairs, links, nearest=2) < 0.2
    pairs_of_families = epoch_batches(pairs, batch_size=16, seed=0, epoch=0, links=links)
    assert all(len({row % 12 for row in batch.tolist()}) == 2 for batch in pairs_of_families)


def test_the_share_counts_the_nearest_ones_that_are_there() -> None:
    pairs = pairs_of([(row, 10 + row) for row in range(4)])
    links = [[11, 12], [13], [], [12, 10]]
    batches: list[IdArray] = [np.array([0, 1]), np.array([2, 3])]
    assert share_together(batches, pairs, links, nearest=2) == 2 / 5
    assert share_together(batches, pairs, links, nearest=1) == 2 / 3
    assert share_together(batches, pairs, [[]] * 4, nearest=2) == 0


def test_rows_of_one_passage_are_in_different_batches() -> None:
    pairs = pairs_of([(row, row // 3) for row in range(300)])
    links = [[(row // 3 + step) % 100 for step in (1, 2, 3)] for row in range(300)]
    batches = neighbour_batches(pairs, links, sizes=sizes_of(300, 20), seed=(0,))
    assert sum(clashes(batch, pairs) for batch in batches) <= 3 * 20, "but for the last batches"
    assert share_together(batches, pairs, links, nearest=1) > 0.7


def test_an_order_may_be_linked_and_unlinked() -> None:
    pairs, links = families(count=6, size=8)
    order = BatchOrder(pairs, batch_size=8, seed=1, first_epoch=2)
    shuffled = order[0].tolist()
    order.link(links)
    wanted = as_lists(epoch_batches(pairs, batch_size=8, seed=1, epoch=2, links=links))
    assert [order[number].tolist() for number in range(6)] == wanted
    assert order[7].tolist() == epoch_batches(pairs, batch_size=8, seed=1, epoch=3, links=links)[1].tolist()
    order.link(None)
    assert order[0].tolist() == shuffled


@pytest.mark.timeout(60)
@pytest.mark.parametrize("of", [lambda row: (row, 0), lambda row: (0, row)], ids=["one passage", "one question"])
def test_degenerate_data_still_gives_whole_batches(of: object) -> None:
    assert callable(of)
    pairs = pairs_of([of(row) for row in range(1_000)])
    batches = neighbour_batches(pairs, [[0, 1, 2]] * 1_000, sizes=sizes_of(1_000, 64), seed=(0,))
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(1_000))


@pytest.mark.timeout(60)
def test_many_linked_pairs_are_ordered_in_seconds() -> None:
    pairs = pairs_of([(row, row) for row in range(50_000)])
    links = np.random.default_rng(0).integers(0, 50_000, (50_000, 16)).tolist()
    batches = neighbour_batches(pairs, links, sizes=sizes_of(50_000, 128), seed=(0,))
    assert sum(map(len, batches)) == 50_000
