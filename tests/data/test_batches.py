"""Every row once an epoch, and no passage or question twice in a batch where that can be avoided."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtune.data.batches import BatchOrder, batches_per_epoch, epoch_batches
from embedtune.data.collection import IdArray, Pairs


def pairs_of(links: Sequence[tuple[int, int]]) -> Pairs:
    return Pairs(
        query_ids=np.array([query for query, _ in links], dtype=np.int64),
        passage_ids=np.array([passage for _, passage in links], dtype=np.int64),
        negative_ids=((),) * len(links),
        row_ids=tuple(f"r{row}" for row in range(len(links))),
    )


def clashes(batch: IdArray, pairs: Pairs) -> int:
    """Rows too many for their questions and passages to be distinct."""
    queries, passages = np.unique(pairs.query_ids[batch]), np.unique(pairs.passage_ids[batch])
    return 2 * len(batch) - len(queries) - len(passages)


def as_lists(batches: Sequence[IdArray]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


@given(
    links=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=120, unique=True),
    batch_size=st.integers(1, 40),
    epoch=st.integers(0, 3),
    passage_once=st.booleans(),
)
@settings(deadline=None)
def test_every_row_once_in_batches_of_one_size(
    links: list[tuple[int, int]], batch_size: int, epoch: int, passage_once: bool
) -> None:
    pairs = pairs_of(links)
    batches = epoch_batches(pairs, batch_size=batch_size, seed=0, epoch=epoch, passage_once=passage_once)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(pairs)))
    assert len(batches) == batches_per_epoch(len(pairs), batch_size)
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("share", [2, 3, 5])
def test_rows_of_one_passage_are_spread_over_batches(share: int) -> None:
    """`share` questions to a passage, one question with two passages: room enough to keep them all apart."""
    pairs = pairs_of([(row // 2 * 2, row // share) for row in range(600)])
    total = 0
    for epoch in range(3):
        batches = epoch_batches(pairs, batch_size=32, seed=0, epoch=epoch)
        counts = [clashes(batch, pairs) for batch in batches]
        assert sum(counts[:-2]) == 0
        total += sum(counts)
    shuffled = np.array_split(np.random.default_rng(0).permutation(600), len(batches))
    assert total < 3 * sum(clashes(batch, pairs) for batch in shuffled) / 4


def test_a_function_of_seed_and_epoch() -> None:
    pairs = pairs_of([(row, row // 2) for row in range(100)])
    first = as_lists(epoch_batches(pairs, batch_size=16, seed=1, epoch=4))
    assert as_lists(epoch_batches(pairs, batch_size=16, seed=1, epoch=4)) == first
    assert as_lists(epoch_batches(pairs, batch_size=16, seed=2, epoch=4)) != first
    assert as_lists(epoch_batches(pairs, batch_size=16, seed=1, epoch=5)) != first


def test_order_gives_any_batch_of_any_epoch() -> None:
    """As a resumed run asks for it: from the middle, without the batches before."""
    pairs = pairs_of([(row, row) for row in range(50)])
    order = BatchOrder(pairs, batch_size=16, seed=3)
    wanted = [
        batch for epoch in range(3) for batch in as_lists(epoch_batches(pairs, batch_size=16, seed=3, epoch=epoch))
    ]
    assert [order[number].tolist() for number in range(12)] == wanted
    fresh = BatchOrder(pairs, batch_size=16, seed=3)
    assert [fresh[number].tolist() for number in (9, 2, 5)] == [wanted[9], wanted[2], wanted[5]]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "links",
    [
        [(row, 0) for row in range(1000)],
        [(0, row) for row in range(1000)],
        [(row, 0 if row < 1000 else row) for row in range(20_000)],
    ],
    ids=["one passage", "one question", "one passage among many"],
)
def test_degenerate_data_still_gives_whole_batches(links: list[tuple[int, int]]) -> None:
    pairs = pairs_of(links)
    batches = epoch_batches(pairs, batch_size=64, seed=0, epoch=0)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(pairs)))
    assert {len(batch) for batch in batches} <= {62, 63, 64}


@pytest.mark.timeout(60)
def test_many_pairs_are_ordered_in_seconds() -> None:
    """Several questions to a passage, as language models write them."""
    pairs = pairs_of([(row, row // 4) for row in range(200_000)])
    batches = epoch_batches(pairs, batch_size=128, seed=0, epoch=0)
    assert sum(clashes(batch, pairs) for batch in batches[:-3]) == 0


def test_a_passage_is_in_one_batch_with_all_its_questions_if_that_is_asked_for() -> None:
    pairs = pairs_of([(row, row // 4) for row in range(800)])
    batches = epoch_batches(pairs, batch_size=64, seed=0, epoch=0, passage_once=True)
    spread = sum(len(np.unique(pairs.passage_ids[batch])) for batch in batches)
    assert spread <= 200 + len(batches)  # one at each end of a batch may be in two
    again = epoch_batches(pairs, batch_size=64, seed=0, epoch=1, passage_once=True)
    assert as_lists(again) != as_lists(batches)
    order = BatchOrder(pairs, batch_size=64, seed=0, passage_once=True)
    assert order[len(batches)].tolist() == again[0].tolist()
