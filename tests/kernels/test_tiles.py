"""How a packed batch is cut into tiles."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from embedtune.kernels.attention import packed_layout, tiles
from embedtune.kernels.attention.tiles import Blocks, Table

SMALL = Table({4: Blocks(4, 1), 8: Blocks(4, 1)}, (6, Blocks(4, 1)))


@pytest.mark.parametrize(
    "lengths",
    [(1,), (4, 4, 4), (1, 3, 4, 5, 8, 9, 12, 13, 30), (30, 1, 9, 8, 2)],
    ids=["one", "equal", "sorted", "not"],
)
def test_every_token_is_in_one_tile(lengths: tuple[int, ...]) -> None:
    layout = packed_layout(lengths)
    starts = layout.cu_seqlens.tolist()
    sequences = set(pairwise(starts))
    seen: list[int] = []
    for part in tiles.cut(layout, SMALL):
        for first, stop, sequence, sequence_stop in part.bounds_N4.tolist():
            assert (sequence, sequence_stop) in sequences
            assert sequence <= first < stop <= min(sequence_stop, first + part.size)
            assert part.whole == (sequence_stop - sequence <= 8)
            if part.whole:
                assert (first, stop) == (sequence, sequence_stop)
                assert part.size == (4 if stop - first <= 4 else 8)
            seen += range(first, stop)
    assert sorted(seen) == list(range(sum(lengths)))


def test_the_longest_come_first() -> None:
    (part,) = tiles.cut(packed_layout((5, 8, 6, 7)), SMALL)
    assert [stop - first for first, stop, *_ in part.bounds_N4.tolist()] == [8, 7, 6, 5]


def test_a_layout_is_cut_once() -> None:
    layout = packed_layout((3, 20))
    assert tiles.cut(layout, SMALL) is tiles.cut(layout, SMALL)
    other = Table({32: Blocks(16, 1)}, SMALL.cut)
    assert [part.size for part in tiles.cut(layout, other)] == [32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tables", [tiles.FORWARD, tiles.BACKWARD], ids=["forward", "backward"])
@pytest.mark.parametrize("head_size", [1, 16, 33, 64, 80, 256])
def test_there_is_a_table_for_every_head_size(
    head_size: int, tables: dict[tuple[bool, int], Table], dtype: torch.dtype
) -> None:
    table = tiles.table(tables, dtype, head_size)
    sizes = [*table.whole, table.cut[0]]
    assert list(table.whole) == sorted(table.whole)
    for number in (*sizes, *(blocks.step for blocks in (*table.whole.values(), table.cut[1]))):
        assert number in (16, 32, 64, 128, 256)  # what Triton's products take


def test_large_tiles_are_for_devices_with_the_memory() -> None:
    table = tiles.table(tiles.BACKWARD, torch.bfloat16, 64)
    assert tiles.within(table, 227 * 1024, 64, 2) == table
    assert max(tiles.within(table, 99 * 1024, 64, 2).whole) == 128
    assert tiles.within(table, 0, 64, 2) == Table({}, table.cut)
