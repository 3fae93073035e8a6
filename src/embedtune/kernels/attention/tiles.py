"""How a packed batch is cut into tiles, of which each program of a Triton kernel takes one; and the block sizes.

A sequence that fits a tile is computed whole, in one pass; a longer one is cut into tiles of the same size.

Shapes: `B` sequences, `N` tiles.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedtune.kernels.attention.layout import PackedLayout
from embedtune.kernels.transfer import to_device

Bounds = npt.NDArray[np.int64]
"""Packed tokens, pairs of first and one past the last."""


class Blocks(NamedTuple):
    """How a program computes its tile."""

    step: int
    """Keys, or rows, that one round of its loop takes."""
    warps: int
    stages: int = 1
    """Rounds whose loads are under way at a time."""


class Table(NamedTuple):
    """The tile sizes of a pass and how each is computed."""

    whole: dict[int, Blocks]
    """For whole sequences, by the tokens that fit: each goes to the smallest tile that holds it."""
    cut: tuple[int, Blocks]
    """For the parts of those that fit none of them."""


class PlannedTiles(NamedTuple):
    """`Tiles` before they are on the device."""

    size: int
    blocks: Blocks
    whole: bool
    bounds_N4: npt.NDArray[np.int32]


class Tiles(NamedTuple):
    """Tiles of one size, those of the longest sequences first: they take longest, and none is left over at the end."""

    size: int
    blocks: Blocks
    whole: bool
    """Each is a whole sequence."""
    bounds_N4: Tensor
    """First and one past the last packed token of the tile and of its sequence, int32."""


FORWARD = {
    (True, 32): Table({16: Blocks(16, 1), 32: Blocks(32, 1)}, (64, Blocks(64, 4, 3))),
    (True, 64): Table({16: Blocks(16, 1), 32: Blocks(32, 2)}, (64, Blocks(64, 4, 3))),
    (True, 128): Table({16: Blocks(16, 2), 32: Blocks(32, 4)}, (64, Blocks(64, 4, 2))),
    (True, 256): Table({16: Blocks(16, 4), 32: Blocks(32, 4)}, (64, Blocks(32, 8, 2))),
    (False, 32): Table({16: Blocks(16, 1), 32: Blocks(32, 4)}, (64, Blocks(32, 4))),
    (False, 64): Table({16: Blocks(16, 2), 32: Blocks(32, 4)}, (64, Blocks(32, 8))),
    (False, 128): Table({16: Blocks(16, 4)}, (32, Blocks(32, 4))),
    (False, 256): Table({16: Blocks(16, 4)}, (32, Blocks(16, 8))),
}
"""By whether the dtype is half precision, and the head size up to which it is so."""

BACKWARD = {
    (True, 32): Table({16: Blocks(16, 1), 32: Blocks(32, 2), 128: Blocks(64, 4)}, (64, Blocks(64, 4, 2))),
    (True, 64): Table(
        {16: Blocks(16, 2), 32: Blocks(32, 2), 64: Blocks(64, 4), 128: Blocks(32, 4)}, (64, Blocks(64, 4, 2))
    ),
    (True, 128): Table(
        {16: Blocks(16, 2), 32: Blocks(32, 4), 64: Blocks(64, 4), 128: Blocks(64, 8)}, (64, Blocks(64, 8))
    ),
    (True, 256): Table({16: Blocks(16, 4), 32: Blocks(32, 4), 64: Blocks(32, 8)}, (32, Blocks(32, 8))),
    (False, 32): Table(
        {16: Blocks(16, 1), 32: Blocks(32, 4), 64: Blocks(32, 4), 128: Blocks(32, 8)}, (32, Blocks(32, 4))
    ),
    (False, 64): Table({16: Blocks(16, 2), 32: Blocks(32, 4), 64: Blocks(32, 8)}, (32, Blocks(32, 4))),
    (False, 128): Table({16: Blocks(16, 4), 32: Blocks(32, 8)}, (32, Blocks(32, 8))),
    (False, 256): Table({16: Blocks(16, 4)}, (16, Blocks(16, 4))),
}
"""As `FORWARD`, for the backward pass. In half precision up to head size 64 they are the best of a sweep on an H100."""


def table(tables: dict[tuple[bool, int], Table], dtype: torch.dtype, head_size: int) -> Table:
    """The one of `FORWARD` or `BACKWARD` for this dtype and head size."""
    half = dtype.itemsize == 2
    return tables[half, min(size for kind, size in tables if kind == half and size >= head_size)]


def within(sizes: Table, shared_bytes: int, head_size: int, itemsize: int) -> Table:
    """The table without the whole tiles of the backward pass that need more shared memory than the device has.

    Such a tile keeps queries and output gradients there, each in two layouts, a block of keys and of values, and the
    gradients of their scores: within a tenth of what Triton 3.6 compiles for Ampere, Ada and Hopper.
    """

    def fits(size: int, step: int) -> bool:
        return (size * (4 * head_size + step) + 2 * step * head_size) * itemsize <= shared_bytes

    return Table({size: blocks for size, blocks in sizes.whole.items() if fits(size, blocks.step)}, sizes.cut)


def cut(layout: PackedLayout, sizes: Table) -> tuple[Tiles, ...]:
    """The tiles of every sequence, by size; copied to the device at once, and kept with the layout."""
    key = _key(sizes)
    if key not in layout.kept:
        layout.kept[key] = _cut(layout, sizes)
    tiles: tuple[Tiles, ...] = layout.kept[key]
    return tiles


def keep(layout: PackedLayout, sizes: Table, tiles: Sequence[Tiles]) -> None:
    """Let `cut` find these tiles, which cover more batches than the layout's own."""
    layout.kept[_key(sizes)] = tuple(tiles)


def _key(sizes: Table) -> Hashable:
    return tuple(sizes.whole.items()), sizes.cut


def _cut(layout: PackedLayout, sizes: Table) -> tuple[Tiles, ...]:
    kinds = plan(np.asarray(layout.lengths), sizes)
    together_N4 = np.concatenate([kind.bounds_N4 for kind in kinds])
    there = torch.split(
        to_device(torch.from_numpy(together_N4), layout.device), [len(kind.bounds_N4) for kind in kinds]
    )
    made = [Tiles(*kind[:3], bounds_N4) for kind, bounds_N4 in zip(kinds, there, strict=True)]
    return tuple(tiles for tiles in made if len(tiles.bounds_N4))


def plan(lengths_B: npt.NDArray[np.integer[Any]], sizes: Table) -> list[PlannedTiles]:
    """The tiles of every size of the table, in its order, even where there are none; on the host.

    Args:
        lengths_B: tokens of each of the B sequences, in packed order.
        sizes: of the tiles.
    """
    bounds_B2 = np.stack([np.cumsum(lengths_B) - lengths_B, np.cumsum(lengths_B)], axis=1)
    order_B = np.argsort(-lengths_B, kind="stable")
    lengths_B, bounds_B2 = lengths_B[order_B], bounds_B2[order_B]
    kinds, smallest = [], 0
    for size, blocks in sorted(sizes.whole.items()):
        bounds_N2 = bounds_B2[(lengths_B > smallest) & (lengths_B <= size)]
        kinds.append((size, blocks, True, np.concatenate([bounds_N2, bounds_N2], axis=1)))
        smallest = size
    kinds.append((*sizes.cut, False, _parts(bounds_B2[lengths_B > smallest], sizes.cut[0])))
    return [PlannedTiles(*kind[:3], kind[3].astype(np.int32)) for kind in kinds]


def _parts(bounds_B2: Bounds, size: int) -> Bounds:
    """The tiles of B sequences, each cut every `size` tokens, shape (N, 4)."""
    counts_B = -(-(bounds_B2[:, 1] - bounds_B2[:, 0]) // size)
    sequences_N2 = np.repeat(bounds_B2, counts_B, axis=0)
    part_N = np.arange(counts_B.sum()) - np.repeat(np.cumsum(counts_B) - counts_B, counts_B)
    first_N = sequences_N2[:, 0] + part_N * size
    stop_N = np.minimum(first_N + size, sequences_N2[:, 1])
    return np.concatenate([first_N[:, None], stop_N[:, None], sequences_N2], axis=1)
